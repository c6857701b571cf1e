"""The overlap of word n-grams, beside a search by hand."""

import random

import pytest

from gpt1_ds.tasks import overlap
from gpt1_ds.tasks.overlap import Overlap, words_of


def test_words_have_no_punctuation_and_no_case():
    assert words_of('"Don\'t!" said_the  Old\nmiller \u2013 twice.') == [
        "dont",
        "saidthe",
        "old",
        "miller",
        "twice",
    ]


def by_hand(text: str, training: list[str]) -> tuple[bool, bool]:
    words = words_of(text)
    n = min(len(words), 13)
    wanted = {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}
    seen = set()
    for document in map(words_of, training):
        seen |= {tuple(document[i : i + n]) for i in range(len(document) - n + 1)}
    return n >= 8, n >= 8 and bool(wanted & seen)


@pytest.mark.parametrize("most_words", [1_000_000, 5])
def test_a_text_occurs_if_a_search_by_hand_finds_it(monkeypatch, most_words: int):
    monkeypatch.setattr(overlap, "MOST_WORDS", most_words)
    draw = random.Random(1)
    words = [f"w{number}" for number in range(40)]
    training = [" ".join(draw.choices(words, k=draw.randint(1, 60))) for _ in range(60)]
    texts = ["", "w1 w2"]
    for _ in range(300):
        source = training[draw.randrange(60)].split()
        begin = draw.randrange(len(source))
        part = source[begin : begin + draw.randint(1, 20)]
        if draw.random() < 0.5:  # one word less of the training text, in the middle or at an end
            part[draw.randrange(len(part))] = "else"
        texts.append(" ".join(draw.choices(words, k=draw.randint(0, 6)) + part).capitalize() + "!")
    # The end of one document and the beginning of the next are no text together.
    ends = zip(training, training[1:], strict=False)
    texts += [" ".join([*first.split()[-7:], *second.split()[:7]]) for first, second in ends]
    found = Overlap(texts)
    found.look_through(training[:20])
    found.look_through(training[20:])
    found.look_through(["too short"])
    measured, occurs = found.results()
    answers = [by_hand(text, training) for text in texts]
    numbers = [found.number_of[text] for text in texts]
    assert [(measured[n], occurs[n]) for n in numbers] == answers
    assert 50 < sum(hit for _, hit in answers) < 300 and not all(long for long, _ in answers)
