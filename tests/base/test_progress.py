"""Progress: a bar that fits on a terminal, plain lines anywhere else."""

import re
import sys
import time

import pytest

from gpt1_ds.base import progress
from gpt1_ds.base.progress import Progress, write_line
from tests.support.terminal import run_on_terminal

TRAINING = """
import sys, time
from gpt1_ds.base.progress import Progress, write_line
write_line("memory   about 0.1 GB a rank for weights, gradients and moments, and 9 for the rest")
with Progress("pre-training", 60, "step", 10, logged=True) as bar:
    for step in range(11, 31):
        time.sleep(0.03)
        bar.update()
        if step % 5 == 0:
            bar.show("loss 5.405", "lr 1.0e-03", "10,408 tokens/s", "12% MFU", seconds_left=3700)
        if step == 20:
            write_line("step 20: validation loss 7.6334, perplexity 2066.00 on stories and more")
            with Progress("scoring", 4, "batch") as inner:
                for _ in range(4):
                    time.sleep(0.25)
                    inner.update()
            write_line("warning: low disk", sys.stderr)
write_line("next     python -m gpt1_ds.generate " + "x" * 120, folded=False)
"""


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_terminal_shows_a_bar_that_fits_and_every_line_above_it(columns):
    shots = []
    code, screen = run_on_terminal(
        [sys.executable, "-c", TRAINING], columns, lambda screen, pid: shots.append(screen.lines())
    )
    assert code == 0
    whole = -(-len("next     python -m gpt1_ds.generate " + "x" * 120) // columns) - 1
    assert screen.wraps == whole, "only the line that is to be copied runs over the edge"
    lines = [line for line in screen.lines() if line]
    bars = [line for line in lines if "|" in line]
    assert len(bars) == 1 and "step 30/60, loss 5.405" in bars[0] and "62 min left" in bars[0]
    assert re.fullmatch(r"(pre-training )?\|.{10,}\| step 30/60, .* left", bars[0])
    assert ("12% MFU" in bars[0]) == (columns == 120)
    above = " ".join(" ".join(lines[: lines.index(bars[0])]).split())
    for text in ("for weights, gradients and moments, and", "2066.00 on stories", "warning: low"):
        assert text in above
    both = [shot for shot in shots if any("scoring |" in line for line in shot)]
    assert both and all(sum("|" in line for line in shot) <= 2 for shot in shots)
    assert not any("scoring" in line for line in lines), "the bar below vanishes"


def test_elsewhere_a_plain_line_comes_at_a_log_step_when_it_is_time(capfd, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.3)
    began = time.monotonic()
    with Progress("pre-training", 600, "step", 20, logged=True) as bar:
        for _ in range(20):
            time.sleep(0.05)
            bar.update(1)
            bar.show("loss 5.405", "lr 1.0e-03", "10,408 tokens/s", seconds_left=58)
        write_line("step 40: done")
    spent = time.monotonic() - began
    out, err = capfd.readouterr()
    figures = "loss 5.405, lr 1.0e-03, 10,408 tokens/s, 58 s left"
    line = rf"\d\d:\d\d:\d\d pre-training: step (\d+)/600, {figures}"
    steps = [int(re.fullmatch(line, text)[1]) for text in err.splitlines()]
    assert steps[0] == 21 and 2 <= len(steps) <= 1 + spent / 0.3
    assert out == "step 40: done\n" and "\r" not in err


def test_short_work_prints_nothing_and_long_work_its_rate_and_the_time_left(capfd, monkeypatch):
    with Progress("verifying", 8_000_000, "byte") as bar:
        bar.update(4_000_000)
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(progress, "LINE_SECONDS", 0)
    with Progress("verifying", 8_000_000, "byte", 2_000_000) as bar:
        bar.update(4_000_000)
    with Progress("file.zip", None, "byte") as bar:
        bar.update(1_500_000)
    with Progress("dev", 4, "batch", shown=False) as bar:
        bar.update()
    first, second = capfd.readouterr().err.splitlines()
    assert re.fullmatch(r"[\d:]{8} verifying: 6.0/8.0 MB, \S+ MB/s, 0 s left", first)
    assert re.fullmatch(r"[\d:]{8} file.zip: 1.5 MB, \S+ MB/s", second)
