"""Reads and writes the JSON-lines files of a run: `metrics.jsonl` and `skipped.jsonl`.

A run appends to these files while others read them, and a kill may leave half a line at the end. So
a reader skips each line that is not a complete JSON object.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from gpt1_ds.base.files import write_atomically
from gpt1_ds.base.protocols import Json

METRICS_FILE = "metrics.jsonl"
"""One object for each logged step, validation, score, checkpoint and start of the run."""
SKIPPED_FILE = "skipped.jsonl"
"""One object for each loss spike that was rolled back."""


def read_records(path: Path) -> list[Json]:
    """The objects in the file at `path`, in file order; an empty list if there is no file."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def read_metrics(run: Path, split: str | None = None) -> list[Json]:
    """The records in metrics.jsonl of the run folder `run`: of one `split`, or all (None).

    Each has `step` and `split` ("train", "valid", "task", "checkpoint" or "start").
    """
    records = [r for r in read_records(run / METRICS_FILE) if {"step", "split"} <= r.keys()]
    if split is None:
        return records
    return [record for record in records if record["split"] == split]


def json_line(record: Json) -> str:
    return json.dumps(record) + "\n"


def write_records(path: Path, records: Iterable[Json]) -> None:
    """Replace the file at `path` atomically."""
    write_atomically(path, "".join(map(json_line, records)))
