"""Turns signals and a dead launcher into one stop flag that all ranks agree on.

SIGTERM, SIGINT, SIGUSR1 and SIGHUP ask for a stop. (SIGHUP is what a closed terminal sends; under
nohup it is ignored, and stays so.) The training loop then commits a checkpoint at a step boundary,
the next one or the one after it, and exits with 75: the ranks agree on the stop while they compute.
It ends a validation or a wait for data early. Each rank also watches its launcher. If the launcher
ends, the rank ends at most `GRACE_SECONDS` later.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable

from gpt1_ds.base.errors import PeerError
from gpt1_ds.distributed import collectives
from gpt1_ds.distributed.launchers import is_alive, launchers

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
GRACE_SECONDS = 30.0
POLL_SECONDS = 0.5


class StopFlag:
    """Whether this run was asked to stop, by a signal or by the end of its launcher."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.is_sure: Callable[[], bool] = lambda: True
        """Whether this rank can take part in one more step, whatever happens until then.

        A rank that waits for its next batch, say, cannot promise that.
        """
        self._vote: collectives.PendingSum | None = None
        for number in SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
            signal.signal(number, lambda received, _: self.request(signal.Signals(received).name))
        self._launchers = launchers()
        threading.Thread(target=self._watch, daemon=True, name="launcher-watch").start()

    def request(self, reason: str) -> None:
        self.reason = self.reason or reason

    def requested(self) -> bool:
        """Whether this rank was asked to stop; the others may not know yet."""
        return self.reason is not None

    def agreed(self) -> bool:
        """Whether any rank was asked to stop before the last call.

        All ranks must call it; all get the same answer. The ranks' requests are added up between
        two calls, and so the answer is one call late. If some rank is not sure of another step,
        then all wait for each other at the next call, and the answer is that of now.
        """
        if collectives.world_size() == 1:
            return self.requested()
        stops, unsure = self._vote.read() if self._vote else (0.0, 1.0)
        if stops:
            self._vote = None
            return True
        self._vote = collectives.PendingSum([float(self.requested()), float(not self.is_sure())])
        return bool(unsure and self._vote.read()[0])

    def _watch(self) -> None:
        while all(is_alive(process) for process in self._launchers):
            time.sleep(POLL_SECONDS)
        self.request("launcher gone")
        time.sleep(GRACE_SECONDS)
        print(
            f"error: rank {collectives.rank()} outlived its launcher; "
            "start the run again to resume",
            file=sys.stderr,
        )
        os._exit(PeerError.exit_code)
