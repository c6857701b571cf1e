"""Where the time goes: tokens a second and MFU, the parts of a step, one step in the profiler."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch.profiler import profile, record_function

from gpt1_ds.distributed import collectives, heartbeat, waiting
from gpt1_ds.distributed.console import say, warn
from gpt1_ds.engine.internals import Collective, wrapped_collectives
from gpt1_ds.engine.peak import peak_flops

Item = TypeVar("Item")

TABLE_ROWS = 40


class Throughput:
    """Tokens a second since the last reading, and MFU.

    MFU (model FLOPs utilization) is the share of the peak rate of matrix products, over all ranks.
    """

    def __init__(self, flops_per_token: int, precision: str) -> None:
        self.flops_per_token = flops_per_token
        self.peak_flops = peak_flops(precision) * collectives.world_size()
        self.restart()

    def restart(self) -> None:
        """Begin a new interval."""
        self.since = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of this block, such as a validation or a save, out of the interval."""
        began = time.perf_counter()
        yield
        self.since += time.perf_counter() - began

    def read(self, tokens: int) -> dict[str, float]:
        """`tokens_per_second` and `mfu` of the interval that ends now; `tokens` of all ranks."""
        now = time.perf_counter()
        rate = tokens / (now - self.since)
        self.since = now
        return {
            "tokens_per_second": round(rate, 1),
            "mfu": round(rate * self.flops_per_token / self.peak_flops, 4),
        }


Moment = float | torch.cuda.Event
"""Seconds of the host's clock, or an event in the stream of the GPU."""


class Mark(NamedTuple):
    """A part of a step, from its start to its end."""

    part: str
    start: Moment
    end: Moment
    within: str | None = None
    """The part that this one happened in."""

    def seconds(self) -> float:
        """Its duration. On a GPU this waits until the device has come to the end."""
        if isinstance(self.start, float) and isinstance(self.end, float):
            return self.end - self.start
        assert isinstance(self.start, torch.cuda.Event)
        assert isinstance(self.end, torch.cuda.Event)
        self.end.synchronize()
        return self.start.elapsed_time(self.end) / 1000


OWN_PARTS = ("data", "forward")


class StepTimer:
    """Seconds of each part of a step: `data`, `forward`, `backward`, `optimizer`.

    A further part, `communication`, happens within these. On a GPU the parts are measured by
    events in its stream, and nobody waits for them before `read`. So communication that runs
    behind computation counts as nothing: it takes none of the stream's time.
    """

    def __init__(self) -> None:
        self.marks: list[Mark] = []
        self.current: str | None = None
        self.own_seconds = 0.0
        """Of `data` and `forward` by the last reading, without the communication in them: what no
        other rank can have delayed."""
        self.on_gpu = torch.cuda.is_available()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count this block as part `name`; the heartbeat and the profiler see the name too."""
        heartbeat.place = name
        within, self.current = self.current, name
        start = self._now(name)
        with record_function(name):
            yield
        heartbeat.place = f"after {name}"
        self.current = within
        self.marks.append(Mark(name, start, self._now(name), within))

    @contextmanager
    def communication(self) -> Iterator[None]:
        """Count the time in DeepSpeed's collectives, and in waiting for those it has begun."""
        with wrapped_collectives(self._timed):
            yield

    def _timed(self, collective: Collective) -> Collective:
        def call(*args: object, **kwargs: object) -> object:
            waiting.in_stream()
            with self.part("communication"):
                work = collective(*args, **kwargs)
            return PendingCollective(work, self) if hasattr(work, "wait") else work

        return call

    def waiting(self, items: Iterable[Item]) -> Iterator[Item]:
        """`items`, with the wait for each of them counted as `data`."""
        iterator = iter(items)
        while True:
            with self.part("data"):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def read(self, steps: int) -> dict[str, float]:
        """`PART_seconds`: mean of this rank over the `steps` since the last reading.

        On a GPU this waits for the device.
        """
        totals: dict[str, float] = {}
        own = 0.0
        for mark in self.marks:
            key, seconds = f"{mark.part}_seconds", mark.seconds()
            totals[key] = totals.get(key, 0.0) + seconds
            if mark.part in OWN_PARTS:
                own += seconds
            elif mark.part == "communication" and mark.within in OWN_PARTS:
                own -= seconds
        self.own_seconds = own / steps
        self.marks.clear()
        return {name: round(total / steps, 6) for name, total in totals.items()}

    def _now(self, part: str) -> Moment:
        if not self.on_gpu or part == "data":  # reading data occupies the host, not the device
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class PendingCollective:
    """The handle of a collective that runs in the background; the wait for it is communication."""

    def __init__(self, work: torch.distributed.Work, timer: StepTimer) -> None:
        self.work = work
        self.timer = timer

    def wait(self, *timeout: timedelta) -> bool:
        with self.timer.part("communication"):
            return self.work.wait(*timeout)

    def __getattr__(self, name: str) -> object:
        return getattr(self.work, name)


@contextmanager
def profiled(folder: Path, step: int, wanted: int | None) -> Iterator[None]:
    """Profile this block on rank 0 if `step` is the `wanted` one.

    It writes profile/step-N.json.gz, a trace for chrome://tracing or Perfetto, and
    profile/step-N.txt, a table of the operators and of the step's parts.
    """
    if step != wanted or not collectives.is_main():
        yield
        return
    with profile() as profiler:
        yield
    _write_profile(profiler, folder / "profile" / f"step-{step:08d}", step)


def _write_profile(profiler: profile, path: Path, step: int) -> None:
    order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    try:
        path.parent.mkdir(exist_ok=True)
        profiler.export_chrome_trace(f"{path}.json.gz")
        averages = profiler.key_averages()
        table = averages.table(sort_by=order, row_limit=TABLE_ROWS, max_name_column_width=40)
        path.with_suffix(".txt").write_text(table, encoding="utf-8")
        say(f"step {step}: profile in {path}.json.gz (chrome://tracing) and .txt")
    except (OSError, RuntimeError) as error:
        warn(f"{path}: {error}; training goes on without this profile")
