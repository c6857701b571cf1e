"""Ranks whose backend aborts the process when a peer is lost, as torch's watchdog for NCCL does.

    python -m tests.support.lost_peers FOLDER TIMEOUT_SECONDS

Three ranks for each fault, as processes of their own: FOLDER/FAULT gets the output and error of
rank R as R.out and R.err, and its exit code is in the JSON that is printed at the end.

gloo takes NCCL's place. It would raise an error when a peer dies, so that error is dropped: NCCL's
kernel does not end. A timer in place of the watchdog aborts the process at the group's timeout.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import torch
import torch.distributed as dist

from gpt1_ds.base.errors import LAUNCHER_RANKS, guard
from gpt1_ds.distributed import collectives, heartbeat, nccl, rendezvous, waiting
from gpt1_ds.distributed.environment import free_port
from gpt1_ds.runs.log import RunLog
from tests.support.ranks import RANK_ENV, die_with_parent

RANKS, FAULTY = 3, 1
FAULTS = ("hang", "stop", "die")


def collective(timeout_seconds: float) -> None:
    """One that the host waits for."""
    watchdog = threading.Timer(nccl.group_timeout("nccl", timeout_seconds), os.abort)
    watchdog.daemon = True
    watchdog.start()
    try:
        with waiting.for_peers():
            try:
                dist.all_reduce(torch.zeros(1))
            except RuntimeError:
                time.sleep(1000)
    finally:
        watchdog.cancel()


def fail(fault: str) -> None:
    heartbeat.place = "forward"
    if fault == "hang":
        time.sleep(1000)
    os.kill(os.getpid(), {"stop": signal.SIGSTOP, "die": signal.SIGKILL}[fault])


def main(words: list[str]) -> None:
    folder, fault, timeout_seconds = Path(words[0]), words[1], float(words[2])
    nccl.MARGIN_SECONDS = 40.0
    nccl.aborts = lambda backend: True
    rendezvous.join_process_group(timeout_seconds)
    assert os.environ[nccl.ERROR_HANDLING[0]] == "0"
    with collectives.peer_faults(), RunLog(folder, 0).outcome(lambda: 7):
        heartbeat.place = "forward"  # all ranks at once, and none waits for another: compiling
        time.sleep(timeout_seconds + 2.5)
        collective(timeout_seconds)
        print("all are here", flush=True)
        if dist.get_rank() == FAULTY:
            fail(fault)
        heartbeat.place = "backward"
        collective(timeout_seconds)


def begin(folder: Path, fault: str, rank: int, port: int, timeout_seconds: str) -> int:
    """Fork a rank: the imports, which take seconds, are done. Returns the process id."""
    pid = os.fork()
    if pid:
        return pid
    die_with_parent()
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{rank}.{name}", os.O_WRONLY | os.O_CREAT), number)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "MASTER_PORT": port}
    os.environ.update(RANK_ENV | {name: str(value) for name, value in place.items()})
    sys.argv = ["rank", str(folder), fault, timeout_seconds]
    guard(main, ranks=LAUNCHER_RANKS)
    return 0


def run_all(folder: Path, timeout_seconds: str) -> dict[str, list[int]]:
    """The exit codes of all ranks by fault; the rank that is stopped is killed at the end."""
    started = {}
    for fault in FAULTS:
        (folder / fault).mkdir()
        port = free_port()
        started[fault] = [
            begin(folder / fault, fault, rank, port, timeout_seconds) for rank in range(RANKS)
        ]
    codes = {}
    for fault, pids in started.items():
        by_pid = {pid: os.waitpid(pid, 0)[1] for pid in pids if pid != pids[FAULTY]}
        if fault == "stop":
            os.kill(pids[FAULTY], signal.SIGKILL)
        by_pid[pids[FAULTY]] = os.waitpid(pids[FAULTY], 0)[1]
        codes[fault] = [os.waitstatus_to_exitcode(by_pid[pid]) for pid in pids]
    return codes


if __name__ == "__main__":
    die_with_parent()
    os.environ["TORCH_CPP_LOG_LEVEL"] = "FATAL"
    print(json.dumps(run_all(Path(sys.argv[1]), sys.argv[2])))
