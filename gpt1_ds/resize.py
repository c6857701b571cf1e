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
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt1_ds import distributed
from gpt1_ds.errors import DataError
from gpt1_ds.swapped import AtHand


class Shards:
    """A committed checkpoint read by parameter name; files are mapped, so that only what is asked for is read.

    Unpickling is weights-only, after `checkpoint` has allowed DeepSpeed's harmless classes.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]):
        stage, ranks = manifest["zero_stage"], range(manifest["world_size"])
        model = _load(folder / f"{'zero_pp_rank_0_' if stage == 3 else ''}mp_rank_00_model_states.pt")
        self.counters = {name: model[name] for name in ("global_steps", "global_samples", "skipped_steps")}
        self.spans: dict[str, tuple[torch.Size, list[tuple[int, int, int, int]]]] = {}
        """Of each parameter its shape and, in order, (rank, part, offset, length) of where its elements lie."""
        if stage == 0:
            module, saved = model["module"], model["optimizer"]
            self.optimizer, self.scale = saved.get("optimizer_state_dict", saved), saved.get("cur_scale")
            shapes = {name: module[name].shape for name in manifest.get("order") or module}
            unfused = sum(saved.get("fp32_groups", []), []) or [module[name] for name in shapes]
            self.flats = [saved.get("fp32_groups_flat", unfused)]
            self.states = [self.optimizer["state"]]
            self._lay(shapes, [(0, part) for part in range(len(self.flats[0]))])
            return
        paths = [next(folder.glob(f"*zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")) for rank in ranks]
        saved = [_load(path)["optimizer_state_dict"] for path in paths]
        flats, optimizer = "single_partition_of_fp32_groups", "base_optimizer_state"
        if stage == 3:
            flats, optimizer = "fp32_flat_groups", "optimizer_state_dict"
        self.optimizer, self.scale = saved[0][optimizer], getattr(saved[0].get("loss_scaler"), "cur_scale", None)
        self.flats, self.states = [of[flats] for of in saved], [of[optimizer]["state"] for of in saved]
        if stage == 3:
            shapes = {name: shape for group in model["param_shapes"] for name, shape in group.items()}
            for rank in ranks:
                self._lay(shapes, [(rank, part) for part in range(len(self.flats[rank]))], shared_by=len(ranks))
        else:
            for part, shapes in enumerate(model["param_shapes"]):
                paddings = saved[0].get("param_alignment_paddings", {part: ()})[part]
                self._lay(shapes, [(rank, part) for rank in ranks], paddings)

    def _lay(self, shapes: Mapping[str, torch.Size], parts: list[tuple[int, int]], paddings=(), shared_by=1) -> None:
        """Note where parameters, or a rank's equal share of each, lie end to end in `parts`, (rank, part)."""
        ends = [0, *accumulate(self.flats[rank][part].numel() for rank, part in parts)]
        start = 0
        for (name, shape), padding in zip_longest(shapes.items(), paddings, fillvalue=0):
            end = start - (-shape.numel() // shared_by)
            for n, part in enumerate(parts):
                first, last = max(start, ends[n]), min(end, ends[n + 1])
                if first < last:
                    self.spans.setdefault(name, (shape, []))[1].append((*part, first - ends[n], last - first))
            start = end + padding

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter in float32."""
        return ((name, self._join(name, lambda rank, part: self.flats[rank][part]).float()) for name in self.spans)

    def state(self, name: str) -> dict[str, Any]:
        """The optimizer's state of one parameter: tensors of its shape, and scalars such as Adam's step."""
        rank, part, _, _ = self.spans[name][1][0]
        # A flat tensor of ZeRO 1/2 is saved without its padding, its moments with it.
        return {
            key: self._join(name, lambda rank, part, key=key: self.states[rank][part][key])
            if torch.is_tensor(value) and value.dim() and value.numel() >= self.flats[rank][part].numel()
            else value
            for key, value in self.states[rank].get(part, {}).items()
        }

    def _join(self, name: str, flat: Callable[[int, int], Tensor]) -> Tensor:
        shape, spans = self.spans[name]
        cuts = [flat(rank, part).flatten()[start : start + length] for rank, part, start, length in spans]
        return torch.cat(cuts)[: shape.numel()].view(shape)


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
                start = share * distributed.rank()
                if (length := min(share, p.ds_numel - start)) > 0:
                    flat = optimizer.fp32_partitioned_groups_flat[part]
                    found.append(Piece(names[id(p)], start, length, flat, part, offset))
                offset += share
    elif engine.zero_optimization_stage() > 0:
        other = hasattr(optimizer, "bf16_groups")  # DeepSpeed's wrapper where bf16 gradients add up in float32
        flats = optimizer.fp32_groups_flat_partition if other else optimizer.single_partition_of_fp32_groups
        for part, group in enumerate(optimizer.bf16_groups if other else optimizer.bit16_groups):
            for p in (p for p in group if p._hp_mapping is not None):
                there, here = p._hp_mapping.lp_fragment_address, p._hp_mapping.hp_fragment_address
                found.append(Piece(names[id(p)], there.start, there.numel, flats[part], part, here.start))
    else:
        groups = getattr(optimizer, "fp16_groups", None) or [group["params"] for group in optimizer.param_groups]
        masters, fused = getattr(optimizer, "fp32_groups", groups), getattr(optimizer, "fp32_groups_flat", None)
        for part, group in enumerate(groups):
            offset = 0
            for p, master in zip(group, masters[part], strict=True):
                flat, number = (fused[part], part) if fused else (master, len(found))
                found.append(Piece(names[id(p)], 0, p.numel(), flat, number, offset))
                offset += p.numel() if fused else 0
    return found


def layout(engine) -> dict[str, Any]:
    """What must agree for DeepSpeed itself to load a checkpoint: who keeps which element of which parameter where."""
    places = [[piece.name, piece.start, piece.length, piece.part, piece.offset] for piece in pieces(engine)]
    crc = zlib.crc32(repr([type(engine.optimizer).__name__, places]).encode())
    return {
        "world_size": distributed.world_size(),
        "zero_stage": engine.zero_optimization_stage(),
        "precision": "bf16" if engine.bfloat16_enabled() else "fp16" if engine.fp16_enabled() else "fp32",
        "places": distributed.gather_json(crc),
    }


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
                piece.of(piece.flat).copy_(weight.flatten()[piece.start : piece.start + piece.length])
                filled.append(piece)  # a task's head, which no checkpoint of pre-training has, stays as drawn
    _round_to_module(engine)
    placed = torch.zeros((), dtype=torch.int64)
    if engine.zero_optimization_stage() > 0 or distributed.is_main():  # else every rank has all
        with AtHand(engine) as hand:
            for piece in filled:
                hand.need(piece.part)
                placed += _checksum(piece.name, piece.of(piece.flat).cpu(), piece.start)
    if distributed.all_sum(placed).item() != total.item():
        raise DataError(f"{source}: its weights did not arrive whole in the engine; take another checkpoint")


def place_state(engine, shards: Shards) -> None:
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
                    piece.of(moment).copy_(value.flatten()[piece.start : piece.start + piece.length])
                elif torch.is_tensor(value):
                    # Adam's step: a fused kernel wants it beside the weights, others on the CPU.
                    state[key] = value.clone().to(piece.flat.device if optimizer.defaults.get("fused") else "cpu")
                else:
                    state[key] = value
    for group in optimizer.param_groups:  # DeepSpeed's fused Adam counts its steps here
        group.update({key: value for key, value in shards.optimizer["param_groups"][0].items() if key == "step"})
    for name, value in shards.counters.items():
        setattr(engine, name, value)
    if engine.fp16_enabled() and shards.scale is not None:
        scaler = getattr(engine.optimizer, "loss_scale_config", None) or engine.optimizer.loss_scaler
        scaler.cur_scale = shards.scale


def _round_to_module(engine) -> None:
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


def _checksum(name: str, elements: Tensor, start: int) -> Tensor:
    """A sum, wrapping at 64 bits, of every element's bits times its place: the ranks' pieces add up to the whole's."""
    place = torch.arange(start + 1, start + elements.numel() + 1)
    return (elements.float().view(torch.int32).long() * place).sum() * (zlib.crc32(name.encode()) | 1)


def _load(path: Path) -> Mapping[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
