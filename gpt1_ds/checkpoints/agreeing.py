"""What the ranks of a run tell each other before and after they write a checkpoint.

A fault on one rank is a fault on all of them: no rank goes on alone.
"""

import socket
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import safetensors
from torch import Tensor

from gpt1_ds.base.errors import DataError, DivergedError
from gpt1_ds.base.memory import memory_left
from gpt1_ds.base.protocols import Engine
from gpt1_ds.checkpoints.flat_tensors import non_finite, place_crc
from gpt1_ds.checkpoints.folder import step_folder, step_of
from gpt1_ds.checkpoints.replicas import Replicas
from gpt1_ds.checkpoints.state import FileSeal
from gpt1_ds.checkpoints.writing import FileWriter
from gpt1_ds.distributed import collectives

Result = TypeVar("Result")
REMEDY = "the last checkpoint is kept: lower optim.lr or lengthen schedule.warmup_steps"


class SaveError(DataError):
    """A save that all ranks gave up together. The checkpoints before it are untouched."""


class StallError(SaveError):
    """A save that was left out, since the disk hangs."""


class Written(NamedTuple):
    """What the ranks have written of a checkpoint."""

    files: dict[str, FileSeal]
    """Of all ranks, on rank 0: the others need none, and are spared to parse thousands."""
    bytes: int
    seconds: float
    """The longest time that a rank spent writing."""


def finish_on_all_ranks(writer: FileWriter, stall_seconds: float) -> Written | None:
    """Wait until every rank has written its files; None if the write of one hangs on some rank.

    SaveError on all ranks if it failed on one.
    """
    seals, fault = _attempt(lambda: writer.finish(stall_seconds))
    size = sum(seal.bytes for seal in seals.values()) if seals else 0
    own = [fault is not None, writer.hung is not None, size, round(1000 * writer.seconds)]
    failed, hung, sizes, milliseconds = collectives.gather_numbers(own).unbind(1)
    if failed.any():
        raise SaveError(next(filter(None, collectives.gather_json(fault))))
    if hung.any():
        return None
    files = {}
    for of_rank in collectives.gather_json_on_main(seals):
        files.update({name: FileSeal(*seal) for name, seal in sorted(of_rank.items())})
    return Written(files, int(sizes.sum()), int(milliseconds.max()) / 1000)


def agree_on_main(action: Callable[[], bool]) -> bool:
    """Run `action` on rank 0; on all ranks what it returned, or SaveError if it failed."""
    value, fault = collectives.from_main(_attempt(action) if collectives.is_main() else None)
    if fault:
        raise SaveError(fault)
    return bool(value)


def _attempt(action: Callable[[], Result]) -> tuple[Result | None, str | None]:
    """What `action` returned, and None; or None, and the fault."""
    try:
        return action(), None
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        return None, f"rank {collectives.rank()}: {' '.join(str(error).split())[:300]}"


class Views(NamedTuple):
    """What the ranks see before a save, one number of each: `hosts` are hashes of their names."""

    steps: Tensor
    exist: Tensor
    """Whether the folder to make is there already."""
    hosts: Tensor
    memory: Tensor
    """Bytes that are free on the host."""
    non_finite: Tensor
    """Whether the rank has a tensor that is not finite."""
    place_crcs: Tensor
    before_update: Tensor
    """A hash of what all ranks must have alike, before the last update.."""
    now: Tensor
    """.. and now: see `Replicas.numbers`."""


def views_of_ranks(final: Path, engine: Engine, replicas: Replicas) -> Views:
    """SaveError unless all ranks are about to save the same step; DivergedError unless all tensors
    of all ranks are finite, and their copies alike."""
    step, exists = step_of(final), final.exists()
    fault = None if exists else non_finite(engine)
    host = zlib.crc32(socket.gethostname().encode())
    own = [step, exists, host, int(memory_left()), fault is not None, place_crc(engine)]
    own += [0, 0] if exists else replicas.numbers(engine, step)
    views = Views(*collectives.gather_numbers(own).unbind(1))
    if (views.steps != views.steps[0]).any():
        steps = views.steps.unique().tolist()
        names = [step_folder(final.parent, step).name for step in steps]
        raise SaveError(
            f"{final.parent}: the ranks are at different steps: {', '.join(names)}; start again"
        )
    if views.non_finite.any():
        faults = collectives.gather_json(fault)
        rank = int(views.non_finite.argmax())
        raise DivergedError(
            f"{final}: not saved: {faults[rank]} is not finite on rank {rank}; {REMEDY}"
        )
    if different := replicas.difference(views.before_update, views.now):
        raise DivergedError(f"{final}: not saved: {different}")
    return views


def has_room(engine: Engine, views: Views, needed: int) -> bool:
    """Whether each host's memory takes the copies of its ranks' files, and DeepSpeed's own copies.

    Without ZeRO all files are those of rank 0.
    """
    _, host, ranks_of_host = views.hosts.unique(return_inverse=True, return_counts=True)
    parts = len(views.hosts) if engine.zero_optimization_stage() else 1
    copies = needed * ranks_of_host[host] / parts
    return not (views.memory <= 2 * copies + needed / 4).any()
