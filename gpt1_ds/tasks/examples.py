"""An example as published, and the same example encoded for the model."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from gpt1_ds.model.loss import IGNORE

__all__ = ["IGNORE", "Encoded", "Example", "Label", "Parse", "Rows"]

Label = Any
"""Depends on the kind of the task: the index of a class, a score, or the tag of each word."""
Parse = Callable[[str | None, str], Label]
"""Converts a published label (or None) to the label of an `Example`.

The second argument is `FILE row N`, for the error.
"""


@dataclass(frozen=True, slots=True)
class Example:
    """One example as published."""

    texts: tuple[str, ...]
    """The fields, in the order of the task's kind; token classification: the words."""
    label: Label = None
    """None: unlabelled."""
    part: str = ""
    """The part of the split with its own score (RACE: middle or high); empty: no part."""


Rows = Iterator[Example]


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example encoded for the model."""

    sequences: list[list[int]]
    """Token ids: one sequence, two (similarity: both orders), or one for each answer."""
    target: list[float] | list[int]
    """Probability of each class or answer, or one score. Token classification: the class of each
    token, or IGNORE."""
    cut: int = 0
    """Number of tokens that were cut off to fit the model's context."""
    words: list[int] = field(default_factory=list)
    """Token classification: position of each word's first sub-token; -1 if it has none."""
    vanished: int = 0
    """Number of texts (or words) without a single token, although they are not empty."""

    @property
    def length(self) -> int:
        """Number of tokens of the longest sequence."""
        return max(map(len, self.sequences))

    @property
    def is_per_token(self) -> bool:
        """Whether the target has one class for each token."""
        return isinstance(self.target[0], int)
