"""Signals to the launcher of a pre-training run, and a rank that hangs."""

import signal

import pytest

from gpt1_ds.checkpoints.folder import find_checkpoint
from tests.support.launched_runs import disturb, outcome, status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda number: number.name)
def test_a_signal_to_the_launcher_commits_and_stops(tiny_shards, tmp_path, number):
    """The launcher passes SIGTERM on; SIGUSR1 kills it, which the ranks notice by themselves."""
    assert disturb(
        tiny_shards, tmp_path, 3, number, lambda launcher, _: [launcher], "train.max_steps=4000"
    )[0]
    step = status(tmp_path)["step"]
    assert outcome(tmp_path) == ("stopped", 75) and step >= 3
    assert find_checkpoint(tmp_path / "run").name == f"step-{step:08d}"


@pytest.mark.parametrize("hanging", [0, 1])
def test_a_rank_that_hangs_is_named_within_the_timeout(tiny_shards, tmp_path, hanging):
    code, seconds = disturb(
        tiny_shards,
        tmp_path,
        9,
        signal.SIGSTOP,
        lambda launcher, ranks: ranks[hanging:][:1],
        "distributed.timeout_seconds=8",
    )
    assert code != 0 and seconds < 60 and (hanging == 0 or status(tmp_path)["exit_code"] == 5)
    output = (tmp_path / "log").read_text().splitlines()
    [error] = [line for line in output if "lost a peer" in line]
    assert f"error: rank {1 - hanging}" in error and f"rank {hanging} is silent" in error
    assert int(find_checkpoint(tmp_path / "run").name.removeprefix("step-")) % 8 == 0
