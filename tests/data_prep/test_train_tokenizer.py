"""Tests of data_prep/train_tokenizer.py. More are in tests/data/test_tokenizer.py."""

import gzip
import random
import re
from pathlib import Path

import pytest
import sentencepiece

from data_prep import train_tokenizer
from data_prep.train_tokenizer import main
from gpt1_ds.base.errors import ConfigError, DataError
from gpt1_ds.data.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = random.Random(0)
    words = (
        "in 1999 The sailor saw 42nd street and 1999b ships of 1066 old Cold gold 7 told".split()
    )
    path = tmp_path_factory.mktemp("text") / "story.txt"
    path.write_text("\n\n".join(" ".join(rng.choices(words, k=12)) for _ in range(2000)))
    return path


def trained(text: Path, out: Path, *options: str) -> sentencepiece.SentencePieceProcessor:
    main(["--corpus", f"a={text}", "--vocab-size", "360", "--out", str(out), *options])
    return sentencepiece.SentencePieceProcessor(model_file=str(out / "tokenizer.model"))


def test_digits_are_apart_from_letters_and_no_piece_crosses_white_space(
    text: Path, tmp_path: Path
) -> None:
    model = trained(text, tmp_path)
    ids = range(model.vocab_size())
    pieces = [model.id_to_piece(i) for i in ids if not (model.is_byte(i) or model.is_control(i))]
    assert not [p for p in pieces if re.search(r"\d", p) and re.search(r"[^\W\d_]", p)]
    assert not [p for p in pieces if "\u2581" in p[1:]]
    assert [p for p in pieces if re.search(r"\d.*\d", p)]  # years are pieces
    assert model.encode("a  sailor\t\nsaw ") == model.encode("a sailor saw")


def test_files_that_are_not_read_are_told(text: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "story.txt").write_bytes(text.read_bytes())
    (folder / "book.txt").write_bytes(gzip.compress(bytes(range(256)) * 9))
    (folder / "notes.pdf").write_bytes(b"%PDF-")
    trained(folder, tmp_path / "tok")
    told = capsys.readouterr().out.splitlines()[0]
    assert told == "passed over: 1 other_format, 1 binary (notes.pdf, book.txt)"


@pytest.mark.parametrize(
    "rule, nfkc, lower",
    [("nmt_nfkc_cf", True, True), ("nmt_nfkc", True, False), ("identity", False, False)],
)
def test_normalization_rule_of_the_model(
    text: Path, tmp_path: Path, rule: str, nfkc: bool, lower: bool
) -> None:
    trained(text, tmp_path, "--normalization-rule", rule)
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.encode("\uff11") == tokenizer.encode("1")) == nfkc
    assert (tokenizer.encode("THE") == tokenizer.encode("the")) == lower
    assert tokenizer.decode(tokenizer.encode("The Cold")) == ("the cold" if lower else "The Cold")


@pytest.mark.parametrize("case, rule", [("keep", "nmt_nfkc"), ("fold", "nmt_nfkc_cf")])
def test_case_of_the_vocabulary(text: Path, tmp_path: Path, case: str, rule: str) -> None:
    trained(text, tmp_path / "case", "--case", case)
    trained(text, tmp_path / "rule", "--normalization-rule", rule)
    by_case, by_rule = load_tokenizer(tmp_path / "case"), load_tokenizer(tmp_path / "rule")
    assert by_case.sha256 == by_rule.sha256 and by_case.folds_case == (case == "fold")
    other = "fold" if case == "keep" else "keep"
    with pytest.raises(ConfigError, match=f"--case {other}: --normalization-rule {rule} does not"):
        trained(text, tmp_path / "both", "--case", other, "--normalization-rule", rule)


@pytest.mark.parametrize(
    ("content", "options", "error", "says"),
    [
        (b" \n \n", "300", DataError, "no character to learn from"),
        (b"\0\1\n" * 50, "300", DataError, "no character to learn from"),
        ("\ufffd \u2581 ".encode() * 99, "300", DataError, "no character to learn from"),
        (b"one line\n" * 50, "300 --sample-bytes 1", DataError, "a larger --sample-bytes"),
        (b"words here\n" * 50, "5", ConfigError, "--vocab-size 5: must be at least 6"),
        (b"words here\n" * 50, "2147483648", ConfigError, "at most 2147483647"),
        (b"words here\n" * 50, "9999", ConfigError, "--vocab-size 9999: .* use at most"),
        (b"words here\n" * 50, f"300 --sample-bytes {'9' * 400}", ConfigError, "--sample-bytes 9"),
    ],
)
def test_text_and_numbers_that_no_model_comes_of(tmp_path, content, options, error, says) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    words = ["--out", str(tmp_path / "tok"), "--vocab-size", *options.split()]
    with pytest.raises(error, match=says):
        main(["--corpus", f"a={tmp_path / 'a.txt'}", *words])
    assert not (tmp_path / "tok").exists()


def test_what_ends_the_reading_is_not_hidden_by_sentencepiece(text, tmp_path, monkeypatch) -> None:
    def interrupted(line: str) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(train_tokenizer, "_chunks", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained(text, tmp_path)
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(b"some words\n" * 999)[:-9])
    monkeypatch.undo()
    with pytest.raises(DataError, match="cut.txt.gz: cannot be read"):
        trained(tmp_path / "cut.txt.gz", tmp_path)
