"""Host time of a training step, by number of ranks: measured constants for the planner.

`python benchmarks/host.py` measures them: 12 layers at a width of 16, so that there is next to no
arithmetic; ZeRO-1, bf16, a micro-batch a step; process time of rank 0 over torch's fake process
group. Measured on 2 cores of an AMD EPYC with AVX2, torch 2.13 (CPU), DeepSpeed 0.19.8. A
GPU cannot train faster than its host can ask it to.
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
    1: HostTime(forward=10.9e-3, backward=17.6e-3, step=2.3e-3),
    8: HostTime(forward=10.7e-3, backward=15.2e-3, step=1.6e-3),
    64: HostTime(forward=11.2e-3, backward=14.1e-3, step=1.3e-3),
    512: HostTime(forward=14.2e-3, backward=20.3e-3, step=1.4e-3),
    4096: HostTime(forward=10.2e-3, backward=12.3e-3, step=1.1e-3),
}
"""By number of ranks."""


OF_ZERO_1 = {0: 1.0, 1: 1.0, 2: 1.0, 3: 2.5}
"""The time under each ZeRO stage, as a multiple of that of ZeRO-1."""
MEASURED_ON = "one core of an AMD EPYC with AVX2"


def host_seconds(ranks: int, n_layer: int, micro_batches: float = 1, zero_stage: int = 1) -> float:
    """Seconds of the host for a step of so many micro-batches; it grows with the layers.

    Between two measured numbers of ranks it takes the larger one.
    """
    counts = sorted(HOST_TIME)
    place = min(bisect_left(counts, ranks), len(counts) - 1)
    time = HOST_TIME[counts[place]]
    micro_batch = (time.forward + time.backward) * micro_batches
    return (micro_batch + time.step) * n_layer / MEASURED_LAYERS * OF_ZERO_1[zero_stage]
