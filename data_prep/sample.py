"""Writes the embedded sample: books and labelled sets.

    python -m data_prep.sample --out sample

These are small English story books and labelled sets for every task kind, of one made-up world.
Takes about 2 seconds, and writes the same bytes on every machine: DIR/books/{train,valid}/NNNN.txt,
DIR/tasks/NAME/ in each publisher's own layout, and last DIR/sample.json (version, seed, size).
Without that marker the output is partial and is written anew.
The books ask, answer, deny and restate their own facts, so that pre-training on them helps every
labelled set. This is the first step of `make quickstart`, before `train_tokenizer` and
`build_shards`. `data_prep/stories/` has the words, the grammar and the labelled sets.
"""

import argparse
import json
from collections.abc import Iterator

from data_prep.stories.books import BOOK_CHARACTERS, book
from data_prep.stories.labelled import all_sets
from data_prep.stories.world import Dice
from gpt1_ds.base.errors import ConfigError, command
from gpt1_ds.base.files import write_atomically
from gpt1_ds.base.options import Parser, path
from gpt1_ds.base.progress import Progress
from gpt1_ds.base.streams import keep_going_without_output

VERSION = 2  # raised whenever a seed would give other bytes
VALID_SHARE = 0.06


def files(megabytes: float, seed: int) -> Iterator[tuple[str, str]]:
    """(path, text) of the whole sample. The labelled sets do not depend on the size."""
    train_books = max(2, round(megabytes * 1e6 / BOOK_CHARACTERS))
    valid_books = max(1, round(train_books * VALID_SHARE))
    for split, count in (("train", train_books), ("valid", valid_books)):
        for number in range(1, count + 1):
            yield f"books/{split}/{number:04d}.txt", book(Dice(seed, split, number))
    yield from all_sets(seed)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__)
    option = parser.add_argument_group("options").add_argument
    option(
        "--out",
        type=path,
        required=True,
        metavar="DIR",
        help="folder to write (books/, tasks/, sample.json)",
    )
    option(
        "--megabytes",
        type=float,
        default=4,
        metavar="MB",
        help="size of the training books in 10^6 bytes",
    )
    option("--seed", type=int, default=42, metavar="N", help="seed of every choice")
    return parser


def main(argv: list[str]) -> None:
    keep_going_without_output()
    args = _parser().parse_args(argv)
    if not 0 < args.megabytes <= 250:
        raise ConfigError(
            f"--megabytes {args.megabytes:g}: must be above 0 and at most 250 (4-digit book names)"
        )
    marker = args.out / "sample.json"
    facts = f"seed {args.seed}, {args.megabytes:g} MB"
    wanted = json.dumps({"version": VERSION, "seed": args.seed, "megabytes": args.megabytes}) + "\n"
    try:
        if marker.exists() and marker.read_text(encoding="utf-8") == wanted:
            print(f"{args.out}: complete ({facts}), reused")
            return
        marker.unlink(missing_ok=True)
        for stale in args.out.glob("books/*/[0-9][0-9][0-9][0-9].txt"):
            stale.unlink()
        with Progress("sample", None, "file") as bar:
            for file, text in files(args.megabytes, args.seed):
                path = args.out / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
                bar.update()
        write_atomically(marker, wanted)
    except OSError as error:
        raise ConfigError(
            f"--out {args.out}: {error.strerror}; name a folder that can be written"
        ) from error
    print(f"{args.out}: books/ and tasks/ ({facts})")


cli = command(main, __name__)
