"""What the ranks send each other in an optimizer step, as a formula.

The formula says what DeepSpeed 0.19.8 really does, which is more than Rajbhandari et al. 2020
(ZeRO, section 7) count: under ZeRO-1 and 2 a rank needs only its part of the gradients, but all of
them are reduced on all ranks. `tests/engine/test_traffic.py` holds the formula to a
count (`counting.py`).
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from gpt1_ds.base.protocols import Json
from gpt1_ds.engine.building import without_memory
from gpt1_ds.engine.counting import ALL_GATHER, ALL_REDUCE, OTHER, REDUCE_SCATTER, Sent
from gpt1_ds.engine.defaults import Buckets
from gpt1_ds.engine.memory import LIVE_ELEMENTS, value_bytes
from gpt1_ds.model.gpt import GPT, GPTConfig

PASSES = {ALL_REDUCE: 2, ALL_GATHER: 1, REDUCE_SCATTER: 1, OTHER: 1}
"""How often each kind sends its tensor: a ring reduces and scatters it, then gathers it."""
ALIGNMENT = 2
"""DeepSpeed pads each flat group of ZeRO-1 and 2 to a multiple of so many elements a rank."""
PERSISTENT_ELEMENTS = 100_000
"""ZeRO-3's default size up to which a parameter stays whole on every rank."""


class Traffic(NamedTuple):
    """Bytes of the tensors that the collectives of one optimizer step reduce or gather."""

    all_reduced: float
    gathered: float
    scattered: float

    def passes(self, model_bytes: float) -> float:
        """How often the step sends the model."""
        reduced = PASSES[ALL_REDUCE] * self.all_reduced
        return (reduced + self.gathered + self.scattered) / model_bytes

    def sent(self, ranks: int) -> float:
        """Bytes that each rank sends, in rings."""
        return self.passes(1.0) * (ranks - 1) / ranks


def traffic_of(sent: Mapping[str, Sent]) -> Traffic:
    """What `counting.counted` found, as `Traffic`. Other kinds count as gathers."""
    sizes = {kind: sent[kind].bytes if kind in sent else 0 for kind in PASSES}
    gathered = sizes[ALL_GATHER] + sizes[OTHER]
    return Traffic(sizes[ALL_REDUCE], gathered, sizes[REDUCE_SCATTER])


class Part(NamedTuple):
    """A parameter: its number of elements, and the work of its gradient, in elements too."""

    elements: int
    work: int
    matrix: bool


@functools.lru_cache(maxsize=64)
def parts_of(shape: GPTConfig) -> tuple[Part, ...]:
    """The parameters in the order in which the backward pass completes their gradients.

    The embeddings are the last: the tied matrix has a share from both ends of the model.
    """
    with without_memory():
        model = GPT(replace(shape, n_layer=1))
    block = [Part(p.numel(), p.numel(), p.ndim > 1) for p in model.blocks.parameters()]
    embeddings = [Part(p.numel(), 0, True) for p in (model.wpe, model.wte)]
    copies = 1 if shape.kind == "lstm" else shape.n_layer
    return (*(block[::-1] * copies), *embeddings)


def step_traffic(
    shape: GPTConfig, zero: Json, stage: int, precision: str, ranks: int, micro_steps: float
) -> Traffic:
    """What one optimizer step of `micro_steps` micro-batches sends.

        ZeRO-0    gradients all-reduced once a step
        ZeRO-1    gradients all-reduced once a step, weights gathered once
        ZeRO-2    gradients all-reduced in each micro-batch, weights gathered once
        ZeRO-3    in each micro-batch: weights gathered for the forward pass, and again for the
                  backward pass if the model is large (`regathered`); gradients scattered.
                  Small parameters (`stage3_param_persistence_threshold`) are gathered once a step

    `zero` is the section `zero_optimization`; its stage is replaced by `stage`.
    """
    if ranks == 1:
        return Traffic(0, 0, 0)
    parts, value = parts_of(shape), value_bytes(precision)
    elements = sum(part.elements for part in parts)
    if stage == 0:
        return Traffic(elements * value, 0, 0)
    if stage < 3:
        reductions = 1 if stage == 1 else micro_steps
        step = ALIGNMENT * ranks
        matrices = sum(part.elements for part in parts if part.matrix)
        groups = (matrices, elements - matrices)
        gathered = sum(math.ceil(group / step) * step for group in groups)
        return Traffic(reductions * elements * value, gathered * value, 0)
    divided = _divided(shape, zero)
    gathers = divided * (1 + regathered(shape, zero)) * micro_steps + elements - divided
    return Traffic(0, gathers * value, elements * micro_steps * value)


def _divided(shape: GPTConfig, zero: Json) -> int:
    """Elements that ZeRO-3 divides: those of all parameters but the small ones."""
    limit = zero.get("stage3_param_persistence_threshold", PERSISTENT_ELEMENTS)
    return sum(part.elements for part in parts_of(shape) if part.elements > limit)


def gathered_nearby(shape: GPTConfig, zero: Json, precision: str, micro_steps: float) -> float:
    """Bytes of `step_traffic` that ZeRO++ (hpZ) gathers within a group of ranks.

    They are all but the first gather of a step: after that, each group has the weights whole until
    they are updated.
    """
    again = (1 + regathered(shape, zero)) * micro_steps - 1
    return _divided(shape, zero) * again * value_bytes(precision)


def quantized(zero: Json) -> list[str]:
    """The keys of ZeRO++ that quantize what is sent, which no formula here counts."""
    names = ("zero_quantized_weights", "zero_quantized_gradients")
    return [name for name in names if zero.get("stage") == 3 and zero.get(name)]


def regathered(shape: GPTConfig, zero: Json) -> float:
    """Share of the model that ZeRO-3 lets go after the forward pass and gathers again.

    It keeps `stage3_max_live_parameters` elements.
    """
    elements = sum(part.elements for part in parts_of(shape))
    return max(0.0, elements - zero.get("stage3_max_live_parameters", LIVE_ELEMENTS)) / elements


class Link(NamedTuple):
    """What the network and the device of a rank do."""

    seconds_per_byte: float
    backward_seconds: float
    """Of a micro-batch, without communication."""


def exposed_reduction(
    shape: GPTConfig, chosen: Buckets, stage: int, precision: str, link: Link
) -> float:
    """Seconds that the reductions of one backward pass add to it.

    A bucket is reduced when the next gradient has no room in it. With overlap the backward pass
    goes on meanwhile, until the next bucket is full: under ZeRO-1 and 2 it then waits. The last
    bucket, with the embeddings, has nothing to hide behind. Without ZeRO the reduction begins after
    the backward pass.
    """
    parts, value = parts_of(shape), value_bytes(precision)
    passes = PASSES[REDUCE_SCATTER if stage == 3 else ALL_REDUCE]
    cost = passes * value * link.seconds_per_byte
    if not chosen.overlap:
        return sum(part.elements for part in parts) * cost
    head = max(part.elements for part in parts if not part.work)
    pace = link.backward_seconds / (head + sum(part.work for part in parts))
    now, free, filled = head * pace, 0.0, 0
    for part in parts:
        now += part.work * pace
        if filled and filled + part.elements > chosen.elements:
            begin = max(now, free)
            now = now if stage == 3 else begin
            free = begin + filled * cost
            filled = 0
        filled += part.elements
    return max(now, free) + filled * cost - link.backward_seconds


def exposed_gathers(
    shape: GPTConfig,
    zero: Json,
    precision: str,
    link: Link,
    forward_seconds: float,
    again_link: Link | None = None,
) -> float:
    """Seconds that ZeRO-3's gathers add to a micro-batch, whose blocks are fetched ahead.

    The embeddings and the first block must be there before the forward pass begins. `again_link` is
    that of the gathers of the backward pass, if it is another.
    """
    parts, value = parts_of(shape), value_bytes(precision)
    cost, again_cost = (value * each.seconds_per_byte for each in (link, again_link or link))
    elements = sum(part.elements for part in parts)
    blocks = sum(part.work for part in parts)
    first = elements - blocks + blocks / shape.n_layer
    again = regathered(shape, zero) * elements
    forward = first * cost + max(0.0, (elements - first) * cost - forward_seconds)
    return forward + max(0.0, again * again_cost - link.backward_seconds)
