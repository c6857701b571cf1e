"""Tokens a second of single steps: ours, and other code beside it."""

import importlib.util
import os
import statistics
import time
from functools import partial

import torch

from benchmarks import train_step
from benchmarks.on_gpu import peers
from benchmarks.on_gpu.training import is_option
from gpt1_ds.distributed import collectives
from gpt1_ds.engine.timing import Throughput
from gpt1_ds.plan import BOOKS_CORPUS_TOKENS

WARM_STEPS, TIMINGS, EPOCHS = 3, 3, 100
WAYS = {
    "gpt1_ds": train_step.ours,
    "gpt1_ds, compiled": train_step.compiled,
    "gpt1_ds, deterministic": lambda size: train_step.ours(size, "train.deterministic=true"),
    "gpt1_ds, CUDA graphs": lambda size: train_step.ours(size, "train.cuda_graphs=true"),
    "gpt1_ds, compiled, CUDA graphs": lambda size: train_step.ours(
        size, "train.compile=true", "train.cuda_graphs=true"
    ),
    "gpt1_ds ZeRO-2": partial(train_step.ours, ds="zero2_bf16.json"),
    "gpt1_ds ZeRO-3": partial(train_step.ours, ds="zero3_bf16.json"),
    "gpt1_ds ZeRO-2 fp16": partial(train_step.ours, ds="zero2_fp16.json"),
    "gpt1_ds ZeRO-2 offload": partial(train_step.ours, ds="zero2_offload.json"),
    "our model, plain loop": peers.own_model,
    "torch modules, plain loop": peers.torch_modules,
    "torch modules, compiled": partial(peers.torch_modules, compiled=True),
    "transformers, plain loop": train_step.transformers_plain,
    "transformers, DeepSpeed ZeRO-1": train_step.transformers_deepspeed,
    "nanoGPT compiled": train_step.nanogpt,
}


def _lacking(way: str) -> str:
    """Why this machine or version cannot take a way; empty if it can."""
    if "transformers" in way and importlib.util.find_spec("transformers") is None:
        return "transformers is not installed"
    if "nanoGPT" in way and "NANOGPT" not in os.environ:
        return "--nanogpt PATH was not given"
    if "CUDA graphs" in way and not is_option("cuda_graphs"):
        return "not in this version"
    needing = any(name in way for name in ("CUDA graphs", "fp16"))
    return "it needs a GPU" if needing and not torch.cuda.is_available() else ""


def measure(way: str, size: list[int], steps: int) -> dict:
    """Tokens a second of three timings of `steps` steps; MFU, memory and the host's time."""
    lacking = _lacking(way)
    if lacking:
        return {"untried": lacking}
    # Each number of windows is compiled for itself, as in a run, which has one.
    torch._dynamo.config.automatic_dynamic_shapes = False
    on_gpu, memory, of = torch.cuda.is_available(), None, train_step.Size(*size)
    torch.manual_seed(0)
    before = torch.cuda.memory_allocated() if on_gpu else 0
    step, ids_BT = WAYS[way](of), of.windows_of_ids().to(collectives.device())
    for _ in range(WARM_STEPS):
        step(ids_BT)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    timings = [_timed(step, ids_BT, steps) for _ in range(TIMINGS)]
    if on_gpu:
        memory = round((torch.cuda.max_memory_allocated() - before) / 1e9, 2)
    tokens = of.windows * train_step.N_CTX
    rates = sorted(tokens / seconds for seconds, _ in timings)
    flops = of.shape().flops_per_token
    peak = Throughput(flops, "bf16").peak_flops
    rate = statistics.median(rates)
    return {
        "way": way,
        "windows": of.windows,
        "tokens_per_second": round(rate),
        "slowest": round(rates[0]),
        "fastest": round(rates[-1]),
        "mfu": round(rate * flops / peak, 4),
        "host_ms": round(1000 * statistics.median(host for _, host in timings), 2),
        "step_ms": round(1000 * tokens / rate, 2),
        "gigabytes": memory,
        "hours": round(EPOCHS * BOOKS_CORPUS_TOKENS / rate / 3600, 1),
    }


def _timed(step: train_step.Step, ids_BT: torch.Tensor, steps: int) -> tuple[float, float]:
    """Seconds a step, and seconds of the host a step until all steps are under way."""
    _wait()
    began = time.perf_counter()
    for _ in range(steps):
        step(ids_BT)
    host = time.perf_counter() - began
    _wait()
    return (time.perf_counter() - began) / steps, host / steps


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
