"""The world of the embedded sample: people with facts, and sentences that state, ask and judge.

`books.py` makes books of it, `labelled.py` labelled sets. Every choice comes from one `Dice`, so a
seed fixes every byte.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from data_prep.stories.words import (
    ADJECTIVES,
    BOYS,
    ENDINGS,
    GIRLS,
    HILLS,
    MATTERS,
    OPINIONS,
    OUTCOMES,
    PLOTS,
    REASONS,
    RELATIONS,
    SHIPS,
    TOWNS,
    TRAVELS,
    VALUES,
)

T = TypeVar("T")


class Dice:
    """Seeded choices. They use `Random.random()` only: Python promises to keep its values."""

    def __init__(self, *seed: object) -> None:
        self._random = random.Random("/".join(map(str, seed)))

    def below(self, n: int) -> int:
        return int(self._random.random() * n)

    def coin(self) -> bool:
        return self.below(2) == 1

    def pick(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]

    def sample(self, options: Iterable[T], k: int) -> list[T]:
        rest = list(options)
        return [rest.pop(self.below(len(rest))) for _ in range(k)]


@dataclass
class Person:
    name: str
    pronoun: str
    facts: dict[str, str]
    """By relation, a key of `RELATIONS`."""


def people(dice: Dice, count: int) -> list[Person]:
    """`count` people. No two have the same name or the same value of a fact.

    Each one's best friend is the next one's name.
    """
    names = dice.sample(GIRLS + BOYS, count + 1)
    columns = {relation: dice.sample(values, count) for relation, values in VALUES.items()}
    columns["friend"] = names[1:]
    found = []
    for number, name in enumerate(names[:count]):
        facts = {relation: values[number] for relation, values in columns.items()}
        found.append(Person(name, "she" if name in GIRLS else "he", facts))
    return found


def fill(template: str, **slots: str) -> str:
    """A sentence, with a capital at its start."""
    text = template.format(**slots)
    return text[0].upper() + text[1:]


def statement(dice: Dice, person: Person, relation: str, value: str | None = None) -> str:
    """States a fact of the person, or `value` in its place."""
    template = dice.pick(RELATIONS[relation][0])
    return fill(template, p=person.name, v=value or person.facts[relation])


def question(dice: Dice, person: Person, relation: str) -> str:
    return fill(dice.pick(RELATIONS[relation][1]), p=person.name)


def outcome(dice: Dice, person: Person, good: bool) -> str:
    return fill(dice.pick(OUTCOMES[not good]), p=person.name)


def ending(dice: Dice, person: Person, good: bool) -> str:
    return fill(dice.pick(ENDINGS[not good]), p=person.name)


def event(dice: Dice, hero: Person, friend: Person, good: bool) -> list[str]:
    """Three sentences: set-up (2) and turn."""
    *setup, good_turn, bad_turn = dice.pick(PLOTS)
    slots = {"p": hero.name, "q": friend.name, "s": hero.pronoun.title(), **hero.facts}
    turn = good_turn if good else bad_turn
    return [fill(line, **slots) for line in (*setup, turn)]


def opinion(dice: Dice, good: bool) -> str:
    """A sentence whose last judgement is good or bad. Words before it may say the contrary."""
    x, y = dice.sample(ADJECTIVES[not good], 2)
    m, n = dice.sample(MATTERS, 2)
    template = dice.pick(OPINIONS)
    z = dice.pick(ADJECTIVES[good])
    return fill(template, x=x, y=y, z=z, m=m, n=n, p=dice.pick(GIRLS + BOYS))


def reason(dice: Dice, first: str, second: str, subject: str, of_first: bool) -> str:
    """What `first` did to `second`, "because", and a reason that fits only one of them.

    `subject` is the word for that one in the reason: a name or a pronoun.
    """
    action, *reasons = dice.pick(REASONS)
    return fill(f"{action} because {subject} {reasons[not of_first]}.", a=first, b=second)


def travel(dice: Dice) -> list[tuple[str, str]]:
    """(token, WNUT-17 tag) of one sentence."""
    first, second = dice.sample(GIRLS + BOYS, 2)
    slots = {
        "{p}": (f"{first} {dice.pick(TOWNS)}", "person"),
        "{q}": (second, "person"),
        "{ship}": (dice.pick(SHIPS), "product"),
        "{place}": (dice.pick(TOWNS if dice.coin() else HILLS), "location"),
    }
    tokens = []
    for token in dice.pick(TRAVELS).split():
        if token not in slots:
            tokens.append((token, "O"))
            continue
        words, kind = slots[token]
        for number, word in enumerate(words.split()):
            tokens.append((word, f"I-{kind}" if number else f"B-{kind}"))
    return tokens
