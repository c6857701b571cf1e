"""What a run shows: metrics.jsonl, TensorBoard, samples, the progress line, status.json, memory, norms.

Rank 0 writes. A full or read-only disk costs the log, never the training.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from gpt1_ds.base.errors import StopRequested, UserError
from gpt1_ds.base.files import write_atomically
from gpt1_ds.distributed import collectives

STATUS_SECONDS = 2.0
FAILURES = "GPT1_FAILURES"
"""Variable that names the file in which a batch script counts the starts since the last checkpoint."""


class RunLog:
    """One run's records. On a resume at `resume_step`, what a killed start logged past it is dropped.

    Each record has `elapsed_seconds`, the time that all starts so far have run. Each start has a record, which stays;
    `start=False` leaves it out where a running start goes back to a checkpoint. The monitor of `engine`, W&B or CSV
    where the DeepSpeed JSON asks for them, gets every record too.
    """

    def __init__(self, run_dir: Path, resume_step: int, start: bool = True, engine: Any = None):
        self.run_dir, self.jsonl, self.board = run_dir, None, None
        self.resume_step, self.started, self.status_written = resume_step, time.monotonic(), 0.0
        self.spent_seconds, self.first = 0.0, start
        self.engine = engine
        if not collectives.is_main():
            return
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            self.spent_seconds = _drop_after(run_dir / "metrics.jsonl", resume_step)
            self.jsonl = (run_dir / "metrics.jsonl").open("a", encoding="utf-8", buffering=1)
            _let_ours_be_last(run_dir)
            self.board = SummaryWriter(
                str(run_dir), purge_step=resume_step + 1 if resume_step else 0
            )
            status = run_dir / "status.json"
            if start and not (status.exists() and '"done"' in status.read_text(encoding="utf-8")):
                self._start()  # of a run that is done already, only if there is something to log
            for path in filter(Path.exists, (run_dir / "config.yaml", run_dir / "deepspeed.json")):
                text = path.read_text(encoding="utf-8").rstrip().replace("\n", "\n    ")
                self.board.add_text(path.name, f"    {text}", resume_step)
        except OSError as error:
            _complain(run_dir, error)

    def _start(self) -> None:
        self.first = False
        self._write(
            self.resume_step,
            "start",
            time=round(time.time(), 3),
            world_size=collectives.world_size(),
        )

    def _write(self, step: int, split: str, **values: Any) -> None:
        seconds = round(self.spent_seconds + time.monotonic() - self.started, 3)
        self.jsonl.write(
            json.dumps({"step": step, "split": split, **values, "elapsed_seconds": seconds}) + "\n"
        )

    def log(
        self, step: int, split: str, corpus: str | None = None, **values: float | int | None
    ) -> None:
        """One object in metrics.jsonl, and `split/name[/corpus]` in TensorBoard for each value; memory with `train`."""
        if self.jsonl is None:
            return
        if split == "train":
            values |= peak_memory()
        try:
            if self.first:
                self._start()
            self._write(step, split, **({"corpus": corpus} if corpus else {}), **values)
            points = [
                ("/".join(filter(None, (split, name, corpus))), value, step)
                for name, value in values.items()
                if value is not None
            ]
            for point in points:
                self.board.add_scalar(*point)
            if self.engine is not None and self.engine.monitor.enabled:
                # In samples, as DeepSpeed's own: W&B passes over what comes with a smaller number than the last.
                self.engine.monitor.write_events(
                    [(*point[:2], self.engine.global_samples) for point in points]
                )
            self.board.flush()
            if split == "checkpoint" and (counter := os.environ.get(FAILURES)):
                Path(counter).unlink(missing_ok=True)
        except OSError as error:
            _complain(self.run_dir, error)

    def sample(self, step: int, text: str) -> None:
        """Generated `text` in samples/step-N.txt and TensorBoard."""
        if self.jsonl is None:
            return
        try:
            (self.run_dir / "samples").mkdir(exist_ok=True)
            write_atomically(self.run_dir / "samples" / f"step-{step:08d}.txt", text + "\n")
            self.board.add_text("sample", text, step)
        except OSError as error:
            _complain(self.run_dir, error)

    def has(self, step: int, split: str) -> bool:
        """Whether a record of `step` and `split` is in metrics.jsonl; all ranks call and get rank 0's answer."""
        path = self.run_dir / "metrics.jsonl"
        records = map(
            json.loads, path.read_text(encoding="utf-8").splitlines() if self.jsonl else ()
        )
        return collectives.gather_json(
            any((r["step"], r["split"]) == (step, split) for r in records)
        )[0]

    def status(
        self, state: str, step: int, exit_code: int | None = None, **facts: float | None
    ) -> None:
        """Replace status.json: what `state` the run is in, since a launcher may hide the exit code."""
        if not collectives.is_main():
            return
        content = {"state": state, "step": step, "exit_code": exit_code, **facts}
        try:
            write_atomically(self.run_dir / "status.json", json.dumps(content) + "\n")
            self.status_written = time.monotonic()
        except OSError as error:
            _complain(self.run_dir, error)

    def progress(self, step: int, total_steps: int, loss: float) -> None:
        """Step, loss and the time left, at this start's pace, in status.json; every few seconds at most."""
        now = time.monotonic()
        if now - self.status_written > STATUS_SECONDS:
            eta = round(
                (now - self.started) * (total_steps - step) / max(1, step - self.resume_step)
            )
            shown = round(loss, 4) if math.isfinite(loss) else None
            self.status("running", step, total_steps=total_steps, loss=shown, eta_seconds=eta)

    @contextmanager
    def outcome(self, steps: Callable[[], int]) -> Iterator[None]:
        """Keep status.json true around the loop; `steps` tells the optimizer steps done so far."""
        self.status("running", steps())
        try:
            yield
        except BaseException as error:
            code = error.exit_code if isinstance(error, UserError) else 1
            self.status("stopped" if isinstance(error, StopRequested) else "failed", steps(), code)
            raise
        else:
            self.status("done", steps(), 0)
        finally:
            self.close()

    def close(self) -> None:
        if self.board is not None:
            try:
                self.board.close()
                self.jsonl.close()
            except OSError as error:
                _complain(self.run_dir, error)


def peak_memory() -> dict[str, int]:
    """Most bytes so far: of this process (VmHWM of /proc, where there is one) and of PyTorch's tensors on the GPU."""
    status, most = Path("/proc/self/status"), {}
    if status.exists():
        most["host_bytes"] = int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    if torch.cuda.is_available():
        most["device_bytes"] = torch.cuda.max_memory_allocated()
    return most


def _drop_after(path: Path, step: int) -> float:
    """Keep what is not past `step`, and every start; the seconds of all starts so far."""
    if not path.exists():
        return 0.0
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    records = [(json.loads(line), line) for line in lines if line.endswith("\n")]
    # A start that resumes nothing validates anew, at step 0 too.
    kept = [
        line
        for record, line in records
        if record["split"] == "start" or step and record["step"] <= step
    ]
    if len(kept) < len(lines):
        write_atomically(path, "".join(kept))
    return max((record.get("elapsed_seconds", 0.0) for record, _ in records), default=0.0)


def _let_ours_be_last(run_dir: Path) -> None:
    """TensorBoard reads event files in the order of the seconds in their names: earlier starts must come before this
    one, also where the clock has been set back, or what they logged past the checkpoint shows again."""
    second = int(time.time())
    for path in sorted(run_dir.glob("events.out.tfevents.*"), reverse=True):
        *head, own, rest = path.name.split(".", 4)
        second = min(second - 1, int(own))
        if second < int(own):
            path.rename(path.with_name(f"{'.'.join(head)}.{second:010d}.{rest}"))


def _complain(path: Path, error: OSError) -> None:
    print(
        f"warning: {path}: {error.strerror or error}; training goes on without this log",
        file=sys.stderr,
    )
