"""Weights and optimizer state by parameter, out of DeepSpeed's shards and into a live engine of any other layout.

DeepSpeed loads a checkpoint only into the layout that wrote it; its universal conversion crosses neither between ZeRO
1/2 and 3 nor from or to 0, and writes a tree of files on the way. Here every parameter is cut out of the mapped
shard files and copied into the flat tensors of the engine, one at a time.

| ZeRO | a rank's flat tensors      | a parameter lies                                                        |
|------|----------------------------|-------------------------------------------------------------------------|
| 0    | one a parameter (or group) | whole, in order of the optimizer's groups; the same on every rank       |
| 1, 2 | one a parameter group      | in the concatenation of that group over ranks, perhaps across two ranks |
| 3    | one a sub-group            | in equal parts on every rank, the last padded                           |
"""

import zlib
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from gpt1_ds.base.errors import DataError
from gpt1_ds.checkpoints.deepspeed_files import SavedParameters
from gpt1_ds.checkpoints.flat_tensors import pieces, round_to_module
from gpt1_ds.checkpoints.swap_files import AtHand
from gpt1_ds.distributed import collectives


def place_weights(engine, weights: Iterable[tuple[str, Tensor]], source: Path | str) -> None:
    """Copy whole float32 parameters into the optimizer's own, past the rounding to bf16 that DeepSpeed's start has.

    Every rank calls with the same weights. DataError unless the engine then holds those very bits.
    """
    by_name, filled, total = {}, [], torch.zeros((), dtype=torch.int64)
    for piece in pieces(engine):
        by_name.setdefault(piece.name, []).append(piece)
    if hasattr(engine.optimizer, "checkpoint_event_prologue"):
        engine.optimizer.checkpoint_event_prologue()
    with AtHand(engine) as hand:
        for name, weight in weights:
            total += _checksum(name, weight.flatten(), 0)
            for piece in by_name.get(name, []):
                hand.need(piece.part)
                piece.of(piece.flat).copy_(
                    weight.flatten()[piece.start : piece.start + piece.length]
                )
                filled.append(
                    piece
                )  # a task's head, which no checkpoint of pre-training has, stays as drawn
    round_to_module(engine)
    placed = torch.zeros((), dtype=torch.int64)
    if engine.zero_optimization_stage() > 0 or collectives.is_main():  # else every rank has all
        with AtHand(engine) as hand:
            for piece in filled:
                hand.need(piece.part)
                placed += _checksum(piece.name, piece.of(piece.flat).cpu(), piece.start)
    if collectives.all_sum(placed).item() != total.item():
        raise DataError(
            f"{source}: its weights did not arrive whole in the engine; take another checkpoint"
        )


def place_state(engine, shards: SavedParameters) -> None:
    """The optimizer's state, the counters and the loss scale of `shards`, into the engine."""
    optimizer, cached = engine.basic_optimizer, ("", {})
    with AtHand(engine) as hand:
        for piece in pieces(engine):
            hand.need(piece.part)
            if cached[0] != piece.name:
                cached = piece.name, shards.state(piece.name)
            state = optimizer.state[piece.flat]
            for key, value in cached[1].items():
                if torch.is_tensor(value) and value.dim():
                    moment = state.setdefault(key, torch.zeros_like(piece.flat))
                    piece.of(moment).copy_(
                        value.flatten()[piece.start : piece.start + piece.length]
                    )
                elif torch.is_tensor(value):
                    # Adam's step: a fused kernel wants it beside the weights, others on the CPU.
                    state[key] = value.clone().to(
                        piece.flat.device if optimizer.defaults.get("fused") else "cpu"
                    )
                else:
                    state[key] = value
    for group in optimizer.param_groups:  # DeepSpeed's fused Adam counts its steps here
        group.update(
            {
                key: value
                for key, value in shards.optimizer["param_groups"][0].items()
                if key == "step"
            }
        )
    for name, value in shards.counters.items():
        setattr(engine, name, value)
    if engine.fp16_enabled() and shards.scale is not None:
        scaler = (
            getattr(engine.optimizer, "loss_scale_config", None) or engine.optimizer.loss_scaler
        )
        scaler.cur_scale = shards.scale


def _checksum(name: str, elements: Tensor, start: int) -> Tensor:
    """A sum, wrapping at 64 bits, of every element's bits times its place: the ranks' pieces add up to the whole's."""
    place = torch.arange(start + 1, start + elements.numel() + 1)
    return (elements.float().view(torch.int32).long() * place).sum() * (
        zlib.crc32(name.encode()) | 1
    )
