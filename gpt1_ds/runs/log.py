"""What a run shows of itself: metrics.jsonl, TensorBoard, samples, status.json.

Rank 0 writes. A full or read-only disk, or a damaged file of an earlier start, costs the log, never
the training. Each file that is lost is told once. A disk that hangs holds the training up once, for
`hang_seconds`; what is logged from then on is written when the disk answers.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from gpt1_ds.base.background import Calls
from gpt1_ds.base.errors import UNFORESEEN, StopRequested, as_user_error
from gpt1_ds.base.files import write_atomically
from gpt1_ds.base.protocols import Engine, Json
from gpt1_ds.base.records import (
    METRICS_FILE,
    json_line,
    read_metrics,
    read_object,
    write_records,
)
from gpt1_ds.distributed import collectives, heartbeat
from gpt1_ds.distributed.console import warn
from gpt1_ds.runs.board import SESSION, Board
from gpt1_ds.runs.wall_time import WallTime

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # takes a second to import

STATUS_SECONDS = 2.0
"""status.json is replaced at most so often while training goes on."""
HANG_SECONDS = 10.0
"""A write to the run's folder that takes longer counts as hanging, at most."""
STATUS_FILE = "status.json"
BOARD = "events.out.tfevents"
FAILURES = "GPT1_FAILURES"
"""Variable with the file in which a batch script counts the starts since the last checkpoint."""


class AppendedFile:
    """A file that lines are appended to. What cannot be written waits in memory for the next line.

    Without a buffer of Python's, for which its end would wait if a write hangs.
    """

    def __init__(self, path: Path):
        self.file = path.open("ab", buffering=0)
        self.waiting = b""

    def append(self, line: str) -> None:
        self.waiting += line.encode()
        while self.waiting:
            self.waiting = self.waiting[self.file.write(self.waiting) :]

    def close(self) -> None:
        with self.file:
            self.append("")


class LogFiles(NamedTuple):
    """What rank 0 writes to."""

    metrics: AppendedFile
    board: Board


class RunLog:
    """The records of one run, which begins or resumes at `resume_step`.

    What a killed start has logged past that step is dropped. Each record has `elapsed_seconds`, the
    time that all starts so far have run. Each start has a record, which stays; it holds `facts`.
    The monitor of `engine` (W&B or CSV, if the DeepSpeed JSON enables them) gets every record too.
    """

    def __init__(
        self,
        run_dir: Path,
        resume_step: int,
        engine: Engine | None = None,
        facts: Json | None = None,
        hang_seconds: float = HANG_SECONDS,
    ):
        self.run_dir = run_dir
        self.engine = engine
        self.facts = facts or {}
        self.start_is_due = True
        self.lost: set[str] = set()
        """What a warning has told to be lost."""
        self.calls = Calls("log")
        self.hang_seconds = hang_seconds
        self.hang_is_told = False
        earlier = read_object(run_dir / STATUS_FILE) if collectives.is_main() else {}
        self.wall_time = WallTime(earlier.get("wall_time", {}))
        self.told: Json = {}
        """What status.json says besides."""
        self._open(resume_step)

    def rewind(self, step: int) -> None:
        """Drop what was logged past `step`: a running start has gone back to that checkpoint."""
        self.close()
        self.start_is_due = False
        self._open(step)

    def _open(self, resume_step: int) -> None:
        self.resume_step = resume_step
        self.began = time.monotonic()
        self.status_written = 0.0
        self.spent_seconds = 0.0
        self.files: LogFiles | None = None
        """None on the other ranks, and where the files cannot be opened."""
        if not collectives.is_main():
            return
        run_dir = self.run_dir
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            self.spent_seconds, logged_step = _drop_after(run_dir, resume_step)
            self.wall_time.reached(logged_step)
            self.files = LogFiles(AppendedFile(run_dir / METRICS_FILE), Board(run_dir, resume_step))
            # A start of a run that is done is logged only if there is something else to log.
            if self.start_is_due and not _is_done(run_dir):
                self.files.metrics.append(self._start_line())
        except OSError as error:
            self._warn(METRICS_FILE, error)

    def _write(self, name: str, action: Callable[[], object]) -> None:
        """Call `action`, which writes the file or folder `name` of the run; tell if it is lost."""

        def attempt() -> None:
            try:
                action()
            except OSError as error:
                self._warn(name, error)

        if not self.calls.make(attempt, self.hang_seconds) and not self.hang_is_told:
            self.hang_is_told = True
            warn(
                f"{self.run_dir / name}: no answer of the disk for {self.hang_seconds:g} s; "
                "training goes on, and the log is written when it answers"
            )

    def _warn(self, name: str, error: OSError) -> None:
        if name in self.lost:
            return
        self.lost.add(name)
        reason = error.strerror or error
        path = self.run_dir / name
        warn(f"{path}: {reason}; training goes on without this log")

    def _start_line(self) -> str:
        self.start_is_due = False
        values = {"time": round(time.time(), 3), "world_size": collectives.world_size()}
        return self._line({"step": self.resume_step, "split": "start", **values, **self.facts})

    def _line(self, record: Json) -> str:
        seconds = round(self.spent_seconds + time.monotonic() - self.began, 3)
        return json_line({**record, "elapsed_seconds": seconds})

    def log(
        self, step: int, split: str, corpus: str | None = None, /, **values: float | str | None
    ) -> None:
        """One object in metrics.jsonl, and each number in TensorBoard (`board.tag_of`).

        A record of `train` gets the peaks of memory too.
        """
        if self.files is None:
            return
        metrics, board = self.files
        if split == "train":
            values |= peak_memory()
        suffix = f"/{corpus}" if corpus else ""
        shown = {name: value for name, value in values.items() if isinstance(value, float | int)}
        points = {f"{split}/{name}{suffix}": value for name, value in shown.items()}
        named_corpus = {"corpus": corpus} if corpus else {}
        lines = self._start_line() if self.start_is_due else ""
        lines += self._line({"step": step, "split": split, **named_corpus, **values})
        self._write(METRICS_FILE, lambda: metrics.append(lines))
        self._write(BOARD, lambda: board.scalars(step, split, corpus, shown))
        self._send_to_monitor(points)
        counter = os.environ.get(FAILURES)
        if split == "checkpoint" and counter:
            self._write(counter, lambda: Path(counter).unlink(missing_ok=True))

    def _send_to_monitor(self, points: dict[str, float]) -> None:
        if self.engine is None or not self.engine.monitor.enabled:
            return
        # Counted in samples, as DeepSpeed's own events are: W&B ignores an event whose number is
        # smaller than that of the last one.
        samples = self.engine.global_samples
        self.engine.monitor.write_events([(tag, value, samples) for tag, value in points.items()])

    def sample(self, step: int, text: str) -> None:
        """Generated `text` in samples/step-N.txt and TensorBoard."""
        if self.files is None:
            return
        board = self.files.board
        path = self.run_dir / "samples" / f"step-{step:08d}.txt"

        def write_file() -> None:
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, text + "\n")

        self._write(path.parent.name, write_file)
        self._write(BOARD, lambda: board.text("sample", text, step))

    def figure(self, tag: str, draw: Callable[[], "Figure"], step: int) -> None:
        """The figure that `draw` returns, in TensorBoard; only rank 0 draws."""
        if self.files is not None:
            board = self.files.board
            self._write(BOARD, lambda: board.figure(tag, draw, step))

    def has(self, step: int, split: str) -> bool:
        """Whether metrics.jsonl holds a record of `step` and `split`.

        All ranks call and get rank 0's answer.
        """
        records = read_metrics(self.run_dir, split) if self.files else []
        found = any(record["step"] == step for record in records)
        return bool(collectives.from_main(found))

    def status(
        self, state: str, step: int, exit_code: int | None = None, **facts: float | None
    ) -> None:
        """Replace status.json with the run's `state`: a launcher may hide the exit code."""
        if not collectives.is_main():
            return
        wall_time = self.wall_time.to_json(step)
        content = {"state": state, "step": step, "exit_code": exit_code, **facts}
        self.told = facts
        text = json.dumps({**content, "wall_time": wall_time}) + "\n"
        self._write(STATUS_FILE, lambda: write_atomically(self.run_dir / STATUS_FILE, text))
        self.status_written = time.monotonic()
        if self.files is not None:
            board = self.files.board
            self._write(SESSION, lambda: board.show_state(state))

    def progress(self, step: int, total_steps: int, loss: float) -> None:
        """Step, loss and the seconds left at this start's pace, in status.json."""
        now = time.monotonic()
        if now - self.status_written <= STATUS_SECONDS:
            return
        done = max(1, step - self.resume_step)
        eta = round((now - self.began) * (total_steps - step) / done)
        shown = round(loss, 4) if math.isfinite(loss) else None
        self.status("running", step, total_steps=total_steps, loss=shown, eta_seconds=eta)

    def keep_status(self, step: int) -> None:
        """Replace status.json between two lines of the log, so that a kill costs little of what it
        says of the wall time."""
        if time.monotonic() - self.status_written > STATUS_SECONDS:
            self.status("running", step, **self.told)

    @contextmanager
    def outcome(self, steps: Callable[[], int]) -> Iterator[None]:
        """Keep status.json true while the loop runs; `steps` returns the optimizer steps done."""

        def ended(error: BaseException) -> None:
            told = as_user_error(error)
            code = told.exit_code if told else UNFORESEEN
            self.status("stopped" if isinstance(error, StopRequested) else "failed", steps(), code)

        self.status("running", steps())
        try:
            with heartbeat.last_action(ended):
                yield
        except BaseException as error:
            ended(error)
            raise
        else:
            self.status("done", steps(), 0)
        finally:
            self.close()

    def close(self) -> None:
        if self.files is None:
            return
        metrics, board = self.files
        self._write(BOARD, board.close)
        self._write(METRICS_FILE, metrics.close)


def peak_memory() -> dict[str, int]:
    """The most bytes so far of this process (VmHWM in /proc) and of torch's tensors on the GPU."""
    peaks = {}
    status = Path("/proc/self/status")
    if status.exists():
        kilobytes = status.read_text().split("VmHWM:")[1].split()[0]
        peaks["host_bytes"] = int(kilobytes) * 1024
    if torch.cuda.is_available():
        peaks["device_bytes"] = torch.cuda.max_memory_allocated()
    return peaks


def _drop_after(run_dir: Path, step: int) -> tuple[float, int]:
    """Drop the records past `step`, but no start.

    Returns the seconds that all starts so far have run, and the last step that they have logged.
    """
    path = run_dir / METRICS_FILE
    if not path.is_file():
        return 0.0, 0
    records = read_metrics(run_dir)
    kept = [record for record in records if _stays(record, step)]
    if "".join(map(json_line, kept)).encode() != path.read_bytes():
        write_records(path, kept)
    seconds = max((record.get("elapsed_seconds") or 0.0 for record in records), default=0.0)
    return seconds, max((record["step"] for record in records), default=0)


def _stays(record: Json, step: int) -> bool:
    # A start that resumes nothing validates anew, at step 0 too.
    return record["split"] == "start" or 0 < step and record["step"] <= step


def _is_done(run_dir: Path) -> bool:
    return read_object(run_dir / STATUS_FILE).get("state") == "done"
