"""Checkpoints: DeepSpeed's sharded files under a commit protocol of our own. `checkpoint` is the half that reads them.

    checkpoints/step-00001000.tmp/  every rank writes, hashes and fsyncs its files, while training goes on, and reports
    checkpoints/step-00001000/      all agreed, between two steps: MANIFEST.json written, folder renamed
    checkpoints/latest              text file with the folder's name, replaced atomically

DeepSpeed alone publishes `latest` before its peers have written.
"""

import json
import os
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from gpt1_ds.base.errors import DataError, DivergedError
from gpt1_ds.base.files import file_sha256, flush, write_atomically
from gpt1_ds.checkpoints.deepspeed_files import write_deepspeed_files
from gpt1_ds.checkpoints.flat_tensors import layout, pieces
from gpt1_ds.checkpoints.folder import LATEST, MANIFEST, STATE, WEIGHTS, checkpoint_folders, digest
from gpt1_ds.checkpoints.writing import CheckpointFiles, memory_left
from gpt1_ds.distributed import collectives
from gpt1_ds.distributed.console import say


class SaveError(DataError):
    """A save that all ranks gave up together; the checkpoints before it stand."""


class Saves:
    """Checkpoints of one run, at most one at a time on its way to the disk; every rank calls every method alike.

    Nothing committed is ever overwritten: a step that exists is left as it is. What goes wrong on one rank (a full
    disk, a file size limit) ends the save on all of them: SaveError, or where it need not be a warning. `tell` gets the
    step, the seconds that training stood still, those of writing, and the bytes of what was committed.
    """

    def __init__(self, run_dir: Path, keep: int, keep_every: int | None, tell: Callable[..., None]):
        self.root, self.keep, self.keep_every, self.tell = (
            run_dir / "checkpoints",
            keep,
            keep_every,
            tell,
        )
        self.pending: Pending | None = None

    def save(self, engine, step: int, state: dict[str, Any], must: bool) -> None:
        """Commit a checkpoint of `engine` and the plain `state`: at once if it `must` be, and otherwise, where memory
        has room for a copy, by a later `poll` or `settle`, written meanwhile."""
        self.settle()
        started = time.perf_counter()
        final = self.root / f"step-{step:08d}"
        views = collectives.gather_json(
            [final.name, final.exists(), socket.gethostname(), memory_left()]
        )
        if len({name for name, *_ in views}) > 1:
            raise SaveError(
                f"{self.root}: the ranks are at different steps: {', '.join(name for name, *_ in views)}; start again"
            )
        if views[0][1]:
            return
        # Weights, two moments, and the module's own copy of the weights.
        needed = 16 * sum(getattr(p, "ds_numel", p.numel()) for p in engine.module.parameters())
        files = CheckpointFiles(
            final.with_suffix(".tmp"), behind=not must and _has_room(engine, views, needed)
        )
        try:
            _agree(
                lambda: _prepare(self.root, files.folder, needed) if collectives.is_main() else None
            )
        except SaveError as error:
            self._give_up(final, must, error)
            return
        write_deepspeed_files(engine, files)
        _write_rest(files, state)
        files.start()
        manifest = {
            "step": step,
            **layout(engine),
            "order": None
            if engine.zero_optimization_stage()
            else [piece.name for piece in pieces(engine)],
            "config_hash": digest(state),
        }
        self.pending = Pending(final, files, manifest, must, time.perf_counter() - started)
        if not files.behind:
            self.settle()

    def poll(self) -> None:
        """Commit the checkpoint on its way if all ranks have written it."""
        if (
            self.pending
            and not collectives.all_sum(torch.tensor([float(self.pending.files.busy())])).item()
        ):
            self.settle()

    def settle(self) -> None:
        """Wait for the checkpoint on its way, if there is one, and commit it."""
        if self.pending is None:
            return
        started, pending, self.pending = time.perf_counter(), self.pending, None
        final, files = pending.final, pending.files
        try:
            reports = _agree(lambda: [files.sealed(), files.seconds])
            entries = {
                name: entry for report, _ in reports for name, entry in sorted(report.items())
            }
            manifest = {**pending.manifest, "files": entries}
            _agree(
                lambda: (
                    _commit(files.folder, final, manifest, self.keep, self.keep_every)
                    if collectives.is_main()
                    else None
                )
            )
        except SaveError as error:
            self._give_up(final, pending.must, error)
            return
        stood, size = (
            pending.stood_seconds + time.perf_counter() - started,
            sum(e["bytes"] for e in entries.values()),
        )
        self.tell(
            manifest["step"],
            seconds=round(stood, 3),
            bytes=size,
            write_seconds=round(max(seconds for _, seconds in reports), 3),
        )

    def _give_up(self, final: Path, must: bool, error: SaveError) -> None:
        fault = f"{final}: not saved: {error}"
        if must:
            raise SaveError(
                f"{fault}; mend it, and the same command continues from the last checkpoint"
            ) from error
        say(f"warning: {fault}; training goes on, and the next save is due as always")

    def __enter__(self) -> "Saves":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is not None and issubclass(
            kind, DivergedError
        ):  # on all ranks together, and it keeps the last one
            self.settle()


@dataclass
class Pending:
    """A checkpoint on its way to the disk: all but the files of its manifest, and how long training stood for it."""

    final: Path
    files: CheckpointFiles
    manifest: dict[str, Any]
    must: bool
    stood_seconds: float


def save_checkpoint(
    engine,
    run_dir: Path,
    step: int,
    state: dict[str, Any],
    keep: int,
    keep_every: int | None = None,
    must: bool = True,
) -> dict[str, float] | None:
    """Commit a checkpoint at once, as `Saves` does; its seconds and bytes. None where it was there before, or, without
    `must`, failed."""
    told: list[dict[str, float]] = []
    saves = Saves(run_dir, keep, keep_every, lambda step, **saved: told.append(saved))
    saves.save(engine, step, state, must)
    saves.settle()
    return told[0] if told else None


def _agree(action: Callable[[], Any]) -> list[Any]:
    """Run `action` on every rank; what it returned, by rank. SaveError on all ranks if it failed on one."""
    try:
        report = [action(), None]
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        report = [None, f"rank {collectives.rank()}: {' '.join(str(error).split())[:300]}"]
    reports = collectives.gather_json(report)
    if faults := [fault for _, fault in reports if fault]:
        raise SaveError(faults[0])
    return [value for value, _ in reports]


def _has_room(engine, views: list[tuple], needed: int) -> bool:
    """Whether the memory of every rank's host takes a copy of its ranks' files, and DeepSpeed's own beside it."""
    hosts = [host for _, _, host, _ in views]
    parts = len(hosts) if engine.zero_optimization_stage() else 1  # without ZeRO all is rank 0's
    return all(
        left > 2 * needed * hosts.count(host) / parts + needed / 4 for _, _, host, left in views
    )


def _prepare(root: Path, temporary: Path, needed: int) -> None:
    """An empty folder to write to, on a disk that can take it; what earlier saves left unfinished goes."""
    root.mkdir(parents=True, exist_ok=True)
    for leftover in root.glob("step-*.tmp"):
        shutil.rmtree(leftover)
    if (free := shutil.disk_usage(root).free) < needed:
        raise OSError(
            f"it takes up to {needed / 1e9:.3f} GB and the disk has {free / 1e9:.3f} GB free"
        )
    temporary.mkdir()


def _write_rest(files: CheckpointFiles, state: dict[str, Any]) -> None:
    generators = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        generators["cuda"] = torch.cuda.get_rng_state()
    content = safetensors.torch.save(generators)
    files.add(f"rng-rank-{collectives.rank():05d}.safetensors", lambda file: file.write(content))
    if collectives.is_main():
        files.add(STATE, lambda file: file.write(json.dumps(state, indent=1).encode()))


def _commit(
    temporary: Path, final: Path, manifest: dict[str, Any], keep: int, keep_every: int | None
) -> None:
    manifest["sha256"] = digest(manifest)
    write_atomically(temporary / MANIFEST, json.dumps(manifest, indent=1))
    flush(temporary)
    os.rename(temporary, final)
    flush(final.parent)
    write_atomically(final.parent / LATEST, final.name + "\n")
    for old in checkpoint_folders(final.parent)[keep:]:
        if not keep_every or int(old.name[5:]) % keep_every:
            shutil.rmtree(old.rename(old.with_suffix(".tmp")), ignore_errors=True)


def save_weights(run_dir: Path, weights: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Commit float32 weights alone as step 0 of `run_dir`, for runs to start from; zero_stage is null there."""
    folder = run_dir / "checkpoints" / "step-00000000"
    folder.mkdir(parents=True)
    safetensors.torch.save_file(weights, folder / WEIGHTS)
    (folder / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
    files = {path.name: _seal(path) for path in sorted(folder.iterdir())}
    manifest = {
        "step": 0,
        "world_size": 1,
        "zero_stage": None,
        "config_hash": digest(state),
        "files": files,
    }
    write_atomically(
        folder / MANIFEST, json.dumps({**manifest, "sha256": digest(manifest)}, indent=1)
    )


def _seal(path: Path) -> dict[str, Any]:
    """Flush `path` to the disk and take its size and sha256."""
    flush(path)
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
