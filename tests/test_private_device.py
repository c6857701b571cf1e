"""The project on a device that is no CPU, computes on the CPU, and refuses tensors of the CPU.

So every branch for GPUs runs with real numbers, which are compared with the CPU's, and a tensor
that is made on the wrong device is an error. One process serves all cases: the device stays in it.
"""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.support.cases_private_device import CASES


@pytest.fixture(scope="module")
def errors(tiny_shards, tiny_run, sample, tmp_path_factory) -> dict[str, str]:
    """The error of each case."""
    folder = tmp_path_factory.mktemp("private")
    words = [str(path) for path in (tiny_shards, tiny_run, sample, folder)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.cases_private_device", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_a_part_computes_on_another_device_as_on_the_cpu(errors, case):
    assert not errors[case.__name__], errors[case.__name__]
