"""Cleaning: which steps run, and what of a text they see."""

import sys

import pytest

from data_prep.reading import cleaning
from data_prep.reading.cleaning import (
    BAD_TEXT,
    DEFAULT_STEPS,
    STEPS,
    Cleaner,
    Cleaning,
    parse_steps,
)
from gpt1_ds.base.errors import ConfigError


def test_names_of_the_steps():
    assert STEPS == ("gutenberg", "unwrap", "detokenize", "ftfy", "nfkc", "lower")
    assert DEFAULT_STEPS == ("gutenberg", "unwrap", "ftfy")
    assert BAD_TEXT == ("mend", "drop", "refuse") and Cleaning({}).bad_text == "mend"


def test_the_first_unknown_step_is_named():
    with pytest.raises(
        ConfigError, match="--clean zzz,ftfi,lower: no step 'ftfi'; did you mean 'ftfy'"
    ):
        parse_steps(["zzz,ftfi,lower"], ["a"])
    with pytest.raises(ConfigError, match="--clean zzz: no step 'zzz'; choose from: .*, none, "):
        parse_steps(["zzz"], ["a"])


def test_steps_of_one_corpus_come_before_those_of_all():
    assert parse_steps(["a=lower", "none"], ["a", "b"]) == {"a": ("lower",), "b": ()}
    assert parse_steps(["none", "a=lower", "nfkc"], ["a", "b"]) == {"a": ("lower",), "b": ("nfkc",)}
    assert parse_steps(["a=b=lower"], ["a=b"]) == {"a=b": ("lower",)}


def test_detokenizing_needs_its_library_from_the_start(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacremoses", None)
    cleaning._detokenizer.cache_clear()
    assert parse_steps(["lower"], ["a"]) == {"a": ("lower",)}
    with pytest.raises(ConfigError, match="--clean detokenize needs sacremoses: pip install"):
        parse_steps(["b=detokenize"], ["a", "b"])


def test_versions_of_the_libraries_that_are_used():
    def versions(*steps: str) -> set[str]:
        return set(Cleaning({"a": (), "b": steps}).record()["versions"])

    assert versions() == versions("lower", "unwrap", "gutenberg") == set()
    assert versions("nfkc") == {"unicode"} and versions("ftfy", "nfkc") == {"ftfy", "unicode"}
    assert versions("detokenize") == {"sacremoses"}


def clean(text: str, *steps: str, wrapped: bool = True, first: bool = True) -> str:
    return Cleaner(steps, wrapped)(text, first)


def test_line_ends():
    assert clean("a\r\nb\rc\n\r\nd") == "a\nb\nc\nd"
    assert clean("a\r\n\r\nb\rc", "unwrap") == "a\nb c"


def test_ftfy_alone_and_beside_other_steps_does_the_same():
    for text in ("“a”\n\nschÃ¶n &amp; b", "é è", "\u00e9", "x\u00e9y", "a\u00e9", "ﬁ…"):
        alone = clean(text, "unwrap", "ftfy")
        assert clean(alone, "lower") == clean(text, "unwrap", "ftfy", "lower")


def test_detokenizing_leaves_entities_to_ftfy():
    assert clean("tom &amp; jerry , he said", "detokenize") == "tom &amp; jerry, he said"
    assert clean("tom &amp; jerry , he said", "detokenize", "ftfy") == "tom & jerry, he said"


def test_steps_for_wrapped_files_alone():
    text = "a\nb\n*** END OF THE PROJECT GUTENBERG EBOOK ***\nc"
    assert clean(text, "gutenberg", "unwrap") == "a b"
    assert clean(text, "gutenberg") == "a\nb"
    whole = "a\nb\n*** END OF THE PROJECT GUTENBERG EBOOK ***\nc"
    assert clean(text, "gutenberg", "unwrap", wrapped=False) == whole


def test_a_header_is_looked_for_in_the_first_piece_alone():
    text = "head\n*** START OF THIS PROJECT GUTENBERG EBOOK X ***\n\nbody"
    assert clean(text, "gutenberg", "unwrap") == "body"
    assert clean(text, "gutenberg", "unwrap", first=False).startswith("head")
    assert clean("by GUTENBERG himself", "gutenberg") == "by GUTENBERG himself"
    assert clean("of Gutenberg's press", "gutenberg") == "of Gutenberg's press"
