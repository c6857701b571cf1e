"""A disk that hangs while a checkpoint is written to it holds up neither the steps nor a stop."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt1_ds.checkpoints.folder import MANIFEST, find_checkpoint, find_faults
from tests.conftest import ROOT
from tests.support.launched_runs import (
    command,
    committed,
    outcome,
    ranks_of,
    steps_logged,
    wait_until_gone,
)
from tests.support.ranks import die_with_parent

HANGS, MOVES = "no progress in writing it for checkpoint.stall_seconds 1;", "is written on;"
NAMED = "rng-rank-00001.safetensors (rank 1 on "


@pytest.fixture(scope="module")
def hanging(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which one file of rank 1 hangs while its flag exists."""
    folder = tmp_path_factory.mktemp("hanging")
    library = str(folder / "hanging.so")
    source = str(ROOT / "tests/support/hanging.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True, timeout=60)
    flags = {f"HANG_{call}": str(folder / call) for call in ("WRITE", "FSYNC")}
    return {"LD_PRELOAD": library, "HANG_PATH": "tmp/rng-rank-00001", **flags}


def test_training_goes_on_and_a_stop_ends_it_with_the_last_commit(tiny_shards, tmp_path, hanging):
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command(tiny_shards, tmp_path, "train.max_steps=40000", "checkpoint.stall_seconds=1"),
            cwd=ROOT,
            env=os.environ | hanging,
            stdout=file,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent,
        )
    try:
        wait(lambda: committed(tmp_path) >= 8, process, log)
        last = hang(Path(hanging["HANG_WRITE"]), 1, process, tmp_path)
        Path(hanging["HANG_WRITE"]).unlink()
        wait(lambda: MOVES in log.read_text(), process, log)
        wait(lambda: committed(tmp_path) > last + 8, process, log)
        last = hang(Path(hanging["HANG_FSYNC"]), 2, process, tmp_path)
        ranks = ranks_of(process.pid)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
        wait_until_gone(ranks, time.monotonic() + 30)
    finally:
        process.kill()
        process.wait()
    text = log.read_text()
    assert text.count(HANGS) == 2 and text.count(MOVES) == 1, text
    assert [line for line in text.splitlines() if HANGS in line and NAMED in line]
    assert outcome(tmp_path) == ("stopped", 75)
    [stopped] = [line for line in text.splitlines() if line.startswith("stopped: ")]
    assert "not saved: " in stopped and NAMED in stopped
    kept = find_checkpoint(tmp_path / "run")
    assert kept.name == f"step-{last:08d}" and not find_faults(kept)
    assert not list((tmp_path / "run" / "checkpoints").glob(f"*.tmp/{MANIFEST}"))


def hang(flag: Path, times: int, process: subprocess.Popen, runs: Path) -> int:
    """Let the disk hang until that is told, and two more checkpoints are due; the last commit."""
    flag.touch()
    log = runs / "log"
    wait(lambda: log.read_text().count(HANGS) == times, process, log)
    last, now = committed(runs), max(steps_logged(runs))
    wait(lambda: max(steps_logged(runs)) >= now + 20, process, log)
    assert committed(runs) == last
    return last


def wait(done: Callable[[], bool], process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
