"""The only `deepspeed.initialize`."""

from datetime import timedelta
from typing import Any

import torch
from torch import nn

from gpt1_ds.engine.internals import (
    guard_monitor,
    import_deepspeed,
    muon_for_blocks_alone,
    set_timeouts,
    skip_non_finite,
    spare_the_compiler,
)
from gpt1_ds.engine.optimizer import build_optimizer, parameter_groups
from gpt1_ds.model.gpt import GPT, Block
from gpt1_ds.settings.sections import PretrainConfig


def initialize(module: nn.Module, config: PretrainConfig, ds: dict[str, Any]):
    """A DeepSpeed engine around `module`; `ds` comes from `settings.deepspeed_json.resolve`.

    Without an `optimizer` section in `ds` the run's own optimizer goes in, so that nothing is compiled at start.
    """
    for part in module.modules():
        if isinstance(part, GPT):
            part.activation_checkpointing = config.train.activation_checkpointing
        elif isinstance(part, Block) and config.train.compile:
            part.compile()
    deepspeed = import_deepspeed()
    backend = torch.distributed.get_backend()
    timeout = timedelta(seconds=config.distributed.timeout_seconds)
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, timeout=timeout, verbose=False)
    spare_the_compiler(ds)
    client = None if "optimizer" in ds else build_optimizer(module, config.optim)
    parameters = parameter_groups(module, config.optim.weight_decay) if client is None else None
    with muon_for_blocks_alone(deepspeed):
        engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=client,
            model_parameters=parameters,
            config=ds,
            dist_init_required=False,
        )
    # An `optimizer` section may give groups rates of their own, such as Muon's muon_lr and adam_lr.
    engine.lr_shares = [group["lr"] / config.optim.lr for group in engine.optimizer.param_groups]
    guard_monitor(engine.monitor)
    if hasattr(getattr(engine.optimizer, "loss_scaler", None), "raise_error_at_min_scale"):
        engine.optimizer.loss_scaler.raise_error_at_min_scale = (
            False  # train.max_skipped ends such a run
        )
    if engine.zero_optimization_stage() == 0 and hasattr(engine.optimizer, "refresh_fp32_params"):
        # DeepSpeed's wrappers for bf16 and fp16 without ZeRO open with an optimizer step on zero gradients: taken back.
        engine.basic_optimizer.state.clear()
        for group in engine.basic_optimizer.param_groups:
            group.pop("step", None)
        engine.optimizer.refresh_fp32_params()
    if not hasattr(engine.optimizer, "overflow"):
        skip_non_finite(
            engine.optimizer
        )  # float32 without ZeRO: no other wrapper of DeepSpeed's looks
    set_timeouts(config.distributed.timeout_seconds)
    return engine
