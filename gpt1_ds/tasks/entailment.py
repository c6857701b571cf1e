"""Entailment of a sentence pair (MNLI, SNLI, QNLI, RTE, SciTail, WNLI).

The sequence is `<s> premise <delim> hypothesis <e>`. If annotators did not agree, the gold label in
SNLI and MNLI is "-". The authors and all published work leave such pairs out.
"""

from gpt1_ds.tasks.base import Sequences, Task, pair
from gpt1_ds.tasks.tables import Table


class Entailment(Task):
    kind = "entailment"

    def sequences(self, ids: list[list[int]], special: dict[str, int], n_ctx: int) -> Sequences:
        premise, hypothesis = ids
        joined = pair(premise, hypothesis, special, n_ctx, self.truncation)
        return Sequences([joined.ids], joined.cut)


def published(prefix: str, **names: str) -> dict[str, tuple[str, ...]]:
    """File names for each split: GLUE's file, or else the publisher's own jsonl or txt."""
    return {
        split: (f"{name}.tsv", f"{prefix}{name}.jsonl", f"{prefix}{name}.txt")
        for split, name in names.items()
    }


def scitail_files(split: str) -> tuple[str, ...]:
    tsv = f"scitail_1.0_{split}.tsv"
    return (tsv, f"*/{tsv}", f"scitail_1.0_{split}.txt")


TWO_WAY = ("not_entailment", "entailment")
THREE_WAY = ("contradiction", "neutral", "entailment")
SENTENCES = ("sentence1", "sentence2")
TSV = {"train": ("train.tsv",), "dev": ("dev.tsv",), "test": ("test.tsv",)}
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
GOLD = Table(SENTENCES, "gold_label", spelling={"-": None})

MNLI = Entailment(
    files=MNLI_FILES,
    rows=GOLD,
    classes=THREE_WAY,
    metrics=("accuracy",),
    glue={"test": "MNLI-m", "test_mismatched": "MNLI-mm", "test_diagnostic": "AX"},
)
SNLI = Entailment(files=SNLI_FILES, rows=GOLD, classes=THREE_WAY, metrics=("accuracy",))
QNLI = Entailment(
    files=TSV,
    rows=Table(("question", "sentence"), "label"),
    classes=TWO_WAY,
    metrics=("accuracy",),
    glue={"test": "QNLI"},
)
RTE = Entailment(
    files=TSV,
    rows=Table(SENTENCES, "label"),
    classes=TWO_WAY,
    metrics=("accuracy",),
    glue={"test": "RTE"},
)
SCITAIL = Entailment(
    files={split: scitail_files(split) for split in ("train", "dev", "test")},
    rows=Table(
        SENTENCES,
        "gold_label",
        header=(*SENTENCES, "gold_label"),
        spelling={"entailment": "entails"},
    ),
    classes=("neutral", "entails"),
    metrics=("accuracy",),
)
WNLI = Entailment(
    files=TSV,
    rows=Table(SENTENCES, "label"),
    classes=("0", "1"),
    metrics=("accuracy",),
    glue={"test": "WNLI"},
)
