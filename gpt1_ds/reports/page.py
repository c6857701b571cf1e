"""The HTML page about one or several runs: the content for templates/report.html."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple

from gpt1_ds.base.formatting import duration
from gpt1_ds.base.protocols import Json
from gpt1_ds.reports.checking import is_number, read_text
from gpt1_ds.reports.facts import facts_of
from gpt1_ds.reports.rendering import render, script_json
from gpt1_ds.reports.run_files import RunFiles, flatten, keys_of, with_number

EXAMPLES = 5
MOST_ROWS_OPEN = 12
"""Longer tables of the history are folded at first."""
NUMBER = re.compile(r"-?[\d,.]*")
FINGERPRINT = re.compile(r"(?P<count>\d+) tokens, sha256 (?P<digest>\w+)")
"""What state.json says of a corpus: `123 tokens, sha256 0123456789ab`."""
PREDICTION_COLUMNS = 3
"""Number of columns of predictions-*.tsv: index, label, prediction."""


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
    kind: str = "comparison"

    @property
    def names(self) -> list[str]:
        return list(self.columns)

    @property
    def rows(self) -> list[Fact]:
        keys = keys_of(dict(facts) for facts in self.columns.values())
        return [Fact(key, self._values(key)) for key in keys]

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


def report_page(runs: Sequence[RunFiles]) -> str:
    """The whole page."""
    _make_names_unique(runs)
    facts = {run.name: facts_of(run) for run in runs}
    sections = [Section("Numbers", [Comparison(facts)])]
    for run in runs:
        sections += [_data(run), _scores(run), _history(run), _samples(run)]
    sections.append(_configuration(runs))
    # First on the page, but made last: the other sections find more.
    sections[:0] = [_lost(run) for run in runs]
    return render(
        "report.html",
        title=" · ".join(run.name for run in runs),
        states=" · ".join(dict.fromkeys(of_run["state"] for of_run in facts.values())),
        sections=[section for section in sections if section.blocks],
        data=script_json({"charts": _charts(runs), "marks": _marks(runs)}),
    )


def _lost(run: RunFiles) -> Section:
    """What the files hold that is not on this page, and what does not belong together."""
    notes: list[Block] = [Note(text) for text in run.lost]
    return Section(f"Not shown of {run.name}", notes)


def _make_names_unique(runs: Sequence[RunFiles]) -> None:
    """If several runs have the same name, add the names of their folders."""
    names = [run.name for run in runs]
    for run in runs:
        if names.count(run.name) > 1:
            run.name = "/".join(run.folder.resolve().parts[-2:])


def _charts(runs: Sequence[RunFiles]) -> list[Json]:
    """The charts that have a curve, for templates/report.js.

    With one run, each curve has its own colour. With several runs, each run has its own colour, and
    the curves of a run differ by their dashes.
    """
    charts_of_runs = [run.charts() for run in runs]
    charts = []
    for title in charts_of_runs[0]:
        series = []
        for number, run in enumerate(runs):
            for index, curve in enumerate(charts_of_runs[number][title]):
                points = run.points(curve)
                if not points:
                    continue
                label = curve.label or title
                look = {"color": index, "dash": 0}
                if len(runs) > 1:
                    label = f"{run.name} {curve.label}".strip()
                    look = {"color": number, "dash": index}
                faint = curve.label == "train" and bool(run.valid)
                series.append({"label": label, "points": points, "faint": faint, **look})
        if series:
            from_zero = title.endswith(("second", "step", "bytes"))
            has_legend = max(len(charts[title]) for charts in charts_of_runs) > 1
            charts.append(
                {"title": title, "series": series, "zero": from_zero, "legend": has_legend}
            )
    return charts


def _marks(runs: Sequence[RunFiles]) -> list[Json]:
    """Restarts and loss spikes, which the charts of the loss show as lines."""
    marks: list[Json] = []
    for number, run in enumerate(runs):
        for start in run.starts[1:]:
            text = f"{run.name}: start at step {start['step']}"
            marks.append({"at": run.place(start["step"]), "text": text, "color": number})
        for event in with_number(run.skipped, "from_step"):
            text = f"{run.name}: loss {event.get('loss')} at step {event['from_step']}"
            marks.append({"at": run.place(event["from_step"]), "bad": True, "text": text})
    return marks


def _data(run: RunFiles) -> Section:
    rows = []
    data = run.state.get("data") or {}
    for name, text in data.items() if isinstance(data, dict) else ():
        found = FINGERPRINT.fullmatch(str(text))
        if found:
            rows.append([name, f"{int(found['count']):,}", found["digest"]])
        else:
            run.lost.append(f"state.json: the data {name} are {text}")
    section = Section(f"Data of {run.name}")
    if rows:
        shards = run.config.get("data", {}).get("shards")
        section.blocks.append(Table(["corpus", "tokens", "sha256"], rows))
        section.blocks.append(Note(f"shards: {shards}"))
    return section


def _scores(run: RunFiles) -> Section:
    section = Section(f"Task scores of {run.name}")
    confusion = run.result.get("confusion")
    if confusion:
        names = confusion["classes"]
        rows = []
        for name, counts in zip(names, confusion["counts"], strict=True):
            rows.append([name, *(f"{count:,}" for count in counts)])
        note = "Dev set at the best step: label by row, prediction by column."
        section.blocks.extend([Note(note), Table(["", *names], rows)])
    for path in sorted(run.folder.glob("predictions-*.tsv")):
        lines = [line.split("\t") for line in read_text(path, run.lost).split("\n")]
        head, wrong = lines[0], [line for line in lines[1:] if _is_error(line)]
        if wrong and len(head) == PREDICTION_COLUMNS:
            title = f"{path.name}: the first errors"
            section.blocks.append(Fold(title, Table(head, wrong[:EXAMPLES]), is_open=False))
    return section


def _is_error(line: Sequence[str]) -> bool:
    """Whether a row of predictions has a label and a different prediction."""
    return len(line) == PREDICTION_COLUMNS and line[1] not in ("", line[2])


def _history(run: RunFiles) -> Section:
    keys = keys_of(run.skipped)
    starts = Table(["from step", "at", "ranks", "after running"], list(map(_start_row, run.starts)))
    spikes = Table(keys, [_spike_row(event, keys) for event in run.skipped])
    saves = Table(["step", "bytes", "seconds"], list(map(_save_row, run.saves)))
    tables = {
        "Starts": starts,
        "Loss spikes undone and batches skipped": spikes,
        "Checkpoints": saves,
    }
    section = Section(f"History of {run.name}")
    for title, table in tables.items():
        count = len(table.rows)
        if count:
            section.blocks.append(Fold(f"{title} ({count})", table, count <= MOST_ROWS_OPEN))
    return section


def _start_row(record: Json) -> list[str]:
    return [
        f"{record['step']:,}",
        _time(record.get("time", 0)),
        str(record.get("world_size", "")),
        duration(_number(record, "elapsed_seconds")),
    ]


def _time(seconds: object) -> str:
    """A time since 1970; empty if it is none that a calendar has."""
    try:
        return f"{datetime.fromtimestamp(float(str(seconds)), UTC):%Y-%m-%d %H:%M:%S UTC}"
    except (ValueError, OverflowError, OSError):
        return ""


def _number(record: Json, key: str) -> float:
    return record[key] if is_number(record.get(key)) else 0


def _spike_row(event: Json, keys: Iterable[str]) -> list[str]:
    return [json.dumps(event.get(key, "")).strip('"') for key in keys]


def _save_row(record: Json) -> list[str]:
    size, seconds = _number(record, "bytes"), _number(record, "seconds")
    return [f"{record['step']:,}", f"{size:,}", f"{seconds:.2f}"]


def _samples(run: RunFiles) -> Section:
    section = Section(f"Samples of {run.name}")
    for path in sorted((run.folder / "samples").glob("step-*.txt"))[-EXAMPLES:]:
        section.blocks.append(Sample(path.stem, read_text(path, run.lost)))
    return section


def _configuration(runs: Sequence[RunFiles]) -> Section:
    settings = Comparison({run.name: flatten(run.config) for run in runs})
    deepspeed = Comparison({run.name: flatten(run.deepspeed) for run in runs})
    return Section(
        "Configuration", [Fold("config.yaml", settings), Fold("deepspeed.json", deepspeed)]
    )
