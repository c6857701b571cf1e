"""Host time of a training step, by ZeRO stage and number of ranks: measured constants of the plan.

    python benchmarks/host.py --only --configs zero0_fp32 zero1_bf16 zero2_bf16 zero3_bf16

measures them: 12 layers at a width of 16, so that there is next to no arithmetic, with the branches
and the buckets of GPT-1 on a GPU; a micro-batch a step; process time of rank 0 over torch's fake
process group, the least of some rounds. Measured with torch 2.13 for CPUs and DeepSpeed 0.19.8, on
a core of an idle Intel Xeon with AVX-512. A GPU cannot train faster than its host can ask it to.
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
        1: HostTime(forward=3.4e-3, backward=3.9e-3, step=2.0e-3),
        8: HostTime(forward=3.2e-3, backward=4.4e-3, step=2.0e-3),
        64: HostTime(forward=3.2e-3, backward=4.3e-3, step=2.0e-3),
        512: HostTime(forward=3.2e-3, backward=4.3e-3, step=2.0e-3),
        4096: HostTime(forward=3.2e-3, backward=4.3e-3, step=1.9e-3),
    },
    1: {
        1: HostTime(forward=4.9e-3, backward=6.4e-3, step=1.3e-3),
        8: HostTime(forward=4.8e-3, backward=7.3e-3, step=0.7e-3),
        64: HostTime(forward=4.7e-3, backward=7.2e-3, step=0.6e-3),
        512: HostTime(forward=4.7e-3, backward=7.2e-3, step=0.6e-3),
        4096: HostTime(forward=4.7e-3, backward=7.2e-3, step=0.6e-3),
    },
    2: {
        1: HostTime(forward=4.8e-3, backward=6.2e-3, step=1.4e-3),
        8: HostTime(forward=4.8e-3, backward=7.3e-3, step=0.7e-3),
        64: HostTime(forward=4.9e-3, backward=7.3e-3, step=0.6e-3),
        512: HostTime(forward=4.8e-3, backward=7.3e-3, step=0.6e-3),
        4096: HostTime(forward=4.7e-3, backward=6.8e-3, step=0.6e-3),
    },
    3: {
        1: HostTime(forward=32.3e-3, backward=28.4e-3, step=7.1e-3),
        8: HostTime(forward=36.1e-3, backward=28.4e-3, step=4.7e-3),
        64: HostTime(forward=35.9e-3, backward=28.4e-3, step=4.6e-3),
        512: HostTime(forward=38.7e-3, backward=29.2e-3, step=4.7e-3),
        4096: HostTime(forward=60.6e-3, backward=35.8e-3, step=4.9e-3),
    },
}
"""By ZeRO stage and number of ranks. Without ZeRO the weights are float32, else bf16."""
MEASURED_ON = "one core of an Intel Xeon with AVX-512"


def host_seconds(ranks: int, n_layer: int, micro_batches: float = 1, zero_stage: int = 1) -> float:
    """Seconds of the host for a step of so many micro-batches; it grows with the layers.

    Between two measured numbers of ranks it takes the larger one.
    """
    of_stage = HOST_TIME[zero_stage]
    counts = sorted(of_stage)
    place = min(bisect_left(counts, ranks), len(counts) - 1)
    time = of_stage[counts[place]]
    micro_batch = (time.forward + time.backward) * micro_batches
    return (micro_batch + time.step) * n_layer / MEASURED_LAYERS
