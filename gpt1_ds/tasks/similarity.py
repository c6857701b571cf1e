"""Similarity of two sentences (STS-B, MRPC, QQP), which have no order: `<s> a <delim> b <e>` and `<s> b <delim> a <e>`.

The states at both `<e>` are added before the head. A score from 0 to 5 is learned as a distribution over six classes
whose expectation it is (Tai et al. 2015, section 4.2; kept in the original GPT code) and predicted as such; or, on
request, as one number by squared error.
"""

import math
from dataclasses import dataclass

from gpt1_ds.base.errors import DataError
from gpt1_ds.tasks.base import Encoded, Task, pair
from gpt1_ds.tasks.tables import Table


class Similarity(Task):
    kind = "similarity"

    def sequences(
        self, ids: list[list[int]], special: dict[str, int], n_ctx: int
    ) -> tuple[list[list[int]], int]:
        first, second = ids
        (forth, cut), (back, _) = (
            pair(first, second, special, n_ctx),
            pair(second, first, special, n_ctx),
        )
        return [forth, back], cut


@dataclass(frozen=True)
class ScoredSimilarity(Similarity):
    """The classes are the scores 0 to K - 1; a label is any number between."""

    squared_error: bool = False

    @property
    def n_outputs(self) -> int:
        return 1 if self.squared_error else len(self.classes)

    def parse(self, label: str, where: str) -> float:
        try:
            score = float(label)
        except ValueError:
            score = math.nan
        if not 0 <= score <= len(self.classes) - 1:
            raise DataError(
                f"{where}: score '{label}'; expected a number from 0 to {len(self.classes) - 1}"
            )
        return score

    def target(self, label: float | None) -> list[float]:
        """`2.4` is 0.6 of class 2 and 0.4 of class 3."""
        if self.squared_error:
            return [math.nan if label is None else label]
        return [
            0.0 if label is None else max(0.0, 1.0 - abs(label - score))
            for score in range(len(self.classes))
        ]

    def predict(self, logits: list[float], encoded: Encoded) -> float:
        """The expected score under the softmax of the logits."""
        if self.squared_error:
            return min(max(logits[0], 0.0), len(self.classes) - 1.0)
        highest = max(logits)
        weights = [math.exp(logit - highest) for logit in logits]
        return sum(score * weight for score, weight in enumerate(weights)) / sum(weights)

    def show(self, value: float) -> str:
        return f"{value:.3f}"


TSV = {"train": ("train.tsv",), "dev": ("dev.tsv",), "test": ("test.tsv",)}
STSB_FILES = {split: (f"{split}.tsv", f"sts-{split}.csv") for split in TSV}
# Microsoft ships train and test only; GLUE's script cuts a dev set of 408 pairs by a list of its own.
MRPC_FILES = {
    "train": ("train.tsv", "msr_paraphrase_train.txt"),
    "dev": ("dev.tsv",),
    "test": ("test.tsv", "msr_paraphrase_test.txt"),
}
STSB_TABLE = Table(
    ("sentence1", "sentence2"),
    "score",
    header=("genre", "file", "year", "id", "score", "sentence1", "sentence2"),
)
MRPC_TABLE = Table(("#1 String", "#2 String"), "Quality")
QQP_TABLE = Table(("question1", "question2"), "is_duplicate", broken=True)
STSB = ScoredSimilarity(
    STSB_FILES, STSB_TABLE, tuple("012345"), ("pearson", "spearman"), glue={"test": "STS-B"}
)
MRPC = Similarity(
    MRPC_FILES, MRPC_TABLE, ("0", "1"), ("f1", "accuracy"), dev_share=0.1, glue={"test": "MRPC"}
)
QQP = Similarity(TSV, QQP_TABLE, ("0", "1"), ("f1", "accuracy"), glue={"test": "QQP"})
