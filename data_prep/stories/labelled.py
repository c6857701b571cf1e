"""The labelled sets of the embedded sample: an example's texts for a label, and each set's files.

In a pair, the second text alone does not reveal the label: right and wrong ones are drawn alike.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

from data_prep.stories.words import BOYS, GIRLS, RELATIONS
from data_prep.stories.world import (
    Dice,
    Person,
    ending,
    event,
    opinion,
    outcome,
    people,
    question,
    reason,
    statement,
    travel,
)

TRAIN_EXAMPLES, DEV_EXAMPLES = 2_000, 400
TRAIN_PASSAGES, DEV_PASSAGES, QUESTIONS_A_PASSAGE = 400, 80, 3
Texts = tuple[str, ...]


def acceptability(dice: Dice, label: str) -> Texts:
    """An unacceptable sentence has two neighbouring words in the wrong order."""
    (person,) = people(dice, 1)
    fact = statement(dice, person, dice.pick([*RELATIONS]))
    words = dice.pick([fact, opinion(dice, dice.coin())]).split()
    if label.startswith("0"):
        at = dice.below(len(words) - 2)
        words[at], words[at + 1] = words[at + 1], words[at]
    return (" ".join(words),)


def sentiment(dice: Dice, label: str) -> Texts:
    return (opinion(dice, label == "1"),)


def inference(dice: Dice, label: str) -> Texts:
    """An event, and how it came out. A neutral premise leaves the outcome open."""
    hero, friend = people(dice, 2)
    good = dice.coin()
    *setup, turn = event(dice, hero, friend, good)
    premise = setup if label == "neutral" else [*setup, turn]
    denied = label in ("contradiction", "not_entailment")
    return " ".join(premise), outcome(dice, hero, good != denied)


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
    """Two texts of five statements. As many as the score says are about the same person."""
    person, other = people(dice, 2)
    relations = dice.sample(RELATIONS, 5)
    second = []
    for number, relation in enumerate(relations):
        subject = other if number >= float(label) else person
        second.append(statement(dice, subject, relation))
    first = " ".join(statement(dice, person, relation) for relation in relations)
    return first, " ".join(dice.sample(second, 5))


def story(dice: Dice, label: str) -> Texts:
    hero, friend = people(dice, 2)
    good = dice.coin()
    endings = [ending(dice, hero, good == (label == number)) for number in "12"]
    return *event(dice, hero, friend, good), outcome(dice, hero, good), *endings


def entities(dice: Dice, label: str) -> Texts:
    return ("\n".join(f"{token}\t{tag}" for token, tag in travel(dice)),)


def pronoun(dice: Dice, label: str) -> Texts:
    """A sentence, the pronoun in it, the two people it may mean, and the one it means."""
    word, names = dice.pick([("she", GIRLS), ("he", BOYS)])
    first, second = dice.sample(names, 2)
    answer = first if label == "first" else second
    return reason(dice, first, second, word, answer == first), word, f"{first},{second}", answer


@dataclass(frozen=True)
class LabelledSet:
    """The files in which a publisher ships a set, and how an example of it is made."""

    files: tuple[str, str]
    """Train and dev."""
    labels: tuple[str, ...]
    make: Callable[[Dice, str], Texts]
    """The texts of an example with a label."""
    line: str
    """Of texts {0}, {1}, .., label {y} and number {n}."""
    header: str = ""
    """First line of a file."""


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
LABELLED_SETS = {
    "CoLA": LabelledSet(TSV, ("1\t", "0\t*"), acceptability, "sm26\t{y}\t{0}"),
    "SST-2": LabelledSet(TSV, BINARY, sentiment, "{0}\t{y}", "sentence\tlabel"),
    "RTE": LabelledSet(
        TSV, ENTAILED, inference, "{n}\t{0}\t{1}\t{y}", "index\tsentence1\tsentence2\tlabel"
    ),
    "QNLI": LabelledSet(
        TSV,
        ENTAILED,
        same_fact(question, statement),
        "{n}\t{0}\t{1}\t{y}",
        "index\tquestion\tsentence\tlabel",
    ),
    "SNLI": LabelledSet(
        ("train_small.tsv", "dev.tsv"),
        ("entailment", "neutral", "contradiction"),
        inference,
        "{0}\t{1}\t{y}",
        "sentence1\tsentence2\tgold_label",
    ),
    "STS-B": LabelledSet(
        ("sts-train.csv", "sts-dev.csv"),
        tuple(f"{score}.000" for score in range(6)),
        similarity,
        "main-captions\tsample\t2026\t{n:04d}\t{y}\t{0}\t{1}",
    ),
    "MRPC": LabelledSet(
        ("msr_paraphrase_train.txt", "msr_paraphrase_test.txt"),
        BINARY,
        same_fact(statement, statement),
        "{y}\t{n}1\t{n}2\t{0}\t{1}",
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
    ),
    "QQP": LabelledSet(
        TSV,
        BINARY,
        same_fact(question, question),
        "{n}\t{n}1\t{n}2\t{0}\t{1}\t{y}",
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
    ),
    "StoryCloze": LabelledSet(
        (
            "cloze_test_val__spring2016 - cloze_test_ALL_val.csv",
            "cloze_test_test__spring2016 - cloze_test_ALL_test.csv",
        ),
        ("1", "2"),
        story,
        'story-{n:05d},"{0}","{1}","{2}","{3}","{4}","{5}",{y}',
        ",".join(CLOZE),
    ),
    "WNUT17": LabelledSet(("wnut17train.conll", "emerging.dev.conll"), ("",), entities, "{0}\n"),
    "DPR": LabelledSet(
        ("train.c.txt", "test.c.txt"), ("first", "second"), pronoun, "{0}\n{1}\n{2}\n{3}\n"
    ),
}


def labelled(name: str, seed: int) -> Iterator[tuple[str, str]]:
    """(file, text) of both files of one set.

    The labels take turns, and no two examples have the same texts.
    """
    published, dice = LABELLED_SETS[name], Dice(seed, "tasks", name)
    label_of: dict[Texts, str] = {}
    while len(label_of) < TRAIN_EXAMPLES + DEV_EXAMPLES:
        label = published.labels[len(label_of) % len(published.labels)]
        label_of.setdefault(published.make(dice, label), label)
    # Shuffled before they are numbered: neither the order nor an id may reveal the label.
    lines = []
    for number, (texts, label) in enumerate(dice.sample(label_of.items(), len(label_of))):
        lines.append(published.line.format(*texts, y=label, n=number))
    header = [published.header] if published.header else []
    splits = (lines[:TRAIN_EXAMPLES], lines[TRAIN_EXAMPLES:])
    for file, part in zip(published.files, splits, strict=True):
        yield f"tasks/{name}/{file}", "\n".join(header + part) + "\n"


def passage(dice: Dice, number: int) -> str:
    """One file of RACE.

    The passage states two facts of each of four people. The options of a question are the same
    fact of each of them.
    """
    cast, relations = people(dice, 4), dice.sample(RELATIONS, 2)
    facts = list(product(cast, relations))
    asked = dice.sample(facts, QUESTIONS_A_PASSAGE)
    options, answers = [], []
    for person, relation in asked:
        values = [other.facts[relation] for other in dice.sample(cast, 4)]
        options.append(values)
        answers.append("ABCD"[values.index(person.facts[relation])])
    page = {
        "answers": answers,
        "options": options,
        "questions": [question(dice, *fact) for fact in asked],
        "article": " ".join(statement(dice, *fact) for fact in facts),
        "id": f"middle{number}.txt",
    }
    return json.dumps(page) + "\n"


def all_sets(seed: int) -> Iterator[tuple[str, str]]:
    """(file, text) of every labelled set."""
    for name in LABELLED_SETS:
        yield from labelled(name, seed)
    for split, count in (("train", TRAIN_PASSAGES), ("dev", DEV_PASSAGES)):
        for number in range(1, count + 1):
            dice = Dice(seed, "tasks", "RACE", split, number)
            yield f"tasks/RACE/{split}/middle/{number}.txt", passage(dice, number)
