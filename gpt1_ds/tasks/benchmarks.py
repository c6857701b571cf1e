"""Benchmarks of a language model as it is: BLiMP, LAMBADA, and files of the same kinds.

| name    | what decides                                       | file                              |
|---------|----------------------------------------------------|-----------------------------------|
| blimp   | the likelier sentence of a minimal pair            | BLiMP.zip, or its data/           |
| lambada | the likeliest last word                            | lambada*.jsonl: context and word  |
| pairs   | as blimp                                           | your own, with two named columns  |
| cloze   | as lambada                                         | your own, with two named columns  |

Own files have JSON lines, or columns between tabs or commas (`.csv`).
"""

from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from gpt1_ds.base.errors import ConfigError, DataError
from gpt1_ds.data.tokenizer import Tokenizer
from gpt1_ds.model.likelihood import Likelihoods, Query
from gpt1_ds.tasks.blimp import Blimp, read_blimp
from gpt1_ds.tasks.cloze import LAMBADA_COLUMNS, cloze, lambada_file, read_cloze
from gpt1_ds.tasks.minimal_pairs import ALL, MinimalPairs, fitting, read_pairs, sample

PUBLISHED = ("blimp", "lambada")
OWN = ("pairs", "cloze")
BENCHMARKS = (*PUBLISHED, *OWN)
PLACES = {
    "cola": ("CoLA",),
    "sst2": ("SST-2",),
    "race": ("RACE",),
    "dpr": ("DPR",),
    "blimp": ("BLiMP.zip", "BLiMP"),
    "lambada": ("lambada_openai.jsonl", "LAMBADA"),
}
"""The folder or file of each zero-shot task in --data; the first one that is there counts."""


class Benchmark(Protocol):
    """Encoded examples, and what their likelihoods mean."""

    @property
    def name(self) -> str: ...

    @property
    def queries(self) -> Sequence[Query]: ...

    @property
    def greedy(self) -> bool:
        """Whether it asks for the likeliest tokens."""
        ...

    @property
    def majority(self) -> float:
        """The accuracy without a model."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """What is left out, for the user."""
        ...

    def metrics(self, found: Likelihoods) -> dict[str, float]:
        """The accuracy first."""
        ...

    def counts(self, found: Likelihoods) -> dict[str, int]:
        """Numbers of examples by their kind."""
        ...

    def report(self, found: Likelihoods) -> list[str]:
        """Lines for the user."""
        ...

    def table(self, found: Likelihoods) -> str:
        """The text of a file with a row for each example."""
        ...


def open_benchmark(
    name: str,
    path: Path,
    tokenizer: Tokenizer,
    n_ctx: int,
    wanted: int | None = None,
    columns: Sequence[str] = (),
) -> Benchmark:
    """The benchmark `name`, one of `BENCHMARKS`, from the file or folder `path`.

    `wanted`: so many examples, drawn with a fixed seed; of pairs so many of each group. None: all.
    `columns`: of a user's own file. Raises DataError for a file that is not what `name` says.
    """
    if not path.exists():
        raise DataError(f"{path}: not there; give the file or folder of {name}")
    if name in OWN and not columns:
        raise ConfigError(f"--zero-shot {name} needs --columns: the names of the two columns")
    if name in ("lambada", "cloze"):
        file = lambada_file(path) if name == "lambada" else path
        passages = read_cloze(file, columns or LAMBADA_COLUMNS)
        return cloze(name, passages, tokenizer, n_ctx, wanted)
    read = read_blimp(path) if name == "blimp" else _own(path, columns)
    pairs = sample(read.pairs, wanted)
    kept, queries, notes = fitting(pairs, tokenizer, n_ctx)
    if not kept:
        raise DataError(f"{path}: {notes[0] if notes else 'it has no pairs'}")
    groups = {pair.group for pair in kept}
    gone = {pair.group for pair in pairs} - groups
    if gone:
        notes.append(f"no pair is left of {', '.join(sorted(gone))}")
    levels = {level: _left(rows, groups) for level, rows in read.levels.items()}
    return MinimalPairs(name, kept, queries, levels, read.published, [*read.notes, *notes])


def _left(rows: Mapping[str, Sequence[str]], groups: Container[str]) -> dict[str, list[str]]:
    """The rows of a table without the groups of which no pair is left."""
    left = {}
    for row, of_row in rows.items():
        names = [name for name in of_row if name in groups]
        if names:
            left[row] = names
    return left


def _own(path: Path, columns: Sequence[str]) -> Blimp:
    """A user's own pairs in the form of BLiMP; a third column names their groups."""
    pairs = read_pairs(path, columns)
    groups = list(dict.fromkeys(pair.group for pair in pairs))
    levels = {columns[2]: {group: [group] for group in groups}} if groups != [ALL] else {}
    return Blimp(pairs, levels, {}, [])


def first_there(data: Path, names: Sequence[str]) -> Path:
    """The first of these below `data` that is there, else the first one."""
    paths = [data / name for name in names]
    return next((path for path in paths if path.exists()), paths[0])
