"""Bytes a rank needs to train, from the model's shape and DeepSpeed's stages, before anything is allocated.

Sources: Rajbhandari et al. 2020 (ZeRO), section 5; Korthikanti et al. 2022, section 4. Held against real runs in
`tests/test_plan.py`.
"""

from typing import Any

from gpt1_ds.model.gpt import GPTConfig
from gpt1_ds.model.kernels import CACHED_ROWS, HEAD_ROWS, QUERY_BLOCK

BUCKET_BYTES = 1e9  # DeepSpeed's default reduce bucket of 5e8 elements in two bytes


def zero_variant(ds: dict[str, Any]) -> str:
    """Stage and offload of a resolved DeepSpeed JSON, such as "2" or "3+offload"."""
    section = ds.get("zero_optimization", {})
    moved = any(
        section.get(key, {}).get("device", "none") != "none"
        for key in ("offload_optimizer", "offload_param")
    )
    return f"{section.get('stage', 0)}{'+offload' if moved else ''}"


def state_bytes(parameters: float, way: str, precision: str, ranks: int) -> tuple[float, float]:
    """Weights, gradients, masters and moments: bytes on a rank, and bytes on its host that offload moves there."""
    stage, low = int(way[0]), 4 if precision == "fp32" else 2
    # Beside masters and moments a step holds the rank's gradients flattened, twice, and in float32.
    masters = parameters * (12 if precision == "fp32" else 12 + 8) / (ranks if stage >= 1 else 1)
    gradients = parameters * low / (ranks if stage >= 2 else 1)
    weights = parameters * low / (ranks if stage == 3 else 1)
    buckets = (
        min(BUCKET_BYTES, parameters * low) * (2 if stage == 3 else 1)
        if stage >= 1 and ranks > 1
        else 0
    )
    if way.endswith("offload"):
        moved = masters + gradients + (weights if stage == 3 else 0)
        return (weights if stage == 2 else 0) + buckets, moved
    return weights + gradients + masters + buckets, 0.0


def activation_bytes(
    shape: GPTConfig, windows: int, precision: str, checkpointing: bool, flash: bool = True
) -> float:
    """Kept for backward by a micro-batch of `windows`: 34 values' worth of bytes a token, layer and channel in two-byte
    precision (Korthikanti et al. 2022, section 4, with tanh GELU and one-byte masks; two-byte ones on a CPU), attention
    weights where no flash kernel spares them, and the head's."""
    low, mask = 4 if precision == "fp32" else 2, 1 if flash else 2
    C, T = shape.n_embd, shape.n_ctx
    block = C * (16 * low + 2 * mask)
    if not flash:
        block += shape.n_head * (low + mask) * (T + QUERY_BLOCK) / 2
    layers = shape.n_layer * low * C + block if checkpointing else shape.n_layer * block
    head = (C + shape.padded_vocab_size) * low
    rows = min(HEAD_ROWS if flash else CACHED_ROWS, windows * T)
    return windows * T * (layers + head + C * (low + mask)) + 3 * rows * shape.padded_vocab_size * 4
