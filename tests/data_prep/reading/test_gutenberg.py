"""Tests of data_prep/reading/gutenberg.py: only frames are cut, in any number, and counted."""

import time

import pytest

from data_prep.reading.cleaning import STEPS, Cleaner
from data_prep.reading.gutenberg import FrameCutter

START = "*** START OF THE PROJECT GUTENBERG EBOOK {} ***"
END = "*** END OF THE PROJECT GUTENBERG EBOOK {} ***"
TITLE = "The Project Gutenberg EBook of {}, by A. Writer"
SMALL_PRINT = (
    "***START**THE SMALL PRINT!**FOR PUBLIC DOMAIN ETEXTS**START***\nWhy is it here?\n\n"
    "You know: lawyers.\n\n*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*"
)
OLD_END = "End of this Project Gutenberg Etext of {}"


def joined(*paragraphs: str) -> str:
    return "\n\n".join(paragraph.format("A") for paragraph in paragraphs) + "\n"


LICENCE = joined(
    "Updated editions will replace the previous one.",
    "Some states do not allow it.",
    "how to\nsubscribe to our email newsletter to hear about new eBooks.",
)
BOOK = (TITLE, "Title: A", "Author: A. Writer", START, "alpha", END, LICENCE)
CASES = {
    "two books": (joined(*BOOK, *BOOK), "alpha alpha"),
    "two books without a licence": (
        joined(START, "alpha", END, START, "bravo", END),
        "alpha bravo",
    ),
    "volumes": (joined("alpha", OLD_END, "bravo", OLD_END, "charlie"), "alpha bravo charlie"),
    "volumes behind marks": (joined(START, "alpha", END, "bravo", END), "alpha bravo"),
    "plain book behind a licence": (joined(*BOOK, "bravo", "charlie"), "alpha bravo charlie"),
    "plain book in front of a late start": (joined("alpha", "bravo", *BOOK), "alpha bravo alpha"),
    "late start without a title": (joined("alpha", START, "bravo"), "alpha bravo"),
    "small print at the end": (joined("alpha", "bravo", SMALL_PRINT), "alpha bravo"),
    "small print behind a titled book": (
        joined(TITLE, "alpha", "bravo", SMALL_PRINT),
        "alpha bravo",
    ),
    "small print twice": (
        joined(TITLE, SMALL_PRINT, "alpha", OLD_END, TITLE, SMALL_PRINT, "bravo", OLD_END),
        "alpha bravo",
    ),
    "both ends": (joined(START, "alpha", OLD_END, END, LICENCE), "alpha"),
    "a sentence about the end": (
        "alpha\n\nEnd of Project Gutenberg was not in sight, he wrote.\n",
        "alpha End of Project Gutenberg was not in sight, he wrote.",
    ),
    "a sentence about an etext": (
        "End of the Project Gutenberg Etext was what he sought.\nThen alpha.",
        "End of the Project Gutenberg Etext was what he sought. Then alpha.",
    ),
    "a mark within a line": (
        f"He read: {END.format('A')} alpha",
        f"He read: {END.format('A')} alpha",
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("whole", [True, False])
def test_text_outside_the_frames_stays(name: str, whole: bool) -> None:
    """In one piece, or with each paragraph in a piece of its own."""
    text, expected = CASES[name]
    cutter = FrameCutter()
    pieces = [text] if whole else [f"{part}\n\n" for part in text.split("\n\n")]
    last = len(pieces) - 1
    found = "".join(cutter(piece, i == 0, i == last) for i, piece in enumerate(pieces))
    words = found.split()
    if "titled" in name:  # The line with its title is no frame.
        words = words[-2:]
    assert " ".join(words) == expected
    assert len(found) + cutter.cut == sum(map(len, pieces))


def test_a_tail_without_an_end_has_a_bound() -> None:
    chapters = "\n\n".join(f"Chapter {n}, with words of its own." for n in range(5000))
    found = FrameCutter()(
        joined(START, "alpha", END, "Licence.", "{}").format("") + chapters, True, True
    )
    assert "alpha" in found and "Licence" not in found and "Chapter 4999" in found


HOSTILE = {
    "blank lines": lambda n: "Gutenberg said" + "\n" * n + "end",
    "blanks": lambda n: "Gutenberg said\n" + " \t" * n + "end",
    "blank lines with blanks": lambda n: "Gutenberg said" + "\n " * n + "end",
    "stars": lambda n: "Gutenberg\n" + "*" * n + "\n" + "*** START OF" * (n // 12),
    "marks": lambda n: "*** END OF THE PROJECT GUTENBERG\n" * (n // 33),
    "starts": lambda n: "*** START OF THE PROJECT GUTENBERG ***\n\n" * (n // 40),
    "titles": lambda n: (
        "Project Gutenberg's A\n\n" * (n // 22) + "*** START OF THE PROJECT GUTENBERG ***"
    ),
    "small print": lambda n: "*END*THE SMALL PRINT!*END*\nx\n\n" * (n // 30),
    "combining marks": lambda n: "é" + "\u0301\u0316" * (n // 2),
    "entities": lambda n: "&amp" * (n // 4) + "é",
    "mojibake": lambda n: "Ã©" * (n // 2),
    "escapes": lambda n: "\x1b[1;" * (n // 4) + "é",
    "quotes": lambda n: "“”'\"`` ''" * (n // 9),
    "one word": lambda n: "é" * n,
    "commas": lambda n: ", . ( ) $ 's n't " * (n // 17),
    "sigmas": lambda n: "Σ'" * (n // 2),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_time_grows_with_the_text_alone(name: str) -> None:
    """With four times the text, a square takes sixteen times as long."""
    for step in (set(STEPS) - {"unwrap"}, {"gutenberg", "unwrap", "ftfy"}, {"gutenberg"}):
        seconds = []
        for size in (25_000, 100_000):
            began = time.process_time()
            Cleaner(step, wrapped=True)(HOSTILE[name](size), True)
            seconds.append(time.process_time() - began)
        assert seconds[1] < max(0.4, 9 * seconds[0]), (step, seconds)
