"""Tests of data_prep/train_tokenizer.py. More are in tests/data/test_tokenizer.py."""

import random
import re
from pathlib import Path

import pytest
import sentencepiece

from data_prep.train_tokenizer import main
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
