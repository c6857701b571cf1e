"""Publishers' tables: tab- or comma-separated, with or without a header, or JSON lines; faults named by file and row.

Tab-separated fields are taken literally (MRPC and STS-B hold lone quotes); a BOM and CRLF line ends are dropped.
Only line feeds end a row: GLUE text contains other characters that Python counts as line ends.
"""

import csv
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt1_ds.base.errors import DataError, near
from gpt1_ds.distributed.console import say

Lines = Iterator[tuple[int, str]]


@dataclass(frozen=True)
class Table:
    """Reads a table whose columns are named here; which form it has, its first line tells."""

    texts: tuple[str, ...]
    """Columns of an example's texts."""
    label: str
    """Column of the label; a test file may lack it."""
    header: tuple[str, ...] | None = None
    """Columns of a file without a header row; its rows may hold more."""
    delimiter: str = "\t"
    """Between fields: tab, or comma with CSV quoting."""
    spelling: Mapping[str, str | None] = field(default_factory=dict)
    """Another spelling of a label -> the label; None: the row is left out."""
    broken: bool = False
    """The publisher's own file holds rows that lack a field: such labelled rows are left out and counted."""

    def __call__(
        self, path: Path, parse: Callable[[str | None, str], Any]
    ) -> Iterator[tuple[tuple[str, ...], Any]]:
        """Texts and parsed label of every row."""
        left_out = []
        for where, row in self._rows(path):
            missing = next((name for name in self.texts if name not in row), None)
            if missing:
                raise DataError(f"{where}: no column '{missing}'; {near(missing, row)}")
            texts = tuple(row[name].strip() for name in self.texts)
            label = row.get(self.label, "").strip() or None
            if None in row or (self.broken and label is not None and not all(texts)):
                left_out.append(where)
            elif not self.broken and not all(texts):
                empty = self.texts[texts.index("")]
                raise DataError(f"{where}: column '{empty}' is empty; fill it or remove the row")
            elif label is None:
                yield texts, parse(None, f"{where}, column '{self.label}'")
            elif (label := self.spelling.get(label, label)) is not None:
                yield texts, parse(label, where)
        if left_out:
            say(f"warning: {left_out[0]} lacks a field; {len(left_out)} such rows are left out")

    def _rows(self, path: Path) -> Iterator[tuple[str, dict[str, str]]]:
        """`FILE row N` and the fields by column; a row too short of a `broken` file has the column None."""
        lines = read_lines(path)
        first = list(itertools.islice(lines, 1))
        lines = itertools.chain(first, lines)
        if first and first[0][1].startswith("{"):
            yield from _json_rows(path, lines)
            return
        split = (
            _csv_rows(path, lines)
            if self.delimiter == ","
            else ((n, t.split("\t")) for n, t in lines if t)
        )
        names: Sequence[str] | None = None
        for number, fields in split:
            where = f"{path} row {number}"
            if names is None:
                names, exact = [name.strip() for name in fields], True
                if set(self.texts) <= set(names):
                    continue
                if self.header is None:
                    missing = next(name for name in self.texts if name not in names)
                    separator = "tabs" if self.delimiter == "\t" else "commas"
                    raise DataError(
                        f"{where}: no column '{missing}' in the header (fields between {separator}); "
                        f"{near(missing, names)}"
                    )
                names, exact = self.header, False
            if len(fields) >= len(names) and not (exact and len(fields) > len(names)):
                yield where, dict(zip(names, fields, strict=False))
            elif self.broken and self.label in names:
                yield where, {name: "" for name in (*self.texts, None)}
            else:
                raise DataError(
                    f"{where}: {len(fields)} columns, expected {len(names)} ({', '.join(names)})"
                )


def read_lines(path: Path) -> Lines:
    """(row from 1, line without its end) of a UTF-8 file."""
    row = 0
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for row, line in enumerate(file, 1):
                yield row, line.rstrip("\r\n")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 after row {row}; convert the file to UTF-8") from error


def _csv_rows(path: Path, lines: Lines) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader((f"{line}\n" for _, line in lines), strict=True)
    number = 1
    try:
        for fields in reader:
            if fields:
                yield number, fields
            number = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path} row {number}: {error}; close its quotes, and double those inside a field"
        ) from error


def _json_rows(path: Path, lines: Lines) -> Iterator[tuple[str, dict[str, str]]]:
    for number, line in lines:
        if not line.strip():
            continue
        try:
            yield (
                f"{path} row {number}",
                {key: _text(value) for key, value in json.loads(line).items()},
            )
        except (ValueError, AttributeError) as error:
            raise DataError(
                f"{path} row {number}: not a JSON object ({error}); write one a line"
            ) from error


def _text(value: Any) -> str:
    """A list (of words, of tags) becomes words between blanks."""
    if isinstance(value, list):
        return " ".join(map(_text, value))
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)


def label_index(label: str, classes: Sequence[str], where: str) -> int:
    """Index of a published label in `classes`."""
    if label not in classes:
        raise DataError(f"{where}: unknown label '{label}'; choose from: {', '.join(classes)}")
    return classes.index(label)
