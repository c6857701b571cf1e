"""What the row of Tiny Shakespeare compares: the same bytes on both sides."""

import numpy as np
import pytest

from benchmarks.shakespeare import hidden, visible
from gpt1_ds.base.errors import DataError

TEXTS = [
    "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n",
    "two  spaces, one at an end \nand one in front:\n x",
    " ",
    "\n",
    "",
    "word",
    "cut in the mid",
    " \n \n a",
]


@pytest.mark.parametrize("text", TEXTS)
def test_white_space_as_words_is_the_text_again(text):
    assert hidden(visible(text)) == text
    assert "\n" not in visible(text) and "  " not in visible(text)


def test_any_white_space_as_words_is_the_text_again():
    rng = np.random.default_rng(3)
    for _ in range(500):
        text = "".join(rng.choice(list("ab \n"), rng.integers(0, 12)))
        assert hidden(visible(text)) == text


def test_a_text_that_holds_the_words_for_white_space_is_refused(tmp_path):
    from benchmarks.shakespeare import main

    for name, words in (("slash.txt", "either / or"), ("score.txt", "a _ b")):
        (tmp_path / name).write_text(words)
        with pytest.raises(DataError, match="holds / or _"):
            main([str(tmp_path / name)])
    with pytest.raises(DataError, match="not there; give char-rnn's"):
        main([str(tmp_path / "none.txt")])
