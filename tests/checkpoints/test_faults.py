"""Real faults in and around a save: kills, a full disk, a slow peer, signals, odd names."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gpt1_ds.base.errors import DataError
from gpt1_ds.checkpoints.folder import find_checkpoint
from gpt1_ds.checkpoints.loading import load_weights
from gpt1_ds.checkpoints.saving import seal_file
from gpt1_ds.checkpoints.state import digest
from tests.conftest import ROOT
from tests.settings.test_deepspeed_json import FOLDER

CPU = str(FOLDER / "cpu.json")


def kill_at_every_write(ds: str, shards: Path, runs: Path, ranks: int, *must: str) -> None:
    command = [sys.executable, "-m", "tests.support.kill_at_every_write"]
    done = subprocess.run(
        [*command, ds, str(shards), str(runs), str(ranks), *must],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    undisturbed = {}
    for _, _, _, (step, bits, loss), *_ in [line for line in lines if line[0] < 0]:
        undisturbed[step] = bits, loss
    last, kills = 1, dict.fromkeys(range(ranks), 0)
    for victim, k, outlived, *seen in [line for line in lines if line[0] >= 0]:
        assert all(view == seen[0] for view in seen), "ranks resumed different checkpoints"
        step, bits, loss = seen[0]
        assert step in (last, last + 1), (
            f"after kill {k} of rank {victim}: from step {last} to {step}"
        )
        assert (bits, loss) == undisturbed[step], (
            f"step {step} is not the undisturbed run's, after kill {k}"
        )
        last, kills[victim] = step, kills[victim] + (not outlived)
    # Without ZeRO all that rank 1 writes is its generator's state.
    assert kills[0] > 40 and last > 5 and all(count > 3 for count in kills.values())


def test_a_rank_killed_at_every_write_of_a_save(tiny_shards, tmp_path):
    kill_at_every_write(CPU, tiny_shards, tmp_path, 2)


@pytest.mark.soak
@pytest.mark.parametrize("must", [[], ["must"]])
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    "name", ["zero0_fp32", "zero1_bf16", "zero2_bf16", "zero3_bf16", "zero2_offload"]
)
def test_a_rank_killed_at_every_write_of_every_stage(tiny_shards, tmp_path, name, ranks, must):
    kill_at_every_write(str(FOLDER / f"{name}.json"), tiny_shards, tmp_path, ranks, *must)


@pytest.mark.parametrize("name", ["zero1_bf16", "zero3_bf16"])
def test_no_commit_before_a_slow_peer_has_written(ranks, tiny_shards, tmp_path, name):
    arguments = str(FOLDER / f"{name}.json"), str(tiny_shards), str(tmp_path)
    for written, seen in ranks(2).run("tests.support.cases_checkpoint:slow_peer", *arguments):
        assert {"MANIFEST.json", "step-00000001", "latest"} == seen.keys()
        assert all(moment > written for moment in seen.values())


@pytest.mark.parametrize("name", ["zero0_fp32", "zero2_bf16", "zero3_bf16"])
def test_training_goes_on_while_a_checkpoint_is_written_and_it_is_committed_later(
    ranks, tiny_shards, tmp_path, name
):
    arguments = str(FOLDER / f"{name}.json"), str(tiny_shards), str(tmp_path)
    for early, commits, exact, losses, undisturbed, resumed in ranks(2).run(
        "tests.support.cases_checkpoint:behind", *arguments
    ):
        assert early == [], (
            "two steps and two polls long, nothing is committed while rank 1 still writes"
        )
        [(step, facts)] = commits
        assert step == 1
        assert facts["write_seconds"] >= 0.5
        assert facts["seconds"] < facts["write_seconds"]
        assert exact, "it holds the tensors of the moment of the save, bit for bit"
        assert losses == undisturbed and resumed == undisturbed[1:]


def test_without_room_for_a_copy_in_memory_a_save_is_written_at_once(ranks, tiny_shards, tmp_path):
    for pending, valid in ranks(1).run(
        "tests.support.cases_checkpoint:no_room", CPU, str(tiny_shards), str(tmp_path)
    ):
        assert pending == [True, False] and valid == ["step-00000002", "step-00000001"]


@pytest.mark.parametrize("name", ["zero0_fp32", "zero2_bf16", "zero3_bf16"])
@pytest.mark.parametrize("limited", [0, 1])
def test_a_file_size_limit_on_one_rank_fails_the_save_of_all(
    ranks, tiny_shards, tmp_path, name, limited
):
    arguments = str(FOLDER / f"{name}.json"), str(tiny_shards), str(tmp_path), limited
    for skipped, fault, seconds, kept, saved, losses, undisturbed in ranks(2).run(
        "tests.support.cases_checkpoint:limited_save", *arguments
    ):
        assert (
            skipped is None and f"rank {limited}" in fault and "step-00000003: not saved" in fault
        )
        assert seconds < 60, "all ranks give up together, far below the timeout of collectives"
        assert kept == ["step-00000002"], "the old checkpoint stays the current one"
        assert saved["bytes"] > 10_000 and saved["seconds"] > 0, "the next save succeeds"
        assert losses == undisturbed, "training goes on as if nothing had been"


def test_a_full_disk_is_noticed_before_and_during_a_save(ranks, tiny_shards, small_disk):
    for before, during, kept in ranks(2).run(
        "tests.support.cases_checkpoint:full_disk", CPU, str(tiny_shards), str(small_disk)
    ):
        assert "GB free" in before and "rank 0" in during
        assert kept == ["step-00000001"]


def test_ranks_at_different_steps_commit_nothing(ranks, tiny_shards, tmp_path):
    with pytest.raises(DataError, match="step-00000001, step-00000002"):
        ranks(2).run(
            "tests.support.cases_checkpoint:steps_apart", CPU, str(tiny_shards), str(tmp_path)
        )
    assert not list(tmp_path.rglob("step-*"))


@pytest.mark.parametrize("number", ["SIGUSR1", "SIGTERM"])
@pytest.mark.parametrize("whom", [[1], [0, 1]])
def test_signals_during_a_save_neither_lose_nor_spoil_it(
    ranks, tiny_shards, tmp_path, number, whom
):
    """Two of them: the save is committed, all stop there or a step later, and go on exactly."""
    arguments = CPU, str(tiny_shards), str(tmp_path), number, whom
    for code, step, valid, undisturbed, resumed in ranks(2).run(
        "tests.support.cases_checkpoint:signalled_save", *arguments, timeout_seconds=180
    ):
        assert code == 75 and step in (2, 3)
        assert valid[0] == f"step-{step:08d}" and valid[-1] == "step-00000002"
        assert resumed == undisturbed


def test_damaged_checkpoints_are_set_aside_so_that_their_step_can_be_saved_again(
    ranks, tiny_shards, tmp_path
):
    folder = tmp_path / "run"
    ranks(2).run(
        "tests.support.cases_engine:save_steps", CPU, str(tiny_shards), str(folder), [1, 2], 2
    )
    path = folder / "checkpoints" / "step-00000002" / "state.json"
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    assert (
        ranks(2).run(
            "tests.support.cases_checkpoint:resume_and_save", CPU, str(tiny_shards), str(folder)
        )
        == [[1, 2]] * 2
    )
    assert find_checkpoint(folder).name == "step-00000002"
    names = sorted(path.name.split("-1")[0] for path in (folder / "checkpoints").glob("step-*"))
    assert names == ["step-00000001", "step-00000002", "step-00000002.damaged"]


def test_retention_keeps_the_last_and_every_nth(ranks, tiny_shards, tmp_path):
    ranks(1).run(
        "tests.support.cases_checkpoint:save_many", CPU, str(tiny_shards), str(tmp_path), 7, 2, 3
    )
    kept = sorted((tmp_path / "checkpoints").glob("step-*"))
    assert [path.name[-1] for path in kept] == ["3", "6", "7"]


def test_nothing_a_run_writes_is_for_others_to_read(ranks, tiny_shards, tmp_path):
    ranks(2).run(
        "tests.support.cases_engine:save_steps",
        CPU,
        str(tiny_shards),
        str(tmp_path / "run"),
        [1],
        1,
    )
    written = list((tmp_path / "run").rglob("*"))
    assert len(written) > 8 and all(not path.stat().st_mode & 0o077 for path in written)
    assert not list((tmp_path / "run").rglob("*.py")), (
        "DeepSpeed's recovery script unpickles whatever it is given"
    )


def test_step_folders_are_plain_folders_of_this_run(ranks, tiny_shards, tmp_path):
    run, root = tmp_path / "run", tmp_path / "run" / "checkpoints"
    ranks(2).run("tests.support.cases_engine:save_steps", CPU, str(tiny_shards), str(run), [1], 1)
    shutil.copytree(root / "step-00000001", tmp_path / "outside")
    (root / "step-00000009").symlink_to(tmp_path / "outside", target_is_directory=True)
    for name in ("step-" + "1" * 240, "step-00000008.tmp", "step-0000008x", "global_step8"):
        shutil.copytree(root / "step-00000001", root / name)
    for pointer in ("../../outside", str(tmp_path / "outside"), "a/b", "x" * 300):
        (root / "latest").write_text(pointer)
        assert find_checkpoint(run) == root / "step-00000001"
    assert ranks(2).run(
        "tests.support.cases_engine:resumed_step", CPU, str(tiny_shards), str(run)
    ) == [1, 1]


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "a/b", "link"])
def test_a_manifest_cannot_name_files_elsewhere(ranks, tiny_shards, tmp_path, name):
    run = tmp_path / "run"
    ranks(1).run("tests.support.cases_engine:save_steps", CPU, str(tiny_shards), str(run), [1], 1)
    folder = run / "checkpoints" / "step-00000001"
    (folder.parent / "outside").write_text("x")
    (folder / "link").symlink_to(folder.parent / "outside")
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    del manifest["sha256"]
    manifest["files"][name] = seal_file(folder.parent / "outside")._asdict()
    (folder / "MANIFEST.json").write_text(json.dumps({**manifest, "sha256": digest(manifest)}))
    with pytest.raises(DataError, match="no valid checkpoint"):
        find_checkpoint(run)


def test_fine_tuning_takes_the_weights_of_the_named_checkpoint_and_then_needs_it_no_more(
    ranks, tiny_shards, sample, tmp_path
):
    common = [
        "--deepspeed_config",
        str(FOLDER / "zero3_bf16.json"),
        f"run.dir={tmp_path}",
        "train.global_batch=4",
        "eval.batches=1",
        "schedule.warmup_steps=0",
    ]
    words = [
        *common,
        "model.preset=gpt1-tiny",
        "model.n_embd=32",
        f"data.shards={tiny_shards}",
        "run.name=first",
        "checkpoint.every=1",
        "train.max_steps=2",
        "optim.lr=1e-2",
    ]
    ranks(2).run("gpt1_ds.train:main", words)
    source = tmp_path / "first" / "checkpoints" / "step-00000001"
    before, later = load_weights(source)[0], load_weights(tmp_path / "first")[0]
    words = [
        *common,
        f"init.checkpoint={source}",
        "run.name=second",
        "optim.lr=1e-12",
        "task.name=sst2",
        f"task.data={sample / 'tasks' / 'SST-2'}",
    ]
    ranks(2).run("gpt1_ds.finetune:main", [*words, "train.max_steps=1"])
    after = load_weights(tmp_path / "second")[0]
    for name, weight in before.items():
        assert (after[f"gpt.{name}"] - weight).abs().max() < 1e-8, name
        assert (later[name] - weight).abs().max() > 1e-8, name
    shutil.rmtree(tmp_path / "first")
    ranks(2).close()  # the end of the first start: its process holds the run's lock
    ranks(2).run("gpt1_ds.finetune:main", [*words, "train.max_steps=2"])
    assert json.loads((tmp_path / "second" / "result.json").read_text())["init"] == str(source)


def test_ranks_of_one_machine_listen_on_its_loopback_alone(ranks):
    for addresses in ranks(2).run("tests.support.cases_checkpoint:listening"):
        assert addresses and all(
            address in ("127.0.0.1", "::1", "::ffff:127.0.0.1") for address in addresses
        )
