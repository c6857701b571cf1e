"""The mean of the weights of the last checkpoints of a run, in float32.

Memory holds it once: the files of each checkpoint are mapped, and their elements added in pieces.
"""

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from gpt1_ds.base.errors import DataError
from gpt1_ds.checkpoints.deepspeed_files import allow_known_classes, untrusted
from gpt1_ds.checkpoints.folder import MANIFEST, checkpoint_folders, find_faults, read_state
from gpt1_ds.checkpoints.loading import source_in
from gpt1_ds.checkpoints.state import CheckpointState

PIECE = 1 << 20
"""Elements that are read at once."""
MAPPED_PIECES = 8
"""So many are read before the files are mapped anew: what was read stays in memory till then."""


class Mean(NamedTuple):
    weights: dict[str, Tensor]
    """By parameter name, float32, on the CPU."""
    state: CheckpointState
    """That of the newest checkpoint."""
    folders: list[Path]
    """The checkpoints, newest first."""


def load_mean(path: Path | str, count: int) -> Mean:
    """The mean of the last `count` checkpoints of the run `path`, of any layouts.

    If `path` is a checkpoint, it is the last of them. DataError if there are fewer that verify, or
    if their models differ.
    """
    folders = last_checkpoints(Path(path), count)
    allow_known_classes()
    shapes = _shapes(folders[0])
    mean = {name: torch.zeros(shape) for name, shape in shapes.items()}
    for number, folder in enumerate(folders, start=1):
        if differing := _differing(shapes, _shapes(folder)):
            raise DataError(
                f"{folder}: {differing} has not the shape that it has in {folders[0].name}; "
                f"--average {number - 1} leaves it out"
            )
        for name, start, elements in _pieces(folder):
            # As a running mean: that of equal checkpoints is each of them, bit for bit.
            part = mean[name].view(-1)[start : start + len(elements)]
            part.lerp_(elements, 1 / number)
    return Mean(mean, read_state(folders[0]), folders)


def last_checkpoints(path: Path, count: int) -> list[Path]:
    """The newest `count` checkpoints that verify, newest first; those that do not are told."""
    if (path / MANIFEST).exists():
        path = path.absolute()
        own = checkpoint_folders(path.parent)
        candidates = own[own.index(path) :] if path in own else [path]
    else:
        candidates = checkpoint_folders(path / "checkpoints") or checkpoint_folders(path)
    found: list[Path] = []
    for folder in candidates:
        if len(found) == count:
            break
        if faults := find_faults(folder):
            print(f"{folder}: {faults[0]}; left out of the mean", file=sys.stderr)
        else:
            found.append(folder.absolute())
    if len(found) < count:
        raise DataError(
            f"{path}: --average is {count}, and {len(found)} checkpoints are whole there; lower "
            "it, or give a run that keeps more (checkpoint.keep)"
        )
    return found


def _shapes(folder: Path) -> dict[str, torch.Size]:
    source = source_in(folder)
    return {name: source.shape(name) for name in source.names()}


def _differing(ours: dict[str, torch.Size], theirs: dict[str, torch.Size]) -> str:
    """The first parameter that only one of them has, or whose shape differs; empty: none."""
    names = (name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name))
    return next(names, "")


@torch.no_grad()  # Some flat tensors require gradients: a graph would hold them, and their maps.
def _pieces(folder: Path) -> Iterator[tuple[str, int, Tensor]]:
    """Every parameter, in float32: its name, the first of some elements, and these."""
    try:
        source, read = source_in(folder), 0
        for name in source.names():
            length = source.shape(name).numel()
            for start in range(0, length, PIECE):
                if read == MAPPED_PIECES:
                    source, read = source_in(folder), 0
                yield name, start, source.elements(name, start, min(PIECE, length - start))
                read += 1
    except pickle.UnpicklingError as error:
        raise DataError(untrusted(folder, error)) from error
