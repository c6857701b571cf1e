"""Similarity of two sentences (STS-B, MRPC, QQP). Their order has no meaning.

The sequences are `<s> a <delim> b <e>` and `<s> b <delim> a <e>`. The states at both `<e>` are
added before the head. A score from 0 to 5 is learned as a distribution over six classes. Its
expectation is the score, and the prediction is the expectation (Tai et al. 2015, section 4.2; as in
the original GPT code). With `squared_error` the head has one output instead.
"""

import math
from dataclasses import dataclass

from gpt1_ds.base.errors import DataError
from gpt1_ds.tasks.base import Sequences, Task, pair
from gpt1_ds.tasks.examples import Encoded
from gpt1_ds.tasks.tables import Table


class Similarity(Task):
    kind = "similarity"

    def sequences(self, ids: list[list[int]], special: dict[str, int], n_ctx: int) -> Sequences:
        first, second = ids
        forth = pair(first, second, special, n_ctx, self.truncation)
        back = pair(second, first, special, n_ctx, self.truncation)
        return Sequences([forth.ids, back.ids], forth.cut)


@dataclass(frozen=True)
class ScoredSimilarity(Similarity):
    """The classes are the scores 0 to K - 1. A label is any number from 0 to K - 1."""

    squared_error: bool = False

    @property
    def highest(self) -> int:
        """The highest score."""
        return len(self.classes) - 1

    @property
    def n_outputs(self) -> int:
        return 1 if self.squared_error else len(self.classes)

    def parse(self, label: str, where: str) -> float:
        try:
            score = float(label)
        except ValueError:
            score = math.nan
        if not 0 <= score <= self.highest:
            raise DataError(f"{where}: score '{label}'; expected a number from 0 to {self.highest}")
        return score

    def target(self, label: float | None) -> list[float]:
        """A score such as 2.4 becomes 0.6 of class 2 and 0.4 of class 3.

        Without a label the target is all zeros; for squared error it is NaN.
        """
        if self.squared_error:
            return [math.nan if label is None else label]
        if label is None:
            return [0.0] * len(self.classes)
        return [max(0.0, 1.0 - abs(label - score)) for score in range(len(self.classes))]

    def predict(self, logits: list[float], encoded: Encoded) -> float:
        """The expected score under the softmax of the logits."""
        if self.squared_error:
            return min(max(logits[0], 0.0), float(self.highest))
        highest = max(logits)
        weights = [math.exp(logit - highest) for logit in logits]
        return sum(score * weight for score, weight in enumerate(weights)) / sum(weights)

    def show(self, value: float) -> str:
        return f"{value:.3f}"


TSV = {"train": ("train.tsv",), "dev": ("dev.tsv",), "test": ("test.tsv",)}

STSB = ScoredSimilarity(
    files={split: (f"{split}.tsv", f"sts-{split}.csv") for split in TSV},
    rows=Table(
        ("sentence1", "sentence2"),
        "score",
        header=("genre", "file", "year", "id", "score", "sentence1", "sentence2"),
    ),
    classes=tuple("012345"),
    metrics=("pearson", "spearman"),
    glue={"test": "STS-B"},
)
MRPC = Similarity(
    # Microsoft has no dev file. GLUE's script makes one of 408 pairs from its own list.
    files={
        "train": ("train.tsv", "msr_paraphrase_train.txt"),
        "dev": ("dev.tsv",),
        "test": ("test.tsv", "msr_paraphrase_test.txt"),
    },
    rows=Table(("#1 String", "#2 String"), "Quality"),
    classes=("0", "1"),
    metrics=("f1", "accuracy"),
    dev_share=0.1,
    glue={"test": "MRPC"},
)
QQP = Similarity(
    files=TSV,
    rows=Table(("question1", "question2"), "is_duplicate", broken=True),
    classes=("0", "1"),
    metrics=("f1", "accuracy"),
    glue={"test": "QQP"},
)
