"""An n-gram baseline: interpolated modified Kneser-Ney on the same tokens that the model sees.

    python benchmarks/ngram.py SHARDS --valid-corpus books
    python benchmarks/ngram.py SHARDS --valid-corpus books --blimp BLiMP.zip

It takes under a minute for 6 million tokens of 8,000 pieces.

It trains unigram, bigram and trigram models on the split `train` of every corpus of a shard
directory. Then it scores each token of the split `valid` of one corpus. Control pieces are treated
like other tokens. A stream is circular, as in training: the last tokens are the context of the
first tokens.

Modified Kneser-Ney follows Chen & Goodman (1998), section 3. Below the highest order, the count of
an n-gram is the number of different tokens that precede it. Each order has three discounts,
computed from the counts of counts. The lowest order is interpolated with 1 / V.

With --blimp, each model also decides BLiMP's minimal pairs, as gpt1_ds.eval does: by the sum over
all tokens of a sentence, the first one after an end of document. The published n-gram beside it is
a 5-gram model of 3.1 billion words (Warstadt et al. 2020, section 5.1).
"""

import argparse
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from gpt1_ds.base.errors import guard
from gpt1_ds.data.manifest import Manifest, read_manifest
from gpt1_ds.data.token_stream import TokenStream
from gpt1_ds.data.tokenizer import Tokenizer, load_tokenizer
from gpt1_ds.model.likelihood import Likelihoods
from gpt1_ds.tasks.benchmarks import open_benchmark
from gpt1_ds.tasks.minimal_pairs import MinimalPairs

LONGEST_SENTENCE = 1000
"""Tokens; no sentence of BLiMP has so many."""
NAMES = ("unigram", "bigram", "trigram")


def ngrams(stream_T: np.ndarray, order: int, vocab_size: int) -> np.ndarray:
    """A key (T,) int64 for each token: it and the `order - 1` tokens before it, as digits in base
    `vocab_size`."""
    keys_T = np.zeros(len(stream_T), np.int64)
    for back in range(order):
        keys_T += np.roll(stream_T, back).astype(np.int64) * vocab_size**back
    return keys_T


@dataclass(frozen=True)
class Level:
    """The discounted n-grams of one order, and the probability mass left to the lower order."""

    keys_N: np.ndarray
    mass_N: np.ndarray  # (count - discount) / total of the context
    contexts_M: np.ndarray
    backoff_M: np.ndarray

    @classmethod
    def fit(cls, keys_N: np.ndarray, counts_N: np.ndarray, vocab_size: int) -> "Level":
        discount_N = discounts(counts_N)[np.minimum(counts_N, 3)]
        # In sorted order, the n-grams of one context are neighbours.
        contexts_M, starts_M, sizes_M = np.unique(
            keys_N // vocab_size, return_index=True, return_counts=True
        )
        totals_M = np.add.reduceat(counts_N, starts_M)
        mass_N = (counts_N - discount_N) / np.repeat(totals_M, sizes_M)
        return cls(keys_N, mass_N, contexts_M, np.add.reduceat(discount_N, starts_M) / totals_M)

    def probability(self, keys_T: np.ndarray, below_T: np.ndarray, vocab_size: int) -> np.ndarray:
        """Probability (T,) of each key's last token; `below_T` is that of the lower order."""
        backoff_T = lookup(self.contexts_M, self.backoff_M, keys_T // vocab_size, missing=1.0)
        return lookup(self.keys_N, self.mass_N, keys_T, missing=0.0) + backoff_T * below_T


def discounts(counts_N: np.ndarray) -> np.ndarray:
    """The discounts of the counts 0, 1, 2 and 3 or more; 0.5 if there are too few n-grams to
    estimate them."""
    n1, n2, n3, n4 = (int((counts_N == count).sum()) for count in (1, 2, 3, 4))
    if not (n1 and n2 and n3 and n4):
        return np.array([0.0, 0.5, 0.5, 0.5])
    y = n1 / (n1 + 2 * n2)
    estimates = [1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
    # A tiny corpus can give an estimate outside (0, count), which would make a probability
    # negative or zero.
    return np.array(
        [0.0] + [d if 0 < d < count else 0.5 for count, d in enumerate(estimates, start=1)]
    )


def lookup(
    keys_N: np.ndarray, values_N: np.ndarray, queries_T: np.ndarray, missing: float
) -> np.ndarray:
    """The value (T,) at each query in the sorted keys; `missing` if the key is absent."""
    at_T = np.minimum(np.searchsorted(keys_N, queries_T), len(keys_N) - 1)
    return np.where(keys_N[at_T] == queries_T, values_N[at_T], missing)


def fit(streams: Iterable[np.ndarray], order: int, vocab_size: int) -> list[Level]:
    """The levels of an `order`-gram model, unigrams first."""
    keys, counts = np.unique(
        np.concatenate([ngrams(s, order, vocab_size) for s in streams]), return_counts=True
    )
    levels = [Level.fit(keys, counts, vocab_size)]
    for length in range(order - 1, 0, -1):
        # Each different longer n-gram counts once, because a token that occurs after only one word
        # is a poor guess after other words.
        keys, counts = np.unique(keys % vocab_size**length, return_counts=True)
        levels.insert(0, Level.fit(keys, counts, vocab_size))
    return levels


def probabilities(levels: list[Level], stream_T: np.ndarray, vocab_size: int) -> np.ndarray:
    """Probability (T,) of every token of the stream, given its full context."""
    probability_T = np.full(len(stream_T), 1 / vocab_size)
    for order, level in enumerate(levels, start=1):
        probability_T = level.probability(
            ngrams(stream_T, order, vocab_size), probability_T, vocab_size
        )
    return probability_T


def read_all(root: str, manifest: Manifest, split: str, corpus: str) -> np.ndarray:
    stream = TokenStream(root, manifest, split, corpus)
    return stream.read(np.zeros(1, np.int64), stream.tokens)[0]


def told(blimp: "Blimp", levels: list[Level], vocab_size: int) -> list[str]:
    """BLiMP by phenomenon and field beside the published scores, and what is left out."""
    lines = blimp.pairs.report(blimp.score(levels, vocab_size))
    by_paradigm = next(place for place, line in enumerate(lines) if "by paradigm" in line)
    return ["BLiMP", *lines[:by_paradigm], *blimp.pairs.notes]


@dataclass(frozen=True)
class Blimp:
    """BLiMP as one stream, in which each sentence follows two ends of documents."""

    pairs: MinimalPairs
    stream_T: np.ndarray
    starts_N: np.ndarray
    """Place of each sentence's first token."""
    tokens_N: np.ndarray

    @classmethod
    def read(cls, path: Path, tokenizer: Tokenizer) -> "Blimp":
        pairs = open_benchmark("blimp", path, tokenizer, LONGEST_SENTENCE)
        assert isinstance(pairs, MinimalPairs)
        eot = np.array([tokenizer.special_ids["eot"]])
        tokens_N = np.array([query.scored for query in pairs.queries])
        parts = [part for query in pairs.queries for part in (eot, query.ids_T)]
        starts_N = np.cumsum(tokens_N + 2) - tokens_N
        return cls(pairs, np.concatenate(parts), starts_N, tokens_N)

    def score(self, levels: list[Level], vocab_size: int) -> Likelihoods:
        nats_T = np.log(probabilities(levels, self.stream_T, vocab_size))
        bounds = np.stack([self.starts_N, self.starts_N + self.tokens_N], axis=1).ravel()
        nats_N = np.add.reduceat(np.append(nats_T, 0.0), bounds)[::2]
        return Likelihoods(nats_N, np.zeros(len(nats_N), bool))


def main(argv: list[str]) -> int | None:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/ngram.py", description=__doc__.split("\n")[0]
    )
    parser.add_argument("shards", help="shard directory (of data_prep.build_shards)")
    parser.add_argument(
        "--valid-corpus", required=True, metavar="NAME", help="corpus whose split `valid` is scored"
    )
    parser.add_argument(
        "--blimp", type=Path, metavar="PATH", help="also score these minimal pairs (BLiMP.zip)"
    )
    args = parser.parse_args(argv)

    manifest = read_manifest(args.shards)
    vocab_size = manifest.tokenizer["vocab_size"]
    valid_T = read_all(args.shards, manifest, "valid", args.valid_corpus)
    streams = [
        read_all(args.shards, manifest, "train", corpus) for corpus in manifest.splits["train"]
    ]
    trained = ", ".join(
        f"{corpus} {entry.tokens:,}" for corpus, entry in manifest.splits["train"].items()
    )
    print(
        f"interpolated modified Kneser-Ney, {vocab_size:,} pieces; train tokens: {trained}; "
        f"valid tokens: {args.valid_corpus} {len(valid_T):,}"
    )
    tokenizer = load_tokenizer(Path(args.shards) / "tokenizer") if args.blimp else None
    blimp = Blimp.read(args.blimp, tokenizer) if tokenizer else None
    for order, name in enumerate(tqdm(NAMES, "n-grams", disable=None), start=1):
        started = time.perf_counter()
        levels = fit(streams, order, vocab_size)
        loss = -np.log(probabilities(levels, valid_T, vocab_size)).mean()
        seconds = time.perf_counter() - started
        tqdm.write(
            f"{name:8} {loss:7.4f} nats/token  perplexity {math.exp(loss):10.2f}  ({seconds:.1f} s)"
        )
        if blimp:
            tqdm.write("\n".join(f"  {line}" for line in told(blimp, levels, vocab_size)))


if __name__ == "__main__":
    guard(main)
