"""Writes the embedded sample: small English story books and labelled sets for every task kind, of one made-up world.

    python -m data_prep.sample --out DIR [--megabytes 4] [--seed 42]       about 2 seconds; the same bytes everywhere

Writes DIR/books/{train,valid}/NNNN.txt, DIR/tasks/NAME/ in each publisher's own layout, and last DIR/sample.json
(version, seed, size): without that marker the output is partial and is written anew.
The books ask, answer, deny and restate their own facts, so that pre-training on them is of use to every labelled set.
The first step of `make quickstart`, ahead of `train_tokenizer` and `build_shards`; `sample_world.py` has the words and
the grammar, `sample_tasks.py` the labelled sets.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from data_prep import sample_tasks
from data_prep import sample_world as world
from data_prep.sample_world import Dice, Person
from gpt1_ds import errors
from gpt1_ds.files import write_atomically

VERSION = 2  # raised whenever a seed would give other bytes
BOOK_CHARACTERS = 30_000
VALID_SHARE = 0.06


def claim(text: str, true: bool, asker: Person, teller: Person, truth: str) -> str:
    return f'"{text} Is it true?" asked {asker.name}. "{"Yes" if true else "No"}," said {teller.name}. "{truth}"'


def talk(dice: Dice, cast: list[Person], about: Person, relation: str) -> str:
    """A question about a fact, or a claim, and the true answer."""
    asker, teller = dice.sample(cast, 2)
    truth, value = world.tell(dice, about, relation), about.facts[relation]
    question = f'"{world.ask(dice, about, relation)}" asked {asker.name}.'
    # A false claim is true of someone else.
    claimed = value if dice.coin() else dice.pick([one for one in cast if one is not about]).facts[relation]
    claimed_text = world.tell(dice, about, relation, claimed)
    return dice.pick([
        f'{question} "{truth}"',
        f'{question} "{world.fill(value)}," said {teller.name}.',
        *[claim(claimed_text, claimed == value, asker, teller, truth)] * 2,
    ])  # fmt: skip


def portrait(dice: Dice, cast: list[Person], person: Person) -> Iterator[str]:
    """A few facts, and at once the talk about them: near enough for a model of short context to look them up."""
    told = dice.sample(world.RELATIONS, 3)
    first, *others = (world.tell(dice, person, relation) for relation in told)
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
    after = dice.sample([world.outcome(dice, hero, good), world.ending(dice, hero, good), world.opinion(dice, good)], 3)
    yield " ".join([f"{dice.pick(world.TIMES)} this happened.", *world.event(dice, hero, friend, good), *after])
    for result in (world.outcome, world.ending):
        claimed = dice.coin()
        yield claim(result(dice, hero, claimed), claimed == good, friend, hero, world.outcome(dice, hero, good))


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
    voyage = " ".join(token for token, _ in world.travel(dice)).replace(" .", ".").replace(" ,", ",")
    yield f"{voyage} {world.reason(dice, hero.name, friend.name, word, of_hero)}"
    good = dice.coin()  # one mood a paragraph, so that the words of a kind are found together
    yield " ".join(world.opinion(dice, good) for _ in range(3))
    for person in (hero, friend, dice.pick(cast)):
        yield talk(dice, cast, person, dice.pick(list(world.RELATIONS)))


def book(dice: Dice) -> str:
    cast = world.people(dice, 6)
    text, number = f"The people of {dice.pick(world.TOWNS)}\n", 0
    while len(text) < BOOK_CHARACTERS:
        number += 1
        text += "".join(f"\n{paragraph}\n" for paragraph in (f"Chapter {number}", *chapter(dice, cast)))
    return text


def files(megabytes: float, seed: int) -> Iterator[tuple[str, str]]:
    """(path, text) of the whole sample. The labelled sets do not depend on the size."""
    train_books = max(2, round(megabytes * 1e6 / BOOK_CHARACTERS))
    for split, count in (("train", train_books), ("valid", max(1, round(train_books * VALID_SHARE)))):
        for number in range(1, count + 1):
            yield f"books/{split}/{number:04d}.txt", book(Dice(seed, split, number))
    yield from sample_tasks.all_sets(seed)


def main(argv: list[str]) -> int | None:
    parser = argparse.ArgumentParser(prog="python -m data_prep.sample", description=__doc__.split("\n")[0])
    option = parser.add_argument
    option("--out", type=Path, required=True, help="folder to write (books/, tasks/, sample.json)")
    option("--megabytes", type=float, default=4, help="size of the training books in 10^6 bytes (default: 4)")
    option("--seed", type=int, default=42, help="seed of every choice (default: 42)")
    args = parser.parse_args(argv)
    if not 0 < args.megabytes <= 250:
        raise errors.ConfigError(
            f"--megabytes {args.megabytes:g}: must be above 0 and at most 250 (4-digit book names)"
        )
    marker, told = args.out / "sample.json", f"seed {args.seed}, {args.megabytes:g} MB"
    wanted = json.dumps({"version": VERSION, "seed": args.seed, "megabytes": args.megabytes}) + "\n"
    try:
        if marker.exists() and marker.read_text(encoding="utf-8") == wanted:
            print(f"{args.out}: complete ({told}), reused")
            return
        marker.unlink(missing_ok=True)
        for stale in args.out.glob("books/*/[0-9][0-9][0-9][0-9].txt"):
            stale.unlink()
        for file, text in tqdm(files(args.megabytes, args.seed), "sample", unit=" files", disable=None):
            path = args.out / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        write_atomically(marker, wanted)
    except OSError as error:
        raise errors.ConfigError(f"--out {args.out}: {error.strerror}; name a folder that can be written") from error
    print(f"{args.out}: books/ and tasks/ ({told})")


def cli() -> None:
    errors.guard(main)


if __name__ == "__main__":
    cli()
