"""OpenMP's threads spin only while nobody else needs the cores.

torch computes a step in thousands of short parallel regions. Between two of them, the threads of
OpenMP (GNU libgomp) spin for some milliseconds. On an idle machine nothing is faster. Beside
another program, a thread that spins uses up its time on the core, and the thread that it waits for
does not run: a step then takes up to 80 times as long.

libgomp reads its settings once, so they cannot follow the load. But libgomp stops the spinning
while the process has more OpenMP threads than cores (GOMP_SPINCOUNT in its manual). A second team
of threads, which sleeps, is such a surplus. `Watch` looks how long the threads of this process wait
for a core, makes this team when they wait much, and ends it later. The number of threads that
compute stays the same, and so do the results.
"""

import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

OWN_CHOICE = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""Variables by which a user decides about spinning."""
INTERVAL_SECONDS = 0.25
MUCH = 0.25
"""Waiting for a core: seconds a second, all threads together."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 4.0, 60.0
SOON_SECONDS = 2.0
LARGE_ENOUGH = 1 << 20
"""Elements that torch divides among its threads."""


class Decision:
    """Whether to spin, from how long the threads waited for a core.

    While nobody spins, the waiting does not tell whether other programs still run. So spinning is
    tried again after a pause, which doubles each time that the trial fails at once.
    """

    def __init__(self) -> None:
        self.spins = True
        self._pause, self._since = FIRST_PAUSE_SECONDS, 0.0

    def update(self, waiting: float, now: float) -> bool:
        """`waiting` is in seconds a second, `now` in seconds; whether to spin from now on."""
        if self.spins and waiting > MUCH:
            failed = now - self._since < SOON_SECONDS
            self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS) if failed else self._pause
            self.spins, self._since = False, now
        elif self.spins and now - self._since >= SOON_SECONDS:
            self._pause = FIRST_PAUSE_SECONDS
        elif not self.spins and now - self._since >= self._pause:
            self.spins, self._since = True, now
        return self.spins


class SecondTeam:
    """OpenMP threads beside those that compute. They sleep, and end with `close`."""

    def __init__(self) -> None:
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._hold, daemon=True)
        self._thread.start()

    def _hold(self) -> None:
        # Not at the top: commands that do not compute must not load torch for this.
        import torch

        torch.zeros(LARGE_ENOUGH, dtype=torch.uint8).add_(1)
        self._end.wait()

    def close(self) -> None:
        self._end.set()
        self._thread.join()


class Watch:
    """A thread that switches the spinning of this process off and on."""

    def __init__(self) -> None:
        self.decision = Decision()
        threading.Thread(target=self._run, name="spinning", daemon=True).start()

    def _run(self) -> None:
        team = None
        then, waited = time.monotonic(), waited_seconds()
        while True:
            time.sleep(INTERVAL_SECONDS)
            now, total = time.monotonic(), waited_seconds()
            spins = self.decision.update((total - waited) / (now - then), now)
            then, waited = now, total
            if spins and team:
                team.close()
                team = None
            elif not spins and not team:
                team = SecondTeam()


def watch() -> Watch | None:
    """Start the watch, if this process computes with several threads that spin."""
    cores = len(os.sched_getaffinity(0))
    if "torch" in sys.modules and is_wanted(os.environ, cores) and waited_seconds():
        return Watch()
    return None


def is_wanted(environ: Mapping[str, str], cores: int) -> bool:
    """A single thread never spins, and the user's own choice stays."""
    single = cores == 1 or environ.get("OMP_NUM_THREADS") == "1"
    return not single and not any(environ.get(name) for name in OWN_CHOICE)


def waited_seconds() -> float:
    """How long the threads of this process were ready to run and had no core, so far."""
    total = 0
    for thread in Path("/proc/self/task").iterdir():
        try:
            total += int((thread / "schedstat").read_bytes().split()[1])
        except (OSError, IndexError):
            continue  # the thread has ended, or this kernel does not count
    return total / 1e9
