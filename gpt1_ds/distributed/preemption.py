"""Signals and a dead launcher -> one stop flag that all ranks agree on.

SIGTERM, SIGINT and SIGUSR1 ask for a stop: the loop commits a checkpoint at the next step boundary and exits 75; a
validation or a wait for data is cut short. Ranks watch the launcher they descend from and never outlive it by more than
`GRACE_SECONDS`.
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import torch

from gpt1_ds.base.errors import PeerError
from gpt1_ds.distributed import collectives

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
LAUNCHERS = ("deepspeed", "torchrun", "torch.distributed", "mpirun", "mpiexec", "srun")
GRACE_SECONDS = 30.0
POLL_SECONDS = 0.5


class StopFlag:
    def __init__(self):
        self.reason: str | None = None
        for number in SIGNALS:
            signal.signal(number, lambda received, _: self.request(signal.Signals(received).name))
        self._launchers = _launchers()
        threading.Thread(target=self._watch, daemon=True, name="launcher-watch").start()

    def request(self, reason: str) -> None:
        self.reason = self.reason or reason

    def requested(self) -> bool:
        """Whether this rank was asked to stop; the others may not know yet."""
        return self.reason is not None

    def agreed(self) -> bool:
        """Whether any rank was asked to stop; every rank calls it, and all get the same answer."""
        return bool(collectives.all_sum(torch.tensor([float(self.reason is not None)])).item())

    def _watch(self) -> None:
        while all(_started(pid) == start for pid, start in self._launchers.items()):
            time.sleep(POLL_SECONDS)
        self.request("launcher gone")
        time.sleep(GRACE_SECONDS)
        print(
            f"error: rank {collectives.rank()} outlived its launcher; start the run again to resume",
            file=sys.stderr,
        )
        os._exit(PeerError.exit_code)


def _launchers() -> dict[int, str]:
    """Ancestors of this process that are launchers, each with its start time, as process ids are reused."""
    found, pid = {}, os.getppid()
    while pid > 1:
        try:
            command = (
                Path(f"/proc/{pid}/cmdline")
                .read_bytes()
                .replace(b"\0", b" ")
                .decode(errors="replace")
            )
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            break
        # The program, not an argument of some shell around it, which may well end before us under nohup.
        if (
            any(name in word for word in command.split()[:4] for name in LAUNCHERS)
            and "sh -c" not in command[:20]
        ):
            found[pid] = fields[19]
        pid = int(fields[1])
    return found


def _started(pid: int) -> str | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
