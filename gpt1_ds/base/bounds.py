"""The domain of a number or a word: what a setting, a JSON value or an option may be."""

import math
from dataclasses import dataclass

from gpt1_ds.base.errors import near


@dataclass(frozen=True)
class Bounds:
    """A range of finite numbers, or a choice of words.

    Null has no bounds: whether a value may be null is a matter of its type.
    """

    low: float = 0
    high: float = 1e38
    open_low: bool = False
    """Whether `low` itself is outside."""
    open_high: bool = False
    choices: tuple[str, ...] = ()

    def problem(self, value: str | float) -> str:
        """What is wrong with `value`, such as "it must be above 0"; empty: nothing."""
        if isinstance(value, str):
            return "" if value in self.choices else near(value, self.choices)
        too_low = value <= self.low if self.open_low else value < self.low
        too_high = value >= self.high if self.open_high else value > self.high
        if not (too_low or too_high or value != value):
            return ""
        if self.high <= 1:
            left, right = "(" if self.open_low else "[", ")" if self.open_high else "]"
            return f"it must lie in {left}{self.low}, {self.high}{right}"
        if abs(value) == math.inf or value != value:  # `isfinite` refuses integers of 400 digits
            return "it must be finite"
        if too_high:
            return f"it must be at most {self.high:g}"
        return f"it must be {'above' if self.open_low else 'at least'} {self.low}"


LARGEST_COUNT = 2**53
"""Up to here a float holds every integer."""
COUNT = Bounds(high=LARGEST_COUNT, open_low=True)
COUNT_OR_ZERO = Bounds(high=LARGEST_COUNT)
NUMBER = Bounds()
"""What float32 holds, from 0 on."""
POSITIVE = Bounds(open_low=True)
SHARE = Bounds(high=1)
SHARE_BELOW_1 = Bounds(high=1, open_high=True)
