"""Ranks started wrongly: each start ends in one clear line, and never trains as several runs of one rank."""

import os
import socket
import subprocess
import sys
import time

import pytest

from gpt1_ds.distributed import free_port
from tests.conftest import ROOT
from tests.test_train import SMALL


@pytest.fixture
def start(tiny_shards, tmp_path):
    """Start one rank with these variables; all of them have ended, or are killed, when the test has."""
    started = []

    def start(**environ) -> subprocess.Popen:
        command = [sys.executable, "gpt1_ds/train.py", "--deepspeed_config", "ds_configs/cpu.json", *SMALL,
                   f"data.shards={tiny_shards}", f"run.dir={tmp_path}", "distributed.timeout_seconds=25"]  # fmt: skip
        pipe, environ = subprocess.PIPE, {**os.environ, **environ}
        process = subprocess.Popen(command, cwd=ROOT, env=environ, stdin=subprocess.DEVNULL, text=True, stdout=pipe,
                                   stderr=pipe)  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def place(rank: int, port: int, **others: str) -> dict[str, str]:
    return {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port), **others}  # fmt: skip


def ends(process: subprocess.Popen, exit_code: int, *words: str) -> str:
    out, err = process.communicate(timeout=90)
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert process.returncode == exit_code and len(lines) == 1 and "Traceback" not in err, err
    assert all(word in lines[0] for word in words) and "done" not in out, lines[0]
    return err


def test_a_rank_that_is_given_twice(start):
    port = free_port()
    first, *twins = [start(**place(rank, port)) for rank in (0, 1, 1)]
    while all(twin.poll() is None for twin in twins):
        time.sleep(0.1)
    ends(next(twin for twin in twins if twin.poll() is not None), 2, "RANK=1 is taken by another process")


def test_a_port_that_nobody_listens_on(start):
    ranks = [start(**place(rank, free_port())) for rank in (0, 1)]
    for process, whom in zip(ranks, ("all other ranks", "rank 0"), strict=True):
        err = ends(process, 5, "found no process group", "MASTER_PORT")
        assert f"still waits for {whom} at MASTER_ADDR=127.0.0.1" in err


def test_a_host_that_has_no_address(start):
    ends(start(**place(1, free_port(), MASTER_ADDR="no-such-host.invalid")), 5, "no-such-host.invalid")


def test_a_port_that_is_taken(start):
    with socket.create_server(("127.0.0.1", 0)) as server:
        ends(start(**place(0, server.getsockname()[1])), 5, "MASTER_PORT", "in use")


def test_a_variable_that_is_missing(start):
    environ = place(0, free_port())
    del environ["LOCAL_RANK"]
    ends(start(**environ), 2, "LOCAL_RANK is not set although RANK=0 is")


def test_launchers_that_contradict_each_other(start):
    slurm = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "0"}
    ends(start(**place(0, free_port(), **slurm)), 2, "WORLD_SIZE=2 contradicts SLURM_STEP_NUM_TASKS=4")
