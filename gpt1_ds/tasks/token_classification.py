"""Token classification (WNUT-17 named entities): every token's state through the head, a word by its first sub-token.

Under the causal mask a token's state knows the words before it and none after; the task is the paper's architecture
applied to labelling, not one of the paper's own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gpt1_ds.errors import DataError
from gpt1_ds.tasks.base import IGNORE, Encoded, Task
from gpt1_ds.tasks.tables import label_index, read_lines

OUTSIDE = "O"
WNUT17_TYPES = ("corporation", "creative-work", "group", "location", "person", "product")


@dataclass(frozen=True, slots=True)
class TaggedSentence:
    words: tuple[str, ...]
    label: tuple[str, ...]
    """Tag of each word."""


@dataclass(frozen=True)
class TokenClassification(Task):
    kind = "token_classification"
    label_all_subtokens: bool = False
    """Train on every sub-token of a word instead of its first."""

    def texts(self, example: TaggedSentence) -> tuple[str, ...]:
        return example.words

    def arrange(self, example: TaggedSentence, ids: list[list[int]], special: dict[str, int], n_ctx: int) -> Encoded:
        sequence, target, words = [special["s"]], [IGNORE], []
        for pieces, tag in zip(ids, example.label, strict=True):
            label = self.classes.index(tag)
            words.append(len(sequence) if pieces and len(sequence) < n_ctx - 1 else -1)
            sequence += pieces
            target += [label if self.label_all_subtokens or not i else IGNORE for i in range(len(pieces))]
        kept = min(len(sequence), n_ctx - 1)
        return Encoded([[*sequence[:kept], special["e"]]], [*target[:kept], IGNORE], len(sequence) - kept, words)

    def predict(self, logits: list[int], encoded: Encoded) -> list[str]:
        """Tag of each word from each token's best class; `O` for a word of which no token is left."""
        return [self.classes[logits[position]] if position >= 0 else OUTSIDE for position in encoded.words]

    def gold(self, example: TaggedSentence) -> list[str]:
        return list(example.label)

    def show(self, value: list[str]) -> str:
        return " ".join(value)


def bio(types: tuple[str, ...]) -> tuple[str, ...]:
    return (OUTSIDE, *(f"{prefix}-{kind}" for kind in types for prefix in "BI"))


def read_conll(path: Path, classes: tuple[str, ...]) -> Iterator[TaggedSentence]:
    """Lines of `word ... tag` (tabs or blanks), an empty line after each sentence; `-DOCSTART-` lines are dropped."""
    words, tags = [], []
    for row, line in read_lines(path):
        where = f"{path} row {row}"
        if not line.strip():
            if words:
                yield TaggedSentence(tuple(words), tuple(tags))
            words, tags = [], []
            continue
        fields = line.split("\t") if "\t" in line else line.split()
        if len(fields) < 2 or not fields[0].strip():
            raise DataError(f"{where}: '{line.strip()}'; expected a word and its tag")
        if fields[0] != "-DOCSTART-":
            label_index(fields[-1], classes, where)
            words.append(fields[0])
            tags.append(fields[-1])
    if words:
        yield TaggedSentence(tuple(words), tuple(tags))


WNUT17_FILES = {"train": ("wnut17train.conll",), "dev": ("emerging.dev.conll",)}
WNUT17_CLASSES = bio(WNUT17_TYPES)
WNUT17 = TokenClassification(WNUT17_FILES, partial(read_conll, classes=WNUT17_CLASSES), WNUT17_CLASSES, ("entity_f1",))
