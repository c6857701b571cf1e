"""What the project uses of DeepSpeed's engine and optimizer, as types.

DeepSpeed has no stubs. These protocols name the public members that our code calls, so that a
reader and a type checker see the whole surface at one place.
"""

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

Json = dict[str, Any]
"""An object of a JSON or YAML file, before its values are checked."""


class Optimizer(Protocol):
    """DeepSpeed's optimizer wrapper, or the plain optimizer that it leaves as it is."""

    param_groups: list[dict[str, Any]]

    def state_dict(self) -> dict[str, Any]: ...


class Monitor(Protocol):
    """DeepSpeed's writer for W&B, CSV and the other sections that the JSON may enable."""

    enabled: bool

    def write_events(self, events: list[tuple[str, float, int]]) -> None: ...


class Engine(Protocol):
    """A `deepspeed.DeepSpeedEngine` that `engine.start.initialize` made."""

    module: nn.Module
    optimizer: Any
    """An `Optimizer`; which further members it has depends on ZeRO stage and precision."""
    basic_optimizer: torch.optim.Optimizer
    monitor: Monitor
    checkpoint_engine: Any
    device: torch.device
    global_steps: int
    """Optimizer steps done, skipped ones included."""
    global_samples: int
    skipped_steps: int
    micro_steps: int
    lr_shares: list[float]
    """Ours: the learning rate of each parameter group, as a share of `optim.lr`."""

    def __call__(self, *inputs: Any, **named_inputs: Any) -> Any: ...

    def train(self, mode: bool = True) -> Any: ...

    def eval(self) -> Any: ...

    def backward(self, loss: Tensor) -> Any: ...

    def step(self) -> None: ...

    def parameters(self) -> Iterable[nn.Parameter]: ...

    def is_gradient_accumulation_boundary(self) -> bool: ...

    def get_global_grad_norm(self) -> Any: ...

    def zero_optimization_stage(self) -> int: ...

    def bfloat16_enabled(self) -> bool: ...

    def fp16_enabled(self) -> bool: ...

    def train_batch_size(self) -> int: ...

    def set_train_batch_size(self, train_batch_size: int) -> None: ...

    def train_micro_batch_size_per_gpu(self) -> int: ...

    def gradient_accumulation_steps(self) -> int: ...

    def zero_nvme_offload_optimizer(self) -> bool: ...

    def save_checkpoint(self, save_dir: str, **options: Any) -> Any: ...

    def load_checkpoint(self, load_dir: str, **options: Any) -> tuple[str | None, Any]: ...
