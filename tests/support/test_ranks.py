"""Tests of the pool of ranks: results, exceptions with traceback, dead and stuck ranks."""

import os
import signal
import time

import pytest
import torch
import torch.distributed as dist

from gpt1_ds.base.errors import ConfigError
from tests.support.ranks import RankError


def place(scale: float) -> tuple[int, int, float]:
    total = torch.tensor([scale * (dist.get_rank() + 1)])
    dist.all_reduce(total)
    return dist.get_rank(), dist.get_world_size(), total.item()


def refuse() -> None:
    raise ConfigError("train.json: wrong on every rank")


def fail_alone() -> None:
    if dist.get_rank() == 1:
        raise ValueError("only rank 1")
    dist.all_reduce(torch.zeros(1))


def die_alone() -> None:
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


@pytest.mark.parametrize("world_size", [1, 2])
def test_every_rank_answers_in_order(ranks, world_size):
    total = 0.5 * sum(range(1, world_size + 1))
    assert ranks(world_size).run("tests.support.test_ranks:place", 0.5) == [
        (r, world_size, total) for r in range(world_size)
    ]


def test_an_error_of_all_ranks_keeps_its_type_and_the_pool(ranks):
    pids = ranks(2).run("os:getpid")
    with pytest.raises(ConfigError, match="wrong on every rank") as caught:
        ranks(2).run("tests.support.test_ranks:refuse")
    assert "on rank 0" in caught.value.__notes__[0] and "refuse" in caught.value.__notes__[0]
    assert ranks(2).run("os:getpid") == pids


def test_an_error_of_one_rank_is_the_one_raised_and_the_next_call_works(ranks):
    with pytest.raises(ValueError, match="only rank 1"):
        ranks(2).run("tests.support.test_ranks:fail_alone")
    assert ranks(2).run("tests.support.test_ranks:place", 1.0) == [(0, 2, 3.0), (1, 2, 3.0)]


def test_a_dead_rank_is_reported_and_no_process_is_left(ranks):
    pids = ranks(2).run("os:getpid")
    with pytest.raises(RankError, match="exit codes"):
        ranks(2).run("tests.support.test_ranks:die_alone")
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def test_a_silent_rank_is_a_timeout(ranks):
    with pytest.raises(RankError, match="gave no answer"):
        ranks(1).run("time:sleep", 30, timeout_seconds=0.5)
