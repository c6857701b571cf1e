"""Classification of one text (CoLA, SST-2). The sequence is `<s> text <e>`."""

from collections.abc import Sequence

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


def sst2_columns(fields: Sequence[str]) -> tuple[str, ...] | None:
    """The columns of a file of SST-2 without a header row, from the fields of its first row.

    These are the sentence alone, a number before it, or its label behind it.
    """
    if len(fields) == 1:
        return ("sentence",)
    if len(fields) == 2 and fields[0].isdigit():
        return ("index", "sentence")
    if len(fields) == 2 and fields[1] in SST2_CLASSES:
        return ("sentence", "label")
    return None


SST2_CLASSES = ("0", "1")
COLA = Classification(
    files=COLA_FILES,
    rows=Table(("sentence",), "label", header=("source", "label", "mark", "sentence")),
    classes=("0", "1"),
    metrics=("matthews", "accuracy"),
    glue={"test": "CoLA"},
)
SST2 = Classification(
    files=TSV,
    rows=Table(("sentence",), "label", headless=sst2_columns),
    classes=SST2_CLASSES,
    metrics=("accuracy",),
    glue={"test": "SST-2"},
)
