"""Where each parameter lies in the flat tensors of DeepSpeed's optimizers."""

import zlib
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gpt1_ds.checkpoints.swap_files import AtHand
from gpt1_ds.distributed import collectives


@dataclass
class Piece:
    """Elements `[start, start + length)` of a parameter, which this rank's optimizer keeps at `offset` of `flat`."""

    name: str
    start: int
    length: int
    flat: Tensor
    part: int
    offset: int

    def of(self, tensor: Tensor) -> Tensor:
        """The piece's elements of `flat`, or of a moment that lies like it."""
        return tensor.detach().view(-1)[self.offset : self.offset + self.length]


def pieces(engine) -> list[Piece]:
    """What this rank's optimizer updates, in its order."""
    optimizer, found = engine.optimizer, []
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    if engine.zero_optimization_stage() == 3:
        for part, group in enumerate(optimizer.fp16_groups):
            offset = 0
            for p in group:
                share = p.partition_numel()
                start = share * collectives.rank()
                if (length := min(share, p.ds_numel - start)) > 0:
                    flat = optimizer.fp32_partitioned_groups_flat[part]
                    found.append(Piece(names[id(p)], start, length, flat, part, offset))
                offset += share
    elif engine.zero_optimization_stage() > 0:
        other = hasattr(
            optimizer, "bf16_groups"
        )  # DeepSpeed's wrapper where bf16 gradients add up in float32
        flats = (
            optimizer.fp32_groups_flat_partition
            if other
            else optimizer.single_partition_of_fp32_groups
        )
        for part, group in enumerate(optimizer.bf16_groups if other else optimizer.bit16_groups):
            for p in (p for p in group if p._hp_mapping is not None):
                there, here = p._hp_mapping.lp_fragment_address, p._hp_mapping.hp_fragment_address
                found.append(
                    Piece(names[id(p)], there.start, there.numel, flats[part], part, here.start)
                )
    else:
        groups = getattr(optimizer, "fp16_groups", None) or [
            group["params"] for group in optimizer.param_groups
        ]
        masters, fused = (
            getattr(optimizer, "fp32_groups", groups),
            getattr(optimizer, "fp32_groups_flat", None),
        )
        for part, group in enumerate(groups):
            offset = 0
            for p, master in zip(group, masters[part], strict=True):
                flat, number = (fused[part], part) if fused else (master, len(found))
                found.append(Piece(names[id(p)], 0, p.numel(), flat, number, offset))
                offset += p.numel() if fused else 0
    return found


def layout(engine) -> dict[str, Any]:
    """What must agree for DeepSpeed itself to load a checkpoint: who keeps which element of which parameter where."""
    places = [
        [piece.name, piece.start, piece.length, piece.part, piece.offset]
        for piece in pieces(engine)
    ]
    crc = zlib.crc32(repr([type(engine.optimizer).__name__, places]).encode())
    return {
        "world_size": collectives.world_size(),
        "zero_stage": engine.zero_optimization_stage(),
        "precision": "bf16"
        if engine.bfloat16_enabled()
        else "fp16"
        if engine.fp16_enabled()
        else "fp32",
        "places": collectives.gather_json(crc),
    }


def round_to_module(engine) -> None:
    """Renew the module's own, perhaps bf16, copy from the optimizer's float32 weights."""
    optimizer = engine.optimizer
    if engine.zero_optimization_stage() == 3:
        with AtHand(engine) as hand:
            for part, flat in enumerate(optimizer.fp32_partitioned_groups_flat):
                hand.need(part)
                if optimizer.fp16_partitioned_groups_flat[part] is None:
                    optimizer._partitioned_params_swap_out(part)
                else:
                    optimizer.fp16_partitioned_groups_flat[part].data.copy_(flat.data)
                    optimizer._unflatten_partitioned_parameters(part)
        optimizer.checkpoint_event_epilogue()
    elif engine.zero_optimization_stage() > 0:
        optimizer.update_lp_params()
    else:
        parameters = dict(engine.module.named_parameters())
        for piece in pieces(engine):
            parameters[piece.name].data.view(-1).copy_(piece.of(piece.flat))
