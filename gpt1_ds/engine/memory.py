"""Bytes that a rank needs to train, before anything is allocated.

They follow from the model's shape and from DeepSpeed's ZeRO stages. Sources: Rajbhandari et al.
2020 (ZeRO), section 5; Korthikanti et al. 2022, section 4. `tests/test_plan.py` compares them with
real runs. All numbers are bytes; a value takes 2 bytes in bf16 and fp16 and 4 in fp32. They hold
for the start, too: no rank builds the whole model in float32 (`building`). Only ZeRO-1 and -2 hold
two copies of the weights there for a moment, in which DeepSpeed joins them to one tensor.
"""

from typing import NamedTuple

from gpt1_ds.base.protocols import Json
from gpt1_ds.engine.defaults import LARGEST_BUCKET, buckets, with_defaults
from gpt1_ds.model.gpt import GPTConfig
from gpt1_ds.model.kernels import QUERY_BLOCK
from gpt1_ds.model.loss import CACHED_ROWS, HEAD_ROWS

FRAMEWORK_BYTES = 1.5e9
"""Context, kernels and communication buffers of a GPU process."""
ALLOCATOR = 1.05
"""Factor for the fragmentation of the GPU's memory."""
LIVE_ELEMENTS = 1_000_000_000
"""ZeRO-3's default for how many parameters a rank may have whole (`stage3_max_live_parameters`)."""


def bucket_bytes(
    ds: Json, parameters: float, precision: str, ranks: int, on_gpu: bool = False, tied: float = 0.0
) -> float:
    """Bytes of the buckets of a resolved JSON.

        ZeRO-0    a copy of the gradients, in which they are joined for the all-reduce
        ZeRO-1    one bucket; with overlap, another that is still being sent, if there are two
        ZeRO-2    that, and the gradients that wait for the next bucket, which ZeRO-1 keeps anyway
        ZeRO-3    two: DeepSpeed's bucket, and the copy by rank of one, or of the `tied` matrix if
                  it is larger. With the second share of the weights that ZeRO++ keeps within a
                  group of ranks (hpZ)

    With `reduce_scatter` ZeRO-1 and 2 collect gradients in the bucket, and make a copy of it.
    """
    value = value_bytes(precision)
    elements, overlap = buckets(ds, parameters, on_gpu)
    zero = with_defaults(ds, int(parameters), on_gpu).get("zero_optimization", {})
    if not zero.get("stage", 0):
        return float(_joined(parameters, ranks) * value)
    if zero["stage"] == 3:
        group = hpz_ranks(zero, ranks)
        near = parameters * value / group if group > 1 else 0.0
        return (elements + max(elements, tied)) * value + near
    if zero.get("reduce_scatter", True):
        return elements * value * (2 + bool(overlap))
    if ranks == 1:
        return 0.0
    in_flight = min(elements, parameters - elements) if overlap else 0.0
    return (elements * (2 if zero["stage"] == 2 else 1) + in_flight) * value


def _joined(parameters: float, ranks: int) -> float:
    """Elements of the tensor in which an all-reduce without ZeRO joins gradients."""
    return min(LARGEST_BUCKET, parameters) if ranks > 1 else 0.0


def hpz_ranks(zero: Json, ranks: int) -> int:
    """Ranks of a group that keeps the weights whole, in ZeRO++ (hpZ); 1 without it.

    `zero` is the section `zero_optimization`.
    """
    if zero.get("stage") != 3:
        return 1
    return max(1, min(ranks, zero.get("zero_hpz_partition_size", 1)))


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


class StateParts(NamedTuple):
    """Bytes of the parts of the model's state that a rank holds, wherever they lie."""

    weights: float
    gradients: float
    optimizer: float
    """Float32 weights and Adam's two moments."""
    update: float
    """The rank's gradients in float32, twice, during an optimizer step."""
    of_buckets: float
    gathered: float
    """Whole weights that ZeRO-3 has fetched from the other ranks."""
    tied: float
    """The gradient of the tied matrix, of which no rank lets go before the backward pass ends."""

    @property
    def passing(self) -> float:
        """All but weights, masters and moments: the most that is there at a time of a step."""
        in_backward = self.of_buckets + self.gathered + self.tied
        return self.gradients + max(in_backward, self.update)

    @property
    def total(self) -> float:
        return self.weights + self.optimizer + self.passing


def model_states(
    shape: GPTConfig, ds: Json, precision: str, ranks: int, on_gpu: bool = False
) -> StateParts:
    """`state_parts` of a model under a resolved JSON, with its buckets and the tied matrix."""
    tied = shape.padded_vocab_size * shape.n_embd
    buckets = bucket_bytes(ds, shape.parameters, precision, ranks, on_gpu, tied)
    zero = ds.get("zero_optimization", {})
    parts = state_parts(shape.parameters, zero.get("stage", 0), precision, ranks, buckets, tied)
    live = max(tied, zero.get("stage3_max_live_parameters", LIVE_ELEMENTS))
    return parts._replace(gathered=min(parts.gathered, live * value_bytes(precision)))


def state_parts(
    parameters: float,
    stage: int,
    precision: str,
    ranks: int,
    of_buckets: float | None = None,
    tied: float = 0.0,
) -> StateParts:
    """Weights, gradients, and what the optimizer keeps.

        weights     value                     divided among the ranks in stage 3
        gradients   value                     divided in stages 2 and 3
        optimizer   4 + 4 + 4                 divided in stages 1 to 3
        update      4 + 4 in bf16 and fp16    divided in stages 1 to 3
        gathered    value                     in stage 3, of at most 1e9 parameters
        buckets     up to 1 GB                for the reduction; two in stage 3
        tied        value                     of the `tied` elements, in stages 2 and 3

    All but the buckets are bytes a parameter. In float32 without ZeRO the optimizer has no weights
    of its own. `of_buckets` (`bucket_bytes`) takes the place of the default buckets, which one rank
    has not. `tied` are the elements of the matrix that the embeddings and the head share: the head
    begins its gradient, and the embeddings end it.
    """
    value = value_bytes(precision)
    own = parameters / (ranks if stage >= 1 else 1)
    if of_buckets is None:
        default = min(LARGEST_BUCKET * 2.0, parameters * value) * (2 if stage == 3 else 1)
        if stage == 0:
            default = _joined(parameters, ranks) * value
        of_buckets = default if ranks > 1 else 0.0
    masters = 0 if precision == "fp32" and stage == 0 else 4
    fetches = stage == 3 and ranks > 1
    return StateParts(
        weights=parameters * value / (ranks if stage == 3 else 1),
        gradients=parameters * value / (ranks if stage >= 2 else 1),
        optimizer=(masters + 8) * own,
        update=0.0 if precision == "fp32" else 8 * own,
        of_buckets=of_buckets,
        gathered=min(parameters, LIVE_ELEMENTS) * value if fetches else 0.0,
        tied=tied * value if stage >= 2 and ranks > 1 else 0.0,
    )


def state_bytes(parts: StateParts, variant: str) -> StateBytes:
    """The bytes of the parts under a `zero_variant`, on the device and on the host."""
    optimizer = parts.optimizer + parts.update
    if not variant.endswith("offload"):
        return StateBytes(parts.total, 0.0)
    here = parts.of_buckets + parts.gathered + parts.tied
    if variant.startswith("3"):
        return StateBytes(here, optimizer + parts.gradients + parts.weights)
    return StateBytes(parts.weights + here, optimizer + parts.gradients)


class SavedBytes(NamedTuple):
    """Bytes of a checkpoint that each rank writes."""

    first: float
    """Rank 0."""
    others: float
    """Each other rank."""


def saved_bytes(parameters: float, stage: int, precision: str, ranks: int) -> SavedBytes:
    """What DeepSpeed saves: float32 weights and two moments (12 bytes a parameter), and the module.

    Without ZeRO rank 0 writes all of it; float32 weights are then the module's. Under ZeRO-1 and 2
    the first part is divided, and rank 0 adds the module. Under ZeRO-3 there is no other module.
    """
    optimizer, module = 12 * parameters, parameters * value_bytes(precision)
    if stage == 0:
        return SavedBytes(optimizer + (0 if precision == "fp32" else module), 0.0)
    own = optimizer / ranks
    return SavedBytes(own + (module if stage < 3 else 0.0), own)


def activation_bytes(
    shape: GPTConfig, windows: int, precision: str, checkpointing: bool, flash: bool = True
) -> float:
    """What the forward pass of a micro-batch of `windows` windows keeps for the backward pass.

    Per token, with C = n_embd, T = n_ctx, H = n_head, V = the padded vocabulary, and masks of one
    byte (two on a CPU):

        a block            C (16 values + 2 masks): 34 C bytes in bf16, as in Korthikanti et al.,
                           section 4, for the tanh GELU
        without flash      H (value + mask) `mean_keys`: the attention weights
        checkpointing      the input of every block (C values), and one whole block
        the head           C + V values: the last state, and softmax - onehot
        the embeddings     C (value + mask)

    To this comes the peak within the head (`head_bytes`).
    `flash` means that a flash kernel computes the attention, as on a GPU.
    """
    value = value_bytes(precision)
    mask = 1 if flash else 2
    C, T, V = shape.n_embd, shape.n_ctx, shape.padded_vocab_size
    block: float = C * (16 * value + 2 * mask)
    if not flash:
        block += shape.n_head * (value + mask) * mean_keys(T)
    layers = shape.n_layer * block
    if checkpointing:
        layers = shape.n_layer * value * C + block
    head = (C + V) * value
    embeddings = C * (value + mask)
    kept = windows * T * (layers + head + embeddings)
    return kept + head_bytes(shape, windows, flash)


def head_bytes(shape: GPTConfig, windows: int, flash: bool = True) -> float:
    """Float32 copies of a few rows of logits, within the head: nothing keeps them."""
    rows = min(HEAD_ROWS if flash else CACHED_ROWS, windows * shape.n_ctx)
    return 3.0 * rows * shape.padded_vocab_size * 4


def mean_keys(tokens: int) -> float:
    """Keys for which a query of a window of `tokens` keeps a weight: those up to its block's end.

    (tokens + QUERY_BLOCK) / 2 in whole blocks.
    """
    ends = [min(start + QUERY_BLOCK, tokens) for start in range(0, tokens, QUERY_BLOCK)]
    queries = [QUERY_BLOCK] * (len(ends) - 1) + [tokens - QUERY_BLOCK * (len(ends) - 1)]
    return sum(end * count for end, count in zip(ends, queries, strict=True)) / tokens


def gpu_bytes(states: float, activations: float) -> float:
    """What a GPU process needs in all for its share of the model's state and its activations."""
    return (states + activations) * ALLOCATOR + FRAMEWORK_BYTES


def value_bytes(precision: str) -> int:
    """Bytes of a weight or a gradient."""
    return 4 if precision == "fp32" else 2
