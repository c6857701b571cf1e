"""Similarity of two sentences (STS-B, MRPC, QQP), which have no order: `<s> a <delim> b <e>` and `<s> b <delim> a <e>`.

The states at both `<e>` are added before the head. STS-B's score in [0, 5] is learned as a distribution over six
classes whose expectation it is (Tai et al. 2015, section 4.2; kept in the original GPT code) and predicted as such.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gpt1_ds.errors import DataError
from gpt1_ds.tasks.base import Encoded, Task, one_hot, pair
from gpt1_ds.tasks.tables import label_index, read_tsv

BINARY = ("0", "1")
SCORES = ("0", "1", "2", "3", "4", "5")
STSB_COLUMNS = ("genre", "file", "year", "id", "score", "sentence1", "sentence2")


@dataclass(frozen=True, slots=True)
class SentencePair:
    first: str
    second: str
    label: int | float
    """Index in the task's classes; STS-B: the score itself."""


class Similarity(Task):
    kind = "similarity"

    def texts(self, example: SentencePair) -> tuple[str, ...]:
        return example.first, example.second

    def arrange(self, example: SentencePair, ids: list[list[int]], special: dict[str, int], n_ctx: int) -> Encoded:
        first, second = ids
        forth, cut = pair(first, second, special, n_ctx)
        back, _ = pair(second, first, special, n_ctx)
        return Encoded([forth, back], self.target(example.label), cut)

    def target(self, label: Any) -> list[float]:
        return one_hot(label, len(self.classes))


class ScoredSimilarity(Similarity):
    def target(self, label: float) -> list[float]:
        """`2.4` is 0.6 of class 2 and 0.4 of class 3."""
        return [max(0.0, 1.0 - abs(label - score)) for score in range(len(self.classes))]

    def predict(self, logits: list[float], encoded: Encoded) -> float:
        """The expected score under the softmax of the logits."""
        highest = max(logits)
        weights = [math.exp(logit - highest) for logit in logits]
        return sum(score * weight for score, weight in enumerate(weights)) / sum(weights)

    def show(self, value: float) -> str:
        return f"{value:.3f}"


def read_pairs(path: Path, columns: tuple[str, str, str]) -> Iterator[SentencePair]:
    """`columns`: header names of the two sentences and the label, 0 or 1."""
    first, second, label = columns
    for where, row in read_tsv(path, columns):
        yield SentencePair(row[first], row[second], label_index(row[label], BINARY, where))


def read_stsb(path: Path) -> Iterator[SentencePair]:
    for where, row in read_tsv(path, ("score", "sentence1", "sentence2"), header=STSB_COLUMNS):
        try:
            score = float(row["score"])
        except ValueError:
            score = math.nan
        if not 0 <= score <= 5:
            raise DataError(f"{where}: score '{row['score']}'; expected a number from 0 to 5")
        yield SentencePair(row["sentence1"], row["sentence2"], score)


STSB_FILES = {"train": ("sts-train.csv",), "dev": ("sts-dev.csv",)}
# Microsoft ships train and test only; GLUE's script cuts a dev set of 408 pairs by a list of its own.
MRPC_FILES = {"train": ("train.tsv", "msr_paraphrase_train.txt"), "dev": ("dev.tsv",)}
QQP_FILES = {"train": ("train.tsv",), "dev": ("dev.tsv",)}
read_mrpc = partial(read_pairs, columns=("#1 String", "#2 String", "Quality"))
read_qqp = partial(read_pairs, columns=("question1", "question2", "is_duplicate"))
STSB = ScoredSimilarity(STSB_FILES, read_stsb, SCORES, ("pearson", "spearman"))
MRPC = Similarity(MRPC_FILES, read_mrpc, BINARY, ("f1", "accuracy"), dev_share=0.1)
QQP = Similarity(QQP_FILES, read_qqp, BINARY, ("f1", "accuracy"))
