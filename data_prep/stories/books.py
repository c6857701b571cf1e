"""Books of the embedded sample: stories written by a seeded grammar."""

from collections.abc import Iterator

from data_prep.stories.world import (
    RELATIONS,
    TIMES,
    TOWNS,
    Dice,
    Person,
    ask,
    ending,
    event,
    fill,
    opinion,
    outcome,
    people,
    reason,
    tell,
    travel,
)

BOOK_CHARACTERS = 30_000


def claim(text: str, true: bool, asker: Person, teller: Person, truth: str) -> str:
    return f'"{text} Is it true?" asked {asker.name}. "{"Yes" if true else "No"}," said {teller.name}. "{truth}"'


def talk(dice: Dice, cast: list[Person], about: Person, relation: str) -> str:
    """A question about a fact, or a claim, and the true answer."""
    asker, teller = dice.sample(cast, 2)
    truth, value = tell(dice, about, relation), about.facts[relation]
    question = f'"{ask(dice, about, relation)}" asked {asker.name}.'
    # A false claim is true of someone else.
    claimed = (
        value
        if dice.coin()
        else dice.pick([one for one in cast if one is not about]).facts[relation]
    )
    claimed_text = tell(dice, about, relation, claimed)
    return dice.pick(
        [
            f'{question} "{truth}"',
            f'{question} "{fill(value)}," said {teller.name}.',
            *[claim(claimed_text, claimed == value, asker, teller, truth)] * 2,
        ]
    )


def portrait(dice: Dice, cast: list[Person], person: Person) -> Iterator[str]:
    """A few facts, and at once the talk about them: near enough for a model of short context to look them up."""
    told = dice.sample(RELATIONS, 3)
    first, *others = (tell(dice, person, relation) for relation in told)
    for text in others:
        if text.startswith(f"{person.name} ") and dice.coin():
            text = person.pronoun.title() + text.removeprefix(person.name)
        first += f" {text}"
    yield first
    for _ in range(3):
        yield talk(dice, cast, person, dice.pick(told))


def adventure(dice: Dice, hero: Person, friend: Person) -> Iterator[str]:
    """An event, and what it came to: told, and asked."""
    good = dice.coin()
    after = dice.sample(
        [outcome(dice, hero, good), ending(dice, hero, good), opinion(dice, good)], 3
    )
    yield " ".join([f"{dice.pick(TIMES)} this happened.", *event(dice, hero, friend, good), *after])
    for result in (outcome, ending):
        claimed = dice.coin()
        yield claim(
            result(dice, hero, claimed), claimed == good, friend, hero, outcome(dice, hero, good)
        )


def chapter(dice: Dice, cast: list[Person]) -> Iterator[str]:
    """Paragraphs about two of the cast: who they are, what happens to them, what is said about it."""
    hero, friend = dice.sample(cast, 2)
    for one, other in ((hero, friend), (friend, hero)):
        yield from portrait(dice, cast, one)
        yield from adventure(dice, one, other)
    of_hero = dice.coin()
    # Two of a kind leave the pronoun to the sense of the sentence.
    subject = hero if of_hero else friend
    word = subject.pronoun if hero.pronoun == friend.pronoun and dice.coin() else subject.name
    voyage = " ".join(token for token, _ in travel(dice)).replace(" .", ".").replace(" ,", ",")
    yield f"{voyage} {reason(dice, hero.name, friend.name, word, of_hero)}"
    good = dice.coin()  # one mood a paragraph, so that the words of a kind are found together
    yield " ".join(opinion(dice, good) for _ in range(3))
    for person in (hero, friend, dice.pick(cast)):
        yield talk(dice, cast, person, dice.pick(list(RELATIONS)))


def book(dice: Dice) -> str:
    cast = people(dice, 6)
    text, number = f"The people of {dice.pick(TOWNS)}\n", 0
    while len(text) < BOOK_CHARACTERS:
        number += 1
        text += "".join(
            f"\n{paragraph}\n" for paragraph in (f"Chapter {number}", *chapter(dice, cast))
        )
    return text
