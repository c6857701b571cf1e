"""Tests of data_prep/reading/cleaning.py: what each step does, and how `--clean` chooses them."""

from pathlib import Path

import ftfy
import pytest

from data_prep.reading.cleaning import DEFAULT_STEPS, STEPS, Cleaner, Cleaning, parse_steps
from gpt1_ds.base.errors import ConfigError

FRAME = """The Project Gutenberg EBook of A Book, by A. Writer

*** START OF THE PROJECT GUTENBERG EBOOK A BOOK, OR
HOW IT BEGAN ***

The story.

*** END OF THE PROJECT GUTENBERG EBOOK A BOOK ***
Licence, donations."""


def clean(text: str, *steps: str, wrapped: bool = True) -> str:
    return Cleaner(steps, wrapped)(text, True)


def test_hard_wrapped_lines_are_joined() -> None:
    text = "One hard-\nwrapped  line.\r\n\r\n \t\r\nNext\tone.\n"
    assert clean(text, *DEFAULT_STEPS) == "One hard- wrapped line.\nNext one."
    assert clean("one\rtwo\n\nthree", *DEFAULT_STEPS, wrapped=False) == "one\ntwo\nthree"
    assert clean("one\ntwo\n\nthree") == "one\ntwo\nthree"
    assert clean(" \n\n\t", *DEFAULT_STEPS) == ""


@pytest.mark.parametrize(
    "text",
    [
        "“It’s”—he said… ‘so’–so",
        "schÃ¶n",
        "a &amp; b",
        "&lt;e&gt;",
        "cafe\u0301",
        "\x1b[31mred\x1b[0m",
        "ﬂ‚‛„",
        "plain ~!",
    ],
)
def test_ftfy_mends(text: str) -> None:
    assert clean(text, "unwrap", "ftfy") == " ".join(ftfy.fix_text(text).split())


def test_shortcut_around_ftfy_changes_no_real_paragraph(shared_data: Path) -> None:
    book = shared_data / "books" / "valid" / "Burroughs_Edgar_Rice__The_Monster_Men.txt"
    text = book.read_text()
    lines = [" ".join(ftfy.fix_text(paragraph).split()) for paragraph in text.split("\n\n")]
    assert clean(text, *DEFAULT_STEPS) == "\n".join(line for line in lines if line)


def test_nfkc_and_lower_case() -> None:
    assert clean("Ａ Ⅳ ﬁN", "nfkc") == "A IV fiN"
    assert clean("Ａ Ⅳ ﬁN", "nfkc", "lower") == "a iv fin"
    assert clean("“Ａ & B”…", "ftfy", "lower") == '"a & b"…'
    assert clean("It’s SO", "lower") == "it’s so"


@pytest.mark.parametrize(
    "tokenised, plain",
    [  # as in 1B Word, then as in BooksCorpus
        (
            "But now , it 's looking like Reps who won 't talk .",
            "But now, it's looking like Reps who won't talk.",
        ),
        ('He said : " Yes , $ 2,900 ( a month ) . "', 'He said: "Yes, $2,900 (a month)."'),
        ("`` i do n't know , '' he said .", '"i don\'t know," he said.'),
        ("tom &amp; jerry", "tom & jerry"),
    ],
)
def test_tokenised_text_is_detokenised(tokenised: str, plain: str) -> None:
    assert clean(tokenised, "detokenize", "ftfy", wrapped=False) == plain
    twice = clean(f"{tokenised}\n{tokenised}", "detokenize", "ftfy", wrapped=False)
    assert twice == f"{plain}\n{plain}"


@pytest.mark.parametrize(
    "text",
    [
        FRAME,
        "Legal.\n*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*\n\n\n"
        "The story.\n\n\nEnd of The Project Gutenberg Etext of A Book\nmore",
    ],
)
def test_gutenberg_frame_is_removed(text: str) -> None:
    assert clean(text, *DEFAULT_STEPS) == "The story."
    assert "Gutenberg" in clean(text, "unwrap")
    assert clean(text, "gutenberg", wrapped=False) != "The story."
    cleaner = Cleaner(DEFAULT_STEPS, wrapped=True)
    middle = text.index("story")
    parts = [
        cleaner(text[:middle], True),
        cleaner(text[middle:], False),
        cleaner("More licence.", False),
    ]
    assert parts == ["The", "story.", ""]
    assert cleaner("Next book.", True) == "Next book."


def test_options_choose_steps() -> None:
    default = dict.fromkeys(("a", "b"), DEFAULT_STEPS)
    assert parse_steps([], ["a", "b"]) == default
    assert parse_steps(["b=lower,detokenize"], ["a", "b"]) == default | {
        "b": ("detokenize", "lower")
    }
    assert parse_steps(["b=none", "lower"], ["a", "b"]) == {"a": ("lower",), "b": ()}
    with pytest.raises(ConfigError, match="--clean lowr: no step 'lowr'; did you mean 'lower'"):
        parse_steps(["lowr"], ["a"])
    with pytest.raises(ConfigError, match="--clean c=lower: no --corpus c=PATH"):
        parse_steps(["c=lower"], ["a"])
    record = Cleaning(parse_steps(["b=ftfy,detokenize", "a=none"], ["a", "b"])).record()
    assert record["steps"] == {"a": [], "b": ["detokenize", "ftfy"]}
    assert set(record["versions"]) == {"ftfy", "sacremoses"}
    assert set(DEFAULT_STEPS) < set(STEPS)
