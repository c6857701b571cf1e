"""Save checkpoints: DeepSpeed's sharded files, under a commit protocol of our own.

1. Every rank writes, hashes and flushes its files in `step-N.tmp`, while training goes on.
2. Between two later steps all ranks agree that all have written.
3. Rank 0 writes the manifest, renames the folder to `step-N`, and replaces `latest` atomically.
4. A thread of rank 0 deletes the checkpoints that are no longer kept.

DeepSpeed alone publishes `latest` before its peers have written.
"""

import json
import os
import shutil
import socket
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from gpt1_ds.base.errors import DataError, DivergedError, StopRequested
from gpt1_ds.base.files import file_sha256, flush, write_atomically
from gpt1_ds.base.memory import memory_left
from gpt1_ds.base.protocols import Engine
from gpt1_ds.checkpoints.deepspeed_files import write_deepspeed_files
from gpt1_ds.checkpoints.flat_tensors import (
    flat_slices,
    layout,
    n_parameters,
    non_finite,
    place_crc,
)
from gpt1_ds.checkpoints.folder import (
    LATEST,
    MANIFEST,
    STATE,
    WEIGHTS,
    checkpoint_folders,
    rng_file,
    step_folder,
    step_of,
)
from gpt1_ds.checkpoints.removing import Removal
from gpt1_ds.checkpoints.replicas import Replicas
from gpt1_ds.checkpoints.state import CheckpointManifest, CheckpointState, FileSeal, Layout, digest
from gpt1_ds.checkpoints.writing import FileWriter
from gpt1_ds.distributed import collectives
from gpt1_ds.distributed.console import say
from gpt1_ds.settings.sections import CheckpointConfig

REMEDY = "the last checkpoint is kept: lower optim.lr or lengthen schedule.warmup_steps"
BYTES_PER_PARAMETER = 16
"""At most: the float32 weights, two moments, and the module's own copy of the weights."""
DELETE_SECONDS = 60.0
"""How long the end of a run waits for the deletion of old checkpoints."""


class SaveError(DataError):
    """A save that all ranks gave up together. The checkpoints before it are untouched."""


class OnCommit(Protocol):
    """What `Saves` calls after a commit, for the log."""

    def __call__(self, step: int, *, seconds: float, bytes: int, write_seconds: float) -> None:
        """`seconds` that training stood still, `bytes` of all files, `write_seconds` of writing."""


class Saves:
    """Saves the checkpoints of one run, at most one at a time.

    Every rank calls every method, at the same step. A step that is committed is never written
    again. A fault on one rank (a full disk, a file size limit) ends the save on all of them: with
    a SaveError if the save `must` succeed, and else with a warning. Weights or moments that are not
    finite on some rank, and copies that differ between ranks, are never saved: all ranks raise
    DivergedError.
    """

    def __init__(self, run_dir: Path, config: CheckpointConfig, on_commit: OnCommit):
        self.root = run_dir / "checkpoints"
        self.config = config
        self.replicas = Replicas(config)
        self.on_commit = on_commit
        self.pending: PendingSave | None = None
        self.removal = Removal(self.root)
        """Used by rank 0 alone."""
        with suppress(OSError):  # the next save raises it again
            if collectives.is_main():
                self.removal.add_leftovers()

    def save(self, engine: Engine, step: int, state: CheckpointState, must: bool) -> None:
        """Begin a checkpoint of `engine` and `state`.

        It is committed before this returns if it `must` be, or if memory has no room for a copy.
        Otherwise it is written while training goes on, and a later `poll` or `settle` commits it.
        """
        self.settle()
        started = time.perf_counter()
        final = step_folder(self.root, step)
        views = _views_of_ranks(final, engine, self.replicas)
        if views.exist[0]:
            return
        needed = BYTES_PER_PARAMETER * n_parameters(engine)
        in_background = not must and _has_room(engine, views, needed)
        writer = FileWriter(final.with_suffix(".tmp"), in_background)
        try:
            _agree_on_main(lambda: _prepare(self.removal, writer.folder, needed))
        except SaveError as error:
            self._give_up(final, must, error)
            return
        write_deepspeed_files(engine, writer)
        _write_generators(writer)
        if collectives.is_main():
            content = json.dumps(state.to_json(), indent=1).encode()
            writer.add(STATE, lambda file: file.write(content))
        writer.start()
        order = None
        if not engine.zero_optimization_stage():
            order = [flat_slice.name for flat_slice in flat_slices(engine)]
        here = layout(engine, views.place_crcs.tolist())
        manifest = CheckpointManifest(step, here, digest(state.to_json()), {}, order)
        seconds = time.perf_counter() - started
        self.pending = PendingSave(final, writer, manifest, must, seconds)
        if not in_background:
            self.settle()

    def poll(self) -> None:
        """Commit the pending checkpoint if all ranks have written it."""
        if self.pending is None:
            return
        busy = torch.tensor([float(self.pending.writer.busy())])
        if not collectives.all_sum(busy).item():
            self.settle()

    def settle(self) -> None:
        """Wait for the pending checkpoint, if there is one, and commit it."""
        if self.pending is None:
            return
        started = time.perf_counter()
        pending = self.pending
        self.pending = None
        try:
            files, write_seconds = _finish_on_all_ranks(pending.writer)
            manifest = replace(pending.manifest, files=files)
            _agree_on_main(lambda: self._commit(pending, manifest))
        except SaveError as error:
            self._give_up(pending.final, pending.must, error)
            return
        self.on_commit(
            manifest.step,
            seconds=round(pending.seconds + time.perf_counter() - started, 3),
            bytes=sum(seal.bytes for seal in files.values()),
            write_seconds=round(write_seconds, 3),
        )

    def _commit(self, pending: "PendingSave", manifest: CheckpointManifest) -> None:
        temporary = pending.writer.folder
        write_atomically(temporary / MANIFEST, json.dumps(manifest.to_json(), indent=1))
        flush(temporary)
        os.rename(temporary, pending.final)
        flush(self.root)
        write_atomically(self.root / LATEST, pending.final.name + "\n")
        for old in checkpoint_folders(self.root)[self.config.keep :]:
            if not self.config.keep_every or step_of(old) % self.config.keep_every:
                self.removal.add(old)

    def _give_up(self, final: Path, must: bool, error: SaveError) -> None:
        fault = f"{final}: not saved: {error}"
        if must:
            raise SaveError(
                f"{fault}; mend it, and the same command continues from the last checkpoint"
            ) from error
        say(f"warning: {fault}; training goes on, and the next save is due as always")

    def __enter__(self) -> "Saves":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Commit the pending checkpoint if training diverged: all ranks are here together then.

        After another error, a wait for the other ranks might not end. What is still to be deleted
        then is left to the next start; else the end waits for it, at most `DELETE_SECONDS`.
        """
        if kind is not None and issubclass(kind, DivergedError):
            self.settle()
        if kind is None or issubclass(kind, DivergedError | StopRequested):
            self.removal.wait(DELETE_SECONDS)


@dataclass
class PendingSave:
    """A checkpoint that is being written."""

    final: Path
    writer: FileWriter
    manifest: CheckpointManifest
    """Still without its files."""
    must: bool
    seconds: float
    """How long training has stood still for it."""


def save_checkpoint(
    engine: Engine,
    run_dir: Path,
    step: int,
    state: CheckpointState,
    config: CheckpointConfig,
    must: bool = True,
) -> dict[str, float] | None:
    """Commit a checkpoint at once; what `OnCommit` gets of it.

    None if that step was committed before, or if the save failed and need not (`must`) succeed.
    """
    commits: list[dict[str, float]] = []
    with Saves(run_dir, config, lambda step, **facts: commits.append(facts)) as saves:
        saves.save(engine, step, state, must)
        saves.settle()
    return commits[0] if commits else None


def _agree(action: Callable[[], Any]) -> list[Any]:
    """Run `action` on every rank; what it returned (JSON), by rank.

    SaveError on all ranks if it failed on one.
    """
    reports = collectives.gather_json(_attempt(action))
    faults = [fault for _, fault in reports if fault]
    if faults:
        raise SaveError(faults[0])
    return [value for value, _ in reports]


def _agree_on_main(action: Callable[[], None]) -> None:
    """Run `action` on rank 0; SaveError on all ranks if it failed."""
    _, fault = collectives.from_main(_attempt(action) if collectives.is_main() else None)
    if fault:
        raise SaveError(fault)


def _attempt(action: Callable[[], Any]) -> list[Any]:
    """What `action` returned, and None; or None, and the fault."""
    try:
        return [action(), None]
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        return [None, f"rank {collectives.rank()}: {' '.join(str(error).split())[:300]}"]


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


def _views_of_ranks(final: Path, engine: Engine, replicas: Replicas) -> Views:
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


def _has_room(engine: Engine, views: Views, needed: int) -> bool:
    """Whether each host's memory takes the copies of its ranks' files, and DeepSpeed's own copies.

    Without ZeRO all files are those of rank 0.
    """
    _, host, ranks_of_host = views.hosts.unique(return_inverse=True, return_counts=True)
    parts = len(views.hosts) if engine.zero_optimization_stage() else 1
    copies = needed * ranks_of_host[host] / parts
    return not (views.memory <= 2 * copies + needed / 4).any()


def _prepare(removal: Removal, temporary: Path, needed: int) -> None:
    """Have what earlier saves left unfinished deleted, and make an empty folder.

    Only if the disk has less than `needed` bytes free does it wait for the deletion. OSError if
    there is no room then either.
    """
    root = removal.root
    root.mkdir(parents=True, exist_ok=True)
    removal.add_leftovers()
    free = shutil.disk_usage(root).free
    if free < needed:
        removal.wait()
        free = shutil.disk_usage(root).free
    if free < needed:
        raise OSError(
            f"it takes up to {needed / 1e9:.3f} GB and the disk has {free / 1e9:.3f} GB free"
        )
    temporary.mkdir()


def _write_generators(writer: FileWriter) -> None:
    """The state of this rank's random generators."""
    generators = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        generators["cuda"] = torch.cuda.get_rng_state()
    content = safetensors.torch.save(generators)
    writer.add(rng_file(collectives.rank()), lambda file: file.write(content))


def _finish_on_all_ranks(writer: FileWriter) -> tuple[dict[str, FileSeal], float]:
    """The seals of all ranks' files, and the longest time that a rank spent writing."""
    reports = _agree(lambda: [writer.finish(), writer.seconds])
    files = {}
    for seals, _ in reports:
        for name, seal in sorted(seals.items()):
            files[name] = FileSeal(*seal)
    return files, max(seconds for _, seconds in reports)


def save_weights(run_dir: Path, weights: dict[str, Tensor], state: CheckpointState) -> None:
    """Commit float32 weights alone as step 0 of `run_dir`, for other runs to start from.

    DataError if they are not finite.
    """
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise DataError(f"{name} has values that are not finite; take other weights")
    folder = step_folder(run_dir / "checkpoints", 0)
    folder.mkdir(parents=True)
    content = state.to_json()
    safetensors.torch.save_file(weights, folder / WEIGHTS)
    (folder / STATE).write_text(json.dumps(content, indent=1), encoding="utf-8")
    files = {path.name: seal_file(path) for path in sorted(folder.iterdir())}
    manifest = CheckpointManifest(0, Layout(1, None), digest(content), files)
    write_atomically(folder / MANIFEST, json.dumps(manifest.to_json(), indent=1))


def seal_file(path: Path) -> FileSeal:
    """Flush `path` to the disk; its size and hash."""
    flush(path)
    return FileSeal(path.stat().st_size, file_sha256(path))
