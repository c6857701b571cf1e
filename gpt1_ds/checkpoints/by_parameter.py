"""Weights and optimizer state by parameter: out of a checkpoint, into an engine of any layout.

DeepSpeed loads a checkpoint only into the layout that wrote it. Its universal checkpoints cannot
cross between ZeRO 1/2 and 3, nor from or to ZeRO 0, and write a tree of files on the way. Here
each rank cuts its own elements out of the mapped files and copies them into the flat tensors of the
engine, one parameter at a time.

| ZeRO | flat tensors of a rank     | where a parameter lies                                      |
|------|----------------------------|-------------------------------------------------------------|
| 0    | one a parameter (or group) | whole, in the optimizer's order; the same on every rank    |
| 1, 2 | one a parameter group      | in the concatenation over ranks, perhaps across two of them |
| 3    | one a sub-group            | in equal parts on every rank, the last one padded           |
"""

import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from gpt1_ds.base.errors import DataError
from gpt1_ds.base.protocols import Engine, Json
from gpt1_ds.checkpoints.flat_tensors import (
    FlatSlice,
    flat_slices,
    release_gathered,
    round_to_module,
    set_counters,
    set_loss_scale,
)
from gpt1_ds.checkpoints.saved_parameters import SavedParameters, even_shares
from gpt1_ds.checkpoints.swap_files import ResidentPart
from gpt1_ds.distributed import collectives


class Source(Protocol):
    """Weights of another layout, any elements of which can be read: `SavedParameters` is one."""

    def names(self) -> list[str]: ...

    def shape(self, name: str) -> torch.Size: ...

    def elements(self, name: str, start: int, length: int) -> Tensor:
        """The elements `[start, start + length)` of a parameter: flat, float32, on the CPU."""
        ...

    def shares(self, part: int, parts: int) -> Iterator[tuple[str, int, int]]:
        """Name, start and length of the elements that are number `part` of `parts` to check."""
        ...


class WholeWeights:
    """A `Source` of tensors that are in memory, or mapped."""

    def __init__(self, tensors: Iterable[tuple[str, Tensor]]):
        self.tensors = dict(tensors)

    def names(self) -> list[str]:
        return list(self.tensors)

    def shape(self, name: str) -> torch.Size:
        return self.tensors[name].shape

    def elements(self, name: str, start: int, length: int) -> Tensor:
        return self.tensors[name].flatten()[start : start + length].float()

    def shares(self, part: int, parts: int) -> Iterator[tuple[str, int, int]]:
        shapes = {name: tensor.shape for name, tensor in self.tensors.items()}
        return even_shares(shapes, part, parts)


def place_weights(engine: Engine, source: Source, origin: Path | str) -> None:
    """Copy float32 parameters into the optimizer's own float32 weights.

    `deepspeed.initialize` rounds the module's weights to bf16; these are exact. Parameters that
    are not in `source` (a new task head) stay as they are. Each rank reads only the elements that
    it holds, and those that it checks: a share of all elements that another rank reads too.
    DataError, which names the `origin`, unless the engine then holds the same bits. Every rank
    calls.
    """
    known = set(source.names())
    filled = [part for part in flat_slices(engine) if part.name in known]
    release_gathered(engine)
    with ResidentPart(engine) as resident:
        for flat_slice in filled:
            resident.load(flat_slice.part)
            flat_slice.weights().copy_(_own_elements(engine, source, flat_slice))
    round_to_module(engine)
    placed, read = (torch.zeros((), dtype=torch.int64) for _ in range(2))
    # Without ZeRO every rank has all weights, and one of them counts.
    if engine.zero_optimization_stage() > 0 or collectives.is_main():
        with ResidentPart(engine) as resident:
            for flat_slice in filled:
                resident.load(flat_slice.part)
                elements = flat_slice.weights().cpu()
                placed += _checksum(flat_slice.name, elements, flat_slice.start)
    ranks = collectives.world_size()
    for name, start, length in source.shares((collectives.rank() + 1) % ranks, ranks):
        read += _checksum(name, source.elements(name, start, length), start)
    placed, read = collectives.all_sum(torch.stack([placed, read])).unbind()
    if not torch.equal(placed, read):
        raise DataError(
            f"{origin}: its weights did not arrive whole in the engine; take another checkpoint"
        )


def _own_elements(engine: Engine, source: Source, flat_slice: FlatSlice) -> Tensor:
    """The weights of a slice of this rank."""
    name = flat_slice.name
    if engine.zero_optimization_stage():
        return source.elements(name, flat_slice.start, flat_slice.length)
    start, end = _share_of_rank(flat_slice)
    return _join_shares(source.elements(name, start, end - start), flat_slice)


def _own_state(engine: Engine, saved: SavedParameters, flat_slice: FlatSlice) -> Json:
    """The optimizer's state of a slice of this rank."""
    if engine.zero_optimization_stage():
        return saved.state(flat_slice.name, flat_slice.start, flat_slice.length)
    start, end = _share_of_rank(flat_slice)
    state = saved.state(flat_slice.name, start, end - start)
    for key, value in state.items():
        if torch.is_tensor(value) and value.dim():
            state[key] = _join_shares(value, flat_slice)
    return state


def _share_of_rank(flat_slice: FlatSlice) -> tuple[int, int]:
    """Without ZeRO, where every rank holds all: first and last of the elements that it reads."""
    rank, ranks = collectives.rank(), collectives.world_size()
    return flat_slice.length * rank // ranks, flat_slice.length * (rank + 1) // ranks


def _join_shares(own: Tensor, flat_slice: FlatSlice) -> Tensor:
    """The shares of all ranks, joined on each of them: the sum of their bits, zeros elsewhere."""
    start, end = _share_of_rank(flat_slice)
    bits = torch.zeros(flat_slice.length, dtype=torch.int32)
    bits[start:end] = own.float().view(torch.int32)
    return collectives.all_sum(bits).view(torch.float32)


def place_state(engine: Engine, saved: SavedParameters) -> None:
    """Copy the optimizer's state, the counters and the loss scale of `saved` into the engine."""
    optimizer = engine.basic_optimizer
    with ResidentPart(engine) as resident:
        for flat_slice in flat_slices(engine):
            resident.load(flat_slice.part)
            _place_state_of(flat_slice, _own_state(engine, saved, flat_slice), optimizer)
    if saved.group_step is not None:
        for group in optimizer.param_groups:
            group["step"] = saved.group_step
    set_counters(engine, saved.counters)
    if engine.fp16_enabled() and saved.scale is not None:
        set_loss_scale(engine, saved.scale)


def _place_state_of(flat_slice: FlatSlice, saved: Json, optimizer: torch.optim.Optimizer) -> None:
    state = optimizer.state[flat_slice.flat]
    for key, value in saved.items():
        if not torch.is_tensor(value):
            state[key] = value
        elif value.dim():
            moment = state.setdefault(key, torch.zeros_like(flat_slice.flat))
            flat_slice.of_flat(moment).copy_(value)
        else:
            # Adam's step: a fused kernel wants it on the device of the weights, others on the CPU.
            device = flat_slice.flat.device if optimizer.defaults.get("fused") else "cpu"
            state[key] = value.clone().to(device)


def _checksum(name: str, elements: Tensor, start: int) -> Tensor:
    """The sum of each element's bits times its index in the parameter, modulo 2**64.

    The sums of the slices of a parameter add up to the sum of the whole.
    """
    index = torch.arange(start + 1, start + elements.numel() + 1)
    bits = elements.float().view(torch.int32).long()
    return (bits * index).sum() * (zlib.crc32(name.encode()) | 1)
