"""The parts that the page of a report is made of; templates/report.html renders each kind."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from gpt1_ds.reports.run_files import keys_of

NUMBER = re.compile(r"-?[\d,.]*")


@dataclass(frozen=True)
class Table:
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    kind: str = "table"

    @property
    def numeric(self) -> list[bool]:
        """For each column, whether it has only numbers; such columns are right-aligned."""
        columns = range(len(self.head))
        return [self._is_numeric(column) for column in columns]

    def _is_numeric(self, column: int) -> bool:
        return all(NUMBER.fullmatch(row[column]) for row in self.rows)


class Fact(NamedTuple):
    """A row of a comparison: a key, and one value for each run."""

    key: str
    values: list[str]

    @property
    def differs(self) -> bool:
        return len(set(self.values)) > 1


@dataclass(frozen=True)
class Comparison:
    """A row for each fact, a column for each run."""

    columns: Mapping[str, Mapping[str, str]]
    differing_first: bool = False
    kind: str = "comparison"

    @property
    def names(self) -> list[str]:
        return list(self.columns)

    @property
    def rows(self) -> list[Fact]:
        keys = keys_of(dict(facts) for facts in self.columns.values())
        rows = [Fact(key, self._values(key)) for key in keys]
        return sorted(rows, key=lambda row: not row.differs) if self.differing_first else rows

    def _values(self, key: str) -> list[str]:
        return [facts.get(key, "") for facts in self.columns.values()]


@dataclass(frozen=True)
class Note:
    text: str
    kind: str = "note"


@dataclass(frozen=True)
class Sample:
    title: str
    text: str
    kind: str = "sample"


@dataclass(frozen=True)
class Fold:
    """A part of the page that the reader can open and close."""

    title: str
    content: Table | Comparison
    is_open: bool = True
    kind: str = "fold"


Block = Table | Comparison | Note | Sample | Fold


@dataclass(frozen=True)
class Section:
    title: str
    blocks: list[Block] = field(default_factory=list)
