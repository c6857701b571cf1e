"""Where the time goes: tokens a second and MFU, the parts of a step, one step under the profiler."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import profile, record_function

from gpt1_ds.distributed import collectives, heartbeat
from gpt1_ds.distributed.console import say

COLLECTIVES = (
    "all_reduce",
    "all_reduce_coalesced",
    "reduce",
    "broadcast",
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_coalesced",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "all_to_all_single",
)
TABLE_ROWS = 40
# Dense bf16 tensor-core peaks from the vendor's data sheets, FLOP/s.
GPU_PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "V100": 125e12}


class Throughput:
    """Tokens a second since the last reading, and their share of the machine's matrix-product peak."""

    def __init__(self, flops_per_token: int, precision: str):
        self.flops_per_token = flops_per_token
        self.peak_flops = _peak_flops(precision) * collectives.world_size()
        self.restart()

    def restart(self) -> None:
        """Start counting afresh."""
        self.since = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that does not count: a validation, a save."""
        began = time.perf_counter()
        yield
        self.since += time.perf_counter() - began

    def read(self, tokens: int) -> dict[str, float | None]:
        now = time.perf_counter()
        rate = tokens / (now - self.since)
        self.since = now
        return {
            "tokens_per_second": round(rate, 1),
            "mfu": round(rate * self.flops_per_token / self.peak_flops, 4),
        }


class StepTimer:
    """Seconds a step in each part of it: `data`, `forward`, `backward`, `optimizer`; and `communication`, within these.

    On a GPU by events in its stream, which nobody waits for before `read`: communication that hides behind computation
    takes none of the stream's time, and counts for none.
    """

    def __init__(self):
        self.marks: list[tuple[str, Any, Any]] = []
        self.on_gpu = torch.cuda.is_available()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        heartbeat.place, before = name, self._now(name)
        with record_function(name):
            yield
        heartbeat.place = f"after {name}"
        self.marks.append((name, before, self._now(name)))

    @contextmanager
    def communication(self) -> Iterator[None]:
        """Count the time in DeepSpeed's collectives, and in waiting for those it has begun."""
        from deepspeed.comm import comm

        backend = comm.cdb
        for name in COLLECTIVES:
            setattr(backend, name, self._timed(getattr(backend, name)))
        try:
            yield
        finally:
            for name in COLLECTIVES:
                delattr(backend, name)  # the instance's, over the class's

    def _timed(self, collective: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.part("communication"):
                work = collective(*args, **kwargs)
            return Waiting(work, self) if hasattr(work, "wait") else work

        return call

    def waiting(self, items: Iterable[Any]) -> Iterator[Any]:
        """`items`, with the wait for each of them counted as `data`."""
        iterator, nothing = iter(items), object()
        while True:
            with self.part("data"):
                item = next(iterator, nothing)
            if item is nothing:
                return
            yield item

    def read(self, steps: int) -> dict[str, float]:
        """Mean of this rank over the `steps` since the last reading; waits for the device."""
        totals: dict[str, float] = {}
        for name, before, after in self.marks:
            if not isinstance(after, float):
                after.synchronize()
            spent = (
                after - before if isinstance(after, float) else before.elapsed_time(after) / 1000
            )
            totals[f"{name}_seconds"] = totals.get(f"{name}_seconds", 0.0) + spent
        self.marks.clear()
        return {name: round(total / steps, 6) for name, total in totals.items()}

    def _now(self, name: str) -> Any:
        if not self.on_gpu or name == "data":  # reading keeps the host, not the device
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class Waiting:
    """The handle of a collective that runs in the background; the wait for it is communication."""

    def __init__(self, work: Any, timer: StepTimer):
        self.work, self.timer = work, timer

    def wait(self, *args: Any) -> Any:
        with self.timer.part("communication"):
            return self.work.wait(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.work, name)


@contextmanager
def profiled(folder: Path, step: int, wanted: int | None) -> Iterator[None]:
    """Where `step` is the `wanted` one, rank 0 writes profile/step-N.json.gz, a trace for chrome://tracing or Perfetto,
    and profile/step-N.txt, a table of operators and of the step's parts."""
    if step != wanted or not collectives.is_main():
        yield
        return
    with profile() as seen:
        yield
    by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    path = folder / "profile" / f"step-{step:08d}"
    try:
        path.parent.mkdir(exist_ok=True)
        seen.export_chrome_trace(f"{path}.json.gz")
        table = seen.key_averages().table(
            sort_by=by, row_limit=TABLE_ROWS, max_name_column_width=40
        )
        path.with_suffix(".txt").write_text(table, encoding="utf-8")
        say(f"step {step}: profile in {path}.json.gz (chrome://tracing) and .txt")
    except (OSError, RuntimeError) as error:
        print(f"warning: {path}: {error}; training goes on without this profile", file=sys.stderr)


def _peak_flops(precision: str) -> float:
    """The GPU's data-sheet peak; where there is none, what a matrix product reaches in a tenth of a second."""
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        known = next((peak for key, peak in GPU_PEAK_FLOPS.items() if key in name), None)
        if known is not None:
            return known if precision != "fp32" else known / 2
    size, dtype = (
        1024,
        {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32),
    )
    a = torch.ones(size, size, dtype=dtype, device=collectives.device())
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        (a @ a)[0, 0].item()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
