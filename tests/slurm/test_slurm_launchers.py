"""The same training under the other launchers: `mpirun`, and `deepspeed` with a hostfile, one
instance a node."""

import json
import subprocess
import time

import psutil
import pytest
import torch

from gpt1_ds.checkpoints.loading import load_weights
from gpt1_ds.distributed.environment import free_port
from tests.conftest import ROOT, succeed
from tests.support.launched_runs import command, steps_logged
from tests.support.ranks import die_with_parent

SMALL = (
    "gpt1_ds/train.py",
    "--deepspeed_config",
    "ds_configs/cpu.json",
    "model.preset=gpt1-tiny",
    "model.n_embd=32",
    "model.n_ctx=32",
    "train.max_steps=4",
    "train.global_batch=4",
    "eval.batches=1",
    "log.every=1",
)


@pytest.fixture(scope="module")
def by_mpirun(tiny_shards, tmp_path_factory):
    runs = tmp_path_factory.mktemp("mpirun")
    done = succeed(
        "mpirun", "-n", 2, "python", *SMALL, f"data.shards={tiny_shards}", f"run.dir={runs}"
    )
    assert "on 2 ranks" in done.stdout and done.stdout.count("run      ") == 1
    return runs / "gpt1"


def test_mpirun_trains_on_its_ranks(by_mpirun):
    ended = json.loads((by_mpirun / "status.json").read_text())
    assert (ended["state"], ended["step"], ended["exit_code"]) == ("done", 4, 0)


def test_deepspeed_with_a_hostfile_trains_the_same(tiny_shards, by_mpirun, tmp_path):
    (tmp_path / "hostfile").write_text("first slots=1\nsecond slots=1\n")
    options = (
        "--hostfile",
        tmp_path / "hostfile",
        "--no_ssh",
        "--master_addr",
        "127.0.0.1",
        "--master_port",
        free_port(),
    )
    words = (*SMALL, f"data.shards={tiny_shards}", f"run.dir={tmp_path}")
    launchers = []
    for node in (0, 1):
        with open(tmp_path / f"{node}.log", "w") as log:
            command = map(str, ("deepspeed", *options, "--node_rank", node, *words))
            launchers.append(
                subprocess.Popen(
                    command,
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    preexec_fn=die_with_parent,
                )
            )
    codes = [launcher.wait(timeout=200) for launcher in launchers]
    assert codes == [0, 0], "\n".join((tmp_path / f"{node}.log").read_text() for node in (0, 1))
    ours, theirs = (load_weights(run)[0] for run in (tmp_path / "gpt1", by_mpirun))
    assert ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) for name in ours
    )


def test_torchrun_starts_a_killed_rank_again_and_the_run_resumes(tiny_shards, tmp_path):
    options = ("--standalone", "--nproc_per_node=2", "--max_restarts=1")
    for name in ("whole", "killed"):
        words = command(tiny_shards, tmp_path / name)
        train = words.index("gpt1_ds/train.py")
        launcher = subprocess.Popen(
            ["torchrun", *options, *words[train:]],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=die_with_parent,
        )
        if name == "killed":
            deadline = time.monotonic() + 120
            while steps_logged(tmp_path / name)[-1:] < [12]:
                assert time.monotonic() < deadline, "no step 12"
                time.sleep(0.05)
            psutil.Process(launcher.pid).children()[1].kill()
        printed, _ = launcher.communicate(timeout=200)
        assert launcher.returncode == 0, printed
    assert printed.count("run      ") == 2
    ours, theirs = (load_weights(tmp_path / name / "run")[0] for name in ("killed", "whole"))
    assert ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) for name in ours
    )
