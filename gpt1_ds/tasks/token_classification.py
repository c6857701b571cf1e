"""Token classification (named entities: CoNLL-2003, WNUT-17): every token's state through the head.

A word is labelled by its first sub-token. Tags may be IOB1 (B- only between neighbours of one kind) or IOB2, also
called BIO; they are read into BIO. Under the causal mask a token's state knows the words before it and none after;
the task is the paper's architecture applied to labelling, not one of the paper's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gpt1_ds.base.errors import DataError
from gpt1_ds.tasks.base import IGNORE, Encoded, Example, Parse, Rows, Task
from gpt1_ds.tasks.tables import label_index, read_lines

OUTSIDE = "O"


@dataclass(frozen=True)
class TokenClassification(Task):
    kind = "token_classification"
    label_all_subtokens: bool = False
    """Train on every sub-token of a word instead of its first."""

    def from_line(self, line: str, where: str) -> Example:
        """An unlabelled sentence, its words between blanks."""
        return Example(tuple(line.split()))

    def parse(self, label: str, where: str) -> str:
        """One tag, checked."""
        return self.classes[label_index(label, self.classes, where)]

    def sequences(
        self, ids: list[list[int]], special: dict[str, int], n_ctx: int
    ) -> tuple[list[list[int]], int]:
        pieces = [piece for word in ids for piece in word]
        kept = pieces[: n_ctx - 2]
        return [[special["s"], *kept, special["e"]]], len(pieces) - len(kept)

    def arrange(
        self, example: Example, ids: list[list[int]], special: dict[str, int], n_ctx: int
    ) -> Encoded:
        (sequence,), cut = self.sequences(ids, special, n_ctx)
        target, words = [IGNORE], []
        for index, pieces in enumerate(ids):
            label = IGNORE if example.label is None else self.classes.index(example.label[index])
            words.append(len(target) if pieces and len(target) < n_ctx - 1 else -1)
            target += [
                label if self.label_all_subtokens or not i else IGNORE for i in range(len(pieces))
            ]
        return Encoded([sequence], [*target[: len(sequence) - 1], IGNORE], cut, words)

    def predict(self, logits: list[int], encoded: Encoded) -> list[str]:
        """Tag of each word from each token's best class; `O` for a word of which no token is left."""
        return [
            self.classes[logits[position]] if position >= 0 else OUTSIDE
            for position in encoded.words
        ]

    def show(self, value: Sequence[str]) -> str:
        return " ".join(value)


def bio(*types: str) -> tuple[str, ...]:
    return (OUTSIDE, *(f"{prefix}-{kind}" for kind in types for prefix in "BI"))


def to_bio(tags: Sequence[str]) -> tuple[str, ...]:
    """IOB1 as BIO: an I- that begins an entity becomes B-. BIO stays as it is."""
    previous = (OUTSIDE, *tags)
    return tuple(
        f"B-{tag[2:]}" if tag[:2] == "I-" and before[2:] != tag[2:] else tag
        for tag, before in zip(tags, previous, strict=False)
    )


def read_conll(path: Path, parse: Parse) -> Rows:
    """Lines of `word ... tag` (tabs or blanks), an empty line after each sentence; `-DOCSTART-` lines are dropped.

    A file whose first line is a word alone is unlabelled.
    """
    words, tags, labelled = [], [], None
    for row, line in [*read_lines(path), (0, "")]:
        fields = line.split("\t") if "\t" in line.strip() else line.split()
        if not "".join(fields).strip():
            if words:
                yield tuple(words), None if None in tags else to_bio(tags)
            words, tags = [], []
        elif fields[0] != "-DOCSTART-":
            labelled = len(fields) > 1 if labelled is None else labelled
            if not fields[0].strip() or labelled != (len(fields) > 1):
                raise DataError(f"{path} row {row}: '{line.strip()}'; expected a word and its tag")
            words.append(fields[0])
            tags.append(parse(fields[-1] if labelled else None, f"{path} row {row}"))


CONLL_FILES = {
    "train": ("eng.train", "train.txt"),
    "dev": ("eng.testa", "valid.txt", "dev.txt"),
    "test": ("eng.testb", "test.txt"),
}
WNUT17_FILES = {
    "train": ("wnut17train.conll",),
    "dev": ("emerging.dev.conll",),
    "test": ("emerging.test*",),
}
CONLL2003 = TokenClassification(
    CONLL_FILES, read_conll, bio("LOC", "MISC", "ORG", "PER"), ("entity_f1",)
)
WNUT17_CLASSES = bio("corporation", "creative-work", "group", "location", "person", "product")
WNUT17 = TokenClassification(WNUT17_FILES, read_conll, WNUT17_CLASSES, ("entity_f1",))
