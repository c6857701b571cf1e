"""What a run shows: metrics.jsonl, TensorBoard, the progress line, status.json, throughput and MFU.

Rank 0 writes. A full or read-only disk costs the log, never the training.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from gpt1_ds import distributed
from gpt1_ds.errors import StopRequested, UserError
from gpt1_ds.files import write_atomically

STATUS_SECONDS = 2.0
FAILURES = "GPT1_FAILURES"
"""Variable that names the file in which a batch script counts the starts since the last checkpoint."""
# Dense bf16 tensor-core peaks from the vendor's data sheets, FLOP/s.
GPU_PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "V100": 125e12}
TAGS = {"loss": "loss", "perplexity": "perplexity", "lr": "lr", "grad_norm": "grad_norm", "mfu": "mfu",
        "tokens_per_second": "tokens_per_second"}  # fmt: skip


class RunLog:
    """One run's records. On a resume at `resume_step`, what a killed start logged past it is dropped."""

    def __init__(self, run_dir: Path, resume_step: int):
        self.run_dir, self.jsonl, self.board = run_dir, None, None
        self.resume_step, self.started, self.status_written = resume_step, time.monotonic(), 0.0
        if not distributed.is_main():
            return
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            _drop_after(run_dir / "metrics.jsonl", resume_step)
            self.jsonl = (run_dir / "metrics.jsonl").open("a", encoding="utf-8", buffering=1)
            self.board = SummaryWriter(str(run_dir), purge_step=resume_step + 1 if resume_step else 0)
        except OSError as error:
            _complain(run_dir, error)

    def log(self, step: int, split: str, corpus: str | None = None, **values: float | int | None) -> None:
        """One object in metrics.jsonl, and `split/name[/corpus]` in TensorBoard for each value with a tag."""
        if self.jsonl is None:
            return
        record: dict[str, Any] = {"step": step, "split": split, **({"corpus": corpus} if corpus else {}), **values}
        try:
            self.jsonl.write(json.dumps(record) + "\n")
            for name, value in values.items():
                if value is not None and (name in TAGS or split == "task"):
                    self.board.add_scalar("/".join(filter(None, (split, name, corpus))), value, step)
            self.board.flush()
            if split == "checkpoint" and (counter := os.environ.get(FAILURES)):
                Path(counter).unlink(missing_ok=True)
        except OSError as error:
            _complain(self.run_dir, error)

    def has(self, step: int, split: str) -> bool:
        """Whether a record of `step` and `split` is in metrics.jsonl; all ranks call and get rank 0's answer."""
        path = self.run_dir / "metrics.jsonl"
        records = map(json.loads, path.read_text(encoding="utf-8").splitlines() if self.jsonl else ())
        return distributed.gather_json(any((r["step"], r["split"]) == (step, split) for r in records))[0]

    def status(self, state: str, step: int, exit_code: int | None = None, **facts: float | None) -> None:
        """Replace status.json: what `state` the run is in, since a launcher may hide the exit code."""
        if not distributed.is_main():
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
            eta = round((now - self.started) * (total_steps - step) / max(1, step - self.resume_step))
            self.status("running", step, total_steps=total_steps, loss=round(loss, 4), eta_seconds=eta)

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
            self.board.close()
            self.jsonl.close()


def progress_bar(total: int, done: int, unit: str, description: str) -> tqdm:
    """A live bar on rank 0's terminal; a line every half minute where stderr is a file."""
    terminal = sys.stderr.isatty()
    return tqdm(total=total, initial=done, unit=unit, desc=description, disable=not distributed.is_main(),
                mininterval=0.2 if terminal else 30.0, maxinterval=10.0 if terminal else 60.0,
                ascii=not terminal, dynamic_ncols=True)  # fmt: skip


def note(text: str) -> None:
    """A line on rank 0 that does not tear the bar."""
    if distributed.is_main():
        tqdm.write(text)


class Throughput:
    """Tokens a second since the last reading, and their share of the machine's matrix-product peak."""

    def __init__(self, flops_per_token: int, precision: str):
        self.flops_per_token = flops_per_token
        self.peak_flops = _peak_flops(precision) * distributed.world_size()
        self.pause()

    def pause(self) -> None:
        """Start counting afresh: what came before (a validation, a save) is not training."""
        self.since = time.perf_counter()

    def read(self, tokens: int) -> dict[str, float | None]:
        now = time.perf_counter()
        rate = tokens / (now - self.since)
        self.since = now
        return {"tokens_per_second": round(rate, 1), "mfu": round(rate * self.flops_per_token / self.peak_flops, 4)}


def _peak_flops(precision: str) -> float:
    """The GPU's data-sheet peak; where there is none, what a matrix product reaches in a tenth of a second."""
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        known = next((peak for key, peak in GPU_PEAK_FLOPS.items() if key in name), None)
        if known is not None:
            return known if precision != "fp32" else known / 2
    size, dtype = 1024, {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    a = torch.ones(size, size, dtype=dtype, device=distributed.device())
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        (a @ a)[0, 0].item()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def _drop_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    # A start that resumes nothing validates anew, at step 0 too.
    kept = [line for line in lines if step and line.endswith("\n") and json.loads(line)["step"] <= step]
    if len(kept) < len(lines):
        write_atomically(path, "".join(kept))


def _complain(path: Path, error: OSError) -> None:
    print(f"warning: {path}: {error.strerror or error}; training goes on without this log", file=sys.stderr)
