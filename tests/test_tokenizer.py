"""Tests of gpt1_ds/tokenizer.py and data_prep/train_tokenizer.py."""

import random
from pathlib import Path

import ftfy
import pytest

from data_prep.train_tokenizer import CHUNK_CHARACTERS, main
from gpt1_ds.errors import ConfigError, DataError
from gpt1_ds.tokenizer import CONTROL_PIECES, Tokenizer, load_tokenizer, normalize

WORDS = "a bold old sailor told the crew of a cold night, when 42 ships lay at anchor and nobody slept".split()


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus that uses the control pieces' names as often as any word."""
    rng = random.Random(0)
    words = [*WORDS, *CONTROL_PIECES, "$", "<e>,", "x<s>y"]
    lines = [" ".join(rng.choice(words) for _ in range(12)) for _ in range(3000)]
    path = tmp_path_factory.mktemp("text") / "story.txt"
    path.write_text("\n\n".join(lines))
    return path


@pytest.fixture(scope="module")
def folder(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tok")
    main(["--corpus", f"a={text_file}", "--vocab-size", "380", "--out", str(out)])
    return out


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)


def test_control_pieces_have_fixed_ids(tokenizer: Tokenizer) -> None:
    assert tokenizer.special_ids == {"pad": 0, "s": 1, "e": 2, "delim": 3, "eot": 4}
    assert tokenizer.kind == "sentencepiece" and tokenizer.vocab_size == 380
    assert len(tokenizer.fallback_ids) == 256


@pytest.mark.parametrize("text", [*CONTROL_PIECES, "$", "<unk>", "told <e> of<eot>the $ <s>night", "<pad><pad>"])
def test_no_text_becomes_a_control_piece(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids and min(ids) > max(tokenizer.special_ids.values())
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    "text", ["naïve ☃ 龍", "tab\tand\n\nlines", "\u2581 meta", "ﬁne", "\x00", "🙂🙂", "x" * 100_000, ""]
)
def test_every_text_encodes_and_comes_back_normalised(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    again = tokenizer.decode(ids)
    assert all(4 < i < tokenizer.vocab_size and i != 5 for i in ids)  # 5 is <unk>
    assert tokenizer.encode(again) == ids


def test_case_and_compatibility_forms_are_folded_by_the_model(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("The ＯＬＤ\n  Sailor") == tokenizer.encode("the old sailor")


def test_lines_encode_to_the_ids_of_the_whole_text(tokenizer: Tokenizer, text_file: Path) -> None:
    text = normalize(text_file.read_text())
    pieces = tokenizer.encode_batch(text.split("\n"))
    assert tokenizer.encode(text) == [token for ids in pieces for token in ids]


def test_decode_skips_control_ids(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the crew slept")
    assert tokenizer.decode([1, *ids[:2], 3, *ids[2:], 2, 4, 0]) == "the crew slept"


def test_model_is_reproducible(text_file: Path, folder: Path, tmp_path: Path) -> None:
    main(["--corpus", f"a={text_file}", "--vocab-size", "380", "--out", str(tmp_path)])
    for name in ("tokenizer.model", "preparation.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_sample_is_bounded_and_seeded(text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--corpus", f"a={text_file}", "--vocab-size", "350", "--sample-bytes", "40000"]
    for out, seed in (("one", "1"), ("two", "1"), ("other", "2")):
        main([*options, "--seed", seed, "--out", str(tmp_path / out)])
    one, two, other = (load_tokenizer(tmp_path / name).sha256 for name in ("one", "two", "other"))
    assert one == two != other
    assert "pieces from 0.0 MB" in capsys.readouterr().out


def test_a_long_line_is_learned_from(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("zebra crossing " * 20 * CHUNK_CHARACTERS)
    main(["--corpus", f"a={tmp_path / 'long.txt'}", "--vocab-size", "287", "--out", str(tmp_path)])
    assert len(load_tokenizer(tmp_path).encode("zebra crossing")) == 2


@pytest.mark.parametrize("pieces, advice", [(100, "use at least"), (30_000, "use at most")])
def test_impossible_vocabulary_names_the_limit(folder: Path, text_file: Path, tmp_path: Path, pieces, advice) -> None:
    options = ["--corpus", f"a={text_file}", "--out", str(tmp_path / "tok"), "--vocab-size"]
    with pytest.raises(ConfigError, match=f"--vocab-size {pieces}: .*{advice}") as raised:
        main([*options, str(pieces)])
    limit = int(str(raised.value).split()[-1])
    assert not (tmp_path / "tok").exists()
    main([*options, str(limit)])
    assert load_tokenizer(tmp_path / "tok").vocab_size == limit


def test_copy_is_the_same_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.copy_to(tmp_path / "copy")
    assert [path.name for path in (tmp_path / "copy").iterdir()] == tokenizer.files
    assert load_tokenizer(tmp_path / "copy").sha256 == tokenizer.sha256


def test_missing_or_damaged_tokenizer(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such tokenizer.*train_tokenizer"):
        load_tokenizer(tmp_path)
    model = (folder / "tokenizer.model").read_bytes()
    for damaged in (b"", b"junk" * 100, model[:1000]):
        (tmp_path / "tokenizer.model").write_bytes(damaged)
        with pytest.raises(DataError, match="tokenizer.model"):
            load_tokenizer(tmp_path)


def test_normalize_joins_hard_wrapped_lines() -> None:
    text = "One hard-\nwrapped  line.\r\n\r\n \t\r\nNext\tone.\n"
    assert normalize(text) == "One hard- wrapped line.\nNext one."
    assert normalize("one\ntwo\n\nthree", unwrap=False) == "one\ntwo\nthree"
    assert normalize(" \n\n\t") == ""


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
        "plain ~ text!",
    ],
)
def test_normalize_mends_as_ftfy_does(text: str) -> None:
    assert normalize(text) == " ".join(ftfy.fix_text(text).split())


def test_shortcut_around_ftfy_changes_no_real_paragraph(shared_data: Path) -> None:
    book = shared_data / "books" / "valid" / "Burroughs_Edgar_Rice__The_Monster_Men.txt"
    paragraphs = book.read_text().split("\n\n")
    assert normalize("\n\n".join(paragraphs)) == "\n".join(
        line for line in (" ".join(ftfy.fix_text(paragraph).split()) for paragraph in paragraphs) if line
    )
