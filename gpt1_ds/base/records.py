"""Reads and writes the JSON-lines files of a run: `metrics.jsonl` and `skipped.jsonl`.

A run appends to these files while others read them, and a kill may leave half a line at the end. A
power cut or an editor may damage any other line. So a reader passes over each line that is not a
complete record, and says once how many it lost.
"""

import json
import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from gpt1_ds.base.files import write_atomically
from gpt1_ds.base.protocols import Json

METRICS_FILE = "metrics.jsonl"
"""One object for each logged step, validation, score, checkpoint and start of the run."""
SKIPPED_FILE = "skipped.jsonl"
"""One object for each loss spike that was rolled back."""
WALL_TIME_PARTS = (
    "new_steps",
    "repeated_steps",
    "validation",
    "checkpoints",
    "data",
    "start_up",
    "waiting",
)
"""Keys of `wall_time` in status.json: seconds that add up to the time since the first start."""
MOST_STEPS = 10**12
_told: set[Path] = set()
"""Files whose damage this process has told."""


def read_records(path: Path, valid: Callable[[Json], bool] = lambda record: True) -> list[Json]:
    """The `valid` objects in the file at `path`, in file order; an empty list if there is no file.

    A warning says how many complete lines are lost. A file that cannot be read counts as empty.
    """
    if not path.is_file():
        return []
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        _tell_once(path, f"{error.strerror}; its records are not used")
        return []
    records = []
    damaged = 0
    for number, line in enumerate(lines, 1):
        record = _parsed(line)
        if record is not None and valid(record):
            records.append(record)
        elif line.strip() and number < len(lines):
            damaged += 1
    if damaged:
        _tell_once(path, f"{damaged} of {len(lines) - 1} lines are damaged; they are not used")
    return records


def _parsed(line: bytes) -> Json | None:
    try:
        # After a power cut, zeros may stand before a record that was appended later.
        record = json.loads(line.strip(b"\0").decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _tell_once(path: Path, text: str) -> None:
    if path not in _told:
        _told.add(path)
        print(f"warning: {path}: {text}", file=sys.stderr)


def read_metrics(run: Path, split: str | None = None) -> list[Json]:
    """The records in metrics.jsonl of the run folder `run`: of one `split`, or all (None).

    Each has `step` and `split` ("train", "valid", "task", "zero_shot", "checkpoint" or
    "start").
    """
    records = read_records(run / METRICS_FILE, _is_metric)
    if split is None:
        return records
    return [record for record in records if record["split"] == split]


def _is_metric(record: Json) -> bool:
    """Whether `split`, `corpus` and hosts are names, and everything else is a number or null.

    `changed`, of a start, has for the name of a setting its value before and now.
    """
    names = [record.get("split"), record.get("corpus", ""), record.get("slowest_host", "")]
    words = ("split", "corpus", "slowest_host", "changed")
    numbers = [value for key, value in record.items() if key not in words]
    changed = record.get("changed", {})
    return (
        all(isinstance(name, str) for name in names)
        and isinstance(changed, dict)
        and all(isinstance(pair, list) and len(pair) == 2 for pair in changed.values())
        and all(value is None or _is_number(value) for value in numbers)
        and _is_count(record.get("step"))
        and math.isfinite(record.get("elapsed_seconds", 0.0) or 0.0)
    )


def read_skipped(path: Path) -> list[Json]:
    """The rollbacks in the skipped.jsonl at `path`, in file order, each with `to_step` and `last`,
    a cursor."""
    return read_records(path, _is_rollback)


def _is_rollback(record: Json) -> bool:
    last = record.get("last")
    counts = [record.get("to_step")]
    counts += [last.get("epoch"), last.get("index")] if isinstance(last, dict) else [None]
    return all(map(_is_count, counts))


def _is_number(value: object) -> bool:
    return isinstance(value, float) or isinstance(value, int) and abs(value) <= sys.maxsize


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST_STEPS


def read_object(path: Path) -> Json:
    """The JSON object in a side file such as status.json; empty if there is no such file.

    A file that holds none counts as empty, and a warning says so.
    """
    if not path.is_file():
        return {}
    try:
        record = _parsed(path.read_bytes())
    except OSError:
        record = None
    if record is None:
        _tell_once(path, "damaged; it is not used")
    return record or {}


def json_line(record: Json) -> str:
    return json.dumps(record) + "\n"


def write_records(path: Path, records: Iterable[Json]) -> None:
    """Replace the file at `path` atomically."""
    write_atomically(path, "".join(map(json_line, records)))
