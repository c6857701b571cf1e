"""Folders deleted in the background: nothing waits, nothing half deleted is ever found."""

import os
import shutil
import signal
import threading
import time

import pytest

from gpt1_ds.checkpoints import removing, saving
from gpt1_ds.checkpoints.folder import checkpoint_folders
from gpt1_ds.checkpoints.removing import Removal
from gpt1_ds.checkpoints.saving import Saves
from gpt1_ds.settings.sections import CheckpointConfig
from tests.settings.test_deepspeed_json import FOLDER

CPU = str(FOLDER / "cpu.json")


def folders_of(root, *steps: int, files: int = 30) -> None:
    for step in steps:
        folder = root / f"step-{step:08d}"
        folder.mkdir(parents=True)
        for number in range(files):
            (folder / f"piece-{number}").write_text("x")


@pytest.fixture
def held(monkeypatch):
    """An event that every deletion waits for."""
    may_delete, delete = threading.Event(), shutil.rmtree

    def rmtree(folder) -> None:
        assert may_delete.wait(60)
        delete(folder)

    monkeypatch.setattr(removing.shutil, "rmtree", rmtree)
    yield may_delete
    may_delete.set()


def test_a_folder_is_out_of_sight_at_once_and_deleted_later(tmp_path, held):
    folders_of(tmp_path, 1, 2)
    removal = Removal(tmp_path)
    removal.add(tmp_path / "step-00000001")
    assert [path.name for path in checkpoint_folders(tmp_path)] == ["step-00000002"]
    assert not removal.wait(0.1) and len(list(tmp_path.iterdir())) == 2
    removal.add(tmp_path / "step-00000002")
    held.set()
    assert removal.wait(60) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("k", [1, 12, 29])
def test_what_a_kill_leaves_half_deleted_is_no_checkpoint_and_goes_with_the_next_start(tmp_path, k):
    folders_of(tmp_path, 1)
    if (child := os.fork()) == 0:
        unlink, calls = os.unlink, []

        def unlink_or_die(*place, **options) -> None:
            calls.append(place)
            if len(calls) > k:
                os.kill(os.getpid(), signal.SIGKILL)
            unlink(*place, **options)

        os.unlink = unlink_or_die
        Removal(tmp_path).add(tmp_path / "step-00000001")
        time.sleep(60)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert len(list(left.iterdir())) == 30 - k and not checkpoint_folders(tmp_path)
    removal = Removal(tmp_path)
    removal.add_leftovers()
    assert removal.wait(60) and not list(tmp_path.iterdir())


def test_a_start_clears_what_is_left_and_an_end_waits_only_so_long(tmp_path, held, monkeypatch):
    root = tmp_path / "checkpoints"
    folders_of(root, 3)
    (root / "step-00000003").rename(root / "step-00000003.tmp")
    monkeypatch.setattr(saving, "DELETE_SECONDS", 0.2)
    began = time.monotonic()
    with Saves(tmp_path, CheckpointConfig(keep=1), lambda step, **facts: None) as saves:
        pass
    assert 0.2 <= time.monotonic() - began < 30 and list(root.iterdir())
    held.set()
    assert saves.removal.wait(60) and not list(root.iterdir())


def test_a_folder_that_cannot_be_deleted_is_told(tmp_path, monkeypatch, capsys):
    def refused(folder) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(removing.shutil, "rmtree", refused)
    folders_of(tmp_path, 1)
    removal = Removal(tmp_path)
    removal.add(tmp_path / "step-00000001")
    assert removal.wait(60)
    assert "not deleted (Operation not permitted); the next start" in capsys.readouterr().err


def test_all_ranks_train_on_while_rank_0_deletes(ranks, tiny_shards, tmp_path):
    for committed, left in ranks(2).run(
        "tests.support.cases_saves:slow_deletion", CPU, str(tiny_shards), str(tmp_path)
    ):
        assert committed == [1, 2, 3], "no save waits for the deletion of those before"
        assert left == ["step-00000003"]


def test_a_save_that_needs_the_room_waits_for_the_deletion(ranks, tiny_shards, small_disk):
    """The disk takes two checkpoints: there is room for the third once the first is gone."""
    for committed, left in ranks(2).run(
        "tests.support.cases_saves:room_by_deletion", CPU, str(tiny_shards), str(small_disk)
    ):
        assert committed == [1, 2, 3] and left == ["step-00000003"]
