"""The table of examples that occur in the training text, from SHARDS/overlap.json."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gpt1_ds.reports.checking import is_number, is_text, read_object

OVERLAP_FILE = "overlap.json"
HEADER = ("set", "split", "examples", "measured", "occur", "%")
NOTE = (
    "Examples of which the training text has 13 words in a row, or a whole text of 8 to 12 words, "
    "in lower case and without punctuation; shorter ones are not measured (gpt1_ds.eval --overlap)."
)


class SetOverlap(NamedTuple):
    """How many examples of one split of a set occur in the training text."""

    name: str
    split: str
    examples: int
    measured: int
    """Examples with a text that is long enough."""
    occur: int

    @property
    def cells(self) -> list[str]:
        share = f"{100 * self.occur / self.measured:.2f}" if self.measured else ""
        counts = (self.examples, self.measured, self.occur)
        return [self.name, self.split, *(f"{count:,}" for count in counts), share]


def overlap_table(rows: Sequence[SetOverlap]) -> str:
    """The table as text, with aligned columns."""
    cells = [list(HEADER), *(row.cells for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        names = [cell.ljust(width) for cell, width in zip(row[:2], widths, strict=False)]
        numbers = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join([*names, *numbers]).rstrip() + "\n")
    return "".join(lines)


def overlap_of(shards: Path, trained_on: dict[str, str], lost: list[str]) -> list[SetOverlap]:
    """The rows of overlap.json in `shards`; none if there is no such file.

    `trained_on`: what the run's state says of its corpora. A file about other shards, or a damaged
    one, is told in `lost`.
    """
    path = shards / OVERLAP_FILE
    found = read_object(path, json.loads, lost)
    if not found:
        return []
    measured = found.get("data")
    if not isinstance(measured, dict) or not measured.items() >= trained_on.items():
        lost.append(f"{OVERLAP_FILE}: of other shards than the run's; run gpt1_ds.eval --overlap")
        return []
    try:
        rows = [SetOverlap(**row) for row in found["sets"]]
    except (TypeError, KeyError):
        rows = []
    if not rows or not all(_is_sound(row) for row in rows):
        lost.append(f"{OVERLAP_FILE}: is damaged; run gpt1_ds.eval --overlap again")
        return []
    return rows


def _is_sound(row: SetOverlap) -> bool:
    return all(map(is_text, row[:2])) and all(map(is_number, row[2:]))
