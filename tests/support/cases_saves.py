"""Functions that ranks of the pool run for tests of saves: copies, the deletion of old ones."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from pytest import MonkeyPatch
from torch.utils import serialization

from gpt1_ds.checkpoints import deepspeed_files, removing, saving
from gpt1_ds.checkpoints.flat_tensors import n_parameters
from gpt1_ds.checkpoints.loading import resume
from gpt1_ds.checkpoints.saving import Saves, save_checkpoint
from gpt1_ds.distributed import collectives
from gpt1_ds.settings.sections import CheckpointConfig
from tests.support.cases_checkpoint import read, same
from tests.support.cases_engine import Trainer


@contextmanager
def held_deletion() -> Iterator[threading.Event]:
    """Every deletion of this rank waits for the event."""
    may_delete, delete = threading.Event(), removing.shutil.rmtree

    def rmtree(folder: Path) -> None:
        assert may_delete.wait(60)
        delete(folder)

    with MonkeyPatch.context() as patched:
        patched.setattr(removing.shutil, "rmtree", rmtree)
        yield may_delete


def slow_deletion(ds_path: str, shards: str, folder: str) -> tuple[list[int], list[str]]:
    """Three saves, of which one is kept, while the first deletion does not end.

    Returns the steps committed by then, and the folders in the end.
    """
    trainer, commits = Trainer(ds_path, shards, []), []
    with held_deletion() as may_delete:
        with Saves(
            Path(folder), CheckpointConfig(keep=1), lambda step, **facts: commits.append(step)
        ) as saves:
            for step in (1, 2, 3):
                saves.save(trainer.engine, step, trainer.state(step), must=True)
            early = list(commits)
            may_delete.set()
    trainer.close()
    collectives.barrier()
    return early, sorted(path.name for path in (Path(folder) / "checkpoints").glob("step-*"))


def room_by_deletion(ds_path: str, shards: str, disk: str) -> tuple[list[int], list[str]]:
    """Three saves, of which one is kept; the disk has no room for the third but by deletion.

    The deletion begins a while after the third save. Returns as `slow_deletion` does.
    """
    trainer, commits = Trainer(ds_path, shards, []), []
    with held_deletion() as may_delete:
        with Saves(
            Path(disk), CheckpointConfig(keep=1), lambda step, **facts: commits.append(step)
        ) as saves:
            for step in (1, 2):
                saves.save(trainer.engine, step, trainer.state(step), must=True)
            needed = saving.BYTES_PER_PARAMETER * n_parameters(trainer.engine)
            if collectives.is_main():
                filler = Path(disk) / "filler"
                filler.write_bytes(b"x" * (shutil.disk_usage(disk).free - needed + 40_000))
            collectives.barrier()
            threading.Timer(0.3, may_delete.set).start()
            saves.save(trainer.engine, 3, trainer.state(3), must=True)
    trainer.close()
    collectives.barrier()
    return commits, sorted(path.name for path in (Path(disk) / "checkpoints").glob("step-*"))


def saved_as_on_a_gpu(ds_path: str, shards: str, folder: str) -> tuple[list, bool, bool]:
    """Save an engine as it is, and as if it was on a GPU.

    Returns torch's options (pinned memory, CRC) during both saves, whether the files hold the same
    tensors, and whether the second one resumes.
    """
    trainer, seen = Trainer(ds_path, shards, []), []
    trainer.run(0, 1)
    write, options = trainer.engine.checkpoint_engine.save, serialization.config.save

    def noting(state_dict, path) -> None:
        seen.append((options.use_pinned_memory_for_d2h, options.compute_crc32))
        write(state_dict, path)

    trainer.engine.checkpoint_engine.save = noting
    quick_copies, on_a_gpu = deepspeed_files.quick_copies, torch.device("cuda")
    for name in ("cpu", "gpu"):
        with MonkeyPatch.context() as patched:
            if name == "gpu":
                patched.setattr(deepspeed_files, "quick_copies", lambda _: quick_copies(on_a_gpu))
            save_checkpoint(
                trainer.engine, Path(folder) / name, 1, trainer.state(1), CheckpointConfig(keep=1)
            )
    trainer.close()
    steps = [Path(folder) / name / "checkpoints" / "step-00000001" for name in ("cpu", "gpu")]
    again = Trainer(ds_path, shards, [], seed=9)
    resume(again.engine, Path(folder) / "gpu")
    save_checkpoint(
        again.engine, Path(folder) / "again", 1, again.state(1), CheckpointConfig(keep=1)
    )
    again.close()
    last = Path(folder) / "again" / "checkpoints" / "step-00000001"
    return sorted(set(seen)), same(read(steps[0]), read(steps[1])), same(read(last), read(steps[0]))
