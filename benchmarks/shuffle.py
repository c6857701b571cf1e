"""Measures the orders of windows: how often two windows of a batch come from the same book.

    python benchmarks/shuffle.py                    half a minute; BooksCorpus's size, made books
    python benchmarks/shuffle.py --shards shards    and the books of your own shards

A batch has 64 windows of 512 tokens. A window shares a book if another one before it in the batch
is from that book. A perfect shuffle permutes the windows of an epoch uniformly. With --shards, the
lengths of its books also make a corpus of BooksCorpus's size: its books are drawn from them.
"""

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from data_prep.inspect_shards import documents
from gpt1_ds.base.errors import guard
from gpt1_ds.data.manifest import read_manifest
from gpt1_ds.data.order import SHUFFLES, WindowOrder

BATCH, N_CTX, SEED = 64, 512, 1
BOOKS_CORPUS_TOKENS, BOOK_TOKENS = 10**9, 100_000


def sharing(start_N: np.ndarray, ends_D: np.ndarray) -> float:
    """Windows of a batch that share a book, mean of all batches; `ends_D`: ends of the books."""
    batches_SB = start_N[: len(start_N) // BATCH * BATCH].reshape(-1, BATCH)
    books_SB = np.sort(ends_D.searchsorted(batches_SB, side="right"), axis=1)
    return float((np.diff(books_SB, axis=1) == 0).sum(axis=1).mean())


def report(title: str, lengths_D: np.ndarray) -> None:
    """A table of the orders for a corpus of books of these lengths."""
    ends_D = np.cumsum(lengths_D)
    tokens = int(ends_D[-1])
    print(f"\n{title}: {tokens:,} tokens in {len(lengths_D):,} books")
    print(f"{'order':18s}{'windows of 64 that share a book':>34s}{'of a perfect shuffle':>24s}")
    found = {}
    for kind in SHUFFLES:
        order = WindowOrder({"books": tokens}, N_CTX, SEED, {}, kind)
        _, start_N = order.locate(np.arange(order.epoch_windows))
        found[kind] = sharing(start_N, ends_D)
    perfect = sharing(np.random.default_rng(0).permutation(start_N), ends_D)
    for kind, windows in found.items():
        print(f"{kind:18s}{windows:34.2f}{windows / perfect:23.2f}x")
    print(f"{'perfect shuffle':18s}{perfect:34.2f}{1:23.2f}x")
    print(f"{'no shuffle':18s}{sharing(np.sort(start_N), ends_D):34.2f}")


def correlations() -> None:
    """Rank correlation of place in the corpus and time in the epoch, over seeds."""
    print("\nrank correlation of place and time over an epoch, mean size of 5 seeds")
    for kind in SHUFFLES:
        sizes = []
        for seed in range(5):
            order = WindowOrder({"books": BOOKS_CORPUS_TOKENS}, N_CTX, seed, {}, kind)
            index = np.arange(0, order.epoch_windows, 7)
            sizes.append(abs(np.corrcoef(order.locate(index)[1], index)[0, 1]))
        print(f"{kind:18s}{np.mean(sizes):.3f}")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/shuffle.py", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--shards", type=Path, metavar="DIR", help="shard directory of books")
    args = parser.parse_args(argv)
    made = np.full(BOOKS_CORPUS_TOKENS // BOOK_TOKENS, BOOK_TOKENS)
    report("books of one length", made)
    if args.shards:
        manifest = read_manifest(args.shards)
        corpora = manifest.splits["train"]
        corpus = max(corpora, key=lambda name: corpora[name].tokens)
        lengths = []
        for spans in documents(args.shards, manifest, "train", corpus):
            lengths.append(sum(span.tokens for span in spans))
        lengths_D = np.array(lengths)
        report(f"{corpus} of {args.shards}", lengths_D)
        count = int(BOOKS_CORPUS_TOKENS / lengths_D.mean())
        drawn = np.random.default_rng(0).choice(lengths_D, count)
        report("books of lengths drawn from these", drawn)
    correlations()


if __name__ == "__main__":
    guard(main)
