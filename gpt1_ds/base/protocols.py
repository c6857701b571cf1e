"""Types for the members of DeepSpeed's engine and optimizer that the project uses.

DeepSpeed has no type stubs. These protocols list the public members that our code uses, for readers
and for the type checker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    # Importing torch takes 2 s. Data preparation reads manifests and does not need torch.
    import torch
    from torch import Tensor, nn

Json = dict[str, Any]
"""An object of a JSON or YAML file, before its values are checked."""


class Optimizer(Protocol):
    """DeepSpeed's optimizer wrapper, or a plain optimizer that DeepSpeed does not wrap."""

    param_groups: list[dict[str, Any]]

    def state_dict(self) -> dict[str, Any]: ...


MonitorEvent = tuple[str, float, int]
"""Tag, value and number of windows seen: the arguments of DeepSpeed's monitors."""


class Monitor(Protocol):
    """DeepSpeed's writer for W&B, CSV and the other monitors that the JSON can enable."""

    enabled: bool

    def write_events(self, events: list[MonitorEvent]) -> None: ...


class Engine(Protocol):
    """A `deepspeed.DeepSpeedEngine` that `engine.start.initialize` made."""

    module: nn.Module
    optimizer: Any
    """An `Optimizer`. Its other members depend on the ZeRO stage and the precision."""
    basic_optimizer: torch.optim.Optimizer
    monitor: Monitor
    checkpoint_engine: Any
    config: Json
    """The DeepSpeed JSON, as each checkpoint repeats it."""
    device: torch.device
    training: bool
    global_steps: int
    """Number of optimizer steps so far, including skipped ones."""
    global_samples: int
    skipped_steps: int
    late_skips: list[Tensor]
    """Flags on the device: whether each of the last steps, not yet in `skipped_steps`, was skipped.

    `engine.update.quicken_update` makes it.
    """
    micro_steps: int
    lr_shares: list[float]
    """Each parameter group's learning rate divided by `optim.lr`.

    `engine.internals.keep_lr_shares` sets it.
    """

    def __call__(self, *inputs: Any, **named_inputs: Any) -> Any: ...

    def train(self, mode: bool = True) -> Any: ...

    def eval(self) -> Any: ...

    def backward(self, loss: Tensor) -> Any: ...

    def step(self) -> None: ...

    def destroy(self) -> None: ...

    def parameters(self) -> Iterable[nn.Parameter]: ...

    def is_gradient_accumulation_boundary(self) -> bool: ...

    def get_global_grad_norm(self) -> Any: ...

    def gradient_clipping(self) -> float: ...

    def clip_fp32_gradients(self) -> None: ...

    allreduce_and_copy: Callable[..., None]

    def allreduce_bucket(self, bucket: list[Tensor], group: object, size: int | None) -> Tensor: ...

    def unflatten(self, flat: Tensor, tensors: list[Tensor]) -> list[Tensor]: ...

    def wall_clock_breakdown(self) -> bool: ...

    def zero_optimization_stage(self) -> int: ...

    def zero_reduce_bucket_size(self) -> int: ...

    def bfloat16_enabled(self) -> bool: ...

    def fp16_enabled(self) -> bool: ...

    def train_batch_size(self) -> int: ...

    def set_train_batch_size(self, train_batch_size: int) -> None: ...

    def train_micro_batch_size_per_gpu(self) -> int: ...

    def gradient_accumulation_steps(self) -> int: ...

    def zero_nvme_offload_optimizer(self) -> bool: ...

    def save_checkpoint(self, save_dir: str, **options: Any) -> Any: ...

    def load_checkpoint(self, load_dir: str, **options: Any) -> tuple[str | None, Any]: ...
