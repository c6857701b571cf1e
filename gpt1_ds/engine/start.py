"""The start of an engine: the only `deepspeed.initialize`."""

from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from torch import nn

from gpt1_ds.base.errors import ConfigError, UserError
from gpt1_ds.base.memory import is_shortage
from gpt1_ds.base.protocols import Engine, Json
from gpt1_ds.distributed import collectives, nccl
from gpt1_ds.engine.building import build
from gpt1_ds.engine.compiling import prepare_blocks, take_whole_blocks
from gpt1_ds.engine.defaults import with_defaults
from gpt1_ds.engine.internals import (
    guard_monitor,
    import_deepspeed,
    keep_json,
    keep_lr_shares,
    keep_skipping_at_the_smallest_scale,
    muon_for_blocks_alone,
    order_streams,
    restore_linear,
    set_timeouts,
    spare_the_compiler,
    undo_first_step,
)
from gpt1_ds.engine.optimizer import build_optimizer, parameter_groups
from gpt1_ds.engine.partitions import quicken_partitions
from gpt1_ds.engine.reduction import quicken_reduction
from gpt1_ds.engine.update import quicken_update
from gpt1_ds.model.gpt import GPT
from gpt1_ds.settings.deepspeed_json import nvme_sections, zero_stage
from gpt1_ds.settings.sections import PretrainConfig


def initialize(module: nn.Module, config: PretrainConfig, ds: Json) -> Engine:
    """A DeepSpeed engine around `module`; `ds` comes from `settings.deepspeed_json.resolve`.

    Every rank calls this, after the process group exists. A module without memory gets its initial
    values here (`building`). Without an `optimizer` section in `ds` the engine gets the
    run's own optimizer, so that nothing is compiled at the start.
    """
    for part in module.modules():
        if isinstance(part, GPT):
            part.activation_checkpointing = config.train.activation_checkpointing
    deepspeed = import_deepspeed()
    backend = torch.distributed.get_backend()
    timeout = timedelta(seconds=nccl.group_timeout(backend, config.distributed.timeout_seconds))
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, timeout=timeout, verbose=False)
    spare_the_compiler(ds)
    restore_linear()
    optimizer, groups, device = None, None, collectives.device()
    filled = with_defaults(ds, _size(module), device.type != "cpu")
    with muon_for_blocks_alone(deepspeed), _refused_configuration():
        build(module, filled)
        if str(config.train.compile).lower() == "true" and zero_stage(ds) == 3:
            take_whole_blocks(module)
        if "optimizer" in ds:
            groups = parameter_groups(module, config.optim.weight_decay)
        else:
            optimizer = build_optimizer(module, config.optim)
        engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            model_parameters=groups,
            config=filled,
            dist_init_required=False,
            # Else DeepSpeed takes GPU number LOCAL_RANK, which is none of the visible ones where
            # each rank sees only its own.
            args=Namespace(device_rank=device.index or 0),
        )
    keep_json(engine, ds)
    keep_lr_shares(engine, config.optim.lr)
    guard_monitor(engine.monitor)
    keep_skipping_at_the_smallest_scale(engine)
    undo_first_step(engine)
    order_streams(engine)
    quicken_reduction(engine)
    quicken_partitions(engine)
    quicken_update(engine)
    set_timeouts(timeout)
    prepare_blocks(engine, config)
    return engine


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@contextmanager
def _refused_configuration() -> Iterator[None]:
    """What DeepSpeed has against its JSON, beyond the rules of `settings/json_check.py`."""
    try:
        yield
    except Exception as error:  # DeepSpeed raises this bare class too
        # A RuntimeError is of a peer or a compiler, unless DeepSpeed lacks what the JSON asks for.
        lacking = isinstance(error, NotImplementedError)
        known = isinstance(error, UserError | RuntimeError) and not lacking
        if known or is_shortage(error):
            raise
        raise _refusal(error) from error


def _refusal(error: Exception) -> ConfigError:
    # pydantic's text has a line for the section and one for each fault
    text = "; ".join(line.strip() for line in str(error).splitlines()[:3])
    return ConfigError(
        f"--deepspeed_config: DeepSpeed refuses it: {text or type(error).__name__}; "
        "correct that key, or remove it"
    )


def require_async_io(path: Path | str, ds: Json) -> None:
    """ConfigError if the JSON at `path` offloads to nvme and DeepSpeed cannot build async_io."""
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
