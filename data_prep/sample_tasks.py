"""The labelled sets of the embedded sample: one function a set, and how its publisher ships it.

Each function makes the texts of one example that bears the wanted label, of the world in `sample_world.py`.
In a pair the second text alone says nothing of the label: right and wrong values are drawn alike.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from data_prep.sample_world import (
    BOYS,
    ENDINGS,
    GIRLS,
    RELATIONS,
    Dice,
    ask,
    describe,
    draw,
    event,
    fill,
    join,
    opinion,
    outcome,
    people,
    reason,
    scene,
    state,
    travel,
)

TRAIN_EXAMPLES, DEV_EXAMPLES = 2_000, 400
TRAIN_PASSAGES, DEV_PASSAGES, QUESTIONS_A_PASSAGE = 400, 80, 3

Row = tuple[str, ...]


def cola(dice: Dice, acceptable: int) -> Row:
    person = people(dice, 1)[0]
    first, second = dice.sample(RELATIONS, 2)
    text = dice.pick(
        [
            describe(dice, scene(dice)),
            state(dice, person, first),
            opinion(dice, bool(dice.below(2))),
            join(state(dice, person, first), state(dice, person, second)),
        ]
    )
    words = text[:-1].split()
    spots = [
        i for i, word in enumerate(words[:-1]) if word in ("a", "an", "in", "near", "of", "the", "to", "was", "with")
    ]
    if acceptable or not spots:
        return (text,) if acceptable else cola(dice, acceptable)
    at, fault = dice.pick(spots), dice.below(3)
    if fault == 0:
        words[at : at + 2] = [words[at + 1], words[at]]
    elif fault == 1 and "was" in words:
        words[words.index("was")] = dice.pick(["were", "am", "be"])
    else:
        words.insert(at, words[at])
    return (fill("{t}.", t=" ".join(words)),)


def sst2(dice: Dice, good: int) -> Row:
    return (opinion(dice, bool(good)),)


def rte(dice: Dice, label: str) -> Row:
    """Three in four ask how an event came out, one in four looks up a fact told of one of two people."""
    first, second = people(dice, 2)
    if dice.below(4):
        good = bool(dice.below(2))
        claimed = good if label == "entailment" else not good
        return " ".join(event(dice, first, second, good)[:3]), outcome(dice, first, claimed)
    relation, other = dice.sample(RELATIONS, 2)
    value = first.facts[relation] if label == "entailment" else draw(dice, relation, first.facts[relation])
    premise = dice.sample([state(dice, first, relation), state(dice, second, dice.pick([relation, other]))], 2)
    return " ".join(premise), state(dice, first, relation, value)


def qnli(dice: Dice, label: str) -> Row:
    """A sentence that is no answer tells another fact, or in one case of three that of another person."""
    first, second = people(dice, 2)
    relation, other = dice.sample(RELATIONS, 2)
    told = (first, other) if dice.below(3) else (second, relation)
    return ask(dice, first, relation), state(dice, *((first, relation) if label == "entailment" else told))


def snli(dice: Dice, label: str) -> Row:
    """Two in three ask how an event came out, of which a neutral premise says nothing; the rest compare scenes."""
    if dice.below(3):
        first, second = people(dice, 2)
        good = bool(dice.below(2))
        *setup, turn = event(dice, first, second, good)[:3]
        claimed = not good if label == "contradiction" else good
        return " ".join(setup if label == "neutral" else [*setup, turn]), outcome(dice, first, claimed)
    whole, elsewhere = scene(dice), scene(dice)
    *mentioned, left_out = dice.sample(["doing", "spot", "wear", "company"], 4)
    asked = left_out if label == "neutral" else mentioned[0]
    if label == "contradiction" and elsewhere[asked] == whole[asked]:
        return snli(dice, label)
    hypothesis = {"who": whole["who"], asked: (elsewhere if label == "contradiction" else whole)[asked]}
    return describe(dice, {name: whole[name] for name in ("who", *mentioned)}), describe(dice, hypothesis)


def stsb(dice: Dice, score: int) -> Row:
    """Two statements against two: 3 points for the first that both make, 2 for the second, or 1 with another value."""
    first, second = people(dice, 2)
    one, two, three, four = dice.sample(RELATIONS, 4)
    same_one, same_two = score >= 3, score in (2, 5)
    said = [state(dice, first, one), state(dice, second, two)]
    again = [state(dice, first, one if same_one else three), state(dice, second, two if same_two else four)]
    if score in (1, 4):
        again[1] = state(dice, second, two, draw(dice, two, second.facts[two]))
    return join(*said), join(*dice.sample(again, 2))


def mrpc(dice: Dice, same: int) -> Row:
    """A pair that is no paraphrase tells another fact, or in one case of three another value of the same."""
    person = people(dice, 1)[0]
    relation, other = dice.sample(RELATIONS, 2)
    changed = (other, None) if dice.below(3) else (relation, draw(dice, relation, person.facts[relation]))
    told, again = state(dice, person, relation), state(dice, person, *((relation, None) if same else changed))
    return (told, again) if told != again else mrpc(dice, same)


def qqp(dice: Dice, same: int) -> Row:
    first, second = people(dice, 2)
    relation, other = dice.sample(RELATIONS, 2)
    question = ask(dice, first, relation)
    changed = (first, other) if dice.below(3) else (second, relation)
    again = ask(dice, first, relation) if same else ask(dice, *changed)
    return (question, again) if question != again else qqp(dice, same)


def story_cloze(dice: Dice, right: int) -> Row:
    hero, friend = people(dice, 2)
    good = dice.below(2)
    *lines, ending = event(dice, hero, friend, bool(good))
    endings = [ending, fill(dice.pick(ENDINGS[good]), p=hero.name)]
    return (*lines, *(endings if right == 1 else reversed(endings)))


def wnut(dice: Dice, _: int) -> Row:
    lines = []
    for words, kind in travel(dice):
        tokens = words.replace(",", " ,").replace(".", " .").split()
        lines += [f"{token}\t{('B-', 'I-')[i > 0] + kind if kind else 'O'}" for i, token in enumerate(tokens)]
    return ("\n".join(lines),)


def dpr(dice: Dice, of_first: int) -> Row:
    she = dice.below(2)
    first, second = dice.sample(GIRLS if she else BOYS, 2)
    pronoun = "she" if she else "he"
    return (
        reason(dice, first, second, pronoun, bool(of_first)),
        pronoun,
        f"{first},{second}",
        first if of_first else second,
    )


def race(dice: Dice, number: int) -> str:
    """One passage of the RACE layout, as JSON: two wrong options are of the right kind, one is of another."""
    cast = people(dice, 3)
    relations = dice.sample(RELATIONS, 2)
    asked = dice.sample([(person, relation) for person in cast for relation in relations], QUESTIONS_A_PASSAGE)
    article = " ".join(state(dice, person, relation) for person in cast for relation in relations)
    page: dict[str, Any] = {"answers": [], "options": [], "questions": []}
    for person, relation in asked:
        answer, (other_relation,) = person.facts[relation], [name for name in relations if name != relation]
        near = dice.pick([other.facts[relation] for other in cast if other.facts[relation] != answer] or [answer])
        options = [answer, *dict.fromkeys(other.facts[other_relation] for other in cast)]
        if near != answer:
            options.insert(1, near)
        while len(options) < 4:
            options.append(draw(dice, relation, *options))
        order = dice.sample(options[:4], 4)
        page["answers"].append("ABCD"[order.index(answer)])
        page["options"].append(order)
        page["questions"].append(ask(dice, person, relation))
    return json.dumps(page | {"article": article, "id": f"middle{number}.txt"})


def quoted(*fields: object) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(fields)
    return line.getvalue()


@dataclass(frozen=True)
class Layout:
    """How a publisher ships a set: the two files, the first line, and one example as text."""

    files: tuple[str, str]
    labels: tuple
    make: Callable[[Dice, Any], Row]
    line: Callable[..., str]  # (number, label, *texts)
    header: str = ""


TSV = ("train.tsv", "dev.tsv")
CLOZE = (
    "InputStoryid",
    *(f"InputSentence{i}" for i in range(1, 5)),
    "RandomFifthSentenceQuiz1",
    "RandomFifthSentenceQuiz2",
    "AnswerRightEnding",
)
BINARY, ENTAILED = (1, 0), ("entailment", "not_entailment")
LAYOUTS = {
    "CoLA": Layout(TSV, BINARY, cola, lambda n, y, text: f"sm26\t{y}\t{'' if y else '*'}\t{text}"),
    "SST-2": Layout(TSV, BINARY, sst2, lambda n, y, text: f"{text}\t{y}", "sentence\tlabel"),
    "RTE": Layout(
        TSV, ENTAILED, rte, lambda n, y, *pair: "\t".join([str(n), *pair, y]), "index\tsentence1\tsentence2\tlabel"
    ),
    "QNLI": Layout(
        TSV, ENTAILED, qnli, lambda n, y, *pair: "\t".join([str(n), *pair, y]), "index\tquestion\tsentence\tlabel"
    ),
    "SNLI": Layout(
        ("train_small.tsv", "dev.tsv"),
        ("entailment", "neutral", "contradiction"),
        snli,
        lambda n, y, *pair: "\t".join([*pair, y]),
        "sentence1\tsentence2\tgold_label",
    ),
    "STS-B": Layout(
        ("sts-train.csv", "sts-dev.csv"),
        (0, 1, 2, 3, 4, 5),
        stsb,
        lambda n, y, *pair: "\t".join(["main-captions", "sample", "2026", f"{n:04d}", f"{y:.3f}", *pair]),
    ),
    "MRPC": Layout(
        ("msr_paraphrase_train.txt", "msr_paraphrase_test.txt"),
        BINARY,
        mrpc,
        lambda n, y, *pair: "\t".join([str(y), str(2 * n), str(2 * n + 1), *pair]),
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
    ),
    "QQP": Layout(
        TSV,
        BINARY,
        qqp,
        lambda n, y, *pair: "\t".join([str(n), str(2 * n), str(2 * n + 1), *pair, str(y)]),
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
    ),
    "StoryCloze": Layout(
        (
            "cloze_test_val__spring2016 - cloze_test_ALL_val.csv",
            "cloze_test_test__spring2016 - cloze_test_ALL_test.csv",
        ),
        (1, 2),
        story_cloze,
        lambda n, y, *texts: quoted(f"story-{n:05d}", *texts, y),
        ",".join(CLOZE),
    ),
    "WNUT17": Layout(("wnut17train.conll", "emerging.dev.conll"), (0,), wnut, lambda n, y, block: block + "\n"),
    "DPR": Layout(("train.c.txt", "test.c.txt"), BINARY, dpr, lambda n, y, *lines: "\n".join(lines) + "\n"),
}


def labelled(name: str, seed: int) -> Iterator[tuple[str, str]]:
    """(file, text) of both files of one set: labels in turn, no two examples with the same texts."""
    layout, dice = LAYOUTS[name], Dice(seed, "tasks", name)
    rows: dict[Row, Any] = {}
    while len(rows) < TRAIN_EXAMPLES + DEV_EXAMPLES:
        label = layout.labels[len(rows) % len(layout.labels)]
        rows.setdefault(layout.make(dice, label), label)
    # Shuffled before they are numbered: neither the order nor an id may tell the label.
    shuffled = dice.sample(rows.items(), len(rows))
    lines = [layout.line(number, label, *texts) for number, (texts, label) in enumerate(shuffled)]
    for file, part in zip(layout.files, (lines[:TRAIN_EXAMPLES], lines[TRAIN_EXAMPLES:]), strict=True):
        yield f"tasks/{name}/{file}", "\n".join([layout.header] * bool(layout.header) + part) + "\n"


def passages(seed: int) -> Iterator[tuple[str, str]]:
    """(file, text) of every RACE passage."""
    for split, count in (("train", TRAIN_PASSAGES), ("dev", DEV_PASSAGES)):
        for number in range(1, count + 1):
            yield (
                f"tasks/RACE/{split}/middle/{number}.txt",
                race(Dice(seed, "tasks", "RACE", split, number), number) + "\n",
            )


def all_sets(seed: int) -> Iterator[tuple[str, str]]:
    """(file, text) of every labelled set."""
    for name in LAYOUTS:
        yield from labelled(name, seed)
    yield from passages(seed)
