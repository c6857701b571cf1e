"""Save checkpoints: DeepSpeed's sharded files, under a commit protocol of our own.

1. Every rank writes, hashes and flushes its files in `step-N.tmp`, while training goes on.
2. Between two later steps all ranks agree that all have written.
3. Rank 0 writes the manifest, renames the folder to `step-N`, and replaces `latest` atomically.

DeepSpeed alone publishes `latest` before its peers have written.
"""

import json
import os
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from gpt1_ds.base.errors import DataError, DivergedError
from gpt1_ds.base.files import file_sha256, flush, write_atomically
from gpt1_ds.base.memory import memory_left
from gpt1_ds.base.protocols import Engine
from gpt1_ds.checkpoints.deepspeed_files import write_deepspeed_files
from gpt1_ds.checkpoints.flat_tensors import flat_slices, layout, n_parameters, non_finite
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
from gpt1_ds.checkpoints.state import CheckpointManifest, CheckpointState, FileSeal, Layout, digest
from gpt1_ds.checkpoints.writing import FileWriter
from gpt1_ds.distributed import collectives
from gpt1_ds.distributed.console import say

REMEDY = "the last checkpoint is kept: lower optim.lr or lengthen schedule.warmup_steps"
BYTES_PER_PARAMETER = 16
"""At most: the float32 weights, two moments, and the module's own copy of the weights."""


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
    finite on some rank are never saved: all ranks raise DivergedError.
    """

    def __init__(self, run_dir: Path, keep: int, keep_every: int | None, on_commit: OnCommit):
        self.root = run_dir / "checkpoints"
        self.keep = keep
        self.keep_every = keep_every
        self.on_commit = on_commit
        self.pending: PendingSave | None = None

    def save(self, engine: Engine, step: int, state: CheckpointState, must: bool) -> None:
        """Begin a checkpoint of `engine` and `state`.

        It is committed before this returns if it `must` be, or if memory has no room for a copy.
        Otherwise it is written while training goes on, and a later `poll` or `settle` commits it.
        """
        self.settle()
        started = time.perf_counter()
        final = step_folder(self.root, step)
        views = _views_of_ranks(final, engine)
        if views[0].exists:
            return
        _refuse_non_finite(final, views)
        needed = BYTES_PER_PARAMETER * n_parameters(engine)
        in_background = not must and _has_room(engine, views, needed)
        writer = FileWriter(final.with_suffix(".tmp"), in_background)
        try:
            _agree_on_main(lambda: _prepare(self.root, writer.folder, needed))
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
        manifest = CheckpointManifest(step, layout(engine), digest(state.to_json()), {}, order)
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
        for old in checkpoint_folders(self.root)[self.keep :]:
            if not self.keep_every or step_of(old) % self.keep_every:
                shutil.rmtree(old.rename(old.with_suffix(".tmp")), ignore_errors=True)

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

        After another error, a wait for the other ranks might not end.
        """
        if kind is not None and issubclass(kind, DivergedError):
            self.settle()


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
    keep: int,
    keep_every: int | None = None,
    must: bool = True,
) -> dict[str, float] | None:
    """Commit a checkpoint at once; what `OnCommit` gets of it.

    None if that step was committed before, or if the save failed and need not (`must`) succeed.
    """
    commits: list[dict[str, float]] = []
    saves = Saves(run_dir, keep, keep_every, lambda step, **facts: commits.append(facts))
    saves.save(engine, step, state, must)
    saves.settle()
    return commits[0] if commits else None


def _agree(action: Callable[[], Any]) -> list[Any]:
    """Run `action` on every rank; what it returned (JSON), by rank.

    SaveError on all ranks if it failed on one.
    """
    try:
        report = [action(), None]
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        report = [None, f"rank {collectives.rank()}: {' '.join(str(error).split())[:300]}"]
    reports = collectives.gather_json(report)
    faults = [fault for _, fault in reports if fault]
    if faults:
        raise SaveError(faults[0])
    return [value for value, _ in reports]


def _agree_on_main(action: Callable[[], None]) -> None:
    """Run `action` on rank 0; SaveError on all ranks if it failed."""
    _agree(lambda: action() if collectives.is_main() else None)


class RankView(NamedTuple):
    """What one rank sees before a save: the folder to make, and its host's free memory, bytes."""

    name: str
    exists: bool
    host: str
    memory: float
    non_finite: str | None
    """A tensor of the rank that is not finite."""


def _views_of_ranks(final: Path, engine: Engine) -> list[RankView]:
    """SaveError unless all ranks are about to save the same step."""
    exists = final.exists()
    fault = None if exists else non_finite(engine)
    own = RankView(final.name, exists, socket.gethostname(), memory_left(), fault)
    views = [RankView(*view) for view in collectives.gather_json(own)]
    names = [view.name for view in views]
    if len(set(names)) > 1:
        raise SaveError(
            f"{final.parent}: the ranks are at different steps: {', '.join(names)}; start again"
        )
    return views


def _refuse_non_finite(final: Path, views: list[RankView]) -> None:
    for rank, view in enumerate(views):
        if view.non_finite:
            raise DivergedError(
                f"{final}: not saved: {view.non_finite} is not finite on rank {rank}; {REMEDY}"
            )


def _has_room(engine: Engine, views: list[RankView], needed: int) -> bool:
    """Whether each host's memory takes the copies of its ranks' files, and DeepSpeed's own copies.

    Without ZeRO all files are those of rank 0.
    """
    hosts = [view.host for view in views]
    parts = len(hosts) if engine.zero_optimization_stage() else 1
    for view in views:
        copies = needed * hosts.count(view.host) / parts
        if view.memory <= 2 * copies + needed / 4:
            return False
    return True


def _prepare(root: Path, temporary: Path, needed: int) -> None:
    """Remove what earlier saves left unfinished, and make an empty folder.

    OSError if the disk has less than `needed` bytes free.
    """
    root.mkdir(parents=True, exist_ok=True)
    for leftover in root.glob("step-*.tmp"):
        shutil.rmtree(leftover)
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
