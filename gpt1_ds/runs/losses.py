"""The losses that a run remembers, when one of them is a spike, and the list of skipped steps.

A spike is undone as in PaLM (Chowdhery et al. 2022, section 5.1): all ranks load a checkpoint from
before it and go on after the batches that they have read since. Every rank decides this from values
that all ranks have, and these values lie in the checkpoints. So a run that is killed at any moment
decides again as the undisturbed run did.
"""

import json
import math
import statistics
from pathlib import Path

import torch
from torch import Tensor

from gpt1_ds.base.errors import DivergedError
from gpt1_ds.base.protocols import Json
from gpt1_ds.base.records import SKIPPED_FILE, read_records, write_records
from gpt1_ds.checkpoints.agreeing import REMEDY
from gpt1_ds.data.order import Cursor
from gpt1_ds.distributed import collectives
from gpt1_ds.settings.sections import TrainConfig

RECENT_LINES = 20
"""Logged losses whose median a new one is compared with."""
FEWEST_LINES = 5
"""With fewer logged losses nothing is called a spike."""
EVENT_KEY = ("to_step", "from_step", "first", "last")
"""Keys of a record of skipped.jsonl that tell one event from another."""


class Spike(Exception):
    """The loss at `step` is far above the recent ones; raised on all ranks together.

    `cursor` is the place in the data after the step; `loss` and `median` are in nats.
    """

    def __init__(self, step: int, cursor: Cursor, loss: float, median: float):
        self.step = step
        self.cursor = cursor
        self.loss = loss
        self.median = median
        super().__init__(f"loss {loss:.4f} at step {step}, recent median {median:.4f}")


class StepLosses:
    """This rank's losses of the steps since the last log line, and how many steps were skipped."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []
        """One tensor a step, on the device: nothing waits for it before it is read."""
        self.in_a_row = 0
        """Steps skipped in a row, as far as they are counted."""
        self.uncounted: list[tuple[int, bool | Tensor]] = []
        """Number of a step, and whether it was skipped, which may be known on the device alone."""

    def add(self, loss: Tensor, step: int, skipped: bool | Tensor) -> None:
        """Add the loss of the step that ends at `step`.

        `skipped`: the step's gradients were not finite on some rank, so no weight changed. If it is
        a tensor, nothing waits for it before the next reading.
        """
        self.steps.append(loss)
        self.uncounted.append((step, skipped))
        if isinstance(skipped, bool):
            self.count_skipped()

    def count_skipped(self) -> None:
        """Bring `in_a_row` up to date. Waits for the device."""
        for step, skipped in self.uncounted:
            self.in_a_row = self.in_a_row + 1 if skipped else 0
            self.counted(step)
        self.uncounted = []

    def counted(self, step: int) -> None:
        """Called after `step` was counted in `in_a_row`."""


class TaskLosses(StepLosses):
    """The losses of fine-tuning: a tensor (2,) a step, this rank's parts of L2 and L1."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = 0
        """Real tokens of the steps since the last log line."""

    def read(self) -> tuple[float, float, int]:
        """(L2, L1, tokens) since the last call; the losses are means over the steps.

        Waits for the device.
        """
        self.count_skipped()
        task_loss, lm_loss = collectives.all_sum(torch.stack(self.steps).mean(0)).tolist()
        tokens = self.tokens
        self.steps = []
        self.tokens = 0
        return task_loss, lm_loss, tokens


class LossHistory(StepLosses):
    """The losses of pre-training: a scalar a step, means of the recent log lines, rollbacks."""

    def __init__(self, train: TrainConfig, saved: Json):
        """`saved` is the `to_dict` of a checkpoint, or {} for a new run."""
        super().__init__()
        self.train = train
        device = collectives.device()
        self.steps = [torch.tensor(loss, device=device) for loss in saved.get("steps", [])]
        self.in_a_row = saved.get("in_a_row", 0)
        self.recent: list[float] = list(saved.get("recent", []))
        self.rollbacks: int = saved.get("rollbacks", 0)
        self.skipped_windows: int = saved.get("skipped_windows", 0)
        """Windows between the checkpoints that were gone back to and the spikes."""

    def to_dict(self) -> Json:
        skipped = {"skipped_windows": self.skipped_windows} if self.skipped_windows else {}
        return {
            "recent": self.recent,
            "steps": [step.item() for step in self.steps],
            "in_a_row": self.in_a_row,
            "rollbacks": self.rollbacks,
            **skipped,
        }

    def counted(self, step: int) -> None:
        """DivergedError after train.max_skipped skipped steps in a row."""
        if self.in_a_row >= self.train.max_skipped:
            raise DivergedError(
                f"loss is not finite at step {step}, {self.in_a_row} steps skipped in a row; "
                f"{REMEDY}"
            )

    def check(self, step: int, cursor: Cursor) -> float:
        """Mean over ranks and over the steps since the last line, skipped steps left out.

        Waits for the device. Raises Spike, or DivergedError if the loss is not finite although no
        step was skipped.
        """
        self.count_skipped()
        if self.steps:
            total = collectives.all_sum(torch.stack(self.steps))
            self.steps = list(total / collectives.world_size())
        values = [step_loss.item() for step_loss in self.steps]
        finite = [value for value in values if math.isfinite(value)]
        loss = sum(finite) / len(finite) if finite else math.nan
        if self.steps and not finite and not self.in_a_row:
            raise DivergedError(f"loss is {loss} at step {step}; {REMEDY}")
        if self.train.spike_nats and len(self.recent) >= FEWEST_LINES:
            median = statistics.median(self.recent)
            if loss > median + self.train.spike_nats:
                raise Spike(step, cursor, loss, median)
        return loss

    def start_line(self, loss: float) -> None:
        """Begin a new log line; `loss` is the one that was just logged."""
        self.steps = []
        if math.isfinite(loss):
            self.recent = [*self.recent, loss][-RECENT_LINES:]


def record_skipped(folder: Path, event: Json) -> None:
    """Add one line to the run's skipped.jsonl, on rank 0.

    An event that a killed start has written before is not written twice.
    """
    if not collectives.is_main():
        return
    path = folder / SKIPPED_FILE
    try:
        events = read_records(path)
        if not any(_same_event(event, earlier) for earlier in events):
            write_records(path, [*events, event])
    except OSError as error:
        print(
            f"warning: {path}: {error.strerror}; training goes on without this line: "
            f"{json.dumps(event)}",
            flush=True,
        )


def _same_event(event: Json, earlier: Json) -> bool:
    return all(earlier.get(key) == event[key] for key in EVENT_KEY)
