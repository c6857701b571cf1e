"""Every change to the behaviour of DeepSpeed and torch.

The docstring of each change says, in this order:

    Why:    what would happen without it.
    Seen:   the version in which that was observed.
    Ends:   when the change is undone, or why it is not.
    Until:  what would make it unnecessary.

State (what DeepSpeed keeps in files and flat tensors) is the subject of `checkpoints/`.
"""

import copyreg
import importlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from datetime import timedelta
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from gpt1_ds.base.protocols import Engine, Json, Monitor, MonitorEvent
from gpt1_ds.distributed.console import warn

Collective = Callable[..., Any]

COLLECTIVES = (
    "all_reduce",
    "all_reduce_coalesced",
    "reduce",
    "broadcast",
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_coalesced",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "all_to_all_single",
)
"""Methods of DeepSpeed's communication backend that move tensors during a step."""


# --- Before the engine is built ---


def import_deepspeed() -> ModuleType:
    """Import DeepSpeed, quietly, and on a machine without a GPU without its compiled all-reduce.

    The import takes seconds, so it happens when it is needed and not with this module.

    Why:    DeepSpeed logs pages of information, and its calls of torch raise FutureWarnings that a
            user cannot act on. Its shared-memory all-reduce (the op `deepspeed_shm_comm`) would be
            compiled at the start of the process group, which takes a minute; training never calls
            it, because torch's gloo does the same work.
    Seen:   DeepSpeed 0.19.8.
    Ends:   never: they are settings of the process, and every engine in it wants the same.
    Until:  DeepSpeed has an option for the op, and a log level that its import respects.
    """
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    if not on_gpu:
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def spare_the_compiler(ds: Json) -> None:
    """Keep the start of an engine from importing torch's compiler.

    Why:    the import takes a second. torch's optimizers cause it, to exclude their methods from
            compiled graphs, and so does DeepSpeed, which imports its Muon module (whose kernels
            are compiled) to find out whether the optimizer is Muon. A run with Muon is left alone.
    Seen:   torch 2.13, DeepSpeed 0.19.8.
    Ends:   the replaced `compiler.compile` right after the import of the module. What the module
            and torch's methods keep stays: a module is imported once, and `__dynamo_disable` is
            torch's own cache of the function that it would store there itself.
    Until:  torch and DeepSpeed import the compiler only where something is compiled.
    """
    for function in vars(torch.optim.Optimizer).values():
        plain = getattr(function, "__wrapped__", None)
        if plain:
            plain.__dynamo_disable = plain
    if ds.get("optimizer", {}).get("type", "").lower() == "muon":
        return
    from deepspeed.runtime import compiler

    compiled = compiler.compile
    compiler.compile = lambda: lambda kernel: kernel
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    finally:
        compiler.compile = compiled


def restore_linear() -> None:
    """Give torch its own linear layer back, if a ZeRO-3 engine of this process has replaced it.

    Why:    the one of ZeRO-3 rounds bf16 in another way. So a run without ZeRO-3 would have other
            bits where its process has had a ZeRO-3 engine before.
    Seen:   DeepSpeed 0.19.8, which replaces it for the life of the process.
    Ends:   with the next ZeRO-3 engine.
    Until:  DeepSpeed replaces it in the model of its engine alone.
    """
    from deepspeed.runtime.zero.partition_parameters import InsertPostInitMethodToModuleSubClasses

    own = getattr(InsertPostInitMethodToModuleSubClasses, "linear_bk", None)
    if own is not None:
        torch.nn.functional.linear = own


@contextmanager
def muon_for_blocks_alone(deepspeed: ModuleType) -> Iterator[None]:
    """Let Muon take the matrices of the blocks, and Adam everything else, in engines built inside.

    Why:    Muon is meant for the matrices inside the network; embeddings and heads belong to Adam
            (Jordan 2024). DeepSpeed gives Muon every matrix unless its name contains "embed" or
            "lm_head"; ours are called `wte`, `wpe` and `head`.
    Seen:   DeepSpeed 0.19.8.
    Ends:   with the block.
    Until:  DeepSpeed keeps a flag `use_muon` that the parameter already has.
    """
    set_flags = deepspeed.set_optimizer_flags

    def set_flags_by_block(ds_config: object, module: nn.Module) -> None:
        set_flags(ds_config, module)
        for name, parameter in module.named_parameters():
            matrix_of_block = parameter.ndim > 1 and "blocks" in name.split(".")
            parameter.use_muon = matrix_of_block  # type: ignore[attr-defined]

    deepspeed.set_optimizer_flags = set_flags_by_block  # type: ignore[attr-defined]
    try:
        yield
    finally:
        deepspeed.set_optimizer_flags = set_flags  # type: ignore[attr-defined]


# --- On the built engine. These changes are on its own objects, so they end with the engine. ---


def set_timeouts(timeout: timedelta) -> None:
    """Give every process group this timeout.

    Why:    the groups that DeepSpeed makes itself would wait 30 minutes for a dead peer.
    Seen:   DeepSpeed 0.19.8; torch 2.13 changes the timeout of a group by a private function only.
    Ends:   with the process groups.
    Until:  DeepSpeed passes the timeout of `init_distributed` on to the groups that it makes.
    """
    groups = dist.distributed_c10d._world.pg_map
    for group in list(groups):
        dist.distributed_c10d._set_pg_timeout(timeout, group)


def keep_json(engine: Engine, ds: Json) -> None:
    """Let checkpoints repeat the JSON as the run resolved it, without what `defaults.py` adds.

    Why:    DeepSpeed writes the dict that it was given into each checkpoint. The bytes of a
            checkpoint would change with `defaults.with_defaults`.
    Seen:   DeepSpeed 0.19.8.
    Ends:   with the engine.
    Until:  DeepSpeed's own defaults suit the model.
    """
    engine.config = ds


def keep_lr_shares(engine: Engine, peak_lr: float) -> None:
    """Remember in `engine.lr_shares` the rate of each parameter group as a share of `peak_lr`.

    Why:    an `optimizer` section may give groups rates of their own, such as Muon's `muon_lr` and
            `adam_lr`. The schedule (`optimizer.set_lr`) must keep their proportion.
    Seen:   DeepSpeed 0.19.8.
    Ends:   with the engine.
    Until:  never: the rates as built are known only here, and the schedule overwrites them.
    """
    engine.lr_shares = [group["lr"] / peak_lr for group in engine.optimizer.param_groups]


def order_streams(engine: Engine) -> None:
    """At the end of a backward pass, let the device wait for the reductions, and not the host.

    Why:    with `overlap_comm` the gradients are reduced in a stream of their own. DeepSpeed lets
            the host wait for the whole device before the step may read them. An order between the
            two streams is enough: both allocate from the memory of their own stream only, and the
            stream of the reductions waits for the other one before each bucket.
    Seen:   DeepSpeed 0.19.8 (`independent_gradient_partition_epilogue`).
    Ends:   with the engine.
    Until:  DeepSpeed calls `wait_stream` there.
    """
    from deepspeed.accelerator import get_accelerator

    zero = engine.optimizer
    overlaps = getattr(zero, "overlap_comm", False)  # BF16_Optimizer has no such attribute
    if engine.zero_optimization_stage() not in (1, 2) or not overlaps or zero.cpu_offload:
        return
    accelerator, epilogue = get_accelerator(), zero.independent_gradient_partition_epilogue

    def wait_in_order(*_device: object) -> None:
        accelerator.current_stream().wait_stream(zero.reduction_stream)

    def ordered() -> None:
        with replaced(accelerator, "synchronize", wait_in_order):
            epilogue()

    zero.independent_gradient_partition_epilogue = ordered


@contextmanager
def replaced(owner: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Give the object `owner` another method `name` inside the block.

    Why:    DeepSpeed's accelerator is one object for the whole process.
    Seen:   DeepSpeed 0.19.8.
    Ends:   with the block.
    Until:  nothing needs it any more.
    """
    before = vars(owner).get(name)
    setattr(owner, name, function)
    try:
        yield
    finally:
        if before is None:
            delattr(owner, name)  # that of its class shows again
        else:
            setattr(owner, name, before)


def guard_monitor(monitor: Monitor) -> None:
    """Switch DeepSpeed's monitor (W&B, CSV) off when it fails, with a warning.

    Why:    an exception in a W&B client, or a full disk below a CSV file, would end the training.
    Seen:   DeepSpeed 0.19.8.
    Ends:   with the engine, to which the monitor belongs.
    Until:  DeepSpeed's monitors handle their own errors.
    """
    write = monitor.write_events

    def guarded(events: list[MonitorEvent]) -> None:
        try:
            write(events)
        except Exception as error:  # whatever a W&B client may raise
            monitor.enabled = False
            warn(f"monitor of the DeepSpeed JSON: {error}; training goes on without it")

    monitor.write_events = guarded  # type: ignore[method-assign]


def keep_skipping_at_the_smallest_scale(engine: Engine) -> None:
    """Let fp16 skip a step even when the loss scale cannot become smaller.

    Why:    DeepSpeed raises a bare Exception there. `train.max_skipped` ends such a run, with exit
            code 4 and the last good checkpoint.
    Seen:   DeepSpeed 0.19.8 (`DynamicLossScaler`).
    Ends:   with the engine, to which the scaler belongs.
    Until:  the fp16 section of the JSON has an option for it.
    """
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    if scaler is not None and hasattr(scaler, "raise_error_at_min_scale"):
        scaler.raise_error_at_min_scale = False


def undo_first_step(engine: Engine) -> None:
    """Undo the optimizer step on zero gradients with which an engine without ZeRO begins.

    Why:    DeepSpeed's wrappers for bf16 and fp16 make that step to allocate the moments. It decays
            the weights, and it moves Adam's step count (its bias correction) on by one.
    Seen:   DeepSpeed 0.19.8, ZeRO stage 0.
    Ends:   it is done once: the state is as if the step had not been.
    Until:  DeepSpeed allocates the moments without a step, as its ZeRO stages do.
    """
    if engine.zero_optimization_stage() != 0:
        return
    if not hasattr(engine.optimizer, "refresh_fp32_params"):
        return
    engine.basic_optimizer.state.clear()
    for group in engine.basic_optimizer.param_groups:
        group.pop("step", None)
    engine.optimizer.refresh_fp32_params()


# --- During training ---

SCALE_STATE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""What changes in a dynamic loss scaler of fp16 from step to step; the rest of it are settings."""
GROUP_STATE = ("params", "lr", "step")
"""The same for a parameter group; `optimizer.set_lr` sets the rate."""


@contextmanager
def keep_settings(engine: Engine) -> Iterator[None]:
    """Let a load inside the block restore the optimizer's state, but none of its settings.

    Why:    DeepSpeed's load also overwrites the settings of each parameter group (weight_decay,
            betas, eps), the largest gradient norm, and the settings of the loss scaler. So a
            setting that was changed for a resume would have no effect.
    Seen:   DeepSpeed 0.19.8; the gradient norm in all wrappers but that of ZeRO-3.
    Ends:   with the block.
    Until:  DeepSpeed's load has an option to keep the settings of the engine.
    """
    optimizer = engine.optimizer
    groups = [dict(group) for group in engine.basic_optimizer.param_groups]
    clip_grad = getattr(optimizer, "clip_grad", None)
    scaler = copy(getattr(optimizer, "loss_scaler", None))
    yield
    for group, built in zip(engine.basic_optimizer.param_groups, groups, strict=True):
        for key, value in built.items():
            # What is equal stays the object that was loaded: the bytes of later saves stay, too.
            if key not in GROUP_STATE and group.get(key) != value:
                group[key] = value
    if clip_grad is not None:
        optimizer.clip_grad = clip_grad
    if scaler is not None:
        optimizer.loss_scaler = _with_state(scaler, optimizer.loss_scaler)


def _with_state(built: object, loaded: object) -> object:
    """The loss scaler with the settings of `built` and, if both are dynamic, the state of
    `loaded`; just `loaded` if the settings are equal.

    Why:    see `keep_settings`.
    Seen:   DeepSpeed 0.19.8.
    Ends:   it changes nothing but `built`, a copy.
    Until:  `keep_settings` goes.
    """
    dynamic = "cur_iter" in vars(built) and "cur_iter" in vars(loaded)
    for name in SCALE_STATE:
        if dynamic and name in vars(loaded):
            setattr(built, name, getattr(loaded, name))
    same = type(built) is type(loaded) and vars(built) == vars(loaded)
    return loaded if same else built


def set_batch(engine: Engine, windows: int) -> None:
    """Make the next optimizer step one of `windows` windows over all ranks; micro-batches stay.

    Why:    `set_train_batch_size` changes the engine's number of micro-batches a step, but ZeRO 1
            to 3 divide the gradients by a number of their own. And the engine counts micro-batches
            over all steps: once steps differ in size, that count misplaces the step's end.
    Seen:   DeepSpeed 0.19.8.
    Ends:   with the engine.
    Until:  `set_train_batch_size` changes the optimizer's number and starts the count anew.
    """
    if windows != engine.train_batch_size():
        engine.set_train_batch_size(windows)
        if hasattr(engine.optimizer, "gradient_accumulation_steps"):
            engine.optimizer.gradient_accumulation_steps = engine.gradient_accumulation_steps()
    engine.micro_steps = 0


def pickle_stages_by_value() -> None:
    """Let pickles hold DeepSpeed's ZeRO stage as class and value, under every version of Python.

    Why:    Python 3.11.0 to 3.11.3 (Debian 12 has 3.11.2) pickle a member of an enum as a call of
            `getattr`, which no reader of weights alone may allow. So every checkpoint of ZeRO 1 to
            3 would be refused as untrusted.
    Seen:   DeepSpeed 0.19.8, Python 3.11.2.
    Ends:   never: it is what other versions of Python do by themselves, with the same bytes.
    Until:  Python 3.11.0 to 3.11.3 are no longer supported, or DeepSpeed saves a number.
    """
    from deepspeed.runtime.zero.config import ZeroStageEnum

    copyreg.pickle(ZeroStageEnum, lambda stage: (ZeroStageEnum, (stage.value,)))


@contextmanager
def wrapped_collectives(wrap: Callable[[Collective], Collective]) -> Iterator[None]:
    """Replace each of `COLLECTIVES` in DeepSpeed's backend by `wrap(collective)` inside the block.

    Why:    it is how `timing.StepTimer` sees the time of communication. DeepSpeed's own
            `comms_logger` waits for the device at every call, which slows the step.
    Seen:   DeepSpeed 0.19.8.
    Ends:   with the block.
    Until:  DeepSpeed offers a hook around its collectives.
    """
    from deepspeed.comm import comm

    backend = comm.cdb
    for name in COLLECTIVES:
        setattr(backend, name, wrap(getattr(backend, name)))
    try:
        yield
    finally:
        for name in COLLECTIVES:
            delattr(backend, name)  # the attribute of the object; that of its class shows again
