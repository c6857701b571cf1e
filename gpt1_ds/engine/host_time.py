"""Host time of a training step, by ZeRO stage and number of ranks: measured constants of the plan.

    python benchmarks/host.py --only --configs zero0_fp32 zero1_bf16 zero2_bf16 zero3_bf16

measures them: 12 layers at a width of 16, so that there is next to no arithmetic, with the branches
and the buckets of GPT-1 on a GPU; a micro-batch a step; process time of rank 0 over torch's fake
process group, the least of some rounds. Measured on a core of an AMD EPYC with AVX2 beside other
work, torch 2.13 (CPU), DeepSpeed 0.19.8. A GPU cannot train faster than its host can ask it to.
"""

from bisect import bisect_left
from typing import NamedTuple

MEASURED_LAYERS = 12


class HostTime(NamedTuple):
    """Seconds of one process."""

    forward: float
    """Of a micro-batch."""
    backward: float
    """Of a micro-batch, with the reduction of its gradients."""
    step: float
    """Of an optimizer step."""


HOST_TIME = {
    0: {
        1: HostTime(forward=7.7e-3, backward=7.1e-3, step=3.4e-3),
        8: HostTime(forward=7.1e-3, backward=7.5e-3, step=3.0e-3),
        64: HostTime(forward=7.7e-3, backward=8.7e-3, step=3.2e-3),
        512: HostTime(forward=7.5e-3, backward=8.0e-3, step=2.9e-3),
        4096: HostTime(forward=8.1e-3, backward=8.4e-3, step=3.6e-3),
    },
    1: {
        1: HostTime(forward=10.7e-3, backward=9.3e-3, step=2.1e-3),
        8: HostTime(forward=9.3e-3, backward=9.9e-3, step=1.2e-3),
        64: HostTime(forward=10.7e-3, backward=10.8e-3, step=1.2e-3),
        512: HostTime(forward=10.0e-3, backward=10.5e-3, step=1.0e-3),
        4096: HostTime(forward=9.4e-3, backward=9.7e-3, step=1.0e-3),
    },
    2: {
        1: HostTime(forward=9.0e-3, backward=8.4e-3, step=2.0e-3),
        8: HostTime(forward=8.8e-3, backward=9.7e-3, step=1.1e-3),
        64: HostTime(forward=9.3e-3, backward=10.9e-3, step=1.1e-3),
        512: HostTime(forward=9.2e-3, backward=9.4e-3, step=0.9e-3),
        4096: HostTime(forward=8.9e-3, backward=10.2e-3, step=0.9e-3),
    },
}
"""By ZeRO stage and number of ranks. Without ZeRO the weights are float32, else bf16."""
ZERO_3 = HostTime(forward=7.3, backward=4.7, step=8.5)
"""The parts of a step under ZeRO-3, as multiples of those of ZeRO-1.

Both were measured in turns, at 8 ranks, on a busier machine: 179.8 beside 30.0 ms. ZeRO-3 fetches
and lets go each matrix in Python, and has 1,310 operators beside 541.
"""
MEASURED_ON = "one core of an AMD EPYC with AVX2"


def host_seconds(ranks: int, n_layer: int, micro_batches: float = 1, zero_stage: int = 1) -> float:
    """Seconds of the host for a step of so many micro-batches; it grows with the layers.

    Between two measured numbers of ranks it takes the larger one.
    """
    of_stage = HOST_TIME[1 if zero_stage == 3 else zero_stage]
    counts = sorted(of_stage)
    place = min(bisect_left(counts, ranks), len(counts) - 1)
    time = of_stage[counts[place]]
    if zero_stage == 3:
        time = HostTime(*(own * factor for own, factor in zip(time, ZERO_3, strict=True)))
    micro_batch = (time.forward + time.backward) * micro_batches
    return (micro_batch + time.step) * n_layer / MEASURED_LAYERS
