"""Output that is lost never ends a training."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

PRINTER = """
import os, sys
from gpt1_ds.base.streams import keep_going_without_output
from gpt1_ds.distributed.console import progress, say, warn
keep_going_without_output()
keep_going_without_output()
with open(sys.argv[1], "w") as file:
    number = file.fileno()
    for step in range(3):
        say("said " * 9000)
        say("noted \\ud800")
        warn("warned")
        with progress("training", 3, "step", step) as bar:
            bar.update()
    file.write(f"went on with {number}")
"""


def lost(number: int, how: str) -> None:
    """Take the descriptor away, in the child before it begins."""
    if how == "closed":
        os.close(number)
    elif how == "full":
        os.dup2(os.open("/dev/full", os.O_WRONLY), number)
    elif how == "broken":
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, number)


@pytest.mark.parametrize("out, err", [("broken", ""), ("full", "full"), ("closed", "closed")])
def test_a_stream_that_is_lost_raises_nothing_and_is_told_on_the_other(tmp_path, out, err):
    done = subprocess.run(
        [sys.executable, "-c", PRINTER, str(tmp_path / "file")],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: (lost(1, out), lost(2, err)),
    )
    assert done.returncode == 0, done.stderr
    text, _, number = (tmp_path / "file").read_text().partition(" with ")
    assert text == "went on" and int(number) > 2, "no file gets the number of a standard stream"
    if out == "broken":
        told = "warning: standard output: Broken pipe; the run goes on without it"
        assert [line for line in done.stderr.splitlines() if "standard" in line] == [told]
        assert done.stderr.count("warned") == 3 and "Traceback" not in done.stderr
