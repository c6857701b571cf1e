"""A pool of real ranks for tests: one process a rank, joined by gloo, that serves function calls.

    results = ranks(2).run("tests.support.cases_engine:train_three_steps", "zero2_bf16",
    timeout_seconds=120)

Each process needs seconds to import torch and DeepSpeed, so a pool lives as long as the test
session. If a rank of a pool died or the ranks are out of step, the pool is killed (only its own
processes), and the next call starts a new one.
"""

import ctypes
import importlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

from gpt1_ds.base.errors import UserError
from gpt1_ds.distributed import rendezvous

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_SECONDS = 120.0
COLLECTIVE_TIMEOUT_SECONDS = 60.0
# After one rank has failed, the others may wait for it in a collective for ever. They get this
# many seconds to answer.
PEER_GRACE_SECONDS = 10.0
PR_SET_PDEATHSIG = 1

RANK_ENV = {
    "OMP_NUM_THREADS": "1",  # 2 ranks x all cores would oversubscribe the machine
    "DS_ACCELERATOR": "cpu",
    "CUDA_VISIBLE_DEVICES": "",  # else NCCL, which wants a GPU of its own for each rank
    "MASTER_ADDR": "127.0.0.1",
}


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends for any reason."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class RankError(Exception):
    """A rank died, did not answer in time, or raised an error that cannot be pickled.

    The text has its traceback.
    """


class RankPool:
    """`world_size` processes, started by the first `run`."""

    def __init__(self, world_size: int):
        self.world_size = world_size
        self._processes: list[subprocess.Popen] = []
        self._pipes: list[Connection] = []
        self._log = None

    def run(
        self, target: str, *args: Any, timeout_seconds: float = 120.0, **kwargs: Any
    ) -> list[Any]:
        """Call `module:function` with the same arguments on every rank; results in rank order.

        The first exception of a rank is raised here, with that rank's traceback as a note. A dead
        or silent rank raises `RankError` with the end of the ranks' output.
        """
        if not self._processes:
            self._start()
        answers = self._call((target, args, kwargs), timeout_seconds)
        failures = [(rank, value) for rank, (ok, value) in sorted(answers.items()) if not ok]
        agreed = len(failures) == self.world_size and all(
            isinstance(error, UserError) for _, error in failures
        )
        if failures and not agreed:
            self.close()  # the ranks may be in different collectives now
        if failures:
            raise failures[0][1]
        return [answers[rank][1] for rank in range(self.world_size)]

    def close(self) -> None:
        """End the processes; the next `run` starts new ones."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        for pipe in self._pipes:
            pipe.close()
        if self._log:
            self._log.close()
        self._processes, self._pipes, self._log = [], [], None

    def _start(self) -> None:
        self._log = tempfile.TemporaryFile("w+", errors="replace")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        for rank in range(self.world_size):
            ours, theirs = Pipe()
            ranks = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": self.world_size,
                "MASTER_PORT": port,
            }
            env = os.environ | RANK_ENV | {name: str(value) for name, value in ranks.items()}
            command = [
                sys.executable,
                "-m",
                "tests.support.ranks",
                str(theirs.fileno()),
                str(os.getpid()),
            ]
            self._processes.append(
                subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=env,
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=self._log,
                    stderr=subprocess.STDOUT,
                )
            )
            theirs.close()
            self._pipes.append(ours)
        answers = self._call(None, START_TIMEOUT_SECONDS)
        for ok, value in answers.values():
            if not ok:
                self.close()
                raise value

    def _call(self, request: Any, timeout_seconds: float) -> dict[int, tuple[bool, Any]]:
        """Send `request` (None: only wait for the start); returns {rank: (ok, result or error)}."""
        answers: dict[int, tuple[bool, Any]] = {}
        deadline = time.monotonic() + timeout_seconds
        try:
            if request is not None:
                for pipe in self._pipes:
                    pipe.send(request)
            while len(answers) < self.world_size:
                open_pipes = [pipe for rank, pipe in enumerate(self._pipes) if rank not in answers]
                ready = wait(open_pipes, timeout=max(0.0, deadline - time.monotonic()))
                if not ready and not all(ok for ok, _ in answers.values()):
                    return answers  # do not wait for the others: they are stuck
                if not ready:
                    silent = [rank for rank in range(self.world_size) if rank not in answers]
                    raise RankError(
                        f"ranks {silent} gave no answer to {request} in {timeout_seconds:.0f} s"
                    )
                for pipe in ready:
                    rank = self._pipes.index(pipe)
                    answers[rank] = pickle.loads(pipe.recv_bytes())
                    if not answers[rank][0]:
                        deadline = min(deadline, time.monotonic() + PEER_GRACE_SECONDS)
        except (EOFError, ConnectionError, RankError) as error:
            codes = [process.poll() for process in self._processes]
            self._log.seek(0)
            tail = "".join(self._log.readlines()[-40:])
            self.close()
            raise RankError(
                f"{error or 'a rank died'} (exit codes {codes}); the ranks' output ends:\n{tail}"
            ) from None
        return answers


def _serve(pipe: Connection) -> None:
    """One rank: join the process group, then answer calls until the pipe closes."""
    pipe.send_bytes(_answer("tests.support.ranks:_join", (), {}))
    while True:
        try:
            target, args, kwargs = pipe.recv()
        except EOFError:
            return
        pipe.send_bytes(_answer(target, args, kwargs))


def _join() -> None:
    rendezvous.join_process_group(COLLECTIVE_TIMEOUT_SECONDS)


def _answer(target: str, args: tuple, kwargs: dict[str, Any]) -> bytes:
    """Call `module:function`; returns the pickled pair (ok, result or exception)."""
    module, _, function = target.partition(":")
    try:
        return pickle.dumps(
            (True, getattr(importlib.import_module(module), function)(*args, **kwargs))
        )
    except BaseException as error:
        note = f"on rank {os.environ['RANK']}:\n{traceback.format_exc()}"
        try:
            error.add_note(note)
            answer = pickle.dumps((False, error))
            # An exception with its own constructor may pickle but fail to unpickle.
            pickle.loads(answer)
            return answer
        except Exception:
            return pickle.dumps((False, RankError(note)))


if __name__ == "__main__":
    die_with_parent()
    if os.getppid() != int(sys.argv[2]):
        sys.exit("the test session ended before its rank began")
    # Pickled names must be those that the parent imports, not __main__'s.
    importlib.import_module("tests.support.ranks")._serve(Connection(int(sys.argv[1])))
