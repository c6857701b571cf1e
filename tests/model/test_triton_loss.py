"""The loss as a Triton kernel, on Triton's interpreter; and what CUDA does without Triton."""

import importlib.util
import os
import re
import sys
from pathlib import Path

import torch

from gpt1_ds.model.loss import HEAD_ROWS, InPlaceLoss, cross_entropy, loss_for
from tests.conftest import ROOT, need, succeed

TRITON = Path(sys.prefix) / "triton"
"""Where `make test` installs Triton beside a torch that brings none."""


def test_the_kernel_equals_plain_torch_on_tritons_interpreter():
    path = [str(ROOT)]
    if importlib.util.find_spec("triton") is None:
        if not (TRITON / "triton").is_dir():
            need("triton", f"there is no Triton in {TRITON}: `make test` installs it")
        path.insert(0, str(TRITON))
    done = succeed(
        *("python", "-m", "pytest", "-q", "-p", "no:cacheprovider"),
        "tests/support/triton_cases.py",
        PYTHONPATH=os.pathsep.join(path),
        TRITON_INTERPRET="1",
    )
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) >= 33 and "skipped" not in done.stdout, done.stdout


def test_cuda_without_triton_takes_plain_torch_and_says_so_once(capfd):
    loss_for.cache_clear()
    for _ in range(2):
        assert loss_for("cuda") == InPlaceLoss(HEAD_ROWS, cross_entropy)
    said = " ".join(capfd.readouterr().out.split())
    loss_for.cache_clear()
    assert said.startswith("head and loss: plain torch and not the Triton kernel")
    assert said.endswith("pip install triton, and a C compiler such as gcc")
    assert said.count("head and loss") == 1


def test_other_devices_take_plain_torch_in_silence(capfd):
    assert loss_for("cpu").write is cross_entropy
    assert loss_for(torch.device("meta").type).write is cross_entropy
    assert capfd.readouterr().out == ""
