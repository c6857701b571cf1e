"""Signals become one flag; a rank does not outlive its launcher."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from gpt1_ds.data.manifest import read_manifest
from gpt1_ds.distributed.preemption import SIGNALS, StopFlag
from tests.conftest import ROOT, succeed
from tests.support.ranks import die_with_parent

WAITER = """
import sys, time
from gpt1_ds.distributed import preemption
preemption.GRACE_SECONDS = 0.5
flag = preemption.StopFlag()
print("ready", flush=True)
deadline = time.monotonic() + 60
while not flag.agreed() and time.monotonic() < deadline:
    time.sleep(0.05)
print(flag.reason, flush=True)
time.sleep(float(sys.argv[1]))
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_asks_for_a_stop_and_a_second_one_changes_nothing(name):
    with subprocess.Popen(
        [sys.executable, "-c", WAITER, "0"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        os.kill(process.pid, getattr(signal, name))
        os.kill(process.pid, signal.SIGTERM)
        assert process.stdout.readline().strip() in (name, "SIGTERM")
        assert process.wait(timeout=30) == 0


@pytest.mark.parametrize("ignored", [False, True])
def test_the_end_of_the_terminal_asks_for_a_stop_except_under_nohup(ignored):
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
        flag = StopFlag()
        os.kill(os.getpid(), signal.SIGHUP)
        assert flag.reason == (None if ignored else "SIGHUP")
        assert (signal.getsignal(signal.SIGHUP) == signal.SIG_IGN) == ignored
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_a_rank_outlives_its_launcher_by_the_grace_only(tmp_path):
    launcher = tmp_path / "deepspeed"  # the name is what marks a launcher
    launcher.write_text(
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {WAITER!r}, '60'], cwd={str(ROOT)!r})\n"
        "print(child.pid, flush=True)\nchild.wait()\n"
    )
    with subprocess.Popen(
        [sys.executable, str(launcher)], stdout=subprocess.PIPE, text=True
    ) as process:
        lines = {process.stdout.readline().strip(), process.stdout.readline().strip()}
        (pid,) = (int(line) for line in lines - {"ready"})
        process.kill()
        assert process.stdout.readline() == "launcher gone\n"
        deadline = time.monotonic() + 30
        while alive(pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not alive(pid)


@pytest.mark.parametrize(
    ("asked", "unsure", "first"),
    [
        (0, [], 0),  # the first call waits, since nothing is known before it
        (3, [], 4),  # one call late
        (3, [2], 3),  # rank 1 could not promise to take part in that step
        (3, [1], 4),
        (9, [1, 2], None),
    ],
)
def test_ranks_agree_on_a_stop_while_they_compute(ranks, asked, unsure, first):
    here, there = ranks(2).run("tests.support.cases_stop:answers", 6, asked, unsure)
    assert here == there
    assert (here.index(True) if True in here else None) == first


SMALL = (
    "gpt1_ds/train.py",
    "--deepspeed_config",
    "ds_configs/cpu.json",
    "model.preset=gpt1-tiny",
    "model.n_embd=32",
    "model.n_ctx=32",
    "train.max_steps=4",
    "train.global_batch=4",
    "log.every=1",
)


def stop_once(condition, *words: str):
    """Exit code and output of a one-rank training that gets SIGUSR1 when `condition()` holds."""
    with subprocess.Popen(
        [sys.executable, *SMALL, *words],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=die_with_parent,
    ) as process:
        deadline = time.monotonic() + 120
        while not condition() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGUSR1)
        return process.wait(timeout=60), process.stdout.read()


def validations(runs) -> list[int]:
    lines = map(json.loads, (runs / "gpt1" / "metrics.jsonl").read_text().splitlines())
    return [record["step"] for record in lines if record["split"] == "valid"]


def test_a_stop_cuts_a_validation_short_and_the_next_start_makes_up_for_it(tiny_shards, tmp_path):
    words = (f"data.shards={tiny_shards}", f"run.dir={tmp_path}", "eval.batches=null")
    status = tmp_path / "gpt1" / "status.json"
    code, output = stop_once(
        lambda: status.exists(), *words
    )  # written just before the first validation, of a second
    assert code == 75 and "stopped: step 0 of 4 was the first: nothing is trained yet" in output
    assert validations(tmp_path) == []
    succeed("python", *SMALL, *words)
    assert validations(tmp_path) == [0, 4]


def test_a_stop_ends_a_wait_for_data(tiny_shards, tmp_path):
    # Another process seems to fetch the training shards, and does not come to an end.
    cache = tmp_path / "cache"
    (cache / "locks").mkdir(parents=True, mode=0o700)
    locks = [
        (cache / "locks" / shard.sha256).open("w")
        for shard in read_manifest(tiny_shards).splits["train"]["books"].shards
    ]
    for lock in locks:
        fcntl.flock(lock, fcntl.LOCK_EX)
    words = (
        f"data.shards=file://{tiny_shards}",
        f"data.cache={cache}",
        f"run.dir={tmp_path}",
        "eval.batches=1",
    )
    metrics = tmp_path / "gpt1" / "metrics.jsonl"
    code, output = stop_once(lambda: metrics.exists() and validations(tmp_path), *words)
    for lock in locks:
        lock.close()
    assert code == 75 and "nothing is trained yet" in output, output
    succeed("python", *SMALL, *words)
    assert validations(tmp_path) == [0, 4]


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
