"""How long NCCL waits for a peer, and what torch then does.

Once a collective lasts longer than the timeout of its group, or NCCL reports an error, the watchdog
of torch ends the process by SIGABRT: without a line, a status and the exit code of a lost peer. So
the thread of the heartbeat ends it before that, and NCCL gets more time. gloo raises an error in
the training itself, which is enough.
"""

import math
import os
import sys

from gpt1_ds.base.errors import LAUNCHER_RANKS, is_first_rank
from gpt1_ds.base.progress import write_line

MARGIN_SECONDS = 120.0
"""How much longer NCCL waits. The verdict takes seconds, and at most `heartbeat.TURNS` turns."""
ERROR_HANDLING = ("TORCH_NCCL_ASYNC_ERROR_HANDLING", "NCCL_ASYNC_ERROR_HANDLING")
"""What the watchdog does after an error; 0: nothing. torch 2.13 reads the old name too."""
HEARTBEAT = "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC"
"""After so many seconds another thread of torch ends a process whose watchdog is stuck."""


def aborts(backend: str) -> bool:
    """Whether torch ends the process itself if a peer is lost."""
    return backend == "nccl"


def group_timeout(backend: str, timeout_seconds: float) -> float:
    """The timeout of a process group, for `distributed.timeout_seconds`."""
    return timeout_seconds + (MARGIN_SECONDS if aborts(backend) else 0.0)


def prepare(timeout_seconds: float) -> None:
    """Set torch's variables, before the process group; what the user has set stays and is told."""
    least = math.ceil(timeout_seconds + MARGIN_SECONDS)
    too_early = []
    given = [name for name in ERROR_HANDLING if name in os.environ]
    if not given:
        os.environ[ERROR_HANDLING[0]] = "0"
    too_early += [name for name in given if os.environ[name] != "0"]
    seconds = os.environ.setdefault(HEARTBEAT, str(least))
    if seconds.isdecimal() and int(seconds) < least:
        too_early.append(HEARTBEAT)
    if too_early and is_first_rank(LAUNCHER_RANKS):
        shown = " ".join(f"{name}={os.environ[name]}" for name in too_early)
        write_line(
            f"warning: {shown}: torch may end a rank by SIGABRT before the ranks say which peer is "
            f"lost; unset it, or give {ERROR_HANDLING[0]}=0 and {HEARTBEAT}={least} or more",
            sys.stderr,
        )
