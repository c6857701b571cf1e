"""Operators, waits and messages of a step, on one rank and as rank 0 of thousands."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.support.ranks import die_with_parent

MOST_OPERATORS = 150
"""Of an update, where DeepSpeed's own has 2,285 on one rank."""


def printed_by(module: str, *words: object) -> list:
    """What a module of `tests.support` prints, a line of JSON each."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.support.{module}", *map(str, words)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=die_with_parent,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line[:1] in "{0123456789"]


def work(ranks: int) -> dict:
    return printed_by("host_work", ranks)[-1]


@pytest.fixture(scope="module")
def of_eight() -> dict:
    return work(8)


@pytest.mark.parametrize("ranks", [1, 512, 4096])
def test_a_step_has_few_operators_and_no_wait_on_any_number_of_ranks(of_eight, ranks):
    """ZeRO 0, 1 and 2. The head's `nonzero` is of its branch for a CPU."""
    for ds, parts in work(ranks).items():
        for part, counts in parts.items():
            waits = {"nonzero": 1} if part == "forward" else {}
            assert counts["waits"] == waits, (ds, part)
            eight = of_eight[ds][part]
            assert eight["waits"] == waits
            if ranks > 1:
                for key in ("operators", "messages", "bytes"):
                    assert counts[key] <= eight[key], (ds, part, key)
        assert parts["step"]["operators"] <= MOST_OPERATORS
