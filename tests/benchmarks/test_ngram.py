"""benchmarks/ngram.py against a slow reference with dictionaries, on small streams."""

import importlib.util
import math
import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from gpt1_ds.data.manifest import CorpusEntry, Manifest, read_manifest, write_manifest
from gpt1_ds.data.shard_writer import ShardWriter
from gpt1_ds.data.tokenizer import load_tokenizer
from tests.conftest import ROOT, succeed
from tests.support.benchmark_files import PARADIGMS, make_benchmarks, pair_rows

spec = importlib.util.spec_from_file_location("ngram", ROOT / "benchmarks" / "ngram.py")
ngram = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ngram)

VOCAB = 7
ORDERS = [1, 2, 3]


def stream(seed: int, length: int) -> list[int]:
    """Tokens of a skewed distribution, so that counts of one to four all occur; the last piece
    never does."""
    return (np.random.default_rng(seed).geometric(0.4, length) % (VOCAB - 1)).tolist()


class Reference:
    """Chen & Goodman's recursion as written, one n-gram at a time."""

    def __init__(self, streams: list[list[int]], order: int):
        grams = Counter(
            tuple(tokens[(i - back) % len(tokens)] for back in range(order - 1, -1, -1))
            for tokens in streams
            for i in range(len(tokens))
        )
        self.counts = {order: grams}
        for length in range(order - 1, 0, -1):
            self.counts[length] = Counter(gram[1:] for gram in self.counts[length + 1])
        self.followers = {length: defaultdict(list) for length in self.counts}
        for length, table in self.counts.items():
            for gram, count in table.items():
                self.followers[length][gram[:-1]].append(count)

    def discount(self, length: int, count: int) -> float:
        n = Counter(self.counts[length].values())
        if count == 0:
            return 0.0
        if not all(n[k] for k in (1, 2, 3, 4)):
            return 0.5
        k = min(count, 3)
        value = k - (k + 1) * (n[1] / (n[1] + 2 * n[2])) * n[k + 1] / n[k]
        return value if 0 < value < k else 0.5

    def probability(self, context: tuple[int, ...], token: int) -> float:
        length = len(context) + 1
        below = self.probability(context[1:], token) if context else 1 / VOCAB
        counts = self.followers[length].get(context)
        if not counts:
            return below
        count = self.counts[length][(*context, token)]
        left = sum(self.discount(length, c) for c in counts)
        return (count - self.discount(length, count) + left * below) / sum(counts)


@pytest.mark.parametrize("lengths", [(300, 90), (2000, 500), (12, 5)])
@pytest.mark.parametrize("order", ORDERS)
def test_every_probability_is_the_reference_s(order, lengths):
    streams = [stream(seed, length) for seed, length in enumerate(lengths)]
    valid = stream(9, 60) + [VOCAB - 1, 0]
    levels = ngram.fit([np.array(tokens) for tokens in streams], order, VOCAB)
    reference = Reference(streams, order)
    expected = [
        reference.probability(
            tuple(valid[(i - back) % len(valid)] for back in range(order - 1, 0, -1)), token
        )
        for i, token in enumerate(valid)
    ]
    np.testing.assert_allclose(
        ngram.probabilities(levels, np.array(valid), VOCAB), expected, rtol=1e-12
    )


def test_the_estimated_discounts_are_in_play():
    streams = [stream(0, 300), stream(1, 90)]
    _, counts = np.unique(
        np.concatenate([ngram.ngrams(np.array(s), 3, VOCAB) for s in streams]), return_counts=True
    )
    assert len(set(ngram.discounts(counts))) == 4


@pytest.mark.parametrize("order", ORDERS)
def test_probabilities_of_all_next_tokens_sum_to_one(order):
    levels = ngram.fit([np.array(stream(0, 400)), np.array(stream(1, 100))], order, VOCAB)
    for context in [(0, 0), (1, 2), (5, VOCAB - 1)]:
        following = [
            ngram.probabilities(levels, np.array([*context, token]), VOCAB)[-1]
            for token in range(VOCAB)
        ]
        assert min(following) > 0
        assert math.isclose(sum(following), 1, rel_tol=1e-12)


def test_the_command_scores_the_named_corpus_with_all_training_corpora(tmp_path):
    data = {
        ("train", "books"): stream(2, 500),
        ("train", "news"): stream(3, 200),
        ("valid", "books"): stream(4, 80),
    }
    splits = {"train": {}, "valid": {}}
    for (split, corpus), tokens in data.items():
        writer = ShardWriter(tmp_path, f"{split}/{corpus}/{corpus}-000000.tar", corpus, VOCAB)
        half = len(tokens) // 2
        writer.add(np.array(tokens[:half]), [("a", 0)])
        writer.add(np.array(tokens[half:]), [("b", 0)])
        splits[split][corpus] = CorpusEntry(2, len(tokens), [writer.close()])
    tokenizer = {
        "kind": "test",
        "files": [],
        "sha256": "",
        "vocab_size": VOCAB,
        "special_ids": {"eot": 4},
    }
    write_manifest(tmp_path, Manifest(tokenizer, {}, splits))

    shown = succeed("python", "benchmarks/ngram.py", tmp_path, "--valid-corpus", "books").stdout
    for order, name in enumerate(("unigram", "bigram", "trigram"), start=1):
        reference = Reference([data["train", "books"], data["train", "news"]], order)
        valid = data["valid", "books"]
        losses = [
            -math.log(
                reference.probability(
                    tuple(valid[(i - back) % 80] for back in range(order - 1, 0, -1)), token
                )
            )
            for i, token in enumerate(valid)
        ]
        loss = sum(losses) / len(losses)
        words = next(line for line in shown.splitlines() if line.startswith(name)).split()
        assert float(words[1]) == pytest.approx(loss, abs=1e-4)
        assert float(words[4]) == pytest.approx(math.exp(loss), abs=0.01)


def test_blimp_is_decided_by_the_sums_of_the_reference(tiny_shards, tmp_path):
    words = [tiny_shards, "--valid-corpus", "books", "--blimp", make_benchmarks(tmp_path)]
    shown = succeed("python", "benchmarks/ngram.py", *words).stdout
    tables = re.findall(r"(?m)^ +overall +([\d.]+) ± [\d.]+ +24 +41.5 +51.5", shown)
    assert len(tables) == 3 and "63 of BLiMP's 67 paradigms are missing" in shown
    tokenizer = load_tokenizer(tiny_shards / "tokenizer")
    tokens_T = ngram.read_all(tiny_shards, read_manifest(tiny_shards), "train", "books")
    levels = ngram.fit([tokens_T], 2, tokenizer.vocab_size)

    def summed(sentence: str) -> float:
        ids = [tokenizer.special_ids["eot"], *tokenizer.encode(sentence)]
        each = ngram.probabilities(levels, np.array(ids), tokenizer.vocab_size)
        return float(np.log(each[1:]).sum())

    credit = 0.0
    for row in (row for paradigm in PARADIGMS for row in pair_rows(paradigm)):
        good, bad = summed(row["sentence_good"]), summed(row["sentence_bad"])
        credit += 0.5 if row["sentence_good"] == row["sentence_bad"] else float(good > bad)
    assert float(tables[1]) == pytest.approx(100 * credit / 24, abs=0.06)
