"""Tests of data_prep/train_tokenizer.py: digits, white space, the normalisation rule. More in test_tokenizer.py."""

import random
from pathlib import Path

import pytest
import sentencepiece

from data_prep.train_tokenizer import RULES, main
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
    pieces = [
        model.id_to_piece(i)
        for i in range(model.vocab_size())
        if not (model.is_byte(i) or model.is_control(i))
    ]
    assert not [p for p in pieces if any(c.isdigit() for c in p) and any(c.isalpha() for c in p)]
    assert not [p for p in pieces if "\u2581" in p[1:]]
    assert any(sum(c.isdigit() for c in p) > 1 for p in pieces)  # years are pieces
    assert model.encode("a  sailor\t\nsaw ") == model.encode("a sailor saw")


@pytest.mark.parametrize(
    "rule, nfkc, lower", zip(RULES, (True, True, False), (True, False, False), strict=True)
)
def test_normalization_rule_of_the_model(
    text: Path, tmp_path: Path, rule: str, nfkc: bool, lower: bool
) -> None:
    trained(text, tmp_path, "--normalization-rule", rule)
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.encode("\uff11") == tokenizer.encode("1")) == nfkc
    assert (tokenizer.encode("THE") == tokenizer.encode("the")) == lower
    assert tokenizer.decode(tokenizer.encode("The Cold")) == ("the cold" if lower else "The Cold")
