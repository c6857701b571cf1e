"""The world of the embedded sample: words, people with their facts, and sentences that tell, ask and judge.

`sample.py` makes books of it, `sample_tasks.py` labelled sets. Every choice comes from one `Dice`, so a seed fixes
every byte.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


def a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


# fmt: off
GIRLS = """Ada Alice Anna Bella Clara Daisy Dora Edith Ella Emma Fanny Flora Grace Greta Hanna Hazel Helen Ida Iris Jane
Kate Lily Lucy Mabel Maria Martha Mary Nora Olive Polly Rosa Ruth Sally Tess""".split()
BOYS = """Adam Albert Alfred Arthur Ben Carl David Edgar Emil Felix Frank Fred George Harry Henry Hugo Jack Jacob James
John Karl Leo Louis Martin Max Nick Noah Oscar Otto Paul Peter Philip Sam Tom""".split()
TOWNS = [head + tail for head in "Ash Birch Black Cold Elm Fair Green Hart Long Oak Red Stone Thorn West White".split()
         for tail in "bridge brook bury dale field ford ley mouth stead ton wick wood".split()]
HILLS = [f"{head} {tail}" for head in "Crow Eagle Fox Otter Swan Wolf".split() for tail in "Bay Hill Island".split()]
SHIPS = [f"{head} {tail}" for head in "Bold Golden Merry Silver".split() for tail in "Arrow Rose Star Swan".split()]
JOBS = """baker barber blacksmith carpenter clockmaker cook doctor farmer fiddler gardener hatter hunter innkeeper judge
mason miller nurse painter potter sailor shepherd soldier tailor teacher weaver""".split()
ANIMALS = "cat dog donkey duck goat goose hen horse lamb mouse owl parrot pig pony rabbit raven sheep".split()
COLOURS = "black blue brown green grey orange pink purple red silver white yellow".split()
THINGS = """basket bell boat book bottle box brush candle cart chair clock cup drum flute hammer jug kettle key kite
lamp map mirror pipe plate rope saddle sledge table umbrella wagon whistle""".split()
FOODS = """apple pie, baked fish, barley soup, bean stew, cherry cake, cold milk, fresh cheese, fried eggs, ginger cake,
hot porridge, mushroom soup, nut cake, pear jam, plum pudding, roast duck, sweet corn""".replace("\n", " ").split(", ")
SPOTS = """barn bridge castle cave church fair farm forest fountain garden harbour inn lake library lighthouse market
meadow mill orchard pond river school shore stable station theatre tower well""".split()
TIMES = "One morning, One day, That evening, In spring, Late in the summer, On a cold day, Before breakfast".split(", ")
MATTERS = "day song soup party walk letter dance supper journey visit speech game house room story".split()
# judgements, outcomes and endings: good ones, bad ones.
ADJECTIVES = ("""beautiful charming cheerful delightful excellent fine glorious good great lovely merry nice perfect
pleasant splendid wonderful""".split(), """awful bad boring dismal dreadful dull gloomy horrible miserable nasty poor
rotten sad terrible ugly wretched""".split())
OUTCOMES = (["{p} was happy.", "{p} was in luck.", "All went well for {p}.", "The day ended well for {p}."],
            ["{p} was unhappy.", "{p} was out of luck.", "All went badly for {p}.", "The day ended badly for {p}."])
ENDINGS = (["{p} went to bed with a happy heart.", "{p} laughed all the way home.", "{p} had never been so glad.",
            "{p} smiled for the rest of the day.", "{p} danced for joy."],
           ["{p} went to bed with a heavy heart.", "{p} cried all the way home.", "{p} had never been so sad.",
            "{p} sighed for the rest of the day.", "{p} wept with grief."])
# relation: statements, questions; {p} is the person and {v} the value. The first words of a question tell the relation.
RELATIONS: dict[str, tuple[list[str], list[str]]] = {
    "home": (["{p} lived in {v}.", "The home of {p} was in {v}.", "{p} had a house in {v}."],
             ["Where did {p} live?", "Where was the home of {p}?", "In which town did {p} have a house?"]),
    "job": (["{p} worked as {v}.", "{p} was {v}.", "{p} earned a living as {v}."],
            ["What was the work of {p}?", "How did {p} earn a living?", "What did {p} work as?"]),
    "pet": (["{p} kept {v}.", "{p} had {v} as a pet.", "{v} lived with {p}."],
            ["What animal did {p} keep?", "What pet did {p} have?", "What animal lived with {p}?"]),
    "thing": (["{p} owned {v}.", "{v} belonged to {p}.", "{p} was the owner of {v}."],
              ["What did {p} own?", "What belonged to {p}?", "Of what was {p} the owner?"]),
    "food": (["{p} liked {v} best.", "{p} loved to eat {v}.", "The favourite food of {p} was {v}."],
             ["What food did {p} like best?", "What did {p} love to eat?", "What was the favourite food of {p}?"]),
    "friend": (["{p} was a good friend of {v}.", "The best friend of {p} was {v}.", "{p} liked {v} above all."],
               ["Who was the best friend of {p}?", "Of whom was {p} a good friend?", "Whom did {p} like?"]),
    "spot": (["{p} often walked to {v}.", "{p} went to {v} every day.", "The favourite place of {p} was {v}."],
             ["Where did {p} often walk?", "Where did {p} go every day?", "What was the favourite place of {p}?"]),
}
VALUES = {
    "home": TOWNS + HILLS, "job": [a(job) for job in JOBS], "food": FOODS, "spot": [f"the {spot}" for spot in SPOTS],
    "pet": [a(f"{colour} {animal}") for colour in COLOURS for animal in ANIMALS],
    "thing": [a(f"{colour} {thing}") for colour in COLOURS for thing in THINGS],
}
# two sentences of set-up, the good turn, the bad turn; {s} is he or she.
PLOTS = [
    ("{p} took {thing} to {spot}.", "{s} put it down under a tree and fell asleep.",
     "{q} watched over it until {p} woke up.", "When {p} woke up, it was gone."),
    ("{p} wanted to make {food} for {q}.", "{s} worked in the kitchen all morning.",
     "Soon the whole house smelled sweet.", "The fire was too hot, and everything burned."),
    ("There was a race from {home} to {spot}.", "{p} ran against {q} and many others.",
     "{p} was the first to come in.", "{p} fell in the mud and came in last."),
    ("{p} had {pet}.", "One night the door was left open.",
     "In the morning the animal was asleep by the fire.", "In the morning the animal was lost in the woods."),
    ("{p} waited for a letter from {q}.", "{s} looked down the road every day.",
     "At last the letter came, full of good news.", "At last the letter came, full of bad news."),
    ("{p} planted beans behind the house in {home}.", "{s} watered them every evening.",
     "The beans grew as tall as the roof.", "The goats broke the fence and ate all the beans."),
    ("{p} took {thing} to the fair.", "There was a prize for the finest one.",
     "The judge gave the prize to {p}.", "The judge laughed at it and gave the prize to {q}."),
    ("It was the birthday of {p}.", "{s} had asked {q} and all the neighbours to come.",
     "Every one of them came with a present.", "Not one of them came."),
    ("A storm came over {home}.", "{p} ran to the house of {q}.",
     "The door was open and the fire was warm.", "The door was locked and the house was cold."),
    ("{p} had to cross the river with {thing}.", "The water was high.",
     "{q} came by and brought {p} over in a boat.", "The water carried everything away."),
]
# {x} and {y} judge as the whole sentence does, {z} the other way.
OPINIONS = [
    "the {m} was {x}.", "how {x} the {m} was!", "{p} thought that the {m} was {x} and {y}.",
    "the {m} was {x} and the {n} was {y}.", "the {n} was {z}, but in the end the {m} was {x}.",
    "{p} had thought the {m} {z}, but it was {x}.", "the {m} was not {z} but {x}.",
    "although the {n} was {z}, {p} called the {m} {x}.", "nobody could call the {m} {z}, for it was {x}.",
]
# what one did to another, and why: the reason of the first, the reason of the second.
REASONS = [
    ("{a} thanked {b}", "had been given help", "had given help"), ("{a} comforted {b}", "was kind", "was crying"),
    ("{a} gave bread to {b}", "had enough of it", "was hungry"), ("{a} lost the race to {b}", "was slow", "was fast"),
    ("{a} asked {b} for the way", "was lost", "knew the road"), ("{a} carried {b} home", "was strong", "was tired"),
    ("{a} taught {b} to swim", "swam well", "was afraid of water"), ("{a} could not lift {b}", "was weak", "was heavy"),
    ("{a} borrowed a lamp from {b}", "had no lamp", "had two lamps"), ("{a} forgave {b}", "was patient", "was sorry"),
]
# in tokens; {p} has a family name and {q} none.
TRAVELS = [
    "{p} sailed on the {ship} to {place} .", "{place} is a quiet town , said {p} .", "The {ship} came from {place} .",
    "In {place} they met {p} and {q} .", "{p} sold the {ship} to {q} .", "Long ago {q} left {place} .",
    "Nobody in {place} had heard of {p} .", "The captain of the {ship} was {q} .", "Snow fell on {place} .",
    "Winter was long that year .", "The Rose was the finest inn in {place} .", "Both {p} and {q} knew the {ship} .",
]


# fmt: on


class Dice:
    """Seeded choices made of `Random.random()` alone: the one method Python promises never to change."""

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


def people(dice: Dice, count: int) -> list[Person]:
    """`count` people, no two of the same name or the same value of a fact; each one's best friend is the next."""
    names = dice.sample(GIRLS + BOYS, count + 1)
    columns = [*(dice.sample(values, count) for values in VALUES.values()), names[1:]]
    rows = zip(names, zip(*columns, strict=True), strict=False)
    return [
        Person(
            name, "she" if name in GIRLS else "he", dict(zip([*VALUES, "friend"], row, strict=True))
        )
        for name, row in rows
    ]


def fill(template: str, **slots: str) -> str:
    text = template.format(**slots)
    return text[0].upper() + text[1:]


def tell(dice: Dice, person: Person, relation: str, value: str | None = None) -> str:
    return fill(dice.pick(RELATIONS[relation][0]), p=person.name, v=value or person.facts[relation])


def ask(dice: Dice, person: Person, relation: str) -> str:
    return fill(dice.pick(RELATIONS[relation][1]), p=person.name)


def outcome(dice: Dice, person: Person, good: bool) -> str:
    return fill(dice.pick(OUTCOMES[not good]), p=person.name)


def ending(dice: Dice, person: Person, good: bool) -> str:
    return fill(dice.pick(ENDINGS[not good]), p=person.name)


def event(dice: Dice, hero: Person, friend: Person, good: bool) -> list[str]:
    """Three sentences: set-up (2) and turn."""
    *setup, good_turn, bad_turn = dice.pick(PLOTS)
    slots = {"p": hero.name, "q": friend.name, "s": hero.pronoun.title(), **hero.facts}
    return [fill(line, **slots) for line in (*setup, good_turn if good else bad_turn)]


def opinion(dice: Dice, good: bool) -> str:
    """One sentence whose last judgement is good or bad; the words before it may say the contrary."""
    x, y = dice.sample(ADJECTIVES[not good], 2)
    m, n = dice.sample(MATTERS, 2)
    return fill(
        dice.pick(OPINIONS),
        x=x,
        y=y,
        z=dice.pick(ADJECTIVES[good]),
        m=m,
        n=n,
        p=dice.pick(GIRLS + BOYS),
    )


def reason(dice: Dice, first: str, second: str, subject: str, of_first: bool) -> str:
    deed, *reasons = dice.pick(REASONS)
    return fill(f"{deed} because {subject} {reasons[not of_first]}.", a=first, b=second)


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
        words, kind = slots.get(token, (token, ""))
        tokens += [
            (word, f"{'I' if i else 'B'}-{kind}" if kind else "O")
            for i, word in enumerate(words.split())
        ]
    return tokens
