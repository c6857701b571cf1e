"""The peak rate of matrix products of this rank's device, which MFU is a share of."""

import time
from functools import lru_cache
from typing import NamedTuple

import torch

from gpt1_ds.distributed import collectives


class Peak(NamedTuple):
    """FLOP/s of dense products in bfloat16 or float16, and in float32 without TF32."""

    half: float
    single: float


HOPPER, HOPPER_NVL = Peak(989e12, 67e12), Peak(835e12, 60e12)
AMPERE = Peak(312e12, 19.5e12)
MI300 = Peak(1307e12, 163e12)
GPU_PEAKS = {
    "NVIDIA GB200": Peak(2500e12, 80e12),
    "NVIDIA B200": Peak(2250e12, 75e12),
    "NVIDIA GH200 480GB": HOPPER,
    "NVIDIA GH200 144G HBM3e": HOPPER,
    "NVIDIA H200": HOPPER,
    "NVIDIA H200 NVL": HOPPER_NVL,
    "NVIDIA H100 80GB HBM3": HOPPER,
    "NVIDIA H100 NVL": HOPPER_NVL,
    "NVIDIA H100 PCIe": Peak(756e12, 51e12),
    "NVIDIA H800": HOPPER,
    "NVIDIA H20": Peak(148e12, 44e12),
    "NVIDIA A100-SXM4-40GB": AMPERE,
    "NVIDIA A100-SXM4-80GB": AMPERE,
    "NVIDIA A100-PCIE-40GB": AMPERE,
    "NVIDIA A100 80GB PCIe": AMPERE,
    "NVIDIA A800-SXM4-80GB": AMPERE,
    "NVIDIA A800 80GB PCIe": AMPERE,
    "NVIDIA L40S": Peak(362e12, 92e12),
    "AMD Instinct MI300X": MI300,
    "AMD Instinct MI300X OAM": MI300,
    "AMD Instinct MI325X": MI300,
}
"""By the name that the driver gives a card, from the vendors' data sheets.

A card that is not here is measured. (A V100 is not: it has no bfloat16.)
"""

CPU_SIZES = (256, 256, *[1024] * 5)
"""Sides of the matrices in the products that measure a CPU's peak."""
LONGEST_PRODUCT_SECONDS = 0.1
GPU_SIZE, GPU_PRODUCTS = 8192, 8
"""The same for a GPU: a smaller product does not fill it."""
EMULATED_FLOPS = 10e9
"""No core reaches it without bfloat16 instructions (1e9 was measured), and every one with them."""


def peak_flops(precision: str) -> float:
    """Peak of this rank's device, FLOP/s: of the data sheet, or measured where none is known."""
    if torch.cuda.is_available():
        return peak_of_gpu(torch.cuda.get_device_name(), precision) or _measured_on_gpu(precision)
    return _measured_on_cpu(precision)


def peak_of_gpu(name: str, precision: str) -> float | None:
    """The data sheet's peak of the card that the driver calls `name`; None if it is not known."""
    peak = GPU_PEAKS.get(name)
    if peak is None:
        return None
    return peak.single if precision == "fp32" else peak.half


def has_bfloat16_instructions() -> bool:
    """Whether this rank's device multiplies bfloat16 matrices itself.

    A CPU that does not emulates it, far more slowly than float32: take `ds_configs/cpu_fp32.json`.
    """
    return torch.cuda.is_available() or _measured_on_cpu("bf16") > EMULATED_FLOPS


def _dtype(precision: str) -> torch.dtype:
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)


@lru_cache
def _measured_on_gpu(precision: str) -> float:
    """The best FLOP/s of several products, timed by events in the stream of the GPU."""
    a = torch.ones(GPU_SIZE, GPU_SIZE, dtype=_dtype(precision), device=collectives.device())
    moments = [torch.cuda.Event(enable_timing=True) for _ in range(GPU_PRODUCTS + 1)]
    for moment in moments:
        moment.record()
        a @ a
    torch.cuda.synchronize()
    spans = zip(moments, moments[1:], strict=False)
    return 2 * GPU_SIZE**3 / min(start.elapsed_time(end) / 1000 for start, end in spans)


def _measured_on_cpu(precision: str) -> float:
    """The best FLOP/s of several products, measured in about a tenth of a second.

    A CPU without bfloat16 instructions would take seconds for a large product in that precision.
    """
    best = 0.0
    for size in CPU_SIZES:
        flops = 2 * size**3
        if best and flops / best > LONGEST_PRODUCT_SECONDS:
            break
        a = torch.ones(size, size, dtype=_dtype(precision))
        start = time.perf_counter()
        (a @ a)[0, 0].item()
        best = max(best, flops / (time.perf_counter() - start))
    return best
