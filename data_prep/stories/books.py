"""Books of the embedded sample: stories written by a seeded grammar."""

from collections.abc import Iterator

from data_prep.stories.words import RELATIONS, TIMES, TOWNS
from data_prep.stories.world import (
    Dice,
    Person,
    ending,
    event,
    fill,
    opinion,
    outcome,
    people,
    question,
    reason,
    statement,
    travel,
)

BOOK_CHARACTERS = 30_000


def claim(text: str, true: bool, asker: Person, answerer: Person, truth: str) -> str:
    """A claim, and what someone says to it."""
    answer = "Yes" if true else "No"
    return f'"{text} Is it true?" asked {asker.name}. "{answer}," said {answerer.name}. "{truth}"'


def talk(dice: Dice, cast: list[Person], about: Person, relation: str) -> str:
    """A question about a fact, or a claim, and the true answer."""
    asker, answerer = dice.sample(cast, 2)
    truth = statement(dice, about, relation)
    value = about.facts[relation]
    asked = f'"{question(dice, about, relation)}" asked {asker.name}.'
    claimed = value
    if not dice.coin():  # A false claim about one person is true of another.
        others = [person for person in cast if person is not about]
        claimed = dice.pick(others).facts[relation]
    claimed_text = statement(dice, about, relation, claimed)
    answered = claim(claimed_text, claimed == value, asker, answerer, truth)
    return dice.pick(
        [
            f'{asked} "{truth}"',
            f'{asked} "{fill(value)}," said {answerer.name}.',
            answered,
            answered,
        ]
    )


def portrait(dice: Dice, cast: list[Person], person: Person) -> Iterator[str]:
    """A few facts, and the talk about them.

    The talk follows at once, so that a model of short context can look the facts up.
    """
    relations = dice.sample(RELATIONS, 3)
    first, *others = (statement(dice, person, relation) for relation in relations)
    for text in others:
        if text.startswith(f"{person.name} ") and dice.coin():
            text = person.pronoun.title() + text.removeprefix(person.name)
        first += f" {text}"
    yield first
    for _ in range(3):
        yield talk(dice, cast, person, dice.pick(relations))


def adventure(dice: Dice, hero: Person, friend: Person) -> Iterator[str]:
    """An event and its outcome: first narrated, then asked about."""
    good = dice.coin()
    results = [outcome(dice, hero, good), ending(dice, hero, good), opinion(dice, good)]
    after = dice.sample(results, 3)
    yield " ".join([f"{dice.pick(TIMES)} this happened.", *event(dice, hero, friend, good), *after])
    for result in (outcome, ending):
        claimed = dice.coin()
        text = result(dice, hero, claimed)
        yield claim(text, claimed == good, friend, hero, outcome(dice, hero, good))


def chapter(dice: Dice, cast: list[Person]) -> Iterator[str]:
    """Paragraphs about two of the cast: who they are, what happens, and talk about it."""
    hero, friend = dice.sample(cast, 2)
    for one, other in ((hero, friend), (friend, hero)):
        yield from portrait(dice, cast, one)
        yield from adventure(dice, one, other)
    of_hero = dice.coin()
    subject = hero if of_hero else friend
    # If both have the same pronoun, only the sense of the sentence says whom it means.
    word = subject.pronoun if hero.pronoun == friend.pronoun and dice.coin() else subject.name
    voyage = " ".join(token for token, _ in travel(dice)).replace(" .", ".").replace(" ,", ",")
    yield f"{voyage} {reason(dice, hero.name, friend.name, word, of_hero)}"
    good = dice.coin()  # One mood a paragraph, so that words of one kind stand together.
    yield " ".join(opinion(dice, good) for _ in range(3))
    for person in (hero, friend, dice.pick(cast)):
        yield talk(dice, cast, person, dice.pick(list(RELATIONS)))


def book(dice: Dice) -> str:
    """Chapters until the book has `BOOK_CHARACTERS`."""
    cast = people(dice, 6)
    text = f"The people of {dice.pick(TOWNS)}\n"
    number = 0
    while len(text) < BOOK_CHARACTERS:
        number += 1
        for paragraph in (f"Chapter {number}", *chapter(dice, cast)):
            text += f"\n{paragraph}\n"
    return text
