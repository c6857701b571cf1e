"""The labelled sets of the embedded sample: the texts of an example for a label, and how each set's publisher ships it.

In a pair the second text alone says nothing of the label: right and wrong ones are drawn alike.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from data_prep.stories.world import (
    BOYS,
    GIRLS,
    RELATIONS,
    Dice,
    Person,
    ask,
    ending,
    event,
    opinion,
    outcome,
    people,
    reason,
    tell,
    travel,
)

TRAIN_EXAMPLES, DEV_EXAMPLES = 2_000, 400
TRAIN_PASSAGES, DEV_PASSAGES, QUESTIONS_A_PASSAGE = 400, 80, 3
Texts = tuple[str, ...]


def acceptability(dice: Dice, label: str) -> Texts:
    """What is not acceptable has two neighbouring words in the wrong order."""
    (person,) = people(dice, 1)
    fact = tell(dice, person, dice.pick([*RELATIONS]))
    words = dice.pick([fact, opinion(dice, dice.coin())]).split()
    if label.startswith("0"):
        at = dice.below(len(words) - 2)
        words[at : at + 2] = words[at + 1], words[at]
    return (" ".join(words),)


def sentiment(dice: Dice, label: str) -> Texts:
    return (opinion(dice, label == "1"),)


def inference(dice: Dice, label: str) -> Texts:
    """How an event came out; a neutral premise does not tell."""
    hero, friend = people(dice, 2)
    good = dice.coin()
    *setup, turn = event(dice, hero, friend, good)
    denied = label in ("contradiction", "not_entailment")
    return " ".join(setup if label == "neutral" else [*setup, turn]), outcome(
        dice, hero, good != denied
    )


Form = Callable[[Dice, Person, str], str]


def same_fact(first_form: Form, second_form: Form) -> Callable[[Dice, str], Texts]:
    """Pairs about one fact, or about two: of the same person, or of the same kind."""

    def make(dice: Dice, label: str) -> Texts:
        person, other = people(dice, 2)
        relation, another = dice.sample(RELATIONS, 2)
        same = label in ("1", "entailment")
        second = (person, relation) if same else dice.pick([(person, another), (other, relation)])
        texts = first_form(dice, person, relation), second_form(dice, *second)
        return texts if texts[0] != texts[1] else make(dice, label)

    return make


def similarity(dice: Dice, label: str) -> Texts:
    """Five statements about one person, and of so many as the score says the same again; the others tell of another."""
    person, other = people(dice, 2)
    relations = dice.sample(RELATIONS, 5)
    again = [
        tell(dice, other if i >= float(label) else person, relation)
        for i, relation in enumerate(relations)
    ]
    return " ".join(tell(dice, person, relation) for relation in relations), " ".join(
        dice.sample(again, 5)
    )


def story(dice: Dice, label: str) -> Texts:
    hero, friend = people(dice, 2)
    good = dice.coin()
    endings = [ending(dice, hero, good == (label == number)) for number in "12"]
    return *event(dice, hero, friend, good), outcome(dice, hero, good), *endings


def entities(dice: Dice, label: str) -> Texts:
    return ("\n".join(f"{token}\t{tag}" for token, tag in travel(dice)),)


def pronoun(dice: Dice, label: str) -> Texts:
    """A sentence, the pronoun in it, whom it may mean, and whom it means."""
    word, names = dice.pick([("she", GIRLS), ("he", BOYS)])
    first, second = dice.sample(names, 2)
    answer = first if label == "first" else second
    return reason(dice, first, second, word, answer == first), word, f"{first},{second}", answer


@dataclass(frozen=True)
class Layout:
    """How a publisher ships a set: the two files, the labels, an example's texts and line, and a file's first line."""

    files: tuple[str, str]
    labels: tuple[str, ...]
    make: Callable[[Dice, str], Texts]
    line: str
    """Of texts {0}, {1}, .., label {y} and number {n}."""
    header: str = ""


TSV = ("train.tsv", "dev.tsv")
BINARY, ENTAILED = ("1", "0"), ("entailment", "not_entailment")
CLOZE = (
    "InputStoryid",
    "InputSentence1",
    "InputSentence2",
    "InputSentence3",
    "InputSentence4",
    "RandomFifthSentenceQuiz1",
    "RandomFifthSentenceQuiz2",
    "AnswerRightEnding",
)
LAYOUTS = {
    "CoLA": Layout(TSV, ("1\t", "0\t*"), acceptability, "sm26\t{y}\t{0}"),
    "SST-2": Layout(TSV, BINARY, sentiment, "{0}\t{y}", "sentence\tlabel"),
    "RTE": Layout(
        TSV, ENTAILED, inference, "{n}\t{0}\t{1}\t{y}", "index\tsentence1\tsentence2\tlabel"
    ),
    "QNLI": Layout(
        TSV,
        ENTAILED,
        same_fact(ask, tell),
        "{n}\t{0}\t{1}\t{y}",
        "index\tquestion\tsentence\tlabel",
    ),
    "SNLI": Layout(
        ("train_small.tsv", "dev.tsv"),
        ("entailment", "neutral", "contradiction"),
        inference,
        "{0}\t{1}\t{y}",
        "sentence1\tsentence2\tgold_label",
    ),
    "STS-B": Layout(
        ("sts-train.csv", "sts-dev.csv"),
        tuple(f"{score}.000" for score in range(6)),
        similarity,
        "main-captions\tsample\t2026\t{n:04d}\t{y}\t{0}\t{1}",
    ),
    "MRPC": Layout(
        ("msr_paraphrase_train.txt", "msr_paraphrase_test.txt"),
        BINARY,
        same_fact(tell, tell),
        "{y}\t{n}1\t{n}2\t{0}\t{1}",
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
    ),
    "QQP": Layout(
        TSV,
        BINARY,
        same_fact(ask, ask),
        "{n}\t{n}1\t{n}2\t{0}\t{1}\t{y}",
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
    ),
    "StoryCloze": Layout(
        (
            "cloze_test_val__spring2016 - cloze_test_ALL_val.csv",
            "cloze_test_test__spring2016 - cloze_test_ALL_test.csv",
        ),
        ("1", "2"),
        story,
        'story-{n:05d},"{0}","{1}","{2}","{3}","{4}","{5}",{y}',
        ",".join(CLOZE),
    ),
    "WNUT17": Layout(("wnut17train.conll", "emerging.dev.conll"), ("",), entities, "{0}\n"),
    "DPR": Layout(
        ("train.c.txt", "test.c.txt"), ("first", "second"), pronoun, "{0}\n{1}\n{2}\n{3}\n"
    ),
}


def labelled(name: str, seed: int) -> Iterator[tuple[str, str]]:
    """(file, text) of both files of one set: labels in turn, no two examples with the same texts."""
    layout, dice = LAYOUTS[name], Dice(seed, "tasks", name)
    labels: dict[Texts, str] = {}
    while len(labels) < TRAIN_EXAMPLES + DEV_EXAMPLES:
        label = layout.labels[len(labels) % len(layout.labels)]
        labels.setdefault(layout.make(dice, label), label)
    # Shuffled before they are numbered: neither the order nor an id may tell the label.
    shuffled = dice.sample(labels.items(), len(labels))
    lines = [
        layout.line.format(*texts, y=label, n=number)
        for number, (texts, label) in enumerate(shuffled)
    ]
    for file, part in zip(
        layout.files, (lines[:TRAIN_EXAMPLES], lines[TRAIN_EXAMPLES:]), strict=True
    ):
        yield f"tasks/{name}/{file}", "\n".join([layout.header] * bool(layout.header) + part) + "\n"


def passage(dice: Dice, number: int) -> str:
    """One file of RACE: two facts of four people, and questions whose options are the same fact of each."""
    cast, relations = people(dice, 4), dice.sample(RELATIONS, 2)
    facts = [(person, relation) for person in cast for relation in relations]
    asked = dice.sample(facts, QUESTIONS_A_PASSAGE)
    options = [[person.facts[relation] for person in dice.sample(cast, 4)] for _, relation in asked]
    answers = [
        "ABCD"[values.index(person.facts[relation])]
        for values, (person, relation) in zip(options, asked, strict=True)
    ]
    page = {
        "answers": answers,
        "options": options,
        "questions": [ask(dice, *fact) for fact in asked],
        "article": " ".join(tell(dice, *fact) for fact in facts),
        "id": f"middle{number}.txt",
    }
    return json.dumps(page) + "\n"


def all_sets(seed: int) -> Iterator[tuple[str, str]]:
    """(file, text) of every labelled set."""
    for name in LAYOUTS:
        yield from labelled(name, seed)
    for split, count in (("train", TRAIN_PASSAGES), ("dev", DEV_PASSAGES)):
        for number in range(1, count + 1):
            dice = Dice(seed, "tasks", "RACE", split, number)
            yield f"tasks/RACE/{split}/middle/{number}.txt", passage(dice, number)
