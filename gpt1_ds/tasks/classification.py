"""Classification of one sentence (CoLA, SST-2): `<s> text <e>`, the class read from the state at `<e>`."""

from gpt1_ds.tasks.base import Task
from gpt1_ds.tasks.tables import Table


class Classification(Task):
    kind = "classification"
    n_texts = 1

    def sequences(
        self, ids: list[list[int]], special: dict[str, int], n_ctx: int
    ) -> tuple[list[list[int]], int]:
        kept = ids[0][: n_ctx - 2]
        return [[special["s"], *kept, special["e"]]], len(ids[0]) - len(kept)


TSV = {"train": ("train.tsv",), "dev": ("dev.tsv",), "test": ("test.tsv",)}
COLA_FILES = {
    "train": ("train.tsv", "in_domain_train.tsv"),
    "dev": ("dev.tsv", "in_domain_dev.tsv"),
    "test": TSV["test"],
}
COLA_TABLE = Table(("sentence",), "label", header=("source", "label", "mark", "sentence"))
COLA = Classification(
    COLA_FILES, COLA_TABLE, ("0", "1"), ("matthews", "accuracy"), glue={"test": "CoLA"}
)
SST2 = Classification(
    TSV, Table(("sentence",), "label"), ("0", "1"), ("accuracy",), glue={"test": "SST-2"}
)
