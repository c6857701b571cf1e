"""Ranks started wrongly: each start ends with one clear error, and never trains separate runs."""

import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest

from gpt1_ds.distributed import rendezvous
from gpt1_ds.distributed.environment import free_port
from tests.conftest import ROOT
from tests.support.ranks import die_with_parent
from tests.test_train import SMALL


@pytest.fixture
def start(tiny_shards, tmp_path):
    """Start one rank with these variables; all of them have ended, or are killed, when the test
    has."""
    started = []

    def start(**environ) -> subprocess.Popen:
        command = [
            sys.executable,
            "gpt1_ds/train.py",
            "--deepspeed_config",
            "ds_configs/cpu.json",
            *SMALL,
            f"data.shards={tiny_shards}",
            f"run.dir={tmp_path}",
            "distributed.timeout_seconds=25",
        ]
        pipe, environ = subprocess.PIPE, {**os.environ, **environ}
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environ,
            stdin=subprocess.DEVNULL,
            text=True,
            stdout=pipe,
            stderr=pipe,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def place(rank: int, port: int, **others: str) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        **others,
    }


def ends(process: subprocess.Popen, exit_code: int, *words: str) -> str:
    out, err = process.communicate(timeout=200)
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert process.returncode == exit_code and len(lines) == 1 and "Traceback" not in err, err
    assert all(word in lines[0] for word in words) and "done" not in out, lines[0]
    return err


HURRIED = """
from gpt1_ds.distributed import rendezvous
from gpt1_ds.base.errors import guard
rendezvous.NOTICE_SECONDS, rendezvous.ANSWER_SECONDS = 4.0, 3.0
guard(lambda words: print("met", rendezvous.join_process_group(float(words[0])).rank))
"""


def hurried(rank: int, address: str, port: int, timeout_seconds: int = 100) -> subprocess.Popen:
    """A rank that only meets the others, and is less patient than others with an address that leads
    nowhere."""
    environ = os.environ | place(rank, port, MASTER_ADDR=address)
    return subprocess.Popen(
        [sys.executable, "-c", HURRIED, str(timeout_seconds)],
        cwd=ROOT,
        env=environ,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=die_with_parent,
    )


def test_a_rank_that_is_given_twice(start):
    port = free_port()
    first, *twins = [start(**place(rank, port)) for rank in (0, 1, 1)]
    while all(twin.poll() is None for twin in twins):
        time.sleep(0.1)
    ends(
        next(twin for twin in twins if twin.poll() is not None),
        2,
        "RANK=1 is taken by another process",
    )


def test_a_port_that_nobody_listens_on():
    ranks = [hurried(rank, "127.0.0.1", free_port(), timeout_seconds=8) for rank in (0, 1)]
    for process, whom in zip(ranks, ("all other ranks", "rank 0"), strict=True):
        err = ends(process, 5, "found no process group", "MASTER_PORT")
        assert f"still waits for {whom} at MASTER_ADDR=127.0.0.1" in err


def test_a_host_that_has_no_address(start):
    ends(
        start(**place(1, free_port(), MASTER_ADDR="no-such-host.invalid")),
        5,
        "no-such-host.invalid",
    )


def test_an_address_of_no_rank_0_is_told_from_a_late_peer():
    """One of documentation's own network; a machine that does not answer, its queue of connections
    full; another program that does, and says nothing."""
    assert rendezvous.ANSWER_SECONDS + 2 * rendezvous.PROBE_SECONDS < 60
    with socket.create_server(("127.0.0.1", 0), backlog=0) as silent, ExitStack() as queue:
        address = silent.getsockname()
        for _ in range(3):
            caller = queue.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(address)
        other = queue.enter_context(socket.create_server(("127.0.0.1", 0)))
        ranks = [
            hurried(0, "203.0.113.1", free_port()),
            hurried(1, *address),
            hurried(1, *other.getsockname()),
        ]
        faults = "203.0.113.1", "no machine answers there", "whoever listens there is not rank 0"
        for process, fault in zip(ranks, faults, strict=True):
            ends(process, 5, "found no process group", fault)


def test_a_late_rank_0_is_waited_for_beyond_that():
    port = free_port()
    early = hurried(1, "127.0.0.1", port)
    assert "still waits for rank 0 at MASTER_ADDR=127.0.0.1" in early.stderr.readline()
    late = hurried(0, "127.0.0.1", port)
    assert [process.communicate(timeout=60)[0] for process in (late, early)] == [
        "met 0\n",
        "met 1\n",
    ]


def test_a_port_that_is_taken(start):
    with socket.create_server(("127.0.0.1", 0)) as server:
        ends(start(**place(0, server.getsockname()[1])), 5, "MASTER_PORT", "in use")


def test_a_variable_that_is_missing(start):
    environ = place(0, free_port())
    del environ["LOCAL_RANK"]
    ends(start(**environ), 2, "LOCAL_RANK is not set although RANK=0 is")


def test_launchers_that_contradict_each_other(start):
    slurm = {
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": "0",
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_LOCALID": "0",
    }
    ends(
        start(**place(0, free_port(), **slurm)),
        2,
        "WORLD_SIZE=2 contradicts SLURM_STEP_NUM_TASKS=4",
    )
