"""Optimizer state that DeepSpeed keeps in swap files (`offload_optimizer` to nvme).

DeepSpeed saves such state by a copy of the swap files into a folder of their own, which no
manifest covers, and its load sets Adam's step count to 0. Here the checkpoint has the format of
any ZeRO-3 run: the content of the swap files is written in place of the empty tensors that stand
for it. Loading goes parameter by parameter (`by_parameter`).

All private names here are those of DeepSpeed 0.19.8. This file goes once DeepSpeed's own
checkpoints of swapped state are complete, or once it has a public way to read and write one
sub-group's state.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch

from gpt1_ds.base.protocols import Engine, Json


def uses_swap_files(engine: Engine) -> bool:
    """`swap_optimizer`: set by ZeRO-3's optimizer alone."""
    return getattr(engine.optimizer, "swap_optimizer", False)


@contextmanager
def hide_from_deepspeed(engine: Engine) -> Iterator[None]:
    """Keep DeepSpeed's save from copying swap files: it asks this method of the engine first."""
    engine.zero_nvme_offload_optimizer = lambda: False  # type: ignore[method-assign]
    try:
        yield
    finally:
        del engine.zero_nvme_offload_optimizer


def map_swapped(engine: Engine, saved: Json) -> Json:
    """What DeepSpeed saves, with the mapped content of its swap file in place of each empty tensor.

    `swap_params_info` tells, for each swapped parameter, its size, and for each of its tensors
    (the weights and both moments) the file and the tensor that stands for it.
    """
    if not uses_swap_files(engine) or "optimizer_state_dict" not in saved:
        return saved
    files: dict[int, tuple[str, int]] = {}
    for info in engine.optimizer.optimizer_swapper.swap_params_info.values():
        for context in info.tensors:
            files[id(context.compute_tensor)] = context.swap_path, info.numel()

    def content(value: Any) -> Any:
        if id(value) not in files:
            return value
        path, elements = files[id(value)]
        return torch.from_file(path, shared=False, size=elements, dtype=value.dtype)

    zero = saved["optimizer_state_dict"]
    optimizer = zero["optimizer_state_dict"]
    states = {}
    for part, state in optimizer["state"].items():
        states[part] = {key: content(value) for key, value in state.items()}
    flats = [content(flat) for flat in zero["fp32_flat_groups"]]
    mapped = {"optimizer_state_dict": {**optimizer, "state": states}, "fp32_flat_groups": flats}
    return {**saved, "optimizer_state_dict": {**zero, **mapped}}


class ResidentPart:
    """A context in which `load(part)` brings the flat tensors of one part into memory.

    A part is an index into the optimizer's flat tensors. The part loaded before goes back to its
    files. Without swap files all parts are always in memory, and `load` does nothing.
    """

    def __init__(self, engine: Engine):
        self.optimizer = engine.optimizer
        self.swaps = uses_swap_files(engine)
        self.part: int | None = None

    def load(self, part: int) -> None:
        # The three private methods are what DeepSpeed's own step calls, one sub-group at a time.
        if not self.swaps or part == self.part:
            return
        self._release()
        if self.optimizer._swappable_optimizer_subgroup(part):
            self.optimizer._optimizer_states_and_gradient_swap_in(part)
            self.part = part

    def _release(self) -> None:
        if self.part is not None:
            self.optimizer._optimizer_states_and_gradient_swap_out(self.part)
            self.part = None

    def __enter__(self) -> "ResidentPart":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._release()
