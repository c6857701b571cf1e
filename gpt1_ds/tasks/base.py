"""What every task kind shares: the example as the model sees it, the room of each field, and the files of a split.

A `Task` is one entry of the registry in `gpt1_ds/tasks/__init__.py`; each kind (one file each beside this one)
subclasses it with its example, its encoding and its prediction. Layer 1: text in, token ids and targets out.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from gpt1_ds.errors import DataError
from gpt1_ds.tokenizer import Tokenizer

IGNORE = -100
"""Target of a token that carries no label, as in `torch.nn.functional.cross_entropy`."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example as the model sees it."""

    sequences: list[list[int]]
    """Token ids of each sequence: one, two (similarity in both orders), or one an answer (multiple choice)."""
    target: list[float] | list[int]
    """Probability of each class (of each answer); token classification: class of each token, or IGNORE."""
    cut: int = 0
    """Tokens dropped so that the example fits the model's context."""
    words: list[int] = field(default_factory=list)
    """Token classification: position of each word's first sub-token; -1 where none is left."""

    @property
    def length(self) -> int:
        """Tokens of the longest sequence: what padding to this example costs."""
        return max(map(len, self.sequences))


@dataclass(frozen=True)
class Task:
    """One labelled set: where its files are, how they are read, and how it is scored."""

    files: dict[str, tuple[str, ...]]
    """Names (glob patterns) of each split's file below `task.data`; the first that exists is read."""
    rows: Callable[[Path], Iterator[Any]]
    """Examples of one file, in file order."""
    classes: tuple[str, ...]
    """Labels as published (F1: the second is the positive one), or the letters of the answers."""
    metrics: tuple[str, ...]
    """Names in `gpt1_ds.evaluation.METRICS`; the first is the task's score, and chooses the best epoch."""
    dev_share: float = 0.0
    """Share of the training file that becomes the dev set where the publisher ships none, by hash of the text."""

    kind: ClassVar[str]

    def read(self, folder: Path | str, split: str) -> list[Any]:
        """Examples of `split` (train or dev) of the publisher's `folder`; `DataError` names file and row."""
        folder = Path(folder)
        path = _first(folder, self.files[split])
        held_out = None
        if self.dev_share and _first(folder, self.files["dev"]) is None:
            path, held_out = _first(folder, self.files["train"]), split == "dev"
        if path is None:
            raise DataError(f"task.data '{folder}': no {split} file; expected {' or '.join(self.files[split])}")
        examples = list(self.rows(path))
        if held_out is not None:
            examples = [example for example in examples if _below(repr(example), self.dev_share) == held_out]
        if not examples:
            raise DataError(f"{path}: no {split} examples; give the publisher's file")
        return examples

    def encode(self, examples: Sequence[Any], tokenizer: Tokenizer, n_ctx: int) -> list[Encoded]:
        """Every example as the model sees it, cut to `n_ctx` tokens a sequence."""
        # One call for all: it costs 0.1 ms, as much as a sentence. RACE asks four questions a passage, words recur.
        ids = dict.fromkeys(text for example in examples for text in self.texts(example))
        ids = dict(zip(ids, tokenizer.encode_batch(list(ids)), strict=True))
        special = tokenizer.special_ids
        return [
            self.arrange(example, [ids[text] for text in self.texts(example)], special, n_ctx) for example in examples
        ]

    def texts(self, example: Any) -> Sequence[str]:
        """The texts of an example, to be encoded each by itself."""
        raise NotImplementedError

    def arrange(self, example: Any, ids: list[list[int]], special: dict[str, int], n_ctx: int) -> Encoded:
        """The example's sequences from the ids of its `texts` and the control ids."""
        raise NotImplementedError

    def predict(self, logits: list[Any], encoded: Encoded) -> Any:
        """What `metrics` compare with `gold`, from the logits of one example."""
        return _argmax(logits)

    def gold(self, example: Any) -> Any:
        return example.label

    def show(self, value: Any) -> str:
        """A gold label or a prediction as the publisher writes it."""
        return self.classes[value]


def one_hot(label: int, n_classes: int) -> list[float]:
    return [float(index == label) for index in range(n_classes)]


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


def pair(first: list[int], second: list[int], special: dict[str, int], n_ctx: int) -> tuple[list[int], int]:
    """`<s> first <delim> second <e>`, and the number of tokens cut."""
    keep_first, keep_second = fit([len(first), len(second)], n_ctx - 3)
    ids = [special["s"], *first[:keep_first], special["delim"], *second[:keep_second], special["e"]]
    return ids, len(first) + len(second) + 3 - len(ids)


def _argmax(values: list[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


def _first(folder: Path, patterns: tuple[str, ...]) -> Path | None:
    return next((path for pattern in patterns for path in sorted(folder.glob(pattern))), None)


def _below(text: str, share: float) -> bool:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") < share * 2**64
