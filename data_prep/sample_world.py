"""The world and the grammar of the embedded sample: people with facts, and the sentences that tell, ask and judge them.

`sample.py` makes the books and the labelled sets of it. Every choice comes from one `Dice`, so a seed fixes every byte.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

# fmt: off
GIRLS = """Ada Alice Anna Bella Clara Daisy Dora Edith Ella Emma Fanny Flora Grace Greta Hanna Hazel Helen Ida Iris Ivy
Jane Kate Lily Lotte Lucy Mabel Maria Martha Mary Molly Nell Nora Olive Polly Rosa Rose Ruth Sally Sara Tess""".split()
BOYS = """Adam Albert Alfred Arthur Ben Carl David Edgar Emil Felix Frank Fred George Harry Henry Hugo Jack Jacob James
John Karl Leo Louis Martin Max Nick Noah Oliver Oscar Otto Paul Peter Philip Ralph Robert Sam Simon Thomas
Tom Walter""".split()
TOWN_HEADS = "Ash Beck Birch Black Cold Elm Fair Fern Green Hart Long Mill Oak Red Stone Thorn West White Wild".split()
TOWN_TAILS = "bridge brook bury dale field ford ham ley mouth stead ton wick wood worth".split()
TOWNS = [head + tail for head in TOWN_HEADS for tail in TOWN_TAILS]
HILLS = [f"{head} {tail}" for head in "Crow Eagle Fox Otter Swan Wolf".split() for tail in "Bay Hill Island".split()]
SHIPS = [f"{head} {tail}" for head in "Bold Golden Merry Silver".split() for tail in "Arrow Rose Star Swan".split()]
JOBS = """actor baker barber beekeeper blacksmith bookbinder carpenter clockmaker cook doctor farmer ferryman fiddler
fisherman gardener hatter hunter innkeeper judge lamplighter mason miller nurse painter potter sailor
shepherd shoemaker soldier tailor teacher weaver""".split()
ANIMALS = "cat dog donkey duck goat goose hen horse lamb mouse owl parrot pig pony rabbit raven sheep squirrel".split()
COLOURS = "black blue brown green grey orange pink purple red silver white yellow".split()
SIZES = "big heavy huge large light little long round short small tiny wide".split()
THINGS = """basket bell boat book bottle box brush bucket candle cart chair clock cup drum fiddle flute hammer jug
kettle key kite ladder lamp map mirror pipe plate pot rope saddle sledge spoon table umbrella wagon whistle""".split()
FOODS = """apple pie, baked fish, barley soup, bean stew, bread and butter, cherry cake, cold milk, fresh cheese, fried
eggs, ginger cake, honey bread, hot porridge, mushroom soup, nut cake, onion soup, pea soup, pear jam, plum
pudding, potato pie, roast chestnuts, roast duck, sweet corn""".replace("\n", " ").split(", ")
SPOTS = [f"the {spot}" for spot in """barn bridge castle cave church fair farm forest fountain garden gate harbour hill
inn lake library lighthouse market meadow mill orchard pond river school shore stable station theatre tower
well""".split()]
GARMENTS = "apron belt cap cape cloak coat dress hat jacket scarf shawl shirt".split()
DOINGS = """singing a song, reading a letter, catching fish, painting a picture, telling a story, counting coins,
sleeping, dancing, cutting wood, picking berries, eating lunch, washing clothes, looking for shells, playing
chess, mending a net, feeding birds, drawing a map, writing a poem, digging a hole, waiting for the
coach""".replace("\n", " ").split(", ")
WHO = ["a girl", "a boy", "an old man", "an old woman", "a young man", "a young woman", "a child", "a traveller"]
TIMES = "One morning, One day, That evening, In spring, Late in the summer, On a cold day, Before breakfast".split(", ")
GOOD = """beautiful, charming, cheerful, delightful, excellent, fine, glorious, good, grand, great, lovely, marvellous,
merry, nice, perfect, pleasant, splendid, superb, warm, wonderful""".replace("\n", " ").split(", ")
BAD = """awful, bad, bitter, boring, cold, dismal, dreadful, dreary, dull, gloomy, hateful, horrible, miserable, nasty,
poor, rotten, sad, terrible, ugly, wretched""".replace("\n", " ").split(", ")
MATTERS = "day song soup party walk letter dance supper journey visit speech game house room story".split()

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
# set-up of two sentences, good turn, bad turn; {s} is he or she.
PLOTS = [
    ("{p} took {thing} to {spot}. {s} put it down under a tree and fell asleep.",
     "{q} watched over it until {p} woke up.", "When {p} woke up, it was gone."),
    ("{p} wanted to make {food} for {q}. {s} worked in the kitchen all morning.",
     "Soon the whole house smelled sweet.", "The fire was too hot, and everything burned."),
    ("There was a race from {home} to {spot}. {p} ran against {q} and many others.",
     "{p} was the first to come in.", "{p} fell in the mud and came in last."),
    ("{p} had {pet}. One night the door was left open.",
     "In the morning the animal was asleep by the fire.", "In the morning the animal was lost in the woods."),
    ("{p} waited for a letter from {q}. {s} looked down the road every day.",
     "At last the letter came, full of good news.", "At last the letter came, full of bad news."),
    ("{p} planted beans behind the house in {home}. {s} watered them every evening.",
     "The beans grew as tall as the roof.", "The goats broke the fence and ate all the beans."),
    ("{p} and {q} built a little boat. They put it on the water near {spot}.",
     "It floated like a duck.", "It sank like a stone."),
    ("{p} took {thing} to the fair. There was a prize for the finest one.",
     "The judge gave the prize to {p}.", "The judge laughed at it and gave the prize to {q}."),
    ("It was the birthday of {p}. {s} had asked {q} and all the neighbours to come.",
     "Every one of them came with a present.", "Not one of them came."),
    ("A storm came over {home}. {p} ran to the house of {q}.",
     "The door was open and the fire was warm.", "The door was locked and the house was cold."),
    ("{p} had learned a new song. {s} sang it for {q} near {spot}.",
     "{q} clapped and wanted to hear it again.", "{q} yawned and went away."),
    ("{p} had to cross the river with {thing}. The water was high.",
     "{q} came by and brought {p} over in a boat.", "The water carried everything away."),
]
RESULTS = (["It was better than {p} had hoped.", "{p} could not believe such good luck.", "What a fine day for {p}!"],
           ["It was worse than {p} had feared.", "{p} could not believe such bad luck.", "What a bad day for {p}!"])
ENDINGS = (["{p} went to bed with a happy heart.", "{p} laughed all the way home.", "{p} had never been so glad.",
            "{p} smiled for the rest of the day.", "{p} danced for joy."],
           ["{p} went to bed with a heavy heart.", "{p} cried all the way home.", "{p} had never been so sad.",
            "{p} sighed for the rest of the day.", "{p} wept with grief."])
# what may be said afterwards of a good and of a bad turn.
OUTCOMES = (["{p} was happy.", "{p} was in luck.", "All went well for {p}.", "The day ended well for {p}."],
            ["{p} was unhappy.", "{p} was out of luck.", "All went badly for {p}.", "The day ended badly for {p}."])
# {x} and {y} judge as the whole sentence does, {z} the other way; {ax} is {x} after its article.
OPINIONS = [
    "the {m} was {x}.", "what {ax} {m} it was!", "{p} thought that the {m} was {x} and {y}.",
    "the {m} was {x} and the {n} was {y}.", "the {n} was {z}, but in the end the {m} was {x}.",
    "{p} had expected {az} {m}, but it was {x}.", "the {m} was not {z} but {x}.",
    "although the {n} was {z}, {p} called it {ax} {m}.", "nobody could call the {m} {z}, for it was {x}.",
]
# what one did to another, and why: the reason of the first, the reason of the second.
REASONS = [
    ("{a} thanked {b}", "had been given help", "had given help"), ("{a} comforted {b}", "was kind", "was crying"),
    ("{a} gave bread to {b}", "had enough of it", "was hungry"), ("{a} lost the race to {b}", "was slow", "was fast"),
    ("{a} asked {b} for the way", "was lost", "knew the road"), ("{a} carried {b} home", "was strong", "was tired"),
    ("{a} taught {b} to swim", "swam well", "was afraid of water"), ("{a} could not lift {b}", "was weak", "was heavy"),
    ("{a} borrowed a lamp from {b}", "had no lamp", "had two lamps"), ("{a} forgave {b}", "was patient", "was sorry"),
    ("{a} envied {b}", "had lost", "had won"), ("{a} paid {b}", "had bought a coat", "had sold a coat"),
    ("{a} waited for {b}", "was early", "was late"), ("{a} woke {b}", "was up already", "was still asleep"),
]
TRAVELS = [
    "{p} sailed on the {ship} to {place}.", "{place} is a quiet town, said {p}.", "The {ship} came home from {place}.",
    "In {place} they met {p} and {q}.", "{p} sold the {ship} to {q}.", "Long ago {p} left {place} for {place2}.",
    "Nobody in {place} had heard of {p}.", "{p} drew the road from {place} to {place2}.",
    "The captain of the {ship} was {p}.", "Old {p} never saw the {ship} again.", "Snow fell on {place}.",
    "Yesterday {p} wrote to {q}.", "Winter was long that year.", "The Rose was the finest inn in {place}.",
    "A bold star shone over {place}.", "Both {p} and {q} knew the {ship}.",
]
# fmt: on


class Dice:
    """Seeded choices made of `Random.random()` alone: the one method Python promises never to change."""

    def __init__(self, *seed: object) -> None:
        self._random = random.Random("/".join(map(str, seed)))

    def below(self, n: int) -> int:
        return int(self._random.random() * n)

    def pick(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]

    def sample(self, options: Iterable[T], k: int) -> list[T]:
        rest = list(options)
        return [rest.pop(self.below(len(rest))) for _ in range(k)]


def a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def fill(template: str, **slots: str) -> str:
    text = template.format(**slots)
    return text[0].upper() + text[1:]


# The world: people and their facts.


@dataclass
class Person:
    name: str
    she: bool
    facts: dict[str, str]


MAKERS: dict[str, Callable[[Dice], str]] = {
    "home": lambda dice: dice.pick(TOWNS if dice.below(4) else HILLS),
    "job": lambda dice: a(dice.pick(JOBS)),
    "pet": lambda dice: a(f"{dice.pick(COLOURS)} {dice.pick(ANIMALS)}"),
    "thing": lambda dice: a(f"{dice.pick(SIZES)} {dice.pick(COLOURS)} {dice.pick(THINGS)}"),
    "food": lambda dice: dice.pick(FOODS),
    "friend": lambda dice: dice.pick(GIRLS + BOYS),
    "spot": lambda dice: dice.pick(SPOTS),
}


def draw(dice: Dice, relation: str, *taken: str) -> str:
    """A value of `relation` that is none of `taken`."""
    while (value := MAKERS[relation](dice)) in taken:
        pass
    return value


def people(dice: Dice, count: int) -> list[Person]:
    """`count` people of different names; each one's best friend is the next."""
    names = dice.sample(GIRLS + BOYS, count)
    found = []
    for index, name in enumerate(names):
        facts = {relation: draw(dice, relation) for relation in RELATIONS}
        facts["friend"] = names[(index + 1) % count] if count > 1 else draw(dice, "friend", name)
        found.append(Person(name, name in GIRLS, facts))
    return found


# The grammar: sentences about facts, scenes and events.


def state(dice: Dice, person: Person, relation: str, value: str | None = None) -> str:
    return fill(dice.pick(RELATIONS[relation][0]), p=person.name, v=value or person.facts[relation])


def ask(dice: Dice, person: Person, relation: str) -> str:
    return fill(dice.pick(RELATIONS[relation][1]), p=person.name)


def join(first: str, second: str) -> str:
    """Two statements as one sentence."""
    words = second.split(" ", 1)
    lower = words[0].lower() if words[0] in ("The", "A", "An") else words[0]
    return f"{first[:-1]}, and {lower} {words[1]}"


def scene(dice: Dice) -> dict[str, str]:
    return {
        "who": dice.pick(WHO if dice.below(2) else GIRLS + BOYS),
        "doing": dice.pick(DOINGS),
        "spot": "near " + dice.pick(SPOTS),
        "wear": "in " + a(f"{dice.pick(COLOURS)} {dice.pick(GARMENTS)}"),
        "company": "with " + a(f"{dice.pick(COLOURS)} {dice.pick(ANIMALS)}"),
    }


def describe(dice: Dice, slots: dict[str, str]) -> str:
    """One sentence of some slots of a scene: `who` and any of the others."""
    after = [slots[name] for name in ("spot", "company") if name in slots]
    if "wear" in slots:
        after.insert(dice.below(len(after) + 1), slots["wear"])
    return fill("{w}.", w=" ".join([slots["who"], "was", *([slots["doing"]] if "doing" in slots else []), *after]))


def event(dice: Dice, hero: Person, friend: Person, good: bool) -> list[str]:
    """Five sentences: set-up (2), turn, result, ending."""
    setup, *turns = dice.pick(PLOTS)
    after = [turns[not good], dice.pick(RESULTS[not good]), dice.pick(ENDINGS[not good])]
    lines = [*setup.replace(". ", ".|").split("|"), *after]
    return [fill(line, p=hero.name, q=friend.name, s="She" if hero.she else "He", **hero.facts) for line in lines]


def outcome(dice: Dice, hero: Person, good: bool) -> str:
    return fill(dice.pick(OUTCOMES[not good]), p=hero.name)


def opinion(dice: Dice, good: bool) -> str:
    """One sentence whose last judgement is good or bad; the words before it may say the contrary."""
    mine, contrary = (GOOD, BAD) if good else (BAD, GOOD)
    adjective, second, against = *dice.sample(mine, 2), dice.pick(contrary)
    first_matter, matter = dice.sample(MATTERS, 2)
    template = dice.pick(OPINIONS)
    return fill(
        template,
        m=matter,
        n=first_matter,
        x=adjective,
        y=second,
        z=against,
        ax=a(adjective),
        az=a(against),
        p=dice.pick(GIRLS + BOYS),
    )


def reason(dice: Dice, first: str, second: str, pronoun: str, of_first: bool) -> str:
    main, why_first, why_second = dice.pick(REASONS)
    return fill(f"{main} because {pronoun} {why_first if of_first else why_second}.", a=first, b=second)


def travel(dice: Dice) -> list[tuple[str, str]]:
    """(words, kind) pieces of one sentence; kind is a WNUT-17 label or nothing."""
    first, second = ([dice.pick(GIRLS + BOYS)] + ([dice.pick(TOWNS)] if dice.below(2) else []) for _ in range(2))
    places = dice.sample(TOWNS, 1) + dice.sample(HILLS, 1)
    slots = {
        "p": (" ".join(first), "person"),
        "q": (" ".join(second), "person"),
        "ship": (dice.pick(SHIPS), "product"),
        "place": (places.pop(dice.below(2)), "location"),
        "place2": (places[0], "location"),
    }
    pieces = dice.pick(TRAVELS).replace("{", "|{").replace("}", "}|").split("|")
    return [slots[piece[1:-1]] if piece.startswith("{") else (piece.strip(), "") for piece in pieces if piece.strip()]
