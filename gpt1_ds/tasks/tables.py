"""Reads publishers' tables: columns separated by tabs or commas, JSON lines, or a JSON array.

A table may have a header row. Fields between tabs are taken literally, because MRPC and STS-B have
single quotation marks. A BOM and CRLF line ends are removed. Only a line feed ends a row: GLUE
texts contain other characters that Python treats as line ends. Errors name file and row.

The ending of a file says that it is JSON (`.json .jsonl .ndjson`). Other files are JSON if their
first character that is no space is a brace.
"""

import csv
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from gpt1_ds.base.errors import DataError, near
from gpt1_ds.distributed.console import say
from gpt1_ds.tasks.examples import Example, Label, Parse

JSON_ENDINGS = (".json", ".jsonl", ".ndjson")
LONGEST_FIELD = 2**31 - 1
"""Characters of a field between commas; the csv module would refuse more than 131,072."""

Cell = str | list[str]
"""A field as text, or the items of a list in a JSON object."""


class Line(NamedTuple):
    """A line of a file without its line end, and its number, counted from 1."""

    row: int
    text: str


class Fields(NamedTuple):
    """The fields of a row."""

    row: int
    fields: list[str]


class Row(NamedTuple):
    """The fields of a row by column name; `where` is `FILE row N`."""

    where: str
    columns: Mapping[str, Cell]
    is_short: bool = False
    """Whether the row lacks a field (only for tables with `broken`)."""


@dataclass(frozen=True)
class Table:
    """Reads a table with these columns. The first line of the file shows its format."""

    texts: tuple[str, ...]
    """Names of the columns with the texts of an example."""
    label: str
    """Name of the label column; a test file may lack this column."""
    header: tuple[str, ...] | None = None
    """Column names of a file without a header row; its rows may have more columns."""
    headless: Callable[[Sequence[str]], tuple[str, ...] | None] | None = None
    """Column names of a file without a header row, from the fields of its first row; None if this
    row is a header with other names."""
    delimiter: str = "\t"
    """Separates fields: a tab, or a comma with CSV quoting."""
    spelling: Mapping[str, str | None] = field(default_factory=dict)
    """Maps another spelling of a label to the label, or to None: the row is left out."""
    broken: bool = False
    """The publisher's own file has rows that lack a field. They are left out and counted."""
    holds_words: bool = False
    """The text column holds words: a JSON list, or words with spaces between them. These are the
    texts of an example."""

    def __call__(self, path: Path, parse: Parse) -> Iterator[Example]:
        """The example of every row; raises DataError for a missing column or an empty text."""
        left_out = []
        for row in self._rows(path):
            missing = [name for name in self.texts if name not in row.columns]
            if missing:
                raise DataError(
                    f"{row.where}: no column '{missing[0]}'; {near(missing[0], row.columns)}"
                )
            texts = self._texts(row)
            label = _joined(row.columns.get(self.label, "")).strip() or None
            refuse_broken_characters("".join([*texts, label or ""]), row.where)
            if row.is_short or (self.broken and label is not None and not all(texts)):
                left_out.append(row.where)
                continue
            if not self.broken and not (any(texts) if self.holds_words else all(texts)):
                empty = self.texts[texts.index("") if texts else 0]
                raise DataError(
                    f"{row.where}: column '{empty}' is empty; fill it or remove the row"
                )
            if label is None:
                yield Example(texts, parse(None, f"{row.where}, column '{self.label}'"))
                continue
            label = self.spelling.get(label, label)
            if label is not None:
                yield Example(texts, parse(label, row.where))
        if left_out:
            say(f"warning: {left_out[0]} lacks a field; {len(left_out)} such rows are left out")

    def _texts(self, row: Row) -> tuple[str, ...]:
        if self.holds_words:
            cell = row.columns[self.texts[0]]
            return tuple(split_words(cell) if isinstance(cell, str) else cell)
        return tuple(_joined(row.columns[name]).strip() for name in self.texts)

    def _rows(self, path: Path) -> Iterator[Row]:
        lines = read_lines(path)
        first = next((line for line in lines if line.text.strip()), None)
        if first is None:
            return iter(())
        lines = itertools.chain([first], lines)
        is_json = path.suffix.lower() in JSON_ENDINGS
        if is_json and first.text.lstrip().startswith("["):
            return _json_array(path, lines)
        if is_json or first.text.lstrip().startswith("{"):
            return json_rows(path, lines)
        if self.delimiter == ",":
            return self._named(path, _split_by_csv(path, lines))
        return self._named(path, _split_by_tabs(lines))

    def _named(self, path: Path, rows: Iterator[Fields]) -> Iterator[Row]:
        """The rows with the column names of the header row, or of `header` without one."""
        first = next(rows, None)
        if first is None:
            return
        names: Sequence[str] = [name.strip() for name in first.fields]
        exact = set(self.texts) <= set(names)
        twice = [name for name in (*self.texts, self.label) if names.count(name) > 1]
        if exact and twice:
            raise DataError(
                f"{path} row {first.row}: column '{twice[0]}' occurs twice; rename one of them"
            )
        if not exact:
            names = self._without_header(path, first, names)
            rows = itertools.chain([first], rows)
        for number, fields in rows:
            where = f"{path} row {number}"
            too_many = exact and len(fields) > len(names)
            if len(fields) >= len(names) and not too_many:
                yield Row(where, dict(zip(names, fields, strict=False)))
            elif self.broken and self.label in names:
                yield Row(where, dict.fromkeys(self.texts, ""), is_short=True)
            else:
                raise DataError(
                    f"{where}: {len(fields)} columns, expected {len(names)} ({', '.join(names)})"
                )

    def _without_header(self, path: Path, first: Fields, names: Sequence[str]) -> Sequence[str]:
        if self.header is not None:
            return self.header
        columns = self.headless and self.headless(first.fields)
        if columns:
            return columns
        missing = next(name for name in self.texts if name not in names)
        separator = "tabs" if self.delimiter == "\t" else "commas"
        raise DataError(
            f"{path} row {first.row}: no column '{missing}' in the header "
            f"(fields between {separator}); {near(missing, names)}"
        )


def read_lines(path: Path) -> Iterator[Line]:
    """The lines of a UTF-8 file; raises DataError if it cannot be read.

    A file without any line feed may have carriage returns instead (old spreadsheets).
    """
    row = 0
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for row, line in enumerate(file, 1):
                text = line.rstrip("\r\n")
                if row == 1 and "\r" in text and not line.endswith("\n"):
                    yield from itertools.starmap(Line, enumerate(text.split("\r"), 1))
                else:
                    yield Line(row, text)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 after row {row}; convert the file to UTF-8") from error


def split_words(text: str) -> list[str]:
    """The words between ASCII spaces. A no-break space is a part of its word."""
    return [word for word in re.split("[ \t\r\n]+", text) if word]


def refuse_broken_characters(text: str, where: str) -> None:
    """DataError for half a character (a lone surrogate), as in the JSON string "\\ud83d"."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start]).strip("'")
        raise DataError(
            f"{where}: {half} is half a character, not valid Unicode; repair or remove the row"
        ) from error


def _split_by_tabs(lines: Iterable[Line]) -> Iterator[Fields]:
    return (Fields(row, text.split("\t")) for row, text in lines if text)


def _split_by_csv(path: Path, lines: Iterator[Line]) -> Iterator[Fields]:
    first = next(lines)
    row = first.row
    skipped = row - 1
    texts = (f"{line.text}\n" for line in itertools.chain([first], lines))
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader(texts, strict=True)
    try:
        for fields in reader:
            if fields:
                yield Fields(row, fields)
            row = skipped + reader.line_num + 1
    except csv.Error as error:
        fix = "close its quotes, and double those inside a field"
        if "new-line" in str(error):
            fix = "put the field with a carriage return into quotes"
        raise DataError(f"{path} row {row}: {error}; {fix}") from error


def json_rows(path: Path, lines: Iterable[Line]) -> Iterator[Row]:
    """The object of each line; DataError with the row if one is none. `path` is for messages."""
    for row, text in lines:
        if not text.strip():
            continue
        where = f"{path} row {row}"
        try:
            columns = _cells(json.loads(text.removeprefix("\ufeff")))
        except (ValueError, AttributeError, RecursionError) as error:
            raise DataError(f"{where}: not a JSON object ({error}); write one a line") from error
        yield Row(where, columns)


def _json_array(path: Path, lines: Iterable[Line]) -> Iterator[Row]:
    """The objects of one JSON array; here a row is an item of the array."""
    where = f"{path}"
    try:
        items = json.loads("\n".join(line.text for line in lines))
        for row, item in enumerate(items, 1):
            where = f"{path} row {row}"
            yield Row(where, _cells(item))
    except (ValueError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{where}: not a JSON array of objects ({error}); write one object a line"
        ) from error


def _cells(item: dict[str, object]) -> dict[str, Cell]:
    """The cells of a JSON object; AttributeError if it is none."""
    cells: dict[str, Cell] = {}
    for key, value in item.items():
        cells[key] = (
            [_as_text(part) for part in value] if isinstance(value, list) else _as_text(value)
        )
    return cells


def _as_text(value: object) -> str:
    """A value of a JSON object as text; items of a list (words, tags) are joined by spaces."""
    if isinstance(value, list):
        return " ".join(map(_as_text, value))
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value)


def _joined(cell: Cell) -> str:
    return cell if isinstance(cell, str) else " ".join(cell)


def label_index(label: str, classes: Sequence[str], where: str) -> Label:
    """Index of a published label in `classes`; raises DataError for an unknown label."""
    if label not in classes:
        raise DataError(f"{where}: unknown label '{label}'; choose from: {', '.join(classes)}")
    return classes.index(label)
