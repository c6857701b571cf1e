"""Every change to DeepSpeed's and torch's behaviour."""

import importlib
import inspect
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from gpt1_ds.base.errors import ConfigError
from gpt1_ds.settings.deepspeed_json import nvme_sections


def mark_for_muon(module: nn.Module) -> None:
    """Muon is for the matrices of the blocks; embeddings, heads and all that is no matrix are Adam's (Jordan 2024)."""
    for name, parameter in module.named_parameters():
        parameter.use_muon = parameter.ndim > 1 and "blocks" in name.split(".")


def skip_non_finite(optimizer: torch.optim.Optimizer) -> None:
    """Have `optimizer` leave out a step whose gradients are not finite, and say so in `overflow`, for DeepSpeed."""
    step, optimizer.overflow = optimizer.step, False

    def guarded(closure=None):
        sums = [
            p.grad.sum()
            for group in optimizer.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        optimizer.overflow = not torch.stack(sums).isfinite().all().item()
        return None if optimizer.overflow else step(closure)

    optimizer.step = guarded


class AdamW(torch.optim.AdamW):
    """torch's, whose own `step` would first import torch's compiler, a second, to say that no graph may hold it."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


@contextmanager
def muon_for_blocks_alone(deepspeed) -> Iterator[None]:
    """DeepSpeed would take every matrix for Muon whose name has no "embed" in it."""
    mark = deepspeed.set_optimizer_flags

    def mark_again(ds_config, module: nn.Module) -> None:
        mark(ds_config, module)
        mark_for_muon(module)

    deepspeed.set_optimizer_flags = mark_again
    try:
        yield
    finally:
        deepspeed.set_optimizer_flags = mark


def set_batch(engine, windows: int) -> None:
    """Give the next optimizer step so many windows over all ranks, in micro-batches as before."""
    if windows != engine.train_batch_size():
        engine.set_train_batch_size(windows)
        if hasattr(engine.optimizer, "gradient_accumulation_steps"):  # ZeRO 1 to 3 keep their own
            engine.optimizer.gradient_accumulation_steps = engine.gradient_accumulation_steps()
    engine.micro_steps = (
        0  # counted over all steps it would misplace the boundary once their sizes differ
    )


def spare_the_compiler(ds: dict[str, Any]) -> None:
    """Every start would import torch's compiler, a second: torch's optimizers, to keep plain functions out of graphs
    that no one makes of them, and DeepSpeed, to ask whether the optimizer is Muon, whose module compiles its kernels.
    Where it is not, they are left as they are."""
    for function in vars(torch.optim.Optimizer).values():
        if plain := getattr(function, "__wrapped__", None):
            plain.__dynamo_disable = plain
    if ds.get("optimizer", {}).get("type", "").lower() == "muon":
        return
    from deepspeed.runtime import compiler

    compiled, compiler.compile = compiler.compile, lambda: lambda kernel: kernel
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    finally:
        compiler.compile = compiled


def import_deepspeed():
    """DeepSpeed, quiet, and on a CPU without its compiled all-reduce. Takes seconds, so it is imported when needed."""
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module="torch.distributed"
    )  # DeepSpeed's calls, not ours
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    deepspeed.utils.logger.setLevel("ERROR")
    if not torch.cuda.is_available():
        # It would be compiled at the start of the process group (a minute), and training never calls it.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def require_async_io(path: Path | str, ds: dict[str, Any]) -> None:
    """ConfigError where the JSON at `path` offloads to nvme and DeepSpeed's async_io cannot be built."""
    sections = nvme_sections(ds)
    if not sections:
        return
    import_deepspeed()
    from deepspeed.ops.op_builder import AsyncIOBuilder

    if not AsyncIOBuilder().is_compatible(verbose=False):
        raise ConfigError(
            f"{path}: {sections[0]} to nvme needs DeepSpeed's async_io, which cannot be built "
            "here; install libaio-dev (libaio-devel), or take device cpu"
        )


def set_timeouts(timeout_seconds: float) -> None:
    """Give every process group the run's timeout: those that DeepSpeed makes itself would wait 30 minutes."""
    groups = dist.distributed_c10d._world.pg_map
    for group in list(groups):
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=timeout_seconds), group)


def loss_scale(engine) -> dict[str, float]:
    """The loss scale of fp16; nothing in other precisions."""
    return {"loss_scale": float(engine.optimizer.loss_scale)} if engine.fp16_enabled() else {}


def layer_norms(engine) -> dict[str, float]:
    """L2 norms of weights and unclipped gradients of each embedding and block: `weight_norm/GROUP`, `grad_norm/GROUP`.

    Every rank calls, after the last backward of a step and before `engine.step()`, which clears the gradients. It
    gathers each tensor in turn: the cost of one more reduction of the model.
    """
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad

    squares: dict[str, float] = {}
    for name, parameter in engine.module.named_parameters():
        words = name.split(".")
        group = (
            f"block-{int(words[words.index('blocks') + 1]):02d}" if "blocks" in words else words[-1]
        )
        weight, grad = safe_get_full_fp32_param(parameter), safe_get_full_grad(parameter)
        for kind, tensor in (("weight", parameter if weight is None else weight), ("grad", grad)):
            if tensor is not None:
                key = f"{kind}_norm/{group}"
                squares[key] = squares.get(key, 0.0) + tensor.detach().float().square().sum().item()
    return {key: round(value**0.5, 6) for key, value in squares.items()}


def guard_monitor(monitor) -> None:
    """Have DeepSpeed's monitor (W&B, CSV) fall silent where it fails, instead of ending the training."""
    write = monitor.write_events

    def guarded(events: list[tuple]) -> None:
        try:
            write(events)
        except Exception as error:  # whatever a W&B client may raise
            monitor.enabled = False
            print(
                f"warning: monitor of the DeepSpeed JSON: {error}; training goes on without it",
                file=sys.stderr,
            )

    monitor.write_events = guarded
