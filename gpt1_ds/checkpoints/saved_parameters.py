"""The parameters in the files of a checkpoint: any elements of any of them, by name.

Where each element lies follows from the shapes, and from the sizes of the flat tensors of rank 0.
So the other ranks' files are opened only for elements that lie in them. The keys are those of
DeepSpeed 0.19.8.

| ZeRO | an element lies                                                                |
|------|--------------------------------------------------------------------------------|
| 0    | in the file of rank 0, in one tensor a parameter (or group)                    |
| 1, 2 | in its group, which is one row of all its parameters, in equal shares for the  |
|      | ranks                                                                          |
| 3    | in its parameter, in equal shares for the ranks; a rank's shares lie one after |
|      | the other in its flat tensors                                                  |
"""

import pickle
from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import accumulate, chain
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from gpt1_ds.base.errors import DataError
from gpt1_ds.base.protocols import Json
from gpt1_ds.checkpoints.deepspeed_files import (
    allow_known_classes,
    load_file,
    load_model_states,
    optimizer_files,
    untrusted,
)
from gpt1_ds.checkpoints.state import CheckpointManifest

MAPPED_BYTES = 1 << 26
"""How much of the files' mapped content may stay in memory while weights are read."""


@torch.no_grad()  # Some flat tensors require gradients: a graph would hold them, and their maps.
def read_weights(folder: Path, manifest: CheckpointManifest) -> dict[str, Tensor]:
    """Every parameter in float32; DataError if a file holds more than tensors and plain values."""
    allow_known_classes()
    weights: dict[str, Tensor] = {}
    try:
        names = SavedParameters(folder, manifest).names()
        while len(weights) < len(names):
            # What was read of a mapped file stays in memory as long as the map does. So map the
            # files anew for every few parameters.
            saved = SavedParameters(folder, manifest)
            left = MAPPED_BYTES
            for name in names[len(weights) :]:
                weights[name] = saved.weight(name)
                left -= weights[name].nbytes
                if left < 0:
                    break
    except pickle.UnpicklingError as error:
        raise DataError(untrusted(folder, error)) from error
    return weights


class Piece(NamedTuple):
    """What the file of one rank holds."""

    flats: list[Tensor]
    """The flat tensors of float32 weights."""
    states: dict[int, Json]
    """The optimizer's state of each of them."""


class Span(NamedTuple):
    """Elements `[start, start + length)` of a flat tensor of `rank`."""

    rank: int
    start: int
    length: int


class SavedParameter(NamedTuple):
    """Where a parameter lies: its element `e` is number `first + e` of a row of equal shares.

    The row is cut into one share of `share` elements for each rank. That of a rank lies in its flat
    tensor number `part` from element `base` on.
    """

    shape: torch.Size
    part: int
    first: int
    share: int
    base: int

    def spans(self, start: int, length: int) -> Iterator[Span]:
        """Where the elements `[start, start + length)` lie, in order."""
        place, end = self.first + start, self.first + start + length
        while place < end:
            rank, within = divmod(place, self.share)
            taken = min(self.share - within, end - place)
            yield Span(rank, self.base + within, taken)
            place += taken

    def of_rank(self, rank: int) -> tuple[int, int]:
        """The first of the elements that lie on `rank`, and their number."""
        start = max(0, rank * self.share - self.first)
        end = min(self.shape.numel(), (rank + 1) * self.share - self.first)
        return start, max(0, end - start)


class SavedParameters:
    """A committed checkpoint, read by parameter name.

    Its files are mapped, so that a read takes only what it needs. Unpickling is weights-only:
    call `allow_known_classes` before.
    """

    def __init__(self, folder: Path, manifest: CheckpointManifest):
        self.folder = folder
        self.stage = manifest.layout.zero_stage
        self.ranks = manifest.layout.world_size if self.stage else 1
        model = load_model_states(folder, manifest)
        self.counters: dict[str, int] = {
            name: model[name] for name in ("global_steps", "global_samples", "skipped_steps")
        }
        self.scale: float | None = None
        """Loss scale of fp16."""
        self.group_step: int | None = None
        """Steps done, if the optimizer counts them for a whole group and not for each tensor."""
        self._files = optimizer_files(manifest)
        self._pieces: dict[int, Piece] = {}
        self._parameters: dict[str, SavedParameter] = {}
        if self.stage == 0:
            self._read_without_zero(model, manifest.order)
        else:
            saved = self._load(0)
            self.scale = getattr(saved.get("loss_scaler"), "cur_scale", None)
            self._pieces[0] = self._piece_of(saved)
            if self.stage == 3:
                self._place_zero3(model)
            else:
                self._place_zero1_and_2(model, saved)

    def _read_without_zero(self, model: Json, order: list[str] | None) -> None:
        """One file of rank 0: the module, and the optimizer's state by number of the parameter.

        DeepSpeed's half precision wrappers keep float32 weights beside it: the fused one in
        `fp32_groups_flat`, the unfused one in `fp32_groups`.
        """
        module, saved = model["module"], model["optimizer"]
        optimizer = saved.get("optimizer_state_dict", saved)
        self.scale = saved.get("cur_scale")
        self.group_step = optimizer["param_groups"][0].get("step")
        shapes = {name: module[name].shape for name in order or module}
        unfused = list(chain.from_iterable(saved.get("fp32_groups", [])))
        unfused = unfused or [module[name] for name in shapes]
        self._pieces[0] = Piece(saved.get("fp32_groups_flat", unfused), optimizer["state"])
        self._place_shares(shapes)

    def _place_zero1_and_2(self, model: Json, saved: Json) -> None:
        for part, shapes in enumerate(model["param_shapes"]):
            share = self._pieces[0].flats[part].numel()
            # Unused elements after each parameter; earlier versions of DeepSpeed had none.
            paddings = saved.get("param_alignment_paddings", {part: ()})[part] or [0] * len(shapes)
            first = 0
            for (name, shape), padding in zip(shapes.items(), paddings, strict=True):
                self._parameters[name] = SavedParameter(shape, part, first, share, 0)
                first += shape.numel() + padding

    def _place_zero3(self, model: Json) -> None:
        shapes: dict[str, torch.Size] = {}
        for group in model["param_shapes"]:
            shapes |= group
        self._place_shares(shapes)

    def _place_shares(self, shapes: dict[str, torch.Size]) -> None:
        """Note parameters of which each rank has one share, one after the other in its tensors."""
        ends = [*accumulate(flat.numel() for flat in self._pieces[0].flats)]
        place = 0
        for name, shape in shapes.items():
            share = max(1, -(-shape.numel() // self.ranks))
            part = bisect_right(ends, place)
            base = place - (ends[part - 1] if part else 0)
            self._parameters[name] = SavedParameter(shape, part, 0, share, base)
            place += share

    def _load(self, rank: int) -> Json:
        if rank not in self._files:
            raise DataError(
                f"{self.folder}: its manifest names no optimizer state of rank {rank}; "
                "take another checkpoint"
            )
        saved: Json = load_file(self.folder / self._files[rank])["optimizer_state_dict"]
        return saved

    def _piece_of(self, saved: Json) -> Piece:
        kept = "fp32_flat_groups" if self.stage == 3 else "single_partition_of_fp32_groups"
        state = "optimizer_state_dict" if self.stage == 3 else "base_optimizer_state"
        if self.group_step is None:
            self.group_step = saved[state]["param_groups"][0].get("step")
        return Piece(saved[kept], saved[state]["state"])

    def _piece(self, rank: int) -> Piece:
        if rank not in self._pieces:
            self._pieces[rank] = self._piece_of(self._load(rank))
        return self._pieces[rank]

    def names(self) -> list[str]:
        return list(self._parameters)

    def shape(self, name: str) -> torch.Size:
        return self._parameters[name].shape

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter in float32, by name."""
        return ((name, self.weight(name)) for name in self._parameters)

    def weight(self, name: str) -> Tensor:
        shape = self.shape(name)
        return self.elements(name, 0, shape.numel()).view(shape)

    def elements(self, name: str, start: int, length: int) -> Tensor:
        """The elements `[start, start + length)` of a parameter, in float32."""
        part = self._parameters[name].part
        return self._join(name, start, length, lambda piece: piece.flats[part]).float()

    def state(self, name: str, start: int = 0, length: int | None = None) -> Json:
        """The optimizer's state of so many elements of a parameter (None: of all).

        Flat tensors of that length (moments), and scalars such as Adam's step.
        """
        parameter = self._parameters[name]
        number = parameter.shape.numel()
        length = number if length is None else length
        span = next(parameter.spans(min(start, number - 1), 1))
        piece, part = self._piece(span.rank), parameter.part
        # A flat tensor of ZeRO 1/2 is saved without its padding, its moments with it.
        least = piece.flats[part].numel()
        state: Json = {}
        for key, value in piece.states.get(part, {}).items():
            if torch.is_tensor(value) and value.dim() and value.numel() >= least:
                state[key] = self._moment(name, start, length, key)
            else:
                state[key] = value
        return state

    def _moment(self, name: str, start: int, length: int, key: str) -> Tensor:
        part = self._parameters[name].part
        return self._join(name, start, length, lambda piece: piece.states[part][key])

    def _join(self, name: str, start: int, length: int, flat: Callable[[Piece], Tensor]) -> Tensor:
        """Elements of a parameter, out of one flat tensor for each span."""
        cuts = []
        for rank, first, taken in self._parameters[name].spans(start, length):
            cuts.append(flat(self._piece(rank)).flatten()[first : first + taken])
        joined = torch.cat(cuts) if cuts else torch.empty(0)
        if joined.numel() != length:
            raise DataError(
                f"{self.folder}: {name} is not whole in its files; take another checkpoint"
            )
        return joined

    def shares(self, part: int, parts: int) -> Iterator[tuple[str, int, int]]:
        """Name, start and length of the elements that are number `part` of `parts` to check.

        All parts together are all elements. A part lies in few files: in those of every `parts`-th
        rank.
        """
        if self.ranks == 1:
            yield from even_shares({name: self.shape(name) for name in self.names()}, part, parts)
            return
        for rank in range(part, self.ranks, parts):
            for name, parameter in self._parameters.items():
                start, length = parameter.of_rank(rank)
                if length:
                    yield name, start, length


def even_shares(
    shapes: dict[str, torch.Size], part: int, parts: int
) -> Iterator[tuple[str, int, int]]:
    """The same for weights that do not lie in files of ranks: a share of each parameter."""
    for name, shape in shapes.items():
        start, end = (shape.numel() * number // parts for number in (part, part + 1))
        if start < end:
            yield name, start, end - start
