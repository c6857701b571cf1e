"""A rank that delays all others is named, without a wait of the loop."""

import json
import socket
import subprocess
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gpt1_ds.reports.facts import facts_of
from gpt1_ds.reports.run_files import RunFiles
from gpt1_ds.runs import slow_ranks
from gpt1_ds.runs.slow_ranks import LINES, SlowRanks
from tests.conftest import ROOT
from tests.settings.test_deepspeed_json import FOLDER

CASES = "tests.support.cases_slow_ranks"
HOST = socket.gethostname()


@pytest.mark.parametrize("fault, every", [("stopped", 5), ("data", 1)])
def test_a_slow_rank_is_named(ranks, tiny_shards, tmp_path, fault, every):
    words = str(FOLDER / "zero2_bf16.json"), str(tiny_shards), str(tmp_path), fault, every
    said = "tests.support.cases_losses:said"
    (lines, text), _ = ranks(2).run(said, f"{CASES}:pretrain", *words)
    assert "slowest_rank" not in lines[0], "a line shows the line before"
    for line in lines[2:]:  # the first steps warm up
        assert line["slowest_rank"] == 1 and line["slowest_host"] == HOST
        assert line["slowest_ratio"] > 1.3
    warning = f"rank 1 ({HOST}) is slow: {LINES} lines in a row, it took "
    assert text.count("is slow") == text.count(warning) == 1
    run = RunFiles(tmp_path / "run")
    assert facts_of(run)["slowest rank"].startswith(f"1 ({HOST}), in ")
    board = EventAccumulator(str(tmp_path / "run")).Reload()
    shown = [
        (event.step, round(event.value, 3)) for event in board.Scalars("x_progress/slowest_ratio")
    ]
    assert shown == [(line["step"], line["slowest_ratio"]) for line in lines[1:]]


def test_no_rank_waits_for_a_late_one_at_a_line_of_the_log(ranks):
    (seconds, told), (_, other) = ranks(2).run(f"{CASES}:exchange_behind_a_late_rank")
    assert seconds < 0.25
    assert told == {"slowest_rank": 1, "slowest_host": HOST, "slowest_ratio": 2.0} and not other


def test_a_line_is_one_message_of_four_bytes_a_rank(ranks):
    code = f"import json, {CASES} as c; print(json.dumps([c.count_exchange(n) for n in (2, 4096)]))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    few, many = json.loads(done.stdout.splitlines()[-1])
    assert few == {"messages": 1, "given": 4, "got": 0}, "too small for a part of the model"
    assert many == {"messages": 1, "given": 4, "got": 4 * 4096}


def test_a_rank_is_named_once_until_it_is_slow_anew(monkeypatch):
    said = []
    monkeypatch.setattr(slow_ranks, "say", said.append)
    slow = SlowRanks(1.3)
    slow.hosts = ["a", "b", "c"]
    for step, (rank, ratio) in enumerate([*[(2, 1.4)] * 9, (2, 1.3), *[(1, 2.0)] * 4, (2, 2.0)]):
        slow._count(step, rank, ratio)
    assert len(said) == 1 and "step 4: rank 2 (c) is slow" in said[0]
    for step in range(LINES - 1):
        slow._count(step, 2, 1.5)
    assert len(said) == 2
