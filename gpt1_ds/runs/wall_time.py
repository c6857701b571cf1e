"""What the wall time of a run went to, since its first start: steps, what is around them, pauses.

At each moment a run does one thing of `WALL_TIME_PARTS`, so that their seconds add up to the wall
time. Each start goes on counting from status.json. Rank 0 counts: the others wait for it, or it for
them.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpt1_ds.base.protocols import Json
from gpt1_ds.base.records import WALL_TIME_PARTS

NEW, REPEATED, VALIDATION, CHECKPOINTS, DATA, START_UP, WAITING = WALL_TIME_PARTS
"""Steps that no start has made before, and those that one has; the waits for data; from the start
of the process to its first step; from the end of a process to the start of the next one."""


class WallTime:
    """Seconds of each of `WALL_TIME_PARTS`, on top of `before`, which an earlier start wrote."""

    def __init__(self, before: Json):
        began = time.time() - _process_seconds()
        kept: Json = before if _is_sound(before) else {"first_start": began, "until": began}
        self.first_start: float = kept["first_start"]
        """Seconds since 1970."""
        self.highest_step: int = kept.get("highest_step", 0)
        self.seconds = {kind: float(kept.get(kind, 0.0)) for kind in WALL_TIME_PARTS}
        # A clock that was set back has no pause to tell.
        self.seconds[WAITING] += max(0.0, began - kept["until"])
        self.kind = START_UP
        self.since = time.monotonic() - _process_seconds()

    def switch(self, kind: str) -> str:
        """From now on the run does `kind`; what it did before."""
        now = time.monotonic()
        self.seconds[self.kind] += now - self.since
        self.since = now
        before, self.kind = self.kind, kind
        return before

    @contextmanager
    def part(self, kind: str) -> Iterator[None]:
        """The time of this block is one of `kind`, apart from that of blocks within it."""
        before = self.switch(kind)
        try:
            yield
        finally:
            self.switch(before)

    def reached(self, step: int) -> None:
        """So many steps have been made, or begun, by any start."""
        self.highest_step = max(self.highest_step, step)

    def in_step(self, done: int) -> None:
        """The step after `done` steps begins."""
        self.switch(REPEATED if done < self.highest_step else NEW)
        self.reached(done + 1)

    def to_json(self, step: int) -> Json:
        """For status.json, when `step` steps are done; `total` is the sum, to the millisecond."""
        self.switch(self.kind)
        self.reached(step)
        rounded = {kind: round(self.seconds[kind], 3) for kind in WALL_TIME_PARTS}
        return {
            **rounded,
            "total": round(sum(rounded.values()), 3),
            "highest_step": self.highest_step,
            "first_start": round(self.first_start, 3),
            "until": round(time.time(), 3),
        }


def _is_sound(before: Json) -> bool:
    names = (*WALL_TIME_PARTS, "highest_step", "first_start", "until")
    values = [before.get(name) for name in names] if isinstance(before, dict) else [None]
    return all(isinstance(value, int | float) and 0 <= value < 1e11 for value in values)


def _process_seconds() -> float:
    """How long this process has run, by the start time in /proc; 0 where there is none."""
    try:
        content = Path("/proc/self/stat").read_text()
        ticks = int(content.rpartition(")")[2].split()[19])
        started = ticks / os.sysconf("SC_CLK_TCK")
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started)
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
