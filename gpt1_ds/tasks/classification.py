"""Classification of one sentence (CoLA, SST-2): `<s> text <e>`, the class read from the state at `<e>`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gpt1_ds.tasks.base import Encoded, Task, one_hot
from gpt1_ds.tasks.tables import label_index, read_tsv

BINARY = ("0", "1")


@dataclass(frozen=True, slots=True)
class Sentence:
    text: str
    label: int
    """Index in the task's classes."""


class Classification(Task):
    kind = "classification"

    def texts(self, example: Sentence) -> tuple[str, ...]:
        return (example.text,)

    def arrange(self, example: Sentence, ids: list[list[int]], special: dict[str, int], n_ctx: int) -> Encoded:
        kept = ids[0][: n_ctx - 2]
        sequence = [special["s"], *kept, special["e"]]
        return Encoded([sequence], one_hot(example.label, len(self.classes)), len(ids[0]) - len(kept))


def read_cola(path: Path) -> Iterator[Sentence]:
    for where, row in read_tsv(path, ("label", "sentence"), header=("source", "label", "mark", "sentence")):
        yield Sentence(row["sentence"], label_index(row["label"], BINARY, where))


def read_sst2(path: Path) -> Iterator[Sentence]:
    for where, row in read_tsv(path, ("sentence", "label")):
        yield Sentence(row["sentence"], label_index(row["label"], BINARY, where))


TSV = {"train": ("train.tsv",), "dev": ("dev.tsv",)}
COLA = Classification(TSV, read_cola, BINARY, ("matthews", "accuracy"))
SST2 = Classification(TSV, read_sst2, BINARY, ("accuracy",))
