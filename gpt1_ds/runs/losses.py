"""What a run remembers of its losses, when it calls one a spike, and the ledger of what it skipped.

A spike is undone as in PaLM (Chowdhery et al. 2022, section 5.1): back to a checkpoint from before it, and on past the
batches since. All of it is decided from values that every rank has, and lives in the checkpoints, so that a run killed
at any moment decides again as the undisturbed one did.
"""

import json
import math
import statistics
from pathlib import Path
from typing import Any

import torch

from gpt1_ds.base.errors import DivergedError
from gpt1_ds.base.files import write_atomically
from gpt1_ds.data.order import Cursor
from gpt1_ds.distributed import collectives
from gpt1_ds.settings.sections import TrainConfig

LEDGER = "skipped.jsonl"
RECENT_LINES, FEWEST_LINES = 20, 5
REMEDY = "the last checkpoint is kept: lower optim.lr or lengthen schedule.warmup_steps"


class Spike(Exception):
    """The loss at `step`, `cursor` behind it, is far above the recent ones; raised on all ranks together."""

    def __init__(self, step: int, cursor: Cursor, loss: float, median: float):
        self.step, self.cursor, self.loss, self.median = step, cursor, loss, median
        super().__init__(f"loss {loss:.4f} at step {step}, recent median {median:.4f}")


class LossHistory:
    """Losses of the steps since the last log line, means of the recent lines, skipped steps in a row, rollbacks."""

    def __init__(self, train: TrainConfig, saved: dict[str, Any]):
        self.train = train
        self.recent: list[float] = list(saved.get("recent", []))
        self.in_a_row, self.rollbacks = saved.get("in_a_row", 0), saved.get("rollbacks", 0)
        self.steps = [
            torch.tensor(loss, device=collectives.device()) for loss in saved.get("steps", [])
        ]

    def to_dict(self) -> dict[str, Any]:
        return {
            "recent": self.recent,
            "steps": [step.item() for step in self.steps],
            "in_a_row": self.in_a_row,
            "rollbacks": self.rollbacks,
        }

    def add(self, loss: torch.Tensor, step: int, skipped: bool) -> None:
        """This rank's loss of the step that ends at `step`; `skipped`: its gradients were not finite, on some rank."""
        self.steps.append(loss)
        self.in_a_row = self.in_a_row + 1 if skipped else 0
        if self.in_a_row >= self.train.max_skipped:
            raise DivergedError(
                f"loss is not finite at step {step}, {self.in_a_row} steps skipped in a row; {REMEDY}"
            )

    def check(self, step: int, cursor: Cursor) -> float:
        """Mean over ranks and the steps since the last line that were not skipped; waits for the device.

        Raises Spike; DivergedError where the loss is not finite although no step was skipped.
        """
        if self.steps:
            self.steps = list(
                collectives.all_sum(torch.stack(self.steps)) / collectives.world_size()
            )
        finite = [loss for loss in (step.item() for step in self.steps) if math.isfinite(loss)]
        loss = sum(finite) / len(finite) if finite else math.nan
        if self.steps and not finite and not self.in_a_row:
            raise DivergedError(f"loss is {loss} at step {step}; {REMEDY}")
        if self.train.spike_nats and len(self.recent) >= FEWEST_LINES:
            median = statistics.median(self.recent)
            if loss > median + self.train.spike_nats:
                raise Spike(step, cursor, loss, median)
        return loss

    def line(self, loss: float) -> None:
        """`loss` was logged: the next steps make another line."""
        self.recent, self.steps = (
            [*self.recent, loss][-RECENT_LINES:] if math.isfinite(loss) else self.recent,
            [],
        )


def record_skipped(folder: Path, event: dict[str, Any]) -> None:
    """Add one line to the run's ledger, on rank 0; an event that a killed start wrote before is not written twice."""
    if not collectives.is_main():
        return
    path, line = folder / LEDGER, json.dumps(event) + "\n"
    try:
        written = path.read_text(encoding="utf-8") if path.exists() else ""
        key = ("to_step", "from_step", "first", "last")
        if not any(
            all(old[k] == event[k] for k in key) for old in map(json.loads, written.splitlines())
        ):
            write_atomically(path, written + line)
    except OSError as error:
        print(
            f"warning: {path}: {error.strerror}; training goes on without this line: {line.strip()}",
            flush=True,
        )
