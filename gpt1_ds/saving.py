"""Checkpoints: DeepSpeed's sharded files under a commit protocol of our own. `checkpoint` is the half that reads them.

    checkpoints/step-00001000.tmp/  every rank writes, hashes and fsyncs its files, while training goes on, and reports
    checkpoints/step-00001000/      all agreed, between two steps: MANIFEST.json written, folder renamed
    checkpoints/latest              text file with the folder's name, replaced atomically

DeepSpeed alone publishes `latest` before its peers have written.
"""

import hashlib
import json
import os
import re
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

from gpt1_ds import distributed, resize, swapped
from gpt1_ds.background import Files, memory_left
from gpt1_ds.errors import DataError, DivergedError
from gpt1_ds.files import flush, write_atomically

MANIFEST, STATE, LATEST = "MANIFEST.json", "state.json", "latest"
STEP_FOLDER = re.compile(r"step-\d{8,12}")


class SaveError(DataError):
    """A save that all ranks gave up together; the checkpoints before it stand."""


class Saves:
    """Checkpoints of one run, at most one at a time on its way to the disk; every rank calls every method alike.

    Nothing committed is ever overwritten: a step that exists is left as it is. What goes wrong on one rank (a full
    disk, a file size limit) ends the save on all of them: SaveError, or where it need not be a warning. `tell` gets the
    step, the seconds that training stood still, those of writing, and the bytes of what was committed.
    """

    def __init__(self, run_dir: Path, keep: int, keep_every: int | None, tell: Callable[..., None]):
        self.root, self.keep, self.keep_every, self.tell = run_dir / "checkpoints", keep, keep_every, tell
        self.pending: Pending | None = None

    def save(self, engine, step: int, state: dict[str, Any], must: bool) -> None:
        """Commit a checkpoint of `engine` and the plain `state`: at once if it `must` be, and otherwise, where memory
        has room for a copy, by a later `poll` or `settle`, written meanwhile."""
        self.settle()
        started = time.perf_counter()
        final = self.root / f"step-{step:08d}"
        views = distributed.gather_json([final.name, final.exists(), socket.gethostname(), memory_left()])
        if len({name for name, *_ in views}) > 1:
            raise SaveError(
                f"{self.root}: the ranks are at different steps: {', '.join(name for name, *_ in views)}; start again"
            )
        if views[0][1]:
            return
        # Weights, two moments, and the module's own copy of the weights.
        needed = 16 * sum(getattr(p, "ds_numel", p.numel()) for p in engine.module.parameters())
        files = Files(final.with_suffix(".tmp"), behind=not must and _has_room(engine, views, needed))
        try:
            _agree(lambda: _prepare(self.root, files.folder, needed) if distributed.is_main() else None)
        except SaveError as error:
            self._give_up(final, must, error)
            return
        _write_shards(engine, files)
        _write_rest(files, state)
        files.start()
        manifest = {
            "step": step,
            **resize.layout(engine),
            "order": None if engine.zero_optimization_stage() else [piece.name for piece in resize.pieces(engine)],
            "config_hash": digest(state),
        }
        self.pending = Pending(final, files, manifest, must, time.perf_counter() - started)
        if not files.behind:
            self.settle()

    def poll(self) -> None:
        """Commit the checkpoint on its way if all ranks have written it."""
        if self.pending and not distributed.all_sum(torch.tensor([float(self.pending.files.busy())])).item():
            self.settle()

    def settle(self) -> None:
        """Wait for the checkpoint on its way, if there is one, and commit it."""
        if self.pending is None:
            return
        started, pending, self.pending = time.perf_counter(), self.pending, None
        final, files = pending.final, pending.files
        try:
            reports = _agree(lambda: [files.sealed(), files.seconds])
            entries = {name: entry for report, _ in reports for name, entry in sorted(report.items())}
            manifest = {**pending.manifest, "files": entries}
            _agree(lambda: _commit(files.folder, final, manifest, self.keep, self.keep_every)
                   if distributed.is_main() else None)  # fmt: skip
        except SaveError as error:
            self._give_up(final, pending.must, error)
            return
        stood, size = pending.stood_seconds + time.perf_counter() - started, sum(e["bytes"] for e in entries.values())
        self.tell(manifest["step"], seconds=round(stood, 3), bytes=size,
                  write_seconds=round(max(seconds for _, seconds in reports), 3))  # fmt: skip

    def _give_up(self, final: Path, must: bool, error: SaveError) -> None:
        fault = f"{final}: not saved: {error}"
        if must:
            raise SaveError(f"{fault}; mend it, and the same command continues from the last checkpoint") from error
        distributed.say(f"warning: {fault}; training goes on, and the next save is due as always")

    def __enter__(self) -> "Saves":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is not None and issubclass(kind, DivergedError):  # on all ranks together, and it keeps the last one
            self.settle()


@dataclass
class Pending:
    """A checkpoint on its way to the disk: all but the files of its manifest, and how long training stood for it."""

    final: Path
    files: Files
    manifest: dict[str, Any]
    must: bool
    stood_seconds: float


def save(
    engine, run_dir: Path, step: int, state: dict[str, Any], keep: int, keep_every: int | None = None, must: bool = True
) -> dict[str, float] | None:
    """Commit a checkpoint at once, as `Saves` does; its seconds and bytes. None where it was there before, or, without
    `must`, failed."""
    told: list[dict[str, float]] = []
    saves = Saves(run_dir, keep, keep_every, lambda step, **saved: told.append(saved))
    saves.save(engine, step, state, must)
    saves.settle()
    return told[0] if told else None


def steps(root: Path) -> list[Path]:
    """Committed checkpoints, newest first."""
    if not root.is_dir():
        return []
    folders = (path for path in root.iterdir() if STEP_FOLDER.fullmatch(path.name) and not path.is_symlink())
    return sorted(folders, key=lambda path: int(path.name[5:]), reverse=True)


def digest(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _agree(action: Callable[[], Any]) -> list[Any]:
    """Run `action` on every rank; what it returned, by rank. SaveError on all ranks if it failed on one."""
    try:
        report = [action(), None]
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        report = [None, f"rank {distributed.rank()}: {' '.join(str(error).split())[:300]}"]
    reports = distributed.gather_json(report)
    if faults := [fault for _, fault in reports if fault]:
        raise SaveError(faults[0])
    return [value for value, _ in reports]


def _has_room(engine, views: list[tuple], needed: int) -> bool:
    """Whether the memory of every rank's host takes a copy of its ranks' files, and DeepSpeed's own beside it."""
    hosts = [host for _, _, host, _ in views]
    parts = len(hosts) if engine.zero_optimization_stage() else 1  # without ZeRO all is rank 0's
    return all(left > 2 * needed * hosts.count(host) / parts + needed / 4 for _, _, host, left in views)


def _prepare(root: Path, temporary: Path, needed: int) -> None:
    """An empty folder to write to, on a disk that can take it; what earlier saves left unfinished goes."""
    root.mkdir(parents=True, exist_ok=True)
    for leftover in root.glob("step-*.tmp"):
        shutil.rmtree(leftover)
    if (free := shutil.disk_usage(root).free) < needed:
        raise OSError(f"it takes up to {needed / 1e9:.3f} GB and the disk has {free / 1e9:.3f} GB free")
    temporary.mkdir()


def _write_shards(engine, files: Files) -> None:
    """DeepSpeed's save, into `files`; it goes on where a file of this rank fails: its peers wait in a barrier."""
    write = engine.checkpoint_engine.save

    def redirected(state_dict, path):
        files.add(Path(path).name, lambda file: write(swapped.mapped(engine, state_dict), file))

    engine.checkpoint_engine.save = redirected
    engine._copy_recovery_script = lambda _: None  # a script that unpickles anything has no place in a run's folder
    try:
        folder = files.folder
        with swapped.none_to_deepspeed(engine):
            engine.save_checkpoint(str(folder.parent), tag=folder.name, client_state={}, save_latest=False)
    finally:
        engine.checkpoint_engine.save = write


def _write_rest(files: Files, state: dict[str, Any]) -> None:
    generators = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        generators["cuda"] = torch.cuda.get_rng_state()
    content = safetensors.torch.save(generators)
    files.add(f"rng-rank-{distributed.rank():05d}.safetensors", lambda file: file.write(content))
    if distributed.is_main():
        files.add(STATE, lambda file: file.write(json.dumps(state, indent=1).encode()))


def _commit(temporary: Path, final: Path, manifest: dict[str, Any], keep: int, keep_every: int | None) -> None:
    manifest["sha256"] = digest(manifest)
    write_atomically(temporary / MANIFEST, json.dumps(manifest, indent=1))
    flush(temporary)
    os.rename(temporary, final)
    flush(final.parent)
    write_atomically(final.parent / LATEST, final.name + "\n")
    for old in steps(final.parent)[keep:]:
        if not keep_every or int(old.name[5:]) % keep_every:
            shutil.rmtree(old.rename(old.with_suffix(".tmp")), ignore_errors=True)
