"""What a save costs one rank of 8, 512 and 4,096, counted over torch's fake process group."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.settings.test_deepspeed_json import FOLDER

WORLDS = 8, 512, 4096


@pytest.mark.parametrize("name", ["zero1_bf16", "zero3_bf16"])
def test_a_save_grows_with_the_ranks_at_most_and_never_with_their_square(tmp_path, name):
    command = [sys.executable, "-m", "tests.support.cases_many_ranks"]
    done = subprocess.run(
        [*command, str(FOLDER / f"{name}.json"), str(tmp_path), *map(str, WORLDS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    few, some, many = map(json.loads, done.stdout.splitlines())
    assert few["messages"] == some["messages"] == many["messages"]
    for counted in ("operators", "bytes"):
        assert many[counted] <= 1.05 * few[counted], (few, many)
    # The manifest and the agreements have an entry for each rank.
    growth = (many["calls"] - few["calls"]) / (WORLDS[2] - WORLDS[0])
    assert growth < 10, (few, some, many)
