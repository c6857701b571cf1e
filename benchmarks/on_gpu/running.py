"""Runs rows in child processes, each with a bound of its own, until the deadline.

Rows that name the same process follow each other in one child: a start with torch, DeepSpeed and
CUDA takes longer than most rows. A row that raises is a result, and the child goes on. If a child
dies or a row takes too long, a new child takes the rows that are left.
"""

import ctypes
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from typing import Any, NamedTuple

Result = dict[str, Any]
START_SECONDS = 120.0
"""Longest start of a child: the first import of torch on a cold disk takes most of a minute."""
LEAST_SECONDS = 3.0
"""With less time left no row begins."""
FAULT_CHARACTERS = 300
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)


class Row(NamedTuple):
    """One line of the result."""

    name: str
    process: str
    """Neighbours with the same word share a child process."""
    work: str
    """MODULE:FUNCTION, which takes `arguments` and returns the result."""
    arguments: dict[str, Any]
    seconds: float
    """Longest time that the row may take."""


def end_with_parent() -> None:
    """In a child, before its program starts: the kernel kills it when its parent has ended."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def start(
    command: list[str], environment: Mapping[str, str], output: Any, *descriptors: int
) -> subprocess.Popen:
    """A process in a session of its own, so that it can be ended with all that it started."""
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=dict(environment),
        pass_fds=descriptors,
        start_new_session=True,
        preexec_fn=end_with_parent,
    )


def end(process: subprocess.Popen) -> None:
    """Kill the process and all that it started; wait for it."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def run_rows(
    rows: list[Row],
    environment: Mapping[str, str],
    deadline: float,
    done: Callable[[Row, Result], None],
) -> None:
    """Work all `rows` until `deadline` (of time.monotonic); `done` is called after each of them.

    A result is what the row's function returned, or {"fault": why not}, or {"untried": reason}.
    """
    for _, neighbours in groupby(rows, key=lambda row: row.process):
        left = list(neighbours)
        while left:
            if deadline - time.monotonic() < LEAST_SECONDS:
                for row in left:
                    done(row, {"untried": "no time was left"})
                break
            left = _run_child(left, environment, deadline, done)


def _run_child(
    rows: list[Row],
    environment: Mapping[str, str],
    deadline: float,
    done: Callable[[Row, Result], None],
) -> list[Row]:
    """Work `rows` in one child, as far as it comes; the rows that are left."""
    left = list(rows)
    reading, writing = os.pipe()
    with tempfile.TemporaryFile() as output, os.fdopen(reading, "rb") as pipe:
        command = [sys.executable, "-m", "benchmarks.on_gpu.worker", str(writing)]
        command.append(json.dumps([row._asdict() for row in rows]))
        process = start(command, environment, output, writing)
        os.close(writing)
        began, late, fault = False, False, ""
        lines = _Lines(pipe, deadline)
        lines.expect(START_SECONDS)
        try:
            for line in lines:
                message = json.loads(line)
                if message is None:
                    began = True
                    lines.expect(left[0].seconds)
                else:
                    done(left.pop(0), message)
                    lines.expect(START_SECONDS)
        except TimeoutError:
            late = time.monotonic() >= deadline
            fault = "the time of the whole run was over" if late else "took too long"
        finally:
            end(process)
        if not left:
            return []
        fault = fault or f"the process ended with {process.returncode}: {_last_words(output)}"
    if not began and not late:
        for row in left:
            done(row, {"fault": f"no start: {fault}"})
        return []
    done(left.pop(0), {"fault": fault})
    return left


class _Lines:
    """Lines of a pipe until its end; TimeoutError if one is not there in time."""

    def __init__(self, pipe: Any, deadline: float):
        self.pipe, self.deadline, self.bound = pipe, deadline, deadline
        self.waiting = selectors.DefaultSelector()
        self.waiting.register(pipe, selectors.EVENT_READ)

    def expect(self, seconds: float) -> None:
        """The next line may take so long, and never longer than until the deadline."""
        self.bound = min(self.deadline, time.monotonic() + seconds)

    def __iter__(self) -> Iterator[bytes]:
        content = b""
        while True:
            if not self.waiting.select(max(0.0, self.bound - time.monotonic())):
                raise TimeoutError
            part = os.read(self.pipe.fileno(), 1 << 16)
            if not part:
                return
            *lines, content = (content + part).split(b"\n")
            yield from lines


def _last_words(output: Any) -> str:
    output.seek(0)
    lines = output.read().decode(errors="replace").strip().splitlines()
    return (lines or ["no word"])[-1][:FAULT_CHARACTERS]
