"""Classification of one text (CoLA, SST-2). The sequence is `<s> text <e>`."""

from gpt1_ds.tasks.base import Sequences, Task
from gpt1_ds.tasks.tables import Table


class Classification(Task):
    kind = "classification"

    @property
    def n_texts(self) -> int:
        return 1

    def sequences(self, ids: list[list[int]], special: dict[str, int], n_ctx: int) -> Sequences:
        kept = ids[0][: n_ctx - 2]
        return Sequences([[special["s"], *kept, special["e"]]], len(ids[0]) - len(kept))


TSV = {"train": ("train.tsv",), "dev": ("dev.tsv",), "test": ("test.tsv",)}
COLA_FILES = {
    "train": ("train.tsv", "in_domain_train.tsv"),
    "dev": ("dev.tsv", "in_domain_dev.tsv"),
    "test": TSV["test"],
}

COLA = Classification(
    files=COLA_FILES,
    rows=Table(("sentence",), "label", header=("source", "label", "mark", "sentence")),
    classes=("0", "1"),
    metrics=("matthews", "accuracy"),
    glue={"test": "CoLA"},
)
SST2 = Classification(
    files=TSV,
    rows=Table(("sentence",), "label"),
    classes=("0", "1"),
    metrics=("accuracy",),
    glue={"test": "SST-2"},
)
