"""Publishers' tables: tab- or comma-separated files with or without a header, every fault named by file and row.

Tab-separated fields are taken literally (MRPC and STS-B hold lone quotes); a BOM and CRLF line ends are dropped.
Only line feeds end a row: GLUE text contains other characters that Python counts as line ends.
"""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from gpt1_ds.errors import DataError, near

Row = tuple[str, dict[str, str]]
"""`FILE row N` for messages, and the wanted fields by column name."""


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
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


def read_tsv(path: Path, wanted: Sequence[str], header: Sequence[str] | None = None) -> Iterator[Row]:
    """Rows of a tab-separated file. `header`: the columns of a file without a header row, which may hold more."""
    split = ((row, line.split("\t")) for row, line in read_lines(path) if line)
    yield from _named(path, split, wanted, header)


def read_csv(path: Path, wanted: Sequence[str]) -> Iterator[Row]:
    """Rows of a comma-separated file with a header and CSV quoting."""
    reader = csv.reader((f"{line}\n" for _, line in read_lines(path)), strict=True)

    def rows() -> Iterator[tuple[int, list[str]]]:
        try:
            for fields in reader:
                if fields:
                    yield reader.line_num, fields
        except csv.Error as error:
            raise DataError(f"{path} row {reader.line_num}: {error}; expected comma-separated fields") from error

    yield from _named(path, rows(), wanted, None)


def _named(
    path: Path, rows: Iterator[tuple[int, list[str]]], wanted: Sequence[str], header: Sequence[str] | None
) -> Iterator[Row]:
    exact = header is None
    for row, fields in rows:
        where = f"{path} row {row}"
        if header is None:
            header = [name.strip() for name in fields]
            missing = next((name for name in wanted if name not in header), None)
            if missing:
                raise DataError(f"{where}: no column '{missing}' in the header; {near(missing, header)}")
            continue
        if len(fields) < len(header) or (exact and len(fields) != len(header)):
            raise DataError(f"{where}: {len(fields)} columns, expected {len(header)} ({', '.join(header)})")
        values = dict(zip(header, fields, strict=False))
        for name in wanted:
            if not values[name].strip():
                raise DataError(f"{where}: column '{name}' is empty; fill it or remove the row")
        yield where, {name: values[name].strip() for name in wanted}


def label_index(label: str, classes: Sequence[str], where: str) -> int:
    """Index of a published label in `classes`."""
    if label not in classes:
        raise DataError(f"{where}: unknown label '{label}'; choose from: {', '.join(classes)}")
    return classes.index(label)
