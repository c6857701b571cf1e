"""Entailment of a sentence pair (MNLI, SNLI, QNLI, RTE, SciTail, WNLI): `<s> premise <delim> hypothesis <e>`.

Where annotators did not agree, SNLI's and MNLI's gold label is "-"; their authors leave such pairs out, as does all
published work.
"""

from gpt1_ds.tasks.base import Task, pair
from gpt1_ds.tasks.tables import Table


class Entailment(Task):
    kind = "entailment"

    def sequences(
        self, ids: list[list[int]], special: dict[str, int], n_ctx: int
    ) -> tuple[list[list[int]], int]:
        sequence, cut = pair(*ids, special, n_ctx)
        return [sequence], cut


TWO_WAY = ("not_entailment", "entailment")
THREE_WAY = ("contradiction", "neutral", "entailment")
SENTENCES = ("sentence1", "sentence2")
TSV = {"train": ("train.tsv",), "dev": ("dev.tsv",), "test": ("test.tsv",)}


def published(prefix: str, **names: str) -> dict[str, tuple[str, ...]]:
    """GLUE's file of each split, else the publisher's, jsonl or txt."""
    return {
        split: (f"{name}.tsv", f"{prefix}{name}.jsonl", f"{prefix}{name}.txt")
        for split, name in names.items()
    }


SNLI_FILES = published("snli_1.0_", train="train", dev="dev", test="test")
SNLI_FILES["train"] += ("train_small.tsv",)
MNLI_FILES = published(
    "multinli_1.0_",
    train="train",
    dev="dev_matched",
    test="test_matched",
    dev_mismatched="dev_mismatched",
    test_mismatched="test_mismatched",
)
MNLI_FILES["test_diagnostic"] = ("diagnostic.tsv",)
MNLI_GLUE = {"test": "MNLI-m", "test_mismatched": "MNLI-mm", "test_diagnostic": "AX"}
SCITAIL_FILES = {
    split: (f"scitail_1.0_{split}.tsv", f"*/scitail_1.0_{split}.tsv", f"scitail_1.0_{split}.txt")
    for split in ("train", "dev", "test")
}
GOLD = Table(SENTENCES, "gold_label", spelling={"-": None})
SCITAIL_TABLE = Table(
    SENTENCES, "gold_label", header=(*SENTENCES, "gold_label"), spelling={"entailment": "entails"}
)

MNLI = Entailment(MNLI_FILES, GOLD, THREE_WAY, ("accuracy",), glue=MNLI_GLUE)
SNLI = Entailment(SNLI_FILES, GOLD, THREE_WAY, ("accuracy",))
QNLI = Entailment(
    TSV, Table(("question", "sentence"), "label"), TWO_WAY, ("accuracy",), glue={"test": "QNLI"}
)
RTE = Entailment(TSV, Table(SENTENCES, "label"), TWO_WAY, ("accuracy",), glue={"test": "RTE"})
SCITAIL = Entailment(SCITAIL_FILES, SCITAIL_TABLE, ("neutral", "entails"), ("accuracy",))
WNLI = Entailment(TSV, Table(SENTENCES, "label"), ("0", "1"), ("accuracy",), glue={"test": "WNLI"})
