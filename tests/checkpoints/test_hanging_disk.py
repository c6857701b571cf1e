"""A disk that hangs while a checkpoint is written to it holds up neither the steps nor a stop."""

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt1_ds.base.records import read_metrics
from gpt1_ds.checkpoints.folder import MANIFEST, find_checkpoint, find_faults
from tests.conftest import ROOT
from tests.support.launched_runs import (
    committed,
    outcome,
    ranks_of,
    start,
    steps_logged,
    wait_until_gone,
)

HANGS, MOVES = "no progress in writing it for checkpoint.stall_seconds 1;", "is written on;"
NO_ANSWER = (
    "no answer of the disk for 1 s; training goes on, and the log is written when it answers"
)
SHORT = ("train.max_steps=40000", "checkpoint.stall_seconds=1")
NAMED = "rng-rank-00001.safetensors (rank 1 on "


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("hanging") / "hanging.so")
    source = str(ROOT / "tests/support/hanging.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", path, source], check=True, timeout=60)
    return path


@pytest.fixture
def hanging(library: str, tmp_path: Path) -> dict[str, str]:
    """The environment in which one file of rank 1 hangs while its flag exists."""
    flags = {f"HANG_{call}": str(tmp_path / call) for call in ("WRITE", "FSYNC")}
    return {"LD_PRELOAD": library, "HANG_PATH": "tmp/rng-rank-00001", **flags}


def test_training_goes_on_and_a_stop_ends_it_with_the_last_commit(tiny_shards, tmp_path, hanging):
    process, log = start(tiny_shards, tmp_path, *SHORT, **hanging), tmp_path / "log"
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


def test_a_disk_that_hangs_as_a_whole_holds_up_neither_the_log_nor_a_stop(
    tiny_shards, tmp_path, hanging
):
    of_the_run = hanging | {"HANG_PATH": str(tmp_path / "run")}
    process, log = start(tiny_shards, tmp_path, *SHORT, **of_the_run), tmp_path / "log"
    flag = Path(hanging["HANG_WRITE"])
    try:
        wait(lambda: committed(tmp_path) >= 8, process, log)
        hung_at = max(steps_logged(tmp_path))
        flag.touch()
        wait(lambda: NO_ANSWER in log.read_text() and HANGS in log.read_text(), process, log)
        time.sleep(2.0)
        last = committed(tmp_path)
        flag.unlink()
        wait(lambda: committed(tmp_path) > last + 8, process, log)
        elapsed = elapsed_of_steps(tmp_path / "run")
        flag.touch()
        wait(lambda: log.read_text().count(HANGS) == 2, process, log)
        last = committed(tmp_path)
        ranks = ranks_of(process.pid)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
        wait_until_gone(ranks, time.monotonic() + 30)
    finally:
        flag.unlink(missing_ok=True)
        process.kill()
        process.wait()
    text = log.read_text()
    assert text.count(NO_ANSWER) == 1 and "Traceback" not in text, text
    assert list(elapsed) == list(range(1, len(elapsed) + 1)), "each line is there, in its order"
    # Training stands once, for at most the second that a write may take, and one that a commit may.
    pauses = [elapsed[step + 1] - elapsed[step] for step in range(hung_at + 1, len(elapsed))]
    assert sum(pause > 0.5 for pause in pauses) <= 4 and max(pauses) < 8, pauses
    [stopped] = [line for line in text.splitlines() if line.startswith("stopped: ")]
    assert "is lost: " in stopped and "not saved: " in stopped
    kept = find_checkpoint(tmp_path / "run")
    assert kept.name == f"step-{last:08d}" and not find_faults(kept)


def elapsed_of_steps(run: Path) -> dict[int, float]:
    return {record["step"]: record["elapsed_seconds"] for record in read_metrics(run, "train")}


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
    deadline = time.monotonic() + 120
    while not done():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
