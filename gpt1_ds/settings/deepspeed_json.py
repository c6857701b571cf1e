"""The DeepSpeed JSON and the run, resolved into the one dict that `deepspeed.initialize` gets.

The JSON owns mechanics and says `"auto"`, or nothing, where the run decides. A literal that contradicts the run is an
error, and so is an unknown top-level key, which DeepSpeed itself passes over in silence.
"""

import json
import math
import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from gpt1_ds.base.errors import ConfigError, near
from gpt1_ds.settings.sections import PretrainConfig

TOP_LEVEL = {
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "zero_optimization",
    "bf16",
    "fp16",
    "optimizer",
    "activation_checkpointing",
    "aio",
    "comms_logger",
    "communication_data_type",
    "compile",
    "csv_monitor",
    "data_types",
    "dump_state",
    "flops_profiler",
    "memory_breakdown",
    "prescale_gradients",
    "gradient_predivide_factor",
    "seq_parallel_communication_data_type",
    "steps_per_print",
    "tensorboard",
    "torch_autocast",
    "wall_clock_breakdown",
    "wandb",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
    "load_universal",
    "checkpoint",
}
LARGEST_DEFAULT_MICRO_BATCH = 16


def resolve(
    path: Path | str, config: PretrainConfig, world_size: int, on_this_machine: bool = True
) -> dict[str, Any]:
    """Read the JSON at `path` and fill it from `config`; `ConfigError` names both sides of any contradiction."""
    ds = _read(path)
    for key in ds:
        if key == "scheduler":
            raise ConfigError(
                f"{path}: 'scheduler' belongs to the run; remove it and set schedule.kind"
            )
        if key not in TOP_LEVEL:
            raise ConfigError(f"{path}: unknown key '{key}'; {near(key, TOP_LEVEL)}")
    micro_batch, accumulation = _batch(path, ds, config, world_size)
    decided = {
        "train_batch_size": ("train.global_batch", config.train.global_batch),
        "train_micro_batch_size_per_gpu": ("train.micro_batch", micro_batch),
        "gradient_accumulation_steps": (
            "train.global_batch / (ranks x train.micro_batch)",
            accumulation,
        ),
        "gradient_clipping": ("train.grad_clip", config.train.grad_clip),
    }
    for key, (name, value) in decided.items():
        if ds.get(key, "auto") not in ("auto", value):
            raise ConfigError(
                f'{path}: {key} is {ds[key]} but {name} of the run is {value}; write "auto" in the JSON'
            )
        ds[key] = value
    _precision(path, ds, config)
    if config.train.compile and zero_stage(ds) == 3:
        raise ConfigError(
            "train.compile is true but ZeRO-3 gathers parameters inside each block; take ZeRO 0 to 2 or "
            "train.compile=false"
        )
    if on_this_machine:
        _machine(path, ds, config)
    _optimizer(path, ds, config)
    _nvme(path, ds, config, on_this_machine)
    ds.setdefault("steps_per_print", 2**31 - 1)  # the run has its own progress line
    return ds


def zero_stage(ds: dict[str, Any]) -> int:
    return int(ds.get("zero_optimization", {}).get("stage", 0))


def precision(ds: dict[str, Any]) -> str:
    return next((name for name in ("bf16", "fp16") if _enabled(ds, name)), "fp32")


def _read(path: Path | str) -> dict[str, Any]:
    try:
        ds = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"--deepspeed_config {path}: {error.strerror}; see ds_configs/ for ready ones"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(ds, dict):
        raise ConfigError(f"{path}: expected an object, found {type(ds).__name__}")
    return ds


def _batch(
    path: Path | str, ds: dict[str, Any], config: PretrainConfig, world_size: int
) -> tuple[int, int]:
    total, micro_batch = config.train.global_batch, config.train.micro_batch
    literal = ds.get("train_micro_batch_size_per_gpu", "auto")
    if literal != "auto":
        if micro_batch not in (None, literal):
            raise ConfigError(
                f"{path}: train_micro_batch_size_per_gpu is {literal} but train.micro_batch of the run "
                f'is {micro_batch}; write "auto" in the JSON'
            )
        micro_batch = literal
    if total % world_size:
        raise ConfigError(
            f"train.global_batch {total} is not a multiple of {world_size} ranks; "
            f"use {_near_multiple(total, world_size)}, or other ranks"
        )
    share = total // world_size
    if micro_batch is None:
        # It must divide the rank's share of the smallest batch too.
        shared = math.gcd(share, (config.train.batch_start or total) // world_size) or 1
        micro_batch = max(
            size
            for size in range(1, min(shared, LARGEST_DEFAULT_MICRO_BATCH) + 1)
            if shared % size == 0
        )
    if share % micro_batch:
        raise ConfigError(
            f"train.global_batch {total} is not a multiple of {world_size} ranks x micro-batch "
            f"{micro_batch}; use {_near_multiple(total, world_size * micro_batch)}"
        )
    if config.train.batch_warmup_steps and config.train.batch_start % (world_size * micro_batch):
        start = config.train.batch_start
        raise ConfigError(
            f"train.batch_start {start} is not a multiple of {world_size} ranks x micro-batch "
            f"{micro_batch}; use {_near_multiple(start, world_size * micro_batch)}"
        )
    return micro_batch, share // micro_batch


def _near_multiple(value: int, of: int) -> int:
    return max(1, round(value / of)) * of


def _enabled(ds: dict[str, Any], section: str) -> bool:
    return bool(ds.get(section, {}).get("enabled", False))


def _precision(path: Path | str, ds: dict[str, Any], config: PretrainConfig) -> None:
    if not _enabled(ds, "fp16"):
        return
    if _enabled(ds, "bf16"):
        raise ConfigError(f"{path}: fp16 and bf16 are both enabled; keep one")
    if zero_stage(ds) == 0:
        # Its wrapper divides the gradients by a scale that its engine multiplies into the loss for ZeRO alone.
        raise ConfigError(
            f"{path}: fp16 without ZeRO has no loss scale in DeepSpeed; take zero_optimization.stage 1"
        )
    section = {"loss_scale": 0, "initial_scale_power": 16, "hysteresis": 2} | ds[
        "fp16"
    ]  # DeepSpeed's defaults
    skips = section["initial_scale_power"] + section["hysteresis"] - 1
    if section["loss_scale"] == 0 and skips >= config.train.max_skipped:
        raise ConfigError(
            f"{path}: fp16.initial_scale_power is {section['initial_scale_power']}: its scale may skip "
            f"{skips} steps until it is down to 1, but train.max_skipped of the run is "
            f"{config.train.max_skipped}; lower the one or raise the other"
        )


def _machine(path: Path | str, ds: dict[str, Any], config: PretrainConfig) -> None:
    """Refuse, before anything starts, what this machine does not have."""
    gpu = torch.cuda.is_available()
    if _enabled(ds, "fp16") and not gpu:
        raise ConfigError(
            f"{path}: fp16 is enabled but this machine's CPU has none; use bf16, as in zero2_bf16.json"
        )
    if _enabled(ds, "wandb") and find_spec("wandb") is None:
        raise ConfigError(
            f"{path}: wandb is enabled but not installed; pip install wandb, or remove the section"
        )
    compiler = os.environ.get("CC", "gcc") if gpu else os.environ.get("CXX", "g++")
    if config.train.compile and shutil.which(compiler) is None:
        raise ConfigError(
            f"train.compile is true but there is no {compiler} on PATH; install one, or leave it false"
        )


def nvme_sections(ds: dict[str, Any]) -> list[str]:
    """Sections of `zero_optimization` that offload to nvme."""
    zero = ds.get("zero_optimization", {})
    kinds = ("offload_optimizer", "offload_param")
    return [kind for kind in kinds if zero.get(kind, {}).get("device") == "nvme"]


def _nvme(
    path: Path | str, ds: dict[str, Any], config: PretrainConfig, on_this_machine: bool
) -> None:
    """Offload to nvme goes into a folder of the run's own, since swap files have the same names in all runs."""
    zero = ds.get("zero_optimization", {})
    sections = {key: zero[key] for key in nvme_sections(ds)}
    for key, section in sections.items():
        if zero_stage(ds) != 3:
            raise ConfigError(
                f"{path}: {key} to nvme needs zero_optimization.stage 3; set it, or take device cpu"
            )
        if not isinstance(section.get("nvme_path"), str):
            raise ConfigError(
                f"{path}: {key} to nvme has no nvme_path; give a folder on a local disk"
            )
        section["nvme_path"] = str(Path(section["nvme_path"]) / config.run.name)
    if "offload_param" in sections and "offload_optimizer" not in sections:
        raise ConfigError(
            f"{path}: offload_param to nvme needs offload_optimizer there too; set it, or device cpu"
        )
    if "offload_param" in sections and zero.setdefault("stage3_prefetch_bucket_size", 0) != 0:
        raise ConfigError(
            f"{path}: offload_param to nvme needs stage3_prefetch_bucket_size 0: DeepSpeed 0.19 gives a "
            "parameter that it fetches ahead two buffers, and ends"
        )
    if not sections or not on_this_machine:
        return
    for key, section in sections.items():
        try:
            os.makedirs(section["nvme_path"], exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"{path}: {key}.nvme_path: {section['nvme_path']}: {error.strerror}; give a folder on a "
                "local disk that the run may write to"
            ) from error


def _optimizer(path: Path | str, ds: dict[str, Any], config: PretrainConfig) -> None:
    """An `optimizer` section is DeepSpeed's to build, with the run's numbers; without one the run brings its own."""
    if "optimizer" not in ds:
        # Both are DeepSpeed's guards against client optimizers it has not met.
        ds.setdefault("zero_allow_untested_optimizer", True)
        ds.setdefault("zero_force_ds_cpu_optimizer", False)
        return
    decided = {
        "lr": config.optim.lr,
        "betas": config.optim.betas,
        "eps": config.optim.eps,
        "weight_decay": config.optim.weight_decay,
    }
    params = ds["optimizer"].setdefault("params", {})
    for key, value in decided.items():
        if params.get(key, value) not in ("auto", value):
            raise ConfigError(
                f"{path}: optimizer.params.{key} is {params[key]} but optim.{key} of the run is {value}; "
                'write "auto" in the JSON'
            )
        if key in params:
            params[key] = value
    if left := [key for key, value in params.items() if value == "auto"]:
        raise ConfigError(
            f'{path}: optimizer.params.{left[0]} is "auto", but the run decides only '
            f"{', '.join(decided)}; give a number"
        )
    params["lr"] = config.optim.lr
