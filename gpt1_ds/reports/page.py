"""The HTML page about one or several runs: the content for templates/report.html."""

import json
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from gpt1_ds.base.formatting import duration
from gpt1_ds.base.protocols import Json
from gpt1_ds.reports.blocks import Block, Comparison, Fold, Note, Sample, Section, Table
from gpt1_ds.reports.charts import changes_of, page_data
from gpt1_ds.reports.checking import is_number, is_text, read_text
from gpt1_ds.reports.expected import Expected, expected_of
from gpt1_ds.reports.facts import facts_of, wall_time_of
from gpt1_ds.reports.overlap import HEADER, NOTE, overlap_of
from gpt1_ds.reports.rendering import render, script_json
from gpt1_ds.reports.run_files import RunFiles, flatten, keys_of

EXAMPLES = 5
MOST_ROWS_OPEN = 12
"""Longer tables of the history are folded at first."""
FINGERPRINT = re.compile(r"(?P<count>\d+) (?P<unit>tokens|examples), sha256 (?P<digest>\w+)")
"""What state.json says of a corpus or split: `123 tokens, sha256 0123456789ab`."""
PREDICTION_COLUMNS = 3
"""Number of columns of predictions-*.tsv: index, label, prediction."""
PARTS = {
    "new_steps": "new steps",
    "repeated_steps": "steps made before, and lost",
    "validation": "validation and scores",
    "checkpoints": "checkpoints",
    "data": "waits for data",
    "start_up": "start-up",
    "waiting": "between two starts",
}
"""What status.json counts of the wall time, in its order."""
ALWAYS_DIFFERENT = ("run.name", "run.dir")
"""Settings that say which run it is, not what it does."""


def report_page(runs: Sequence[RunFiles]) -> str:
    """The whole page."""
    _make_names_unique(runs)
    facts = {run.name: facts_of(run) for run in runs}
    expected = {run.name: expected_of(run) for run in runs}
    every_figure = sum(expected.values(), [])
    sections = [Section("Numbers", [Comparison(facts)]), _expected(expected)]
    for run in runs:
        sections += [_wall_time(run), _data(run), _overlap(run), _scores(run)]
        sections += [_history(run), _samples(run)]
    sections.append(_configuration(runs))
    # First on the page, but made last: the other sections find more.
    sections[:0] = [_differing_settings(runs), *(_lost(run) for run in runs)]
    data = page_data(runs, every_figure)
    return render(
        "report.html",
        title=" · ".join(run.name for run in runs),
        states=" · ".join(dict.fromkeys(of_run["state"] for of_run in facts.values())),
        sections=[section for section in sections if section.blocks],
        axes=data["axes"],
        data=script_json(data),
    )


def _lost(run: RunFiles) -> Section:
    """What the files hold that is not on this page, and what does not belong together."""
    notes: list[Block] = [Note(text) for text in run.lost]
    return Section(f"Not shown of {run.name}", notes)


def _make_names_unique(runs: Sequence[RunFiles]) -> None:
    """If several runs have the same name, add the names of their folders, and then numbers."""
    names = [run.name for run in runs]
    for run in runs:
        if names.count(run.name) > 1:
            run.name = "/".join(run.folder.resolve().parts[-2:])
    seen: list[str] = []
    for run in runs:
        seen.append(run.name)
        if seen.count(run.name) > 1:
            run.name += f" ({seen.count(run.name)})"


def _differing_settings(runs: Sequence[RunFiles]) -> Section:
    """Only the settings in which the runs differ, from both files."""
    title = "Settings that differ"
    if len(runs) == 1:
        return Section(title)
    columns = {}
    for run in runs:
        settings = flatten(run.config) | flatten({"deepspeed": run.deepspeed})
        columns[run.name] = {k: v for k, v in settings.items() if k not in ALWAYS_DIFFERENT}
    rows = [row for row in Comparison(columns).rows if row.differs]
    if not rows:
        return Section(title, [Note("None: the runs have the same settings.")])
    names = list(columns)
    return Section(title, [Table(["setting", *names], [[row.key, *row.values] for row in rows])])


def _expected(figures_of: dict[str, list[Expected]]) -> Section:
    """What to compare the runs' figures with."""
    rows = []
    for name, figures in figures_of.items():
        for figure in figures:
            rows.append([name, *figure[:4]])
    section = Section("Expected figures")
    if rows:
        head = ["run", "figure", "measured", "expected", "from"]
        section.blocks.append(Table(head, rows))
    return section


def _wall_time(run: RunFiles) -> Section:
    """What the time since the first start went to."""
    section = Section(f"Wall time of {run.name}")
    seconds = wall_time_of(run)
    total = sum(seconds.values())
    if total:
        rows = [[PARTS[kind], duration(own), f"{own / total:.1%}"] for kind, own in seconds.items()]
        rows.append(["since the first start", duration(total), ""])
        section.blocks.append(Table(["", "time", "share"], rows))
    return section


def _data(run: RunFiles) -> Section:
    rows = []
    unit = "tokens"
    data = run.state.get("data") or {}
    for name, text in data.items() if isinstance(data, dict) else ():
        found = FINGERPRINT.fullmatch(str(text))
        if found:
            rows.append([name, f"{int(found['count']):,}", found["digest"]])
            unit = found["unit"]
        else:
            run.lost.append(f"state.json: the data {name} are {text}")
    section = Section(f"Data of {run.name}")
    if rows:
        name = "corpus" if unit == "tokens" else "split"
        section.blocks.append(Table([name, unit, "sha256"], rows))
        section.blocks.append(Note(_source(run, unit)))
    return section


def _overlap(run: RunFiles) -> Section:
    """The evaluation sets in the training text, if `gpt1_ds.eval --overlap` measured them."""
    section = Section(f"Evaluation sets in the training text of {run.name}")
    shards, data = run.config.get("data", {}).get("shards"), run.state.get("data")
    if run.result or not is_text(shards) or not isinstance(data, dict):
        return section
    trained_on = {name: text for name, text in data.items() if name.startswith("train/")}
    rows = overlap_of(Path(shards), trained_on, run.lost)
    if rows:
        section.blocks.extend([Note(NOTE), Table(HEADER, [row.cells for row in rows])])
    return section


def _source(run: RunFiles, unit: str) -> str:
    """Where the data lie: pre-training counts tokens, fine-tuning examples."""
    section, key = ("data", "shards") if unit == "tokens" else ("task", "data")
    return f"{key}: {run.config.get(section, {}).get(key)}"


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
    starts = _starts(run)
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


def _starts(run: RunFiles) -> Table:
    head = ["from step", "at", "ranks", "after running"]
    rows = list(map(_start_row, run.starts))
    changes = [", ".join(changes_of(start)) for start in run.starts]
    if any(changes):
        head.append("changed settings")
        rows = [[*row, text] for row, text in zip(rows, changes, strict=True)]
    return Table(head, rows)


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
    files = {
        "config.yaml": {run.name: flatten(run.config) for run in runs},
        "deepspeed.json": {run.name: flatten(run.deepspeed) for run in runs},
    }
    tables = {name: Comparison(columns, differing_first=True) for name, columns in files.items()}
    return Section("Configuration", [Fold(name, table) for name, table in tables.items()])
