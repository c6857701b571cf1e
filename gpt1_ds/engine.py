"""The only `deepspeed.initialize`."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from gpt1_ds import distributed, metrics, optim
from gpt1_ds.config import PretrainConfig
from gpt1_ds.model import GPT, Block


def initialize(module: nn.Module, config: PretrainConfig, ds: dict[str, Any]):
    """A DeepSpeed engine around `module`; `ds` comes from `deepspeed_config.resolve`.

    Without an `optimizer` section in `ds` the run's own optimizer goes in, so that nothing is compiled at start.
    """
    for part in module.modules():
        if isinstance(part, GPT):
            part.activation_checkpointing = config.train.activation_checkpointing
        elif isinstance(part, Block) and config.train.compile:
            part.compile()
    deepspeed = distributed.import_deepspeed()
    _spare_the_compiler(ds)
    client = None if "optimizer" in ds else optim.build(module, config.optim)
    parameters = optim.parameter_groups(module, config.optim.weight_decay) if client is None else None
    with _muon_for_blocks_alone(deepspeed):
        engine, *_ = deepspeed.initialize(
            model=module, optimizer=client, model_parameters=parameters, config=ds, dist_init_required=False
        )
    # An `optimizer` section may give groups rates of their own, such as Muon's muon_lr and adam_lr.
    engine.lr_shares = [group["lr"] / config.optim.lr for group in engine.optimizer.param_groups]
    metrics.guard_monitor(engine.monitor)
    if hasattr(getattr(engine.optimizer, "loss_scaler", None), "raise_error_at_min_scale"):
        engine.optimizer.loss_scaler.raise_error_at_min_scale = False  # train.max_skipped ends such a run
    if engine.zero_optimization_stage() == 0 and hasattr(engine.optimizer, "refresh_fp32_params"):
        # DeepSpeed's wrappers for bf16 and fp16 without ZeRO open with an optimizer step on zero gradients: taken back.
        engine.basic_optimizer.state.clear()
        for group in engine.basic_optimizer.param_groups:
            group.pop("step", None)
        engine.optimizer.refresh_fp32_params()
    if not hasattr(engine.optimizer, "overflow"):
        optim.skip_non_finite(engine.optimizer)  # float32 without ZeRO: no other wrapper of DeepSpeed's looks
    distributed.set_timeouts(config.distributed.timeout_seconds)
    return engine


@contextmanager
def _muon_for_blocks_alone(deepspeed) -> Iterator[None]:
    """DeepSpeed would take every matrix for Muon whose name has no "embed" in it."""
    mark = deepspeed.set_optimizer_flags

    def mark_again(ds_config, module: nn.Module) -> None:
        mark(ds_config, module)
        optim.mark_for_muon(module)

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
    engine.micro_steps = 0  # counted over all steps it would misplace the boundary once their sizes differ


def _spare_the_compiler(ds: dict[str, Any]) -> None:
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
