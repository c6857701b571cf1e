"""The words and sentences of the embedded sample, as tables."""

from itertools import product


def with_article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def combined(heads: str, tails: str, separator: str = "") -> list[str]:
    """Each word of `heads` with each word of `tails`."""
    return [head + separator + tail for head, tail in product(heads.split(), tails.split())]


# fmt: off
GIRLS = """Ada Alice Anna Bella Clara Daisy Dora Edith Ella Emma Fanny Flora Grace Greta Hanna
Hazel Helen Ida Iris Jane Kate Lily Lucy Mabel Maria Martha Mary Nora Olive Polly Rosa Ruth Sally
Tess""".split()
BOYS = """Adam Albert Alfred Arthur Ben Carl David Edgar Emil Felix Frank Fred George Harry Henry
Hugo Jack Jacob James John Karl Leo Louis Martin Max Nick Noah Oscar Otto Paul Peter Philip Sam
Tom""".split()
TOWNS = combined("Ash Birch Black Cold Elm Fair Green Hart Long Oak Red Stone Thorn West White",
                 "bridge brook bury dale field ford ley mouth stead ton wick wood")
HILLS = combined("Crow Eagle Fox Otter Swan Wolf", "Bay Hill Island", " ")
SHIPS = combined("Bold Golden Merry Silver", "Arrow Rose Star Swan", " ")
JOBS = """baker barber blacksmith carpenter clockmaker cook doctor farmer fiddler gardener hatter
hunter innkeeper judge mason miller nurse painter potter sailor shepherd soldier tailor teacher
weaver""".split()
ANIMALS = """cat dog donkey duck goat goose hen horse lamb mouse owl parrot pig pony rabbit raven
sheep""".split()
COLOURS = "black blue brown green grey orange pink purple red silver white yellow".split()
THINGS = """basket bell boat book bottle box brush candle cart chair clock cup drum flute hammer
jug kettle key kite lamp map mirror pipe plate rope saddle sledge table umbrella wagon
whistle""".split()
FOODS = """apple pie, baked fish, barley soup, bean stew, cherry cake, cold milk, fresh cheese,
fried eggs, ginger cake, hot porridge, mushroom soup, nut cake, pear jam, plum pudding, roast duck,
sweet corn""".replace("\n", " ").split(", ")
SPOTS = """barn bridge castle cave church fair farm forest fountain garden harbour inn lake library
lighthouse market meadow mill orchard pond river school shore stable station theatre tower
well""".split()
TIMES = """One morning, One day, That evening, In spring, Late in the summer, On a cold day,
Before breakfast""".replace("\n", " ").split(", ")
MATTERS = """day song soup party walk letter dance supper journey visit speech game house room
story""".split()
# Judgements, outcomes and endings: good ones, bad ones.
ADJECTIVES = (
    """beautiful charming cheerful delightful excellent fine glorious good great lovely merry nice
    perfect pleasant splendid wonderful""".split(),
    """awful bad boring dismal dreadful dull gloomy horrible miserable nasty poor rotten sad
    terrible ugly wretched""".split(),
)
OUTCOMES = (
    ["{p} was happy.", "{p} was in luck.", "All went well for {p}.", "The day ended well for {p}."],
    ["{p} was unhappy.", "{p} was out of luck.", "All went badly for {p}.",
     "The day ended badly for {p}."],
)
ENDINGS = (
    ["{p} went to bed with a happy heart.", "{p} laughed all the way home.",
     "{p} had never been so glad.", "{p} smiled for the rest of the day.", "{p} danced for joy."],
    ["{p} went to bed with a heavy heart.", "{p} cried all the way home.",
     "{p} had never been so sad.", "{p} sighed for the rest of the day.", "{p} wept with grief."],
)
# Relation: statements, questions. {p} is the person and {v} the value. The first words of a
# question tell which relation it asks for.
RELATIONS: dict[str, tuple[list[str], list[str]]] = {
    "home": (
        ["{p} lived in {v}.", "The home of {p} was in {v}.", "{p} had a house in {v}."],
        ["Where did {p} live?", "Where was the home of {p}?",
         "In which town did {p} have a house?"],
    ),
    "job": (
        ["{p} worked as {v}.", "{p} was {v}.", "{p} earned a living as {v}."],
        ["What was the work of {p}?", "How did {p} earn a living?", "What did {p} work as?"],
    ),
    "pet": (
        ["{p} kept {v}.", "{p} had {v} as a pet.", "{v} lived with {p}."],
        ["What animal did {p} keep?", "What pet did {p} have?", "What animal lived with {p}?"],
    ),
    "thing": (
        ["{p} owned {v}.", "{v} belonged to {p}.", "{p} was the owner of {v}."],
        ["What did {p} own?", "What belonged to {p}?", "Of what was {p} the owner?"],
    ),
    "food": (
        ["{p} liked {v} best.", "{p} loved to eat {v}.", "The favourite food of {p} was {v}."],
        ["What food did {p} like best?", "What did {p} love to eat?",
         "What was the favourite food of {p}?"],
    ),
    "friend": (
        ["{p} was a good friend of {v}.", "The best friend of {p} was {v}.",
         "{p} liked {v} above all."],
        ["Who was the best friend of {p}?", "Of whom was {p} a good friend?",
         "Whom did {p} like?"],
    ),
    "spot": (
        ["{p} often walked to {v}.", "{p} went to {v} every day.",
         "The favourite place of {p} was {v}."],
        ["Where did {p} often walk?", "Where did {p} go every day?",
         "What was the favourite place of {p}?"],
    ),
}
VALUES = {
    "home": TOWNS + HILLS,
    "job": [with_article(job) for job in JOBS],
    "food": FOODS,
    "spot": [f"the {spot}" for spot in SPOTS],
    "pet": [with_article(f"{colour} {animal}") for colour, animal in product(COLOURS, ANIMALS)],
    "thing": [with_article(f"{colour} {thing}") for colour, thing in product(COLOURS, THINGS)],
}
# Two sentences of set-up, the good turn, the bad turn. {s} is he or she.
PLOTS = [
    ("{p} took {thing} to {spot}.", "{s} put it down under a tree and fell asleep.",
     "{q} watched over it until {p} woke up.", "When {p} woke up, it was gone."),
    ("{p} wanted to make {food} for {q}.", "{s} worked in the kitchen all morning.",
     "Soon the whole house smelled sweet.", "The fire was too hot, and everything burned."),
    ("There was a race from {home} to {spot}.", "{p} ran against {q} and many others.",
     "{p} was the first to come in.", "{p} fell in the mud and came in last."),
    ("{p} had {pet}.", "One night the door was left open.",
     "In the morning the animal was asleep by the fire.",
     "In the morning the animal was lost in the woods."),
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
    "although the {n} was {z}, {p} called the {m} {x}.",
    "nobody could call the {m} {z}, for it was {x}.",
]
# What one did to another, and why: the reason of the first, the reason of the second.
REASONS = [
    ("{a} thanked {b}", "had been given help", "had given help"),
    ("{a} comforted {b}", "was kind", "was crying"),
    ("{a} gave bread to {b}", "had enough of it", "was hungry"),
    ("{a} lost the race to {b}", "was slow", "was fast"),
    ("{a} asked {b} for the way", "was lost", "knew the road"),
    ("{a} carried {b} home", "was strong", "was tired"),
    ("{a} taught {b} to swim", "swam well", "was afraid of water"),
    ("{a} could not lift {b}", "was weak", "was heavy"),
    ("{a} borrowed a lamp from {b}", "had no lamp", "had two lamps"),
    ("{a} forgave {b}", "was patient", "was sorry"),
]
# In tokens. {p} has a family name and {q} none.
TRAVELS = [
    "{p} sailed on the {ship} to {place} .", "{place} is a quiet town , said {p} .",
    "The {ship} came from {place} .", "In {place} they met {p} and {q} .",
    "{p} sold the {ship} to {q} .", "Long ago {q} left {place} .",
    "Nobody in {place} had heard of {p} .", "The captain of the {ship} was {q} .",
    "Snow fell on {place} .", "Winter was long that year .",
    "The Rose was the finest inn in {place} .", "Both {p} and {q} knew the {ship} .",
]
# fmt: on
