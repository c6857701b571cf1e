"""Functions that ranks of the pool run for tests of the deletion of old checkpoints."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pytest import MonkeyPatch

from gpt1_ds.checkpoints import removing, saving
from gpt1_ds.checkpoints.flat_tensors import n_parameters
from gpt1_ds.checkpoints.saving import Saves
from gpt1_ds.distributed import collectives
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
        with Saves(Path(folder), 1, None, lambda step, **facts: commits.append(step)) as saves:
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
        with Saves(Path(disk), 1, None, lambda step, **facts: commits.append(step)) as saves:
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
