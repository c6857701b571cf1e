"""The table of `watch`: in a terminal of several widths, without colours, in a pipe."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from gpt1_ds import watch
from gpt1_ds.base.errors import DataError
from tests.conftest import ROOT
from tests.reports.test_run_states import make_run
from tests.support.ranks import die_with_parent

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
LONG = "a-run-with-a-name-of-many-words-and-no-blank-in-it"
HEADS = {60: "run state step loss left", 80: "run state step loss valid tok/s left"}
HEADS[120] = f"{HEADS[80]} checkpoint node"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    make_run(folder / LONG, total_steps=1_000_000, eta_seconds=273_600)
    make_run(folder / "b\x1b[31m\n", state="failed", exit_code=4)
    make_run(folder / "[bold]c", state="done")
    return folder


class Terminal:
    """`python -m gpt1_ds.watch WORDS` in a terminal of its own, 24 lines high."""

    def __init__(self, *words, width=80, **environment):
        self.master, slave = pty.openpty()
        self.resize(width)
        environment = {"TERM": "xterm-256color"} | environment
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gpt1_ds.watch", *map(str, words)],
            cwd=ROOT,
            env=os.environ | environment,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            preexec_fn=die_with_parent,
        )
        os.close(slave)

    def resize(self, width: int):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))

    def read_until(self, pattern: str) -> str:
        """What it prints from now on, up to `pattern` in the text without escapes."""
        text, deadline = "", time.monotonic() + 30
        while not re.search(pattern, ESCAPE.sub("", text)):
            assert time.monotonic() < deadline, text
            if select.select([self.master], [], [], 1)[0]:
                text += os.read(self.master, 65536).decode()
        return text

    def rest(self) -> str:
        """What it prints up to its end."""
        text = b""
        try:
            while part := os.read(self.master, 65536):
                text += part
        except OSError:
            pass  # the other side is closed
        self.process.wait(30)
        os.close(self.master)
        return text.decode()


def frames(text: str) -> list[list[str]]:
    """The screens that were drawn, each as its lines without escapes."""
    drawn = [ESCAPE.sub("", part) for part in text.split("\x1b[H")]
    return [[line.rstrip() for line in part.splitlines()] for part in drawn]


def test_it_follows_the_width_of_the_terminal_and_ends_in_one_line(runs: Path):
    terminal = Terminal(runs, "--every", "0.2", width=60)
    for width, head in HEADS.items():
        terminal.resize(width)
        text = terminal.read_until(r"run +" + head.split(maxsplit=1)[1].replace(" ", " +"))
        text += terminal.read_until("exit code 4: diverged")
        whole = [frame for frame in frames(text) if any(": diverged" in line for line in frame)]
        lines = whole[-1]
        first = [" ".join(line.split()) for line in lines].index(head)
        assert all(len(line) <= width for line in lines) and len(lines) <= 24
        name = "".join(line.split(" ")[0] for line in lines[first + 1 : first + 4])
        assert name.startswith(LONG), "folded, not cut off"
        screen = "\n".join(lines)
        assert "running 2/1000000 8.0000" in " ".join(screen.split())
        assert "b?[31m?: exit code 4: diverged" in screen and "[bold]c" in screen
        assert "3 runs: 1 running, 1 failed, 1 done" in " ".join(screen.split())
    os.kill(terminal.process.pid, signal.SIGINT)
    *_, end = terminal.rest().split("\x1b[?1049l")  # back from the screen of its own
    assert ESCAPE.sub("", end).split("\r\n") == ["stopped watching; the runs go on", ""]
    assert terminal.process.returncode == 0


@pytest.mark.parametrize(
    "environment", [{"TERM": "dumb"}, {"NO_COLOR": "1"}], ids=["dumb", "plain"]
)
def test_a_plain_terminal_gets_no_colours(runs: Path, environment):
    terminal = Terminal(runs, "--once", width=120, **environment)
    text = terminal.rest()
    assert terminal.process.returncode == 0
    codes = {code for code in ESCAPE.findall(text) if code not in ("\x1b[1m", "\x1b[0m")}
    assert not codes and (environment.get("TERM") != "dumb" or "\x1b" not in text)
    assert "tok/s" in text and "1,002" in text and "3 days 4 h" in text


def test_a_dumb_terminal_gets_one_table_after_the_other(runs: Path):
    terminal = Terminal(runs, "--every", "0.2", TERM="dumb")
    text = terminal.read_until(r"(?s)Ctrl-C ends.*Ctrl-C ends")
    assert "\x1b" not in text
    os.kill(terminal.process.pid, signal.SIGINT)
    assert terminal.rest().endswith("stopped watching; the runs go on\r\n")
    assert terminal.process.returncode == 0


def test_a_pipe_gets_the_whole_table_once(runs: Path, capsys):
    watch.main([str(runs)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == HEADS[120].split()
    assert re.match(rf"{LONG} +running 2/1000000 8\.0000 4\.5000 +1,002 +3 days 4 h none", lines[1])
    assert len(lines) == 5, "three runs and a note"
    with pytest.raises(DataError, match="no such folder; give the folder of a run"):
        watch.main([str(runs / "typo"), "--once"])
    (runs / "empty").mkdir()
    watch.main([str(runs / "empty")])
    assert capsys.readouterr().out == f"no runs in {runs / 'empty'}\n"


def test_more_runs_than_lines_are_counted(tmp_path: Path):
    for number in range(40):
        make_run(tmp_path / f"run-{number:02}", state="failed", exit_code=3)
    terminal = Terminal(tmp_path, "--every", "0.2")
    lines = frames(terminal.read_until("make the terminal higher"))[-1]
    terminal.process.kill()
    terminal.rest()
    assert "40 runs: 40 failed" in lines[0] and lines[2].startswith("run-00")
    told = [line for line in lines if "exit code 3: data or checkpoint" in line]
    *_, last = filter(None, lines)
    rows = [line for line in lines if re.match(r"run-\d+ failed", line)]
    assert len(told) == 6 and len(rows) == 14 and last.startswith("and 26 more: ")
