"""Save checkpoints: DeepSpeed's sharded files, under a commit protocol of our own.

1. Every rank writes, hashes and flushes its files in `step-N.tmp`, while training goes on.
2. Between two later steps all ranks agree that all have written.
3. Rank 0 writes the manifest, renames the folder to `step-N`, and replaces `latest` atomically.
4. A thread of rank 0 deletes the checkpoints that are no longer kept.

DeepSpeed alone publishes `latest` before its peers have written.
"""

import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Protocol

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from gpt1_ds.base.background import Call, Calls
from gpt1_ds.base.errors import DataError, DivergedError, StopRequested
from gpt1_ds.base.files import file_sha256, flush, write_atomically
from gpt1_ds.base.protocols import Engine
from gpt1_ds.checkpoints.agreeing import (
    SaveError,
    StallError,
    agree_on_main,
    finish_on_all_ranks,
    has_room,
    views_of_ranks,
)
from gpt1_ds.checkpoints.deepspeed_files import write_deepspeed_files
from gpt1_ds.checkpoints.flat_tensors import (
    flat_slices,
    layout,
    n_parameters,
)
from gpt1_ds.checkpoints.folder import (
    LATEST,
    MANIFEST,
    STATE,
    WEIGHTS,
    checkpoint_folders,
    read_state,
    rng_file,
    step_folder,
    step_of,
)
from gpt1_ds.checkpoints.mirror import Mirror
from gpt1_ds.checkpoints.removing import Removal
from gpt1_ds.checkpoints.replicas import Replicas
from gpt1_ds.checkpoints.state import CheckpointManifest, CheckpointState, FileSeal, Layout, digest
from gpt1_ds.checkpoints.writing import FileWriter
from gpt1_ds.distributed import collectives
from gpt1_ds.distributed.console import say
from gpt1_ds.settings.sections import CheckpointConfig

BYTES_PER_PARAMETER = 16
"""At most: the float32 weights, two moments, and the module's own copy of the weights."""
DELETE_SECONDS = 60.0
"""How long the end of a run waits for the deletion of old checkpoints."""


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
        self.calls = Calls("commit")
        """What rank 0 does to folders and manifests."""
        self.hanging = ""
        """The file whose write hangs, with its rank; empty if none does."""
        self.skipped = 0
        """Saves left out since it hangs."""
        self.removal = Removal(self.root)
        """Used by rank 0 alone."""
        self.mirror: Mirror | None = None
        """What copies each checkpoint elsewhere; rank 0 alone has it."""
        with suppress(OSError):  # the next save raises it again
            if collectives.is_main():
                self.removal.add_leftovers()

    def save(
        self,
        engine: Engine,
        step: int,
        state: CheckpointState,
        must: bool,
    ) -> None:
        """Begin a checkpoint of `engine` and `state`.

        It is committed before this returns if it `must` be, or if memory has no room for a copy.
        Otherwise it is written while training goes on, and a later `poll` or `settle` commits it.
        If the disk hangs, the save is left out; StallError if it `must` be.
        """
        self.settle()
        if self.hanging:
            self._skip(step_folder(self.root, step), must)
            return
        started = time.perf_counter()
        final = step_folder(self.root, step)
        views = views_of_ranks(final, engine, self.replicas)
        if views.exist[0]:
            return
        needed = BYTES_PER_PARAMETER * n_parameters(engine)
        in_background = has_room(engine, views, needed)
        writer = FileWriter(final.with_suffix(".tmp"), in_background)
        try:
            self._prepare(writer.folder, needed)
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
        if must or not in_background:
            self.settle()
            if self.hanging:
                self._skip(final, must)

    def poll(self) -> None:
        """Commit the pending checkpoint if all ranks have written it; tell if one hangs."""
        if self.pending is None:
            return
        writer, commit = self.pending.writer, self.pending.commit
        hanging = writer.hanging(self.config.stall_seconds)
        if self.calls.hangs:
            hanging = str(self.pending.final / MANIFEST)
        is_busy = writer.busy() or (commit is not None and not commit.ended.is_set())
        flags = torch.tensor([float(is_busy), float(hanging is not None)])
        busy, hang = collectives.all_sum(flags).tolist()
        if not busy:
            self.settle()
        elif hang or self.hanging:
            self._tell_hanging(hanging)

    def settle(self) -> None:
        """Wait for the pending checkpoint, if there is one, and commit it.

        If the write of a file hangs, it stays pending, and `hanging` names the file.
        """
        if self.pending is None:
            return
        started = time.perf_counter()
        pending = self.pending
        self.pending = None
        try:
            written = finish_on_all_ranks(pending.writer, self.config.stall_seconds)
            if written is None:
                self.pending = pending
                self._tell_hanging(pending.writer.hung)
                return
            manifest = replace(pending.manifest, files=written.files)
            if not agree_on_main(lambda: self._commit_in_time(pending, manifest)):
                self.pending = pending
                self._tell_hanging(str(pending.final / MANIFEST) if self.calls.hangs else None)
                return
            if self.hanging:
                self._tell_hanging(None)
        except SaveError as error:
            self.hanging = ""
            self._give_up(pending.final, pending.must, error)
            return
        self.on_commit(
            manifest.step,
            seconds=round(pending.seconds + time.perf_counter() - started, 3),
            bytes=written.bytes,
            write_seconds=written.seconds,
        )

    def _prepare(self, temporary: Path, needed: int) -> None:
        """`make_room` on rank 0; SaveError on all ranks if it failed, StallError if it hangs."""
        seconds = self.config.stall_seconds

        def make() -> bool:
            return self.calls.make(lambda: self.removal.make_room(temporary, needed), seconds)

        if not agree_on_main(make):
            raise StallError(f"no answer of the disk for {seconds:g} s")

    def _commit_in_time(self, pending: "PendingSave", manifest: CheckpointManifest) -> bool:
        """Whether it is committed; False if the disk hangs. Called again, it waits for the same."""
        if pending.commit is None:
            pending.commit = self.calls.begin(lambda: self._commit(pending, manifest))
        return self.calls.wait(pending.commit, self.config.stall_seconds)

    def _commit(self, pending: "PendingSave", manifest: CheckpointManifest) -> None:
        temporary = pending.writer.folder
        write_atomically(temporary / MANIFEST, json.dumps(manifest.to_json(), indent=1))
        flush(temporary)
        os.rename(temporary, pending.final)
        flush(self.root)
        write_atomically(self.root / LATEST, pending.final.name + "\n")
        if self.mirror:
            self.mirror.add(pending.final)
        for old in checkpoint_folders(self.root)[self.config.keep :]:
            if self.mirror and self.mirror.holds(old):
                continue  # the next commit deletes it
            if not self._is_kept(old):
                self.removal.add(old)

    def _is_kept(self, old: Path) -> bool:
        """Whether a checkpoint stays for good, by `keep_every` or its own mark of `at_words`."""
        every = self.config.keep_every
        if every and step_of(old) % every == 0:
            return True
        try:
            return read_state(old).at_words is not None
        except DataError:
            return False

    def _tell_hanging(self, own: str | None) -> None:
        """Say once that a write hangs on some rank, with the file (`own`: this rank's), and once
        that it does no more. All ranks call."""
        place = f"{own} (rank {collectives.rank()} on {socket.gethostname()})" if own else ""
        hanging = next(filter(None, collectives.gather_json(place)), "")
        if hanging and not self.hanging:
            say(
                f"warning: {hanging}: no progress in writing it for checkpoint.stall_seconds "
                f"{self.config.stall_seconds:g}; training goes on without checkpoints until it is "
                "written: see to the disk"
            )
        elif self.hanging and not hanging:
            say(f"{self.hanging}: is written on; {self.skipped} checkpoints were left out")
            self.skipped = 0
        self.hanging = hanging

    def _skip(self, final: Path, must: bool) -> None:
        """Leave a save out, since an earlier write hangs, or its own."""
        self.skipped += 1
        if must:
            raise StallError(
                f"{final}: not saved: {self.hanging} has made no progress for "
                f"{self.config.stall_seconds:g} s; see to the disk, and the same command continues "
                "from the last checkpoint"
            )

    def _give_up(self, final: Path, must: bool, error: SaveError) -> None:
        fault = f"{final}: not saved: {error}"
        if must:
            raise type(error)(
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
            if self.mirror:
                self.mirror.finish()


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
    commit: Call | None = None
    """Rank 0's, once all files are written."""


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


def _write_generators(writer: FileWriter) -> None:
    """The state of this rank's random generators."""
    generators = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        generators["cuda"] = torch.cuda.get_rng_state()
    content = safetensors.torch.save(generators)
    writer.add(rng_file(collectives.rank()), lambda file: file.write(content))


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
