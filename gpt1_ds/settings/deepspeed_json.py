"""The DeepSpeed JSON, filled from the run: the one dict that `deepspeed.initialize` gets.

The JSON decides how a run is computed. Where it says `"auto"`, or nothing, the run's own settings
decide. A number that contradicts the run is an error, and so is a key or a value that DeepSpeed
does not know (`json_check.py`). Every ConfigError names the file, both values and the fix.
"""

import math
import os
from importlib.util import find_spec
from pathlib import Path

import torch

from gpt1_ds.base.errors import ConfigError
from gpt1_ds.base.protocols import Json
from gpt1_ds.settings.json_check import NEVER, read, without_effect
from gpt1_ds.settings.json_optimizer import fill_optimizer, replaced
from gpt1_ds.settings.sections import FinetuneConfig, PretrainConfig

LARGEST_DEFAULT_MICRO_BATCH = 16
FP16_DEFAULTS = {"loss_scale": 0, "initial_scale_power": 16, "hysteresis": 2}
"""DeepSpeed's own; a loss scale of 0 is a dynamic one."""


def resolve(
    path: Path | str, config: PretrainConfig, world_size: int, on_this_machine: bool = True
) -> Json:
    """Read the JSON at `path`, fill it from `config`, and check the two against each other.

    Without `on_this_machine` (a plan for other machines) nothing is asked of this one.
    """
    ds = read(path)
    _fill_batch(path, ds, config, world_size)
    _check_precision(path, ds, config)
    _check_compilation(ds, config)
    if on_this_machine:
        _check_machine(path, ds, config)
    _fill_pinned_memory(ds, torch.cuda.is_available() or not on_this_machine)
    fill_optimizer(path, ds, config.optim)
    _fill_nvme_paths(path, ds, config)
    if on_this_machine:
        _make_nvme_folders(path, ds)
    ds.setdefault("steps_per_print", NEVER)  # the run has its own progress line
    return ds


# --- Questions about a resolved JSON ---


def warnings(path: Path | str, ds: Json, config: PretrainConfig) -> list[str]:
    """A line for each part of the JSON at `path` that does not act as it reads."""
    lines = [*without_effect(ds), *replaced(ds, config.optim)]
    return [f"warning: {path}: {line}" for line in lines]


def zero_stage(ds: Json) -> int:
    return int(ds.get("zero_optimization", {}).get("stage", 0))


def precision(ds: Json) -> str:
    """Its name: bf16, fp16 or fp32."""
    for name in ("bf16", "fp16"):
        if _enabled(ds, name):
            return name
    return "fp32"


def nvme_sections(ds: Json) -> list[str]:
    """The sections of `zero_optimization` that offload to nvme."""
    zero = ds.get("zero_optimization", {})
    names = ("offload_optimizer", "offload_param")
    return [name for name in names if zero.get(name, {}).get("device") == "nvme"]


def _enabled(ds: Json, section: str) -> bool:
    return bool(ds.get(section, {}).get("enabled", False))


# --- Batch and clipping ---


def _fill_batch(path: Path | str, ds: Json, config: PretrainConfig, world_size: int) -> None:
    """Divide the global batch: windows = ranks x micro-batch x accumulation, without remainder."""
    micro_batch = _micro_batch(path, ds, config, world_size)
    accumulation = config.train.global_batch // world_size // micro_batch
    # key of the JSON, the name of the run's setting, its value
    decided = [
        ("train_batch_size", "train.global_batch", config.train.global_batch),
        ("train_micro_batch_size_per_gpu", "train.micro_batch", micro_batch),
        (
            "gradient_accumulation_steps",
            "train.global_batch / (ranks x train.micro_batch)",
            accumulation,
        ),
        ("gradient_clipping", "train.grad_clip", config.train.grad_clip),
    ]
    for key, name, value in decided:
        if ds.get(key, "auto") not in ("auto", value):
            raise ConfigError(
                f"{path}: {key} is {ds[key]} but {name} of the run is {value}; "
                'write "auto" in the JSON'
            )
        ds[key] = value


def _micro_batch(path: Path | str, ds: Json, config: PretrainConfig, world_size: int) -> int:
    """Windows of a rank in one forward pass: the JSON's, the run's, or the largest that divides."""
    train = config.train
    total = train.global_batch
    micro_batch = train.micro_batch
    literal = ds.get("train_micro_batch_size_per_gpu", "auto")
    if literal != "auto":
        if micro_batch not in (None, literal):
            raise ConfigError(
                f"{path}: train_micro_batch_size_per_gpu is {literal} but train.micro_batch "
                f'of the run is {micro_batch}; write "auto" in the JSON'
            )
        micro_batch = literal
    if total % world_size:
        raise ConfigError(
            f"train.global_batch {total} is not a multiple of {world_size} ranks; "
            f"use {_near_multiple(total, world_size)}, or other ranks"
        )
    if micro_batch is None:
        smallest = train.batch_start or total
        micro_batch = _default_micro_batch(total // world_size, smallest // world_size)
    step = world_size * micro_batch
    product = f"{world_size} ranks x micro-batch {micro_batch}"
    if total % step:
        raise ConfigError(
            f"train.global_batch {total} is not a multiple of {product}; "
            f"use {_near_multiple(total, step)}"
        )
    start = train.batch_start
    if train.batch_warmup_steps and start is not None and start % step:
        raise ConfigError(
            f"train.batch_start {start} is not a multiple of {product}; "
            f"use {_near_multiple(start, step)}"
        )
    return micro_batch


def _default_micro_batch(share: int, smallest_share: int) -> int:
    """The largest that divides a rank's share of the batch, also where a growing batch begins."""
    common = math.gcd(share, smallest_share) or 1
    sizes = range(1, min(common, LARGEST_DEFAULT_MICRO_BATCH) + 1)
    return max(size for size in sizes if common % size == 0)


def _near_multiple(value: int, of: int) -> int:
    return max(1, round(value / of)) * of


# --- Precision and compilation ---


def _check_precision(path: Path | str, ds: Json, config: PretrainConfig) -> None:
    """fp16 alone, with ZeRO, and with a loss scale that settles before the run gives up."""
    if not _enabled(ds, "fp16"):
        return
    if _enabled(ds, "bf16"):
        raise ConfigError(f"{path}: fp16 and bf16 are both enabled; keep one")
    if zero_stage(ds) == 0:
        # DeepSpeed's wrapper divides the gradients by a loss scale, but its engine multiplies the
        # loss by that scale with ZeRO only.
        raise ConfigError(
            f"{path}: fp16 without ZeRO has no loss scale in DeepSpeed; "
            "take zero_optimization.stage 1"
        )
    section = FP16_DEFAULTS | ds["fp16"]
    skips = section["initial_scale_power"] + section["hysteresis"] - 1
    if section["loss_scale"] == 0 and skips >= config.train.max_skipped:
        raise ConfigError(
            f"{path}: fp16.initial_scale_power is {section['initial_scale_power']}: its scale "
            f"may skip {skips} steps until it is down to 1, but train.max_skipped of the run is "
            f"{config.train.max_skipped}; lower the one or raise the other"
        )


def _check_compilation(ds: Json, config: PretrainConfig) -> None:
    if config.train.cuda_graphs and (fault := _fault_of_graphs(ds, config)):
        raise ConfigError(f"train.cuda_graphs is true but {fault}, or leave it false")


def _fault_of_graphs(ds: Json, config: PretrainConfig) -> str:
    """Why CUDA graphs of the blocks would fail or compute something else; empty: they do not.

    A graph has fixed shapes, reads weights where they lay at its recording, and writes gradients to
    the same memory each time.
    """
    train, accumulation = config.train, ds["gradient_accumulation_steps"]
    if zero_stage(ds) == 3:
        return "ZeRO-3 moves the weights; take ZeRO 0 to 2"
    if isinstance(config, FinetuneConfig):
        return "the batches of fine-tuning differ in length; use it for pre-training"
    if config.model.kind != "transformer":
        return f"model.kind is {config.model.kind}, which has no blocks; take transformer"
    if train.activation_checkpointing:
        return "train.activation_checkpointing calls the blocks twice; take one of the two"
    if train.batch_warmup_steps:
        return "train.batch_warmup_steps changes the micro-batches of a step; set it to 0"
    if accumulation > 1:
        return (
            f"a step has {accumulation} micro-batches, whose gradients add up; raise "
            "train.micro_batch or the number of ranks until it has one"
        )
    return ""


def _check_machine(path: Path | str, ds: Json, config: PretrainConfig) -> None:
    """Refuse, before anything starts, what this machine does not have."""
    gpu = torch.cuda.is_available()
    if _enabled(ds, "fp16") and not gpu:
        raise ConfigError(
            f"{path}: fp16 is enabled but this machine's CPU has none; "
            "use bf16, as in zero2_bf16.json"
        )
    if _enabled(ds, "wandb") and find_spec("wandb") is None:
        raise ConfigError(
            f"{path}: wandb is enabled but not installed; pip install wandb, or remove the section"
        )
    kind = ds.get("optimizer", {}).get("type") or ""
    if kind.lower() in ("muadam", "muadamw", "musgd") and find_spec("mup") is None:
        raise ConfigError(
            f"{path}: optimizer.type {kind} needs mup, which is not installed; pip install mup, or "
            "take AdamW"
        )
    if config.train.cuda_graphs and not gpu:
        raise ConfigError(
            "train.cuda_graphs is true but this machine has no GPU; take one, or leave it false"
        )


# --- Offload ---


def _fill_pinned_memory(ds: Json, gpu: bool) -> None:
    """Where the JSON leaves it open, offloaded tensors are in pinned memory on a GPU machine.

    From pageable memory, a GPU copies several times slower, and the host waits for it.
    """
    for section in ("offload_optimizer", "offload_param"):
        offload = ds.get("zero_optimization", {}).get(section) or {}
        if offload.get("device", "none") != "none":
            offload.setdefault("pin_memory", gpu)


def _fill_nvme_paths(path: Path | str, ds: Json, config: PretrainConfig) -> None:
    """Give the run a folder of its own: swap files have the same names in all runs."""
    zero = ds.get("zero_optimization", {})
    sections = nvme_sections(ds)
    for name in sections:
        if zero_stage(ds) != 3:
            raise ConfigError(
                f"{path}: {name} to nvme needs zero_optimization.stage 3; "
                "set it, or take device cpu"
            )
        folder = zero[name].get("nvme_path")
        if not isinstance(folder, str):
            raise ConfigError(
                f"{path}: {name} to nvme has no nvme_path; give a folder on a local disk"
            )
        zero[name]["nvme_path"] = str(Path(folder).expanduser() / config.run.name)
    if "offload_param" not in sections:
        return
    if "offload_optimizer" not in sections:
        raise ConfigError(
            f"{path}: offload_param to nvme needs offload_optimizer there too; "
            "set it, or device cpu"
        )
    if zero.setdefault("stage3_prefetch_bucket_size", 0) != 0:
        raise ConfigError(
            f"{path}: offload_param to nvme needs stage3_prefetch_bucket_size 0: DeepSpeed 0.19 "
            "gives a parameter that it fetches ahead two buffers, and ends"
        )


def _make_nvme_folders(path: Path | str, ds: Json) -> None:
    for name in nvme_sections(ds):
        folder = ds["zero_optimization"][name]["nvme_path"]
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"{path}: {name}.nvme_path: {folder}: {error.strerror}; give a folder on a "
                "local disk that the run may write to"
            ) from error
