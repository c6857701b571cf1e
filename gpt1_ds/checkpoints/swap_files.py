"""Optimizer state that DeepSpeed keeps in swap files (`offload_optimizer` to nvme, perhaps `offload_param` too).

DeepSpeed checkpoints it by copying the swap files to a folder of their own, in no manifest, and its load leaves Adam's
step count at 0. Here a checkpoint is that of any ZeRO-3 run, with the swap files mapped in place of the empty tensors
that stand for them; and a load goes the way of another layout, by `resize`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def uses_swap_files(engine) -> bool:
    return getattr(engine.optimizer, "swap_optimizer", False)


@contextmanager
def hide_from_deepspeed(engine) -> Iterator[None]:
    """Meanwhile DeepSpeed's save copies no swap files."""
    engine.zero_nvme_offload_optimizer = lambda: False
    try:
        yield
    finally:
        del engine.zero_nvme_offload_optimizer


def map_swapped(engine, saved: dict[str, Any]) -> dict[str, Any]:
    """What DeepSpeed saves, the content of swap files in the place of every tensor that is swapped out."""
    if not uses_swap_files(engine) or "optimizer_state_dict" not in saved:
        return saved
    files = {
        id(context.compute_tensor): (context.swap_path, info.numel())
        for info in engine.optimizer.optimizer_swapper.swap_params_info.values()
        for context in info.tensors
    }

    def content(value: Any) -> Any:
        if id(value) not in files:
            return value
        path, elements = files[id(value)]
        return torch.from_file(path, shared=False, size=elements, dtype=value.dtype)

    zero = saved["optimizer_state_dict"]
    optimizer = zero["optimizer_state_dict"]
    states = {
        part: {key: content(value) for key, value in state.items()}
        for part, state in optimizer["state"].items()
    }
    flats = [content(flat) for flat in zero["fp32_flat_groups"]]
    zero = {
        **zero,
        "optimizer_state_dict": {**optimizer, "state": states},
        "fp32_flat_groups": flats,
    }
    return {**saved, "optimizer_state_dict": zero}


class AtHand:
    """Context in which `need(part)` has the flat tensors of one part in memory, to be read and written; the part
    before it then goes back to its files. Without swap files all are always at hand."""

    def __init__(self, engine):
        self.optimizer, self.swaps, self.part = engine.optimizer, uses_swap_files(engine), None

    def need(self, part: int) -> None:
        if self.swaps and part != self.part:
            self._release()
            if self.optimizer._swappable_optimizer_subgroup(part):
                self.optimizer._optimizer_states_and_gradient_swap_in(part)
                self.part = part

    def _release(self) -> None:
        if self.part is not None:
            self.optimizer._optimizer_states_and_gradient_swap_out(self.part)
            self.part = None

    def __enter__(self) -> "AtHand":
        return self

    def __exit__(self, *_: Any) -> None:
        self._release()
