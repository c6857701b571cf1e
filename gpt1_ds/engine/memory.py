"""Bytes that a rank needs to train, before anything is allocated.

They follow from the model's shape and from DeepSpeed's ZeRO stages. Sources: Rajbhandari et al.
2020 (ZeRO), section 5; Korthikanti et al. 2022, section 4. `tests/test_plan.py` compares them with
real runs. All numbers are bytes; a value takes 2 bytes in bf16 and fp16 and 4 in fp32.
"""

from typing import NamedTuple

from gpt1_ds.base.protocols import Json
from gpt1_ds.engine.defaults import LARGEST_BUCKET, buckets
from gpt1_ds.model.gpt import GPTConfig
from gpt1_ds.model.kernels import QUERY_BLOCK
from gpt1_ds.model.loss import CACHED_ROWS, HEAD_ROWS

FRAMEWORK_BYTES = 1.5e9
"""Context, kernels and communication buffers of a GPU process."""
ALLOCATOR = 1.05
"""Factor for the fragmentation of the GPU's memory."""


def bucket_bytes(ds: Json, parameters: float, precision: str, on_gpu: bool = False) -> float:
    """Bytes of the buckets of a resolved JSON. With overlap, one is filled and one sent."""
    elements, overlap = buckets(ds, parameters, on_gpu)
    return float(elements * _value_bytes(precision) * (2 if overlap else 1))


def zero_variant(ds: Json) -> str:
    """Stage and offload of a resolved DeepSpeed JSON, such as "2" or "3+offload"."""
    zero = ds.get("zero_optimization", {})
    sections = [zero.get(name, {}) for name in ("offload_optimizer", "offload_param")]
    offloads = any(section.get("device", "none") != "none" for section in sections)
    stage = zero.get("stage", 0)
    return f"{stage}+offload" if offloads else f"{stage}"


class StateBytes(NamedTuple):
    """Bytes of the model's state, for each rank."""

    device: float
    host: float
    """What offload moves from the device to the memory of the node."""


def state_bytes(
    parameters: float, variant: str, precision: str, ranks: int, of_buckets: float | None = None
) -> StateBytes:
    """Weights, gradients, and what the optimizer keeps, under a `zero_variant`.

        weights     value                     divided among the ranks in stage 3
        gradients   value                     divided in stages 2 and 3
        optimizer   4 + 4 + 4 (+ 4 + 4)       divided in stages 1 to 3
        buckets     up to 1 GB                for the reduction, from stage 1 on; two in stage 3

    The first three rows are bytes a parameter. The optimizer's row is float32 weights and Adam's
    two moments; in bf16 and fp16, a step also holds the rank's gradients in float32, twice.
    `of_buckets` (`bucket_bytes`) takes the place of the default buckets, which one rank has not.
    """
    stage = int(variant[0])
    value = _value_bytes(precision)
    optimizer = parameters * (12 if precision == "fp32" else 12 + 8) / (ranks if stage >= 1 else 1)
    gradients = parameters * value / (ranks if stage >= 2 else 1)
    weights = parameters * value / (ranks if stage == 3 else 1)
    if of_buckets is None:
        needed = stage >= 1 and ranks > 1
        default = min(LARGEST_BUCKET * 2.0, parameters * value) * (2 if stage == 3 else 1)
        of_buckets = default if needed else 0.0
    if not variant.endswith("offload"):
        return StateBytes(weights + gradients + optimizer + of_buckets, 0.0)
    if stage == 3:
        return StateBytes(of_buckets, optimizer + gradients + weights)
    return StateBytes((weights if stage == 2 else 0) + of_buckets, optimizer + gradients)


def activation_bytes(
    shape: GPTConfig, windows: int, precision: str, checkpointing: bool, flash: bool = True
) -> float:
    """What the forward pass of a micro-batch of `windows` windows keeps for the backward pass.

    Per token, with C = n_embd, T = n_ctx, H = n_head, V = the padded vocabulary, and masks of one
    byte (two on a CPU):

        a block            C (16 values + 2 masks): 34 C bytes in bf16, as in Korthikanti et al.,
                           section 4, for the tanh GELU
        without flash      H (value + mask) (T + QUERY_BLOCK) / 2: the attention weights
        checkpointing      the input of every block (C values), and one whole block
        the head           C + V values: the last state, and softmax - onehot
        the embeddings     C (value + mask)

    To this comes the peak within the head: three float32 copies of a few rows of logits.
    `flash` means that a flash kernel computes the attention, as on a GPU.
    """
    value = _value_bytes(precision)
    mask = 1 if flash else 2
    C, T, V = shape.n_embd, shape.n_ctx, shape.padded_vocab_size
    block: float = C * (16 * value + 2 * mask)
    if not flash:
        block += shape.n_head * (value + mask) * (T + QUERY_BLOCK) / 2
    layers = shape.n_layer * block
    if checkpointing:
        layers = shape.n_layer * value * C + block
    head = (C + V) * value
    embeddings = C * (value + mask)
    rows = min(HEAD_ROWS if flash else CACHED_ROWS, windows * T)
    return windows * T * (layers + head + embeddings) + 3 * rows * V * 4


def gpu_bytes(states: float, activations: float) -> float:
    """What a GPU process needs in all for its share of the model's state and its activations."""
    return (states + activations) * ALLOCATOR + FRAMEWORK_BYTES


def _value_bytes(precision: str) -> int:
    return 4 if precision == "fp32" else 2
