"""Signals become one flag; a rank does not outlive its launcher."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT

WAITER = """
import sys, time
from gpt1_ds import preemption
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
    with subprocess.Popen([sys.executable, "-c", WAITER, "0"], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        os.kill(process.pid, getattr(signal, name))
        os.kill(process.pid, signal.SIGTERM)
        assert process.stdout.readline().strip() in (name, "SIGTERM")
        assert process.wait(timeout=30) == 0


def test_a_rank_outlives_its_launcher_by_the_grace_only(tmp_path):
    launcher = tmp_path / "deepspeed"  # the name is what marks a launcher
    launcher.write_text(
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {WAITER!r}, '60'], cwd={str(ROOT)!r})\n"
        "print(child.pid, flush=True)\nchild.wait()\n"
    )
    with subprocess.Popen([sys.executable, str(launcher)], stdout=subprocess.PIPE, text=True) as process:
        lines = {process.stdout.readline().strip(), process.stdout.readline().strip()}
        (pid,) = (int(line) for line in lines - {"ready"})
        process.kill()
        assert process.stdout.readline() == "launcher gone\n"
        deadline = time.monotonic() + 30
        while alive(pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not alive(pid)


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
