"""Reads how runs go on, from their folders: cheaply, without locks, and without writing.

A run that another user trains is read in the same way. Whether a run that says `running` still
runs is seen by its process, if it is on this machine, and else by how long ago it wrote something.
"""

import errno
import json
import os
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil
import yaml

from gpt1_ds.base.formatting import duration
from gpt1_ds.base.protocols import Json
from gpt1_ds.base.records import METRICS_FILE
from gpt1_ds.reports.checking import read_object
from gpt1_ds.reports.newest_records import Records, number

STATUS, LOCK, CONFIG, DEEPSPEED = "status.json", ".lock", "config.yaml", "deepspeed.json"
MARKS = (METRICS_FILE, STATUS, LOCK)
"""A folder with one of these files is the folder of a run."""
MOST_LEVELS = 4
"""How deep below a given folder runs are looked for."""
LOCK_BYTES = 300
HOLDER = re.compile(r"process (\d+) on (\S+)")
STEP_FOLDER = re.compile(r"step-(\d{8,12})")
FRESH_SECONDS = 5.0
"""A run that has written just now runs, even if its process is not seen from this container."""
SHORTEST_SILENCE = 120.0
FIRST_SILENCE = 900.0
"""How long a run may write nothing before its first record: it compiles, or waits for data."""
PACES = 10
"""Silence of so many intervals between records is too long."""
ORDER = ("running", "starting", "dead", "failed", "unreadable", "damaged", "stopped", "done")
ENDED = ("done", "stopped", "failed")
EXIT_CODES = {
    1: "an error that was not foreseen",
    2: "usage or configuration",
    3: "data or checkpoint",
    4: "diverged",
    5: "a rank died or hung",
    130: "Ctrl-C",
}


@dataclass
class RunState:
    """One row of the table; what is not known is None or empty."""

    name: str
    state: str
    """One of `ORDER`."""
    note: str = ""
    """Why it failed, or what is wrong with its files."""
    step: int | None = None
    total: int | None = None
    loss: float | None = None
    score: str = ""
    """The last validation loss, or the last score of a task with its name."""
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    checkpoint: int | None = None
    checkpoint_age: float | None = None
    node: str = ""
    ranks: int | None = None


class Holder(NamedTuple):
    """The process that has taken the lock of a run, and when."""

    pid: int
    host: str
    since: float

    def is_here(self) -> bool:
        return self.host == socket.gethostname()

    def is_alive(self) -> bool:
        """Whether it runs on this machine. A later process with its number is another one."""
        try:
            process = psutil.Process(self.pid)
            is_older = process.create_time() <= self.since + 1
            return is_older and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False
        except psutil.Error:
            return True  # another user's process, which /proc may hide


class Settings(NamedTuple):
    """What the settings of a run say about its length and its ranks."""

    written: tuple[float, float]
    """When config.yaml and deepspeed.json were written."""
    max_steps: int | None
    ranks: int | None
    lost: list[str]


class Watched:
    """The runs below some folders; `states` reads them anew."""

    def __init__(self, roots: Sequence[Path]):
        self.roots = roots
        self.records: dict[Path, Records] = {}
        self.settings: dict[Path, Settings] = {}

    def states(self, now: float) -> list[RunState]:
        """Every run, those that run first; `now` is in seconds since 1970."""
        found = []
        for root in self.roots:
            for folder, problem in run_folders(root):
                name = str(folder) if len(self.roots) > 1 else _below(root, folder)
                found.append(self._state(folder, name, problem, now))
        return sorted(found, key=lambda row: (ORDER.index(row.state), row.name))

    def _state(self, folder: Path, name: str, problem: str, now: float) -> RunState:
        if problem:
            return RunState(name, "unreadable", problem)
        try:
            return self._read(folder, name, now)
        except OSError as error:
            file = Path(error.filename).name + ": " if error.filename else ""
            return RunState(name, "unreadable", f"{file}{error.strerror or error}")

    def _read(self, folder: Path, name: str, now: float) -> RunState:
        lost: list[str] = []
        for file in (STATUS, METRICS_FILE):
            if (folder / file).is_file() and not os.access(folder / file, os.R_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), file)
        status = _object(folder / STATUS, json.loads, lost)
        records = self._records(folder)
        if records.damaged:
            lost.append(f"{METRICS_FILE}: {records.damaged} damaged lines")
        settings = self._settings(folder)
        lost += settings.lost
        holder = read_holder(folder / LOCK)
        status_time = _written(folder / STATUS)
        written = max(status_time, _written(folder / METRICS_FILE))
        state, note = judge(status, holder, written, now, records.pace)
        row = RunState(name, state, "; ".join(filter(None, [note, *lost])))
        steps = [_count(status.get("step")), _count(records.train.get("step"))]
        row.step = max((step for step in steps if step is not None), default=None)
        row.total = (
            row.step if state == "done" else _count(status.get("total_steps")) or settings.max_steps
        )
        row.loss = number(records.train.get("loss"), status.get("loss"))
        row.score = records.score()
        row.checkpoint, saved = _checkpoint(folder / "checkpoints")
        row.checkpoint_age = max(0.0, now - saved) if saved else None
        row.ranks = settings.ranks
        row.node = holder.host if holder else ""
        if state == "running":
            row.tokens_per_second = number(records.train.get("tokens_per_second"))
            left = number(status.get("eta_seconds"))
            row.seconds_left = left and max(0.0, left - max(0.0, now - status_time))
        return row

    def _settings(self, folder: Path) -> Settings:
        """Its settings, read again only if a start has written them again."""
        written = _written(folder / CONFIG), _written(folder / DEEPSPEED)
        known = self.settings.get(folder)
        if known is None or known.written != written:
            lost: list[str] = []
            train = _object(folder / CONFIG, yaml.safe_load, lost).get("train")
            max_steps = _count(train.get("max_steps")) if isinstance(train, dict) else None
            ranks = _ranks(_object(folder / DEEPSPEED, json.loads, lost))
            known = self.settings[folder] = Settings(written, max_steps, ranks, lost)
        return known

    def _records(self, folder: Path) -> Records:
        path = folder / METRICS_FILE
        if not path.is_file():
            return Records(path, 0)
        about = path.stat()
        records = self.records.get(folder)
        if records is None or not records.goes_on(about):
            records = self.records[folder] = Records(path, about.st_ino)
        records.update()
        return records


def judge(
    status: Json, holder: Holder | None, written: float, now: float, pace: float
) -> tuple[str, str]:
    """The state of a run, and a note about it.

    `written` is when status.json or metrics.jsonl was written last, 0 if there is none. `pace` is
    the longest time between two records, 0 if it is not known.
    """
    state = status.get("state")
    is_here = holder is not None and holder.is_here()
    is_alive = is_here and holder is not None and holder.is_alive()
    if holder is not None and holder.since > written:  # a start that has not written yet
        age = now - holder.since
        if is_alive or (not is_here and age < FIRST_SILENCE):
            return "starting", ""
        if state not in ENDED:
            return "dead", f"its last start ended before it trained, {duration(age)} ago at most"
    if state in ENDED:
        return str(state), _reason(status.get("exit_code")) if state == "failed" else ""
    silence = max(0.0, now - written)
    limit = max(SHORTEST_SILENCE, PACES * pace) if pace else FIRST_SILENCE
    if state != "running" and silence > limit:
        return "damaged", "" if state is None else "status.json names no state that is known"
    if is_here and not is_alive and silence > FRESH_SECONDS:
        return "dead", f"its process is gone; last sign of it {duration(silence)} ago"
    if silence > limit:
        silent = f"no sign of it for {duration(silence)}"
        return ("running", silent) if is_alive else ("dead", silent)
    return "running", ""


def _reason(code: object) -> str:
    if not isinstance(code, int):
        return ""
    return f"exit code {code}: {EXIT_CODES.get(code, 'see its log')}"


def run_folders(
    root: Path, levels: int = MOST_LEVELS, seen: set[tuple[int, int]] | None = None
) -> Iterator[tuple[Path, str]]:
    """Folders of runs at or below `root`, with the reason why one cannot be read, or nothing.

    A link to a folder that was `seen` gives nothing new, and ends loops.
    """
    seen = set() if seen is None else seen
    try:
        about = root.stat()
        if (about.st_dev, about.st_ino) in seen:
            return
        seen.add((about.st_dev, about.st_ino))
        with os.scandir(root) as entries:
            names = {entry.name: entry.is_symlink() for entry in entries}
    except OSError as error:
        yield root, error.strerror or str(error)
        return
    if any(mark in names for mark in MARKS):
        yield root, ""
        return
    for name in sorted(names, key=lambda name: (names[name], name)) if levels else ():
        if not name.startswith(".") and os.path.isdir(root / name):
            yield from run_folders(root / name, levels - 1, seen)


def read_holder(lock: Path) -> Holder | None:
    """Who has taken the lock of a run; None if nobody has, or the file does not say it."""
    if not lock.is_file():
        return None
    with lock.open("rb") as file:
        text = file.read(LOCK_BYTES).decode("utf-8", "replace")
        since = os.fstat(file.fileno()).st_mtime
    found = HOLDER.match(text)
    return Holder(int(found[1]), found[2], since) if found else None


def _checkpoint(folder: Path) -> tuple[int | None, float]:
    """Step and time of the newest checkpoint; a name other than step-N is not committed."""
    if not folder.is_dir():
        return None, 0.0
    steps = []
    for path in folder.iterdir():
        if found := STEP_FOLDER.fullmatch(path.name):
            steps.append((int(found[1]), path))
    if not steps:
        return None, 0.0
    step, path = max(steps)
    return step, _written(path)


def _object(path: Path, parse: Callable[[str], object], lost: list[str]) -> Json:
    """The object in a file; empty for what is no file, such as a pipe, which would never end."""
    return read_object(path, parse, lost) if path.is_file() else {}


def _ranks(ds: Json) -> int | None:
    """The number of ranks of the last start, from its sizes of batches."""
    sizes = [
        _count(ds.get(name))
        for name in (
            "train_batch_size",
            "train_micro_batch_size_per_gpu",
            "gradient_accumulation_steps",
        )
    ]
    if None in sizes or 0 in sizes:
        return None
    whole, micro, steps = (size or 1 for size in sizes)
    return whole // (micro * steps)


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _below(root: Path, folder: Path) -> str:
    return root.resolve().name if folder == root else str(folder.relative_to(root))


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
