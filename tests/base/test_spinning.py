"""OpenMP's threads spin on an idle machine, and not beside other programs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpt1_ds.base.spinning import (
    FIRST_PAUSE_SECONDS,
    INTERVAL_SECONDS,
    LONGEST_PAUSE_SECONDS,
    Decision,
    is_wanted,
    waited_seconds,
)
from tests.conftest import ROOT

BOUND_SECONDS = 60
DEFAULT = {
    name: value
    for name, value in os.environ.items()
    if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
} | {"OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
two_cores = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="one core has nobody to wait for"
)


def states(decision: Decision, waiting: float, start: float, seconds: float) -> list[bool]:
    count = round(seconds / INTERVAL_SECONDS)
    return [decision.update(waiting, start + i * INTERVAL_SECONDS) for i in range(count)]


def test_an_idle_machine_spins():
    assert all(states(Decision(), 0.02, 1000.0, 600.0))


def test_spinning_ends_at_once_and_returns_when_the_other_program_ends():
    decision = Decision()
    assert all(states(decision, 0.0, 1000.0, 10.0))
    beside = states(decision, 1.0, 1010.0, 1.0)
    assert not any(beside)
    after = states(decision, 0.0, 1011.0, 20.0)
    assert after.index(True) * INTERVAL_SECONDS <= FIRST_PAUSE_SECONDS and all(after[-20:])


def test_trials_beside_a_program_become_rare():
    """Spinning itself raises the waiting, which is low without: only a trial can tell."""
    decision, trials, spins = Decision(), [], True
    for i in range(4000):
        now = 1000.0 + i * INTERVAL_SECONDS
        before, spins = spins, decision.update(0.9 if spins else 0.01, now)
        if spins and not before:
            trials.append(now)
    gaps = [b - a for a, b in zip(trials, trials[1:], strict=False)]
    assert gaps == sorted(gaps) and gaps[0] < 3 * FIRST_PAUSE_SECONDS
    assert LONGEST_PAUSE_SECONDS <= gaps[-1] <= LONGEST_PAUSE_SECONDS + 1
    after = states(decision, 0.0, 3000.0, 100.0)
    assert all(after[-20:])
    states(decision, 0.9, 4000.0, 0.5)
    pause = states(decision, 0.0, 4000.5, 100.0).index(True) * INTERVAL_SECONDS
    assert pause <= FIRST_PAUSE_SECONDS, "a new program is met with a short pause again"


@pytest.mark.parametrize(
    "environ, cores, wanted",
    [
        ({}, 2, True),
        ({"OMP_NUM_THREADS": "8", "OMP_WAIT_POLICY": ""}, 16, True),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, 2, False),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, 2, False),
        ({"GOMP_SPINCOUNT": "1000"}, 2, False),
        ({"OMP_NUM_THREADS": "1"}, 2, False),
        ({}, 1, False),
    ],
)
def test_the_users_own_choice_wins_and_one_thread_needs_no_watch(environ, cores, wanted):
    assert is_wanted(environ, cores) is wanted


def test_the_kernel_counts_the_waiting():
    assert waited_seconds() > 0


SECOND_TEAM = """
import json, os, time, torch
from gpt1_ds.base.spinning import SecondTeam
x = torch.zeros(1 << 20, dtype=torch.uint8)

def spinning():
    "Processor time of all threads while each region is followed by a pause."
    x.add_(1)
    began = time.process_time()
    for _ in range(20):
        x.add_(1)
        time.sleep(0.02)
    return time.process_time() - began

alone = spinning()
team = SecondTeam(); time.sleep(0.2)
beside = spinning()
team.close()
print(json.dumps([alone, beside, spinning()]))
"""


@two_cores
def test_a_second_team_ends_the_spinning_of_the_first():
    done = subprocess.run(
        [sys.executable, "-c", SECOND_TEAM], env=DEFAULT, capture_output=True, text=True, timeout=60
    )
    alone, beside, again = json.loads(done.stdout)
    assert beside < 0.5 * alone and beside < 0.5 * again, (alone, beside, again)


COMMAND = """
import os, sys, time
from gpt1_ds.base import errors, spinning
started = []
spinning.Watch.__init__, original = lambda self: (started.append(self), original(self))[1], \\
    spinning.Watch.__init__
import torch
def main(argv):
    watch, x = started[0], torch.zeros(1 << 20, dtype=torch.uint8)
    state = None
    while True:
        x.add_(1)
        if watch.decision.spins != state:
            state = watch.decision.spins
            print("spins" if state else "sleeps", flush=True)
errors.guard(main)
"""


@two_cores
def test_a_command_heeds_programs_that_begin_and_end(tmp_path: Path):
    """A program on every core begins after the start of the command, and ends before it."""
    command = subprocess.Popen(
        [sys.executable, "-c", COMMAND], env=DEFAULT, stdout=subprocess.PIPE, text=True
    )
    others: list[subprocess.Popen] = []
    try:
        assert command.stdout and command.stdout.readline() == "spins\n"
        loop = [sys.executable, "-c", f"import time\nend = time.time() + {BOUND_SECONDS}\n"]
        loop[-1] += "while time.time() < end: pass"
        others = [subprocess.Popen(loop) for _ in os.sched_getaffinity(0)]
        assert command.stdout.readline() == "sleeps\n"
        for other in others:
            other.kill()
        assert command.stdout.readline() == "spins\n"
    finally:
        for process in (command, *others):
            process.kill()
            process.wait()
