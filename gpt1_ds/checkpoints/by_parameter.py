"""Weights and optimizer state by parameter: out of a checkpoint, into an engine of any layout.

DeepSpeed loads a checkpoint only into the layout that wrote it. Its universal checkpoints cannot
cross between ZeRO 1/2 and 3, nor from or to ZeRO 0, and write a tree of files on the way. Here
each parameter is cut out of the mapped files and copied into the flat tensors of the engine, one
at a time.

| ZeRO | flat tensors of a rank     | where a parameter lies                                      |
|------|----------------------------|-------------------------------------------------------------|
| 0    | one a parameter (or group) | whole, in the optimizer's order; the same on every rank    |
| 1, 2 | one a parameter group      | in the concatenation over ranks, perhaps across two of them |
| 3    | one a sub-group            | in equal parts on every rank, the last one padded           |
"""

import zlib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from gpt1_ds.base.errors import DataError
from gpt1_ds.base.protocols import Engine, Json
from gpt1_ds.checkpoints.deepspeed_files import SavedParameters
from gpt1_ds.checkpoints.flat_tensors import (
    FlatSlice,
    flat_slices,
    release_gathered,
    round_to_module,
    set_counters,
    set_loss_scale,
)
from gpt1_ds.checkpoints.swap_files import ResidentPart
from gpt1_ds.distributed import collectives


def place_weights(
    engine: Engine, weights: Iterable[tuple[str, Tensor]], source: Path | str
) -> None:
    """Copy whole float32 parameters into the optimizer's own float32 weights.

    `deepspeed.initialize` rounds the module's weights to bf16; these are exact. Parameters that
    are not among `weights` (a new task head) stay as they are. Every rank calls with the same
    weights. DataError unless the engine then holds the same bits.
    """
    by_name: dict[str, list[FlatSlice]] = defaultdict(list)
    for flat_slice in flat_slices(engine):
        by_name[flat_slice.name].append(flat_slice)
    filled = []
    total = torch.zeros((), dtype=torch.int64)
    release_gathered(engine)
    with ResidentPart(engine) as resident:
        for name, weight in weights:
            total += _checksum(name, weight.flatten(), 0)
            for flat_slice in by_name[name]:
                resident.load(flat_slice.part)
                flat_slice.weights().copy_(flat_slice.of_parameter(weight))
                filled.append(flat_slice)
    round_to_module(engine)
    placed = torch.zeros((), dtype=torch.int64)
    # Without ZeRO every rank has all weights, and one of them counts.
    if engine.zero_optimization_stage() > 0 or collectives.is_main():
        with ResidentPart(engine) as resident:
            for flat_slice in filled:
                resident.load(flat_slice.part)
                elements = flat_slice.weights().cpu()
                placed += _checksum(flat_slice.name, elements, flat_slice.start)
    if collectives.all_sum(placed).item() != total.item():
        raise DataError(
            f"{source}: its weights did not arrive whole in the engine; take another checkpoint"
        )


def place_state(engine: Engine, saved: SavedParameters) -> None:
    """Copy the optimizer's state, the counters and the loss scale of `saved` into the engine."""
    optimizer = engine.basic_optimizer
    name, state = "", {}
    with ResidentPart(engine) as resident:
        for flat_slice in flat_slices(engine):
            resident.load(flat_slice.part)
            if flat_slice.name != name:
                name, state = flat_slice.name, saved.state(flat_slice.name)
            _place_state_of(flat_slice, state, optimizer)
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
            flat_slice.of_flat(moment).copy_(flat_slice.of_parameter(value))
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
