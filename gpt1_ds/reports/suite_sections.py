"""The tables of a suite's page, and how they are written as Markdown and HTML."""

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from gpt1_ds.base.files import write_atomically
from gpt1_ds.reports.rendering import render

NUMBER = re.compile(r"-?[\d.,]+(\.\.-?[\d.,]+)?")
"""A number, or lowest..highest."""


class Cell(NamedTuple):
    """A cell of a table."""

    text: str
    is_bold: bool = False
    runs: Sequence[str] = ()
    """Names of the runs' folders that the page links to."""


Row = Sequence[Cell]


@dataclass
class Section:
    """A table, and a picture of it if there is one."""

    title: str
    header: Sequence[str]
    rows: Sequence[Row]
    note: str = ""
    file: str = ""
    """File name of the picture, in the folder of the page."""
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    """The PNG of each colour scheme, `light` and `dark`."""

    @property
    def base64_of(self) -> dict[str, str]:
        """The pictures for the page."""
        return {scheme: base64.b64encode(png).decode() for scheme, png in self.pictures.items()}

    @property
    def numeric(self) -> list[bool]:
        """For each column, whether it has only numbers; such columns are right-aligned."""
        return [all(map(_is_numeric, column)) for column in zip(*self.rows, strict=True)]


def _is_numeric(cell: Cell) -> bool:
    """Whether a cell has a number (`3, 1 failed` begins with one), or nothing."""
    return not cell.text or bool(NUMBER.fullmatch(cell.text.split(", ")[0]))


def plain(texts: Iterable[str]) -> list[Cell]:
    return [Cell(text) for text in texts]


def write(out: Path, found: Sequence[Section]) -> str:
    """Write table.md, its picture files, and table.html with embedded pictures.

    Returns the Markdown of the tables without pictures.
    """
    tables, with_pictures = [], []
    for section in found:
        table = _markdown(section)
        tables.append(table)
        if section.pictures:
            write_atomically(out / section.file, section.pictures["light"])
            table += f"\n![{section.title}]({section.file})\n"
        with_pictures.append(table)
    write_atomically(out / "table.md", "\n".join(with_pictures))
    page = render(
        "suite.html",
        name=out.resolve().name,
        folder=str(out),
        sections=found,
        links=_links(out, found),
    )
    write_atomically(out / "table.html", page)
    return "\n".join(tables)


def _links(out: Path, found: Sequence[Section]) -> dict[str, str]:
    """The address of each run, relative to the page: its report, or else its folder."""
    rows: list[Row] = sum((list(section.rows) for section in found), [])
    names = set(chain(*(cell.runs for cell in chain(*rows))))
    links = {}
    for name in sorted(names):
        if (out / name / "report.html").is_file():
            links[name] = f"{quote(name)}/report.html"
        elif name and (out / name).is_dir():
            links[name] = f"{quote(name)}/"
    return links


def _markdown(section: Section) -> str:
    ruler = ["---:" if is_numeric else "---" for is_numeric in section.numeric]
    rows = [list(map(_markdown_cell, row)) for row in section.rows]
    table = "".join(map(_markdown_row, [section.header, ruler, *rows]))
    note = f"\n{section.note}\n" if section.note else ""
    return f"## {section.title}\n\n{table}{note}"


def _markdown_cell(cell: Cell) -> str:
    return f"**{cell.text}**" if cell.is_bold else cell.text


def _markdown_row(cells: Sequence[str]) -> str:
    escaped = [cell.replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(escaped)} |\n"
