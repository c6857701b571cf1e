"""A command in a pseudo-terminal, and the screen that it leaves."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Sequence

from tests.conftest import ROOT

CONTROL = re.compile(r"\x1b\[(?P<count>\d*)(?P<code>[A-Za-z])")


class Screen:
    """The lines of a terminal of `columns`. `wraps` counts lines that ran over its edge."""

    def __init__(self, columns: int):
        self.columns = columns
        self.rows = [""]
        self.row = self.column = self.wraps = 0

    def feed(self, text: str) -> None:
        while text:
            control = CONTROL.match(text)
            if control:
                self._control(int(control["count"] or 1), control["code"])
                text = text[control.end() :]
                continue
            self._put(text[0])
            text = text[1:]

    def _control(self, count: int, code: str) -> None:
        assert code in "AK", f"the screen does not know ESC[{code}"
        if code == "A":
            self.row -= count
            assert self.row >= 0, "the cursor went above the first line"
        else:
            self.rows[self.row] = self.rows[self.row][: self.column]

    def _put(self, sign: str) -> None:
        if sign == "\r":
            self.column = 0
        elif sign == "\n":
            self.row += 1
            self.rows += [""] * (self.row + 1 - len(self.rows))
        else:
            if self.column == self.columns:
                self.wraps += 1
                self._put("\n")
                self.column = 0
            line = self.rows[self.row].ljust(self.column)
            self.rows[self.row] = line[: self.column] + sign + line[self.column + 1 :]
            self.column += 1

    def lines(self) -> list[str]:
        return [row.rstrip() for row in self.rows]


def run_on_terminal(
    command: Sequence[str],
    columns: int,
    look: Callable[[Screen, int], None] = lambda screen, pid: None,
    timeout_seconds: float = 120.0,
) -> tuple[int, Screen]:
    """Exit code and last screen of a command.

    `look` is called after each output, with the screen and the number of the process.
    """
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environment = os.environ | {"TERM": "xterm", "PYTHONIOENCODING": "utf-8"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=follower, stdout=follower, stderr=follower
    )
    os.close(follower)
    screen, deadline = Screen(columns), time.monotonic() + timeout_seconds
    rest = b""
    try:
        while True:
            wait = max(0.0, deadline - time.monotonic())
            assert select.select([leader], [], [], wait)[0], f"no end after {timeout_seconds} s"
            try:
                rest += os.read(leader, 1 << 16)
            except OSError:  # the other end was closed
                return process.wait(10), screen
            text = rest.decode(errors="ignore")
            rest = rest[len(text.encode()) :]
            screen.feed(text)
            look(screen, process.pid)
    finally:
        process.kill()
        process.wait()
        os.close(leader)
