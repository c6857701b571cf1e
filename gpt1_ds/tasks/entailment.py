"""Entailment of a sentence pair (RTE, QNLI, SNLI): `<s> premise <delim> hypothesis <e>`, the class from `<e>`."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gpt1_ds.tasks.base import Encoded, Task, one_hot, pair
from gpt1_ds.tasks.tables import label_index, read_tsv

TWO_WAY = ("not_entailment", "entailment")
THREE_WAY = ("contradiction", "neutral", "entailment")
NO_CONSENSUS = "-"
"""SNLI's gold label where its annotators did not agree; its authors leave such pairs out, and so does everybody."""


@dataclass(frozen=True, slots=True)
class Inference:
    premise: str
    hypothesis: str
    label: int
    """Index in the task's classes."""


class Entailment(Task):
    kind = "entailment"

    def texts(self, example: Inference) -> tuple[str, ...]:
        return example.premise, example.hypothesis

    def arrange(self, example: Inference, ids: list[list[int]], special: dict[str, int], n_ctx: int) -> Encoded:
        premise, hypothesis = ids
        sequence, cut = pair(premise, hypothesis, special, n_ctx)
        return Encoded([sequence], one_hot(example.label, len(self.classes)), cut)


def read_pairs(path: Path, columns: tuple[str, str, str], classes: tuple[str, ...]) -> Iterator[Inference]:
    """`columns`: header names of premise, hypothesis and label."""
    premise, hypothesis, label = columns
    for where, row in read_tsv(path, columns):
        if row[label] != NO_CONSENSUS:
            yield Inference(row[premise], row[hypothesis], label_index(row[label], classes, where))


TSV = {"train": ("train.tsv",), "dev": ("dev.tsv",)}
SNLI_FILES = {
    "train": ("train.tsv", "snli_1.0_train.txt", "train_small.tsv"),
    "dev": ("dev.tsv", "snli_1.0_dev.txt"),
}
read_rte = partial(read_pairs, columns=("sentence1", "sentence2", "label"), classes=TWO_WAY)
read_qnli = partial(read_pairs, columns=("question", "sentence", "label"), classes=TWO_WAY)
read_snli = partial(read_pairs, columns=("sentence1", "sentence2", "gold_label"), classes=THREE_WAY)
RTE = Entailment(TSV, read_rte, TWO_WAY, ("accuracy",))
QNLI = Entailment(TSV, read_qnli, TWO_WAY, ("accuracy",))
SNLI = Entailment(SNLI_FILES, read_snli, THREE_WAY, ("accuracy",))
