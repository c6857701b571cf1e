"""Writes the embedded sample: small English story books and labelled sets for every task kind, of one made-up world.

    python -m data_prep.sample --out DIR [--megabytes 4] [--seed 42]       about 2 seconds; the same bytes everywhere

Writes DIR/books/{train,valid}/NNNN.txt, DIR/tasks/NAME/ in each publisher's own layout, and last DIR/sample.json
(version, seed, size, sha256 of every file): without that marker the output is partial and is written anew.
The books ask, answer, deny and restate their own facts, so that pre-training on them is of use to every labelled set.
The first step of `make quickstart`, ahead of `train_tokenizer` and `build_shards`; `sample_world.py` has the words and
the grammar, `sample_tasks.py` the labelled sets.
"""

import argparse
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep import sample_tasks
from data_prep.sample_world import (
    ENDINGS,
    RELATIONS,
    RESULTS,
    TIMES,
    TOWNS,
    Dice,
    Person,
    ask,
    describe,
    draw,
    event,
    fill,
    opinion,
    outcome,
    people,
    reason,
    scene,
    state,
    travel,
)
from gpt1_ds import errors
from gpt1_ds.files import write_atomically

VERSION = 1  # raised whenever a seed would give other bytes
BOOK_CHARACTERS = 30_000
VALID_SHARE = 0.06


def talk(dice: Dice, cast: list[Person], about: Person, relation: str) -> str:
    """A question about a fact, or a claim, and the true answer."""
    asker, teller = (person.name for person in dice.sample(cast, 2))
    truth, value = state(dice, about, relation), about.facts[relation]
    form = dice.below(4)
    if form == 0:
        return f'"{ask(dice, about, relation)}" asked {asker}. "{truth}"'
    if form == 1:
        return f'"{ask(dice, about, relation)}" asked {asker}. "{fill(value)}," said {teller}.'
    claimed = value if dice.below(2) else draw(dice, relation, value)
    answer = "Yes" if claimed == value else "No"
    return f'"{state(dice, about, relation, claimed)} Is it true?" asked {asker}. "{answer}," said {teller}. "{truth}"'


def portrait(dice: Dice, cast: list[Person], person: Person) -> Iterator[str]:
    """A few facts, and at once the talk about them: near enough for a model of short context to look them up."""
    told = dice.sample(RELATIONS, 3)
    named, pronoun = f"{person.name} ", "She " if person.she else "He "
    facts = [state(dice, person, relation) for relation in told]
    for index in (1, 2):
        if facts[index].startswith(named) and dice.below(2):
            facts[index] = pronoun + facts[index].removeprefix(named)
    yield " ".join(facts)
    for _ in range(3):
        yield talk(dice, cast, person, dice.pick(told))


def adventure(dice: Dice, hero: Person, friend: Person) -> Iterator[str]:
    """An event, and what it came to: told, and asked."""
    good, claimed = bool(dice.below(2)), bool(dice.below(2))
    *lines, result, ending = event(dice, hero, friend, good)
    after = dice.sample([result, ending, outcome(dice, hero, good)], 3)
    yield " ".join([f"{dice.pick(TIMES)} this happened.", *lines, *after])
    answer = "Yes" if claimed == good else "No"
    claims = [outcome(dice, hero, claimed), fill(dice.pick(ENDINGS[not claimed] + RESULTS[not claimed]), p=hero.name)]
    for claim in claims:
        yield f'"{claim} Is it true?" asked {friend.name}. "{answer}," said {hero.name}. "{outcome(dice, hero, good)}"'
    if not good:
        yield f"The next day {friend.name} came, and all was put right again."


def changes(dice: Dice, hero: Person, friend: Person) -> Iterator[str]:
    """What is new from now on: the facts themselves change."""
    if dice.below(3) == 0:
        old, new = hero.facts["home"], draw(dice, "home", hero.facts["home"])
        hero.facts["home"] = new
        yield f"That year {hero.name} left {old} and moved to {new}. {state(dice, hero, 'home')}"
    if dice.below(3) == 0:
        mine, yours = friend.facts["thing"], hero.facts["thing"]
        hero.facts["thing"], friend.facts["thing"] = mine, yours
        yield f"{hero.name} gave {yours} to {friend.name}, and {friend.name} gave {mine} to {hero.name}."


def chapter(dice: Dice, cast: list[Person]) -> Iterator[str]:
    """Paragraphs about two of the cast: who they are, what happens to them, what is said about it."""
    hero, friend = dice.sample(cast, 2)
    yield from portrait(dice, cast, hero)
    yield from adventure(dice, hero, friend)
    yield from portrait(dice, cast, friend)
    yield from adventure(dice, friend, hero)
    first, of_first = dice.sample([hero, friend], 2), bool(dice.below(2))
    # Two of a kind leave the pronoun to the sense of the sentence.
    cause = ("she" if hero.she else "he") if dice.below(2) and hero.she == friend.she else first[not of_first].name
    scenes = [describe(dice, scene(dice) | {"who": hero.name}), describe(dice, scene(dice))]
    voyage = " ".join(words for words, _ in travel(dice)).replace(" .", ".")
    yield " ".join([*scenes, voyage, reason(dice, first[0].name, first[1].name, cause, of_first)])
    yield " ".join(opinion(dice, bool(dice.below(2))) for _ in range(3))
    yield from changes(dice, hero, friend)
    for person in (hero, friend, dice.pick(cast)):
        yield talk(dice, cast, person, dice.pick(list(RELATIONS)))


def book(dice: Dice) -> str:
    cast = people(dice, 6)
    paragraphs, length = [f"The people of {dice.pick(TOWNS)}"], 0
    number = 0
    while length < BOOK_CHARACTERS:
        number += 1
        paragraphs += [f"Chapter {number}", *chapter(dice, cast)]
        length = sum(len(paragraph) + 2 for paragraph in paragraphs)
    return "\n\n".join(paragraphs) + "\n"


def files(megabytes: float, seed: int) -> Iterator[tuple[str, str]]:
    """(path, text) of the whole sample. The labelled sets do not depend on the size."""
    train_books = max(2, round(megabytes * 1e6 / BOOK_CHARACTERS))
    for split, count in (("train", train_books), ("valid", max(1, round(train_books * VALID_SHARE)))):
        for number in range(1, count + 1):
            yield f"books/{split}/{number:04d}.txt", book(Dice(seed, split, number))
    yield from sample_tasks.all_sets(seed)


def complete(out: Path, wanted: dict[str, Any]) -> bool:
    """Whether `out` holds the wanted sample, every byte of it."""
    try:
        marker = json.loads((out / "sample.json").read_text(encoding="utf-8"))
        return {key: marker[key] for key in wanted} == wanted and all(
            hashlib.sha256((out / file).read_bytes()).hexdigest() == digest for file, digest in marker["files"].items()
        )
    except (OSError, ValueError, KeyError):
        return False


def write(path: Path, text: str) -> str:
    """Write `text` by way of a temporary name, and return its sha256."""
    data = text.encode("utf-8")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    # Not flushed: a thousand fsyncs cost more than the text, and the marker's hashes tell what a crash has torn.
    temporary.write_bytes(data)
    os.replace(temporary, path)
    return hashlib.sha256(data).hexdigest()


def main(argv: list[str]) -> int | None:
    parser = argparse.ArgumentParser(prog="python -m data_prep.sample", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write (books/, tasks/, sample.json)")
    parser.add_argument(
        "--megabytes", type=float, default=4, help="size of the training books in 10^6 bytes (default: 4)"
    )
    parser.add_argument("--seed", type=int, default=42, help="seed of every choice (default: 42)")
    args = parser.parse_args(argv)
    if not 0 < args.megabytes <= 250:
        raise errors.ConfigError(
            f"--megabytes {args.megabytes:g}: must be above 0 and at most 250 (4-digit book names)"
        )
    wanted = {"version": VERSION, "seed": args.seed, "megabytes": args.megabytes}
    if complete(args.out, wanted):
        print(f"{args.out}: complete (seed {args.seed}, {args.megabytes:g} MB), reused")
        return
    try:
        (args.out / "sample.json").unlink(missing_ok=True)
        for stale in args.out.glob("books/*/[0-9][0-9][0-9][0-9].txt"):
            stale.unlink()
        bar = tqdm(
            files(args.megabytes, args.seed),
            "sample",
            unit=" files",
            disable=False if os.environ.get("GPT1_PROGRESS") == "1" else None,
        )
        hashes = {file: write(args.out / file, text) for file, text in bar}
        write_atomically(args.out / "sample.json", json.dumps({**wanted, "files": hashes}, indent=1) + "\n")
    except OSError as error:
        raise errors.ConfigError(f"--out {args.out}: {error.strerror}; name a folder that can be written") from error
    books = [file for file in hashes if file.startswith("books/")]
    size = sum((args.out / file).stat().st_size for file in books)
    sets = len(list((args.out / "tasks").iterdir()))
    print(f"{args.out}: {len(books)} books ({size / 1e6:.1f} MB), {sets} labelled sets, seed {args.seed}")


def cli() -> None:
    errors.guard(main)


if __name__ == "__main__":
    cli()
