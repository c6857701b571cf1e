"""The `optimizer` section of a DeepSpeed JSON, filled from `optim` and held against it.

DeepSpeed builds such an optimizer itself, instead of the run's own.
"""

import inspect
from collections.abc import Iterator
from pathlib import Path

import torch

from gpt1_ds.base.errors import ConfigError, near
from gpt1_ds.base.protocols import Json
from gpt1_ds.settings.sections import OptimConfig

DECIDED = ("lr", "betas", "eps", "weight_decay")
"""What the run decides of an optimizer."""
DEEPSPEED = {
    "adam": DECIDED,
    "adamw": DECIDED,
    "lamb": DECIDED,
    "muon": DECIDED,
    "muadam": DECIDED,
    "muadamw": DECIDED,
    "musgd": ("lr", "weight_decay"),
    "lion": ("lr", "betas", "weight_decay"),
    "adagrad": ("lr", "eps", "weight_decay"),
}
"""Its own optimizers, in any spelling, and what of `DECIDED` each takes."""
OF_TORCH = ("ASGD Adadelta Adafactor Adamax NAdam RAdam RMSprop Rprop SGD").split()
"""Those of torch.optim that it builds by their name, and that need no closure."""
OWN_DEFAULTS = {"betas": [0.9, 0.999], "eps": 1e-8}
"""What DeepSpeed's Adam takes where its section says nothing."""


def fill_optimizer(path: Path | str, ds: Json, optim: OptimConfig) -> None:
    """Give the section the numbers of the run; ConfigError where the two contradict each other."""
    if "optimizer" not in ds:
        _check_own_optimizer(path, ds)
        # The run brings its own optimizer; without these two DeepSpeed refuses it.
        ds.setdefault("zero_allow_untested_optimizer", True)
        ds.setdefault("zero_force_ds_cpu_optimizer", False)
        return
    section = ds["optimizer"]
    params = section.setdefault("params", {})
    decided = {name: getattr(optim, name) for name in DECIDED}
    for key, value in decided.items():
        if params.get(key, value) not in ("auto", value):
            raise ConfigError(
                f"{path}: optimizer.params.{key} is {params[key]} but optim.{key} of the run is "
                f'{value}; write "auto" in the JSON'
            )
    for key, value in params.items():
        if value == "auto" and key not in decided:
            raise ConfigError(
                f'{path}: optimizer.params.{key} is "auto", but the run decides only '
                f"{', '.join(decided)}; give a number"
            )
    taken = _taken(path, section.get("type"))
    if optim.kind != "adamw":
        raise ConfigError(
            f"{path}: optimizer.type is {section['type']} but optim.kind of the run is "
            f"{optim.kind}; remove the section, or take optim.kind=adamw"
        )
    adam = section["type"].lower() in ("adam", "adamw")
    for key, value in decided.items():
        if key not in taken:
            params.pop(key, None)
        elif key in params or key == "lr" or (adam and OWN_DEFAULTS.get(key, value) != value):
            params[key] = value


def _taken(path: Path | str, kind: str | None) -> tuple[str, ...]:
    """What of `DECIDED` the optimizer of this type takes."""
    names = ["Adam", "AdamW", "Lamb", "Lion", "Adagrad", "Muon", *OF_TORCH]
    if kind is None:
        raise ConfigError(f"{path}: optimizer.type is missing; choose from: {', '.join(names)}")
    if kind.lower() in DEEPSPEED:
        return DEEPSPEED[kind.lower()]
    if kind not in OF_TORCH:
        raise ConfigError(f"{path}: optimizer.type is {kind}; {near(kind, names)}")
    parameters = inspect.signature(getattr(torch.optim, kind)).parameters
    return tuple(name for name in DECIDED if name in parameters)


def _check_own_optimizer(path: Path | str, ds: Json) -> None:
    zero = ds.get("zero_optimization", {})
    offloads = zero.get("offload_optimizer", {}).get("device", "none") != "none"
    wrong = {
        "zero_allow_untested_optimizer": zero.get("stage", 0) > 0,
        "zero_force_ds_cpu_optimizer": offloads,
    }
    for key, matters in wrong.items():
        refusing = key == "zero_force_ds_cpu_optimizer"
        if matters and ds.get(key) is refusing:
            raise ConfigError(
                f"{path}: {key} is {str(refusing).lower()}, which refuses the run's own optimizer; "
                "remove it, or give an optimizer section"
            )


def replaced(ds: Json, optim: OptimConfig) -> Iterator[str]:
    """A line if DeepSpeed's optimizer is another than `optim` says."""
    section = ds.get("optimizer")
    if section is None:
        return
    params = section["params"]
    kind = section["type"].lower()
    decoupled = kind == "adamw" or (kind == "adam" and params.get("adam_w_mode", True))
    if not decoupled:
        own = ", ".join(f"optim.{name}" for name in DECIDED if name in params)
        yield f"optimizer {section['type']} takes the place of optim.kind {optim.kind}, with {own}"
