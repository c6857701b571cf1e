"""What a step asks of the host of one rank of many: operators, waits for the device, and time.

The model has the run's blocks, but a width of 16, so that its arithmetic takes next to no time; the
buckets shrink with it. It takes the branches of a GPU.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt1_ds.base.protocols import Json
from gpt1_ds.data.batches import Batch
from gpt1_ds.engine.building import without_memory
from gpt1_ds.engine.counting import counted, fake_group
from gpt1_ds.engine.internals import Collective, replaced, wrapped_collectives
from gpt1_ds.engine.start import initialize
from gpt1_ds.engine.traffic import parts_of
from gpt1_ds.model import gpt
from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.runs.rehearsal import PARTS, Rehearsed, batches_of, make_step

WIDTH, HEADS, VOCABULARY = 16, 4, 1_000
WARM_STEPS, TIMED_STEPS = 3, 7
SIZES = {
    "reduce_bucket_size": 5e8,
    "stage3_prefetch_bucket_size": 5e7,
    "stage3_max_reuse_distance": 1e9,
    "stage3_max_live_parameters": 1e9,
}
"""Keys of the JSON that count elements of the model, with DeepSpeed's defaults."""
PERSISTENT = "stage3_param_persistence_threshold"


class HostFigures(NamedTuple):
    """Of one step, by part."""

    operators: dict[str, int]
    seconds: dict[str, float]
    waits: int


class HostWatch:
    """Times the parts of steps, and counts those of one."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {name: [] for name in PARTS}
        self.operators: dict[str, int] = dict.fromkeys(PARTS, 0)
        self.waits = 0
        self.in_collectives = 0.0

    def begin_step(self) -> None:
        for times in self.seconds.values():
            times.append(0.0)

    def timed(self, name: str, part: Callable[[], None]) -> None:
        """Collectives are left out: those of absent ranks copy a tensor for each of them."""
        began = time.process_time() - self.in_collectives
        part()
        self.seconds[name][-1] += time.process_time() - self.in_collectives - began

    def apart(self, collective: Collective) -> Collective:
        def call(*args: object, **options: object) -> object:
            began = time.process_time()
            work = collective(*args, **options)
            self.in_collectives += time.process_time() - began
            return work

        return call

    def counting(self, name: str, part: Callable[[], None]) -> None:
        with counted() as counts:
            part()
        self.operators[name] += counts.operators.total()
        self.waits += counts.waits.total()

    def figures(self) -> HostFigures:
        medians = {name: statistics.median(times) for name, times in self.seconds.items()}
        return HostFigures(self.operators, medians, self.waits)


def rehearse_host(plan: Rehearsed) -> HostFigures:
    """Operators and process time of a step on one thread, with all layers of `plan`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    shape = replace(plan.shape, vocab_size=VOCABULARY, n_head=HEADS, n_embd=WIDTH, n_ctx=WIDTH)
    ds = narrow_json(plan.ds, plan.shape, shape)
    narrow = plan._replace(shape=shape, ds=ds, manifest=None)
    watch = HostWatch()
    with fake_group(plan.ranks), branches_of_a_gpu():
        with without_memory():
            module = GPT(shape)
        engine = initialize(module, narrow.config, narrow.ds)
        batches = map(_of_single_windows, batches_of(narrow))
        for step in range(WARM_STEPS):
            make_step(narrow, engine, step, next(batches))
        with wrapped_collectives(watch.apart):
            for _ in range(TIMED_STEPS):
                watch.begin_step()
                make_step(narrow, engine, WARM_STEPS, next(batches), watch.timed)
        make_step(narrow, engine, WARM_STEPS, next(batches), watch.counting)
        engine.destroy()
    torch.set_num_threads(threads)
    return watch.figures()


@contextmanager
def branches_of_a_gpu() -> Iterator[None]:
    """Have the model call what it calls on a GPU: one operator for what is many on a CPU.

    Attention with dropout is one operator on a GPU; on a CPU that is so without dropout only.
    """

    def dropout(x: Tensor, p: float, keys_B2: Tensor | None) -> Tensor:
        return x if keys_B2 is None else F.dropout(x, p)

    def attention(q_BHTD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor, *_dropout: object) -> Tensor:
        return F.scaled_dot_product_attention(q_BHTD, k_BHSD, v_BHSD, is_causal=True)

    def gelu(x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh")

    def keys(_keys_B2: Tensor, places: int, _device: torch.device) -> Tensor:
        return torch.empty(places, 0, 2, dtype=torch.int32)

    with (
        replaced(gpt, "keys_of_places", keys),
        replaced(gpt, "dropout", dropout),
        replaced(gpt, "causal_attention", attention),
        replaced(gpt, "gelu", gelu),
    ):
        yield


def _of_single_windows(batch: Batch) -> Batch:
    """One window in each micro-batch: the host's work does not depend on their number."""
    count = len(batch.micro_batches)
    return batch._replace(
        micro_batches=[ids_bT[:1] for ids_bT in batch.micro_batches],
        dropout_keys=batch.dropout_keys[:count],
    )


def narrow_json(ds: Json, whole: GPTConfig, narrow: GPTConfig) -> Json:
    """`ds` with as many buckets for the `narrow` model as it has for the `whole` one."""
    zero = dict(ds.get("zero_optimization", {}))
    ratio = _elements(narrow) / _elements(whole)
    for key, default in SIZES.items():
        zero[key] = max(1, int(zero.get(key, default) * ratio))
    # Biases stay whole on each rank where those of the run do.
    limit = zero.get(PERSISTENT, 1e5)
    zero[PERSISTENT] = 4 * narrow.n_embd if limit >= whole.n_embd else 0
    return {**ds, "zero_optimization": zero}


def _elements(shape: GPTConfig) -> int:
    return sum(part.elements for part in parts_of(shape))
