"""What every task kind shares: the example as published, the example as the model sees it, and the files of a split.

A `Task` is one entry of the registry in `gpt1_ds/tasks/__init__.py`; each kind (one file each beside this one)
subclasses it with its sequences and its prediction. Layer 1: text in, token ids and targets out.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from gpt1_ds.base.errors import DataError
from gpt1_ds.data.tokenizer import Tokenizer
from gpt1_ds.tasks.tables import label_index

IGNORE = -100
"""Target of a token that carries no label, as in `torch.nn.functional.cross_entropy`."""
LABELLED = ("train", "dev")
"""Splits that are of no use without labels; any other is predicted where it has none."""


@dataclass(frozen=True, slots=True)
class Example:
    """One example as published."""

    texts: tuple[str, ...]
    """The fields, in the order of the task's kind; token classification: the words."""
    label: Any = None
    """Index in the task's classes, a score, or the tag of each word; None: unlabelled."""
    part: str = ""
    """Part of its split that is also scored by itself (RACE: middle, high); empty: none."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example as the model sees it."""

    sequences: list[list[int]]
    """Token ids of each sequence: one, two (similarity in both orders), or one an answer (multiple choice)."""
    target: list[float] | list[int]
    """Probability of each class (answer), or one score; token classification: class of each token, or IGNORE."""
    cut: int = 0
    """Tokens dropped so that the example fits the model's context."""
    words: list[int] = field(default_factory=list)
    """Token classification: position of each word's first sub-token; -1 where none is left."""

    @property
    def length(self) -> int:
        """Tokens of the longest sequence: what padding to this example costs."""
        return max(map(len, self.sequences))


Parse = Callable[[str | None, str], Any]
"""(label as published, FILE row N) -> label of an `Example`."""
Rows = Iterator[tuple[tuple[str, ...], Any] | tuple[tuple[str, ...], Any, str]]
"""Texts, parsed label and perhaps the part of each example."""


@dataclass(frozen=True)
class Task(ABC):
    """One labelled set: where its files are, how they are read, and how it is scored."""

    files: dict[str, tuple[str, ...]]
    """Names (glob patterns) of each split's file below `task.data`; the first that exists is read."""
    rows: Callable[[Path, Parse], Rows]
    """Reads one file: a `tables.Table`, or a reader of its own."""
    classes: tuple[str, ...]
    """Labels as published (F1: the second is the positive one), or the letters of the answers."""
    metrics: tuple[str, ...]
    """Names in `gpt1_ds.evaluation.METRICS`; the first is the task's score, and chooses the best epoch."""
    dev_share: float = 0.0
    """Share of the training file that becomes the dev set where the publisher ships none, by hash of the text."""
    glue: dict[str, str] = field(default_factory=dict)
    """Name of each split's file in a submission to the GLUE site."""

    kind: ClassVar[str]
    n_texts: ClassVar[int] = 2

    @property
    def n_outputs(self) -> int:
        """Width of the head."""
        return len(self.classes)

    def path(self, folder: Path | str, split: str) -> Path | None:
        """The file of `split` in the publisher's `folder`, if it is there."""
        found = (
            path
            for pattern in self.files.get(split, ())
            for path in sorted(Path(folder).glob(pattern))
        )
        return next(found, None)

    def read(self, folder: Path | str, split: str) -> list[Example]:
        """Examples of `split` of the publisher's `folder`, or of one file; `DataError` names file and row."""
        path, held_out = self.path(folder, split), None
        if Path(folder).is_file():
            path = Path(folder)
        elif self.dev_share and split in LABELLED and self.path(folder, "dev") is None:
            path, held_out = self.path(folder, "train"), split == "dev"
        if path is None:
            raise DataError(f"{folder}: no {split} file; expected {' or '.join(self.files[split])}")

        def parse(label: str | None, where: str) -> Any:
            if label is None and split in LABELLED:
                raise DataError(
                    f"{where}: no label, as in a test file; {split} needs labelled rows"
                )
            return None if label is None else self.parse(label, where)

        examples = [Example(*row) for row in self.rows(path, parse)]
        if held_out is not None:
            examples = [
                e for e in examples if _below("\n".join(e.texts), self.dev_share) == held_out
            ]
        if not examples:
            raise DataError(f"{path}: no {split} examples; give the publisher's file")
        return examples

    def from_line(self, line: str, where: str) -> Example:
        """An unlabelled example from raw text, its fields between tabs."""
        texts = tuple(text.strip() for text in line.split("\t"))
        if len(texts) != self.n_texts:
            raise DataError(
                f"{where}: {len(texts)} fields between tabs; {self.kind} takes {self.n_texts}"
            )
        return Example(texts)

    def parse(self, label: str, where: str) -> Any:
        """A published label as an `Example` holds it; `where` is for the error."""
        return label_index(label, self.classes, where)

    def encode(
        self, examples: Sequence[Example], tokenizer: Tokenizer, n_ctx: int
    ) -> list[Encoded]:
        """Every example as the model sees it, cut to `n_ctx` tokens a sequence."""
        # One call for all: it costs 0.1 ms, as much as a sentence. RACE asks four questions a passage, words recur.
        ids = dict.fromkeys(text for example in examples for text in example.texts)
        ids = dict(zip(ids, tokenizer.encode_batch(list(ids)), strict=True))
        special = tokenizer.special_ids
        return [self.arrange(e, [ids[text] for text in e.texts], special, n_ctx) for e in examples]

    def arrange(
        self, example: Example, ids: list[list[int]], special: dict[str, int], n_ctx: int
    ) -> Encoded:
        """The example from the ids of its texts and the control ids."""
        sequences, cut = self.sequences(ids, special, n_ctx)
        return Encoded(sequences, self.target(example.label), cut)

    @abstractmethod
    def sequences(
        self, ids: list[list[int]], special: dict[str, int], n_ctx: int
    ) -> tuple[list[list[int]], int]:
        """The sequences made of an example's texts, and the number of tokens cut."""

    def target(self, label: Any) -> list[float]:
        """One-hot; all zero without a label."""
        return [float(index == label) for index in range(len(self.classes))]

    def predict(self, logits: list[Any], encoded: Encoded) -> Any:
        """What `metrics` compare with the label, from the logits of one example."""
        return max(range(len(logits)), key=logits.__getitem__)

    def show(self, value: Any) -> str:
        """A label or a prediction as the publisher writes it."""
        return self.classes[value]


def fit(lengths: Sequence[int], room: int) -> list[int]:
    """Tokens each field keeps so that together they fit `room`: only the longest are cut, and down to one level.

    >>> fit([10, 200, 90], 100)
    [10, 45, 45]
    """
    kept = [0] * len(lengths)
    fields_left = len(lengths)
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        kept[index] = min(lengths[index], room // fields_left)
        room -= kept[index]
        fields_left -= 1
    return kept


def pair(
    first: list[int], second: list[int], special: dict[str, int], n_ctx: int
) -> tuple[list[int], int]:
    """`<s> first <delim> second <e>`, and the number of tokens cut."""
    keep_first, keep_second = fit([len(first), len(second)], n_ctx - 3)
    ids = [special["s"], *first[:keep_first], special["delim"], *second[:keep_second], special["e"]]
    return ids, len(first) + len(second) + 3 - len(ids)


def _below(text: str, share: float) -> bool:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") < share * 2**64
