"""`train.deterministic`: it takes effect, its runs and resumes are exact, its errors are one line.

On a CPU. `benchmarks/gpu.py` compares the bits of a resume on a GPU.
"""

import os
from collections.abc import Iterator
from unittest.mock import patch

import pytest
import torch
from torch._inductor import config as inductor_config

from gpt1_ds.base.errors import ConfigError, as_user_error
from gpt1_ds.engine.determinism import WORKSPACE, choose_algorithms
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import FinetuneConfig, PretrainConfig
from tests.settings.test_deepspeed_json import FOLDER

ON = "train.deterministic=true"
KINDS = (PretrainConfig, FinetuneConfig)


@pytest.fixture(autouse=True)
def undone() -> Iterator[None]:
    """What the switch leaves in this process is gone after the test."""
    with patch.dict(os.environ):
        os.environ.pop(WORKSPACE, None)
        yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True


def filled() -> bool:
    return bool(torch.utils.deterministic.fill_uninitialized_memory)


@pytest.mark.parametrize("kind", KINDS)
def test_the_settings_switch_it_on_and_off(kind):
    choose_algorithms(load(kind, None, []))
    assert not torch.are_deterministic_algorithms_enabled() and WORKSPACE not in os.environ
    choose_algorithms(load(kind, None, [ON]))
    assert torch.are_deterministic_algorithms_enabled() and os.environ[WORKSPACE] == ":4096:8"
    assert inductor_config.deterministic, "torch tells its compiler"
    assert not filled(), "new memory is not filled: that costs a pass over it"
    choose_algorithms(load(kind, None, []))
    assert not torch.are_deterministic_algorithms_enabled() and filled()


def test_the_workspace_of_cublas():
    choose_algorithms(load(PretrainConfig, None, [ON, "model.kind=lstm"]))
    assert os.environ[WORKSPACE] == ":16:8"
    for given, taken in ((":16:8", ":16:8"), (":4096:8", ":4096:8"), ("", ":4096:8")):
        os.environ[WORKSPACE] = given
        choose_algorithms(load(PretrainConfig, None, [ON]))
        assert os.environ[WORKSPACE] == taken
    os.environ[WORKSPACE] = ":4096:2"
    with pytest.raises(ConfigError, match=f"{WORKSPACE} is :4096:2, .*; unset it, or give :4096:8"):
        choose_algorithms(load(PretrainConfig, None, [ON]))
    choose_algorithms(load(PretrainConfig, None, []))
    assert os.environ[WORKSPACE] == ":4096:2"


def test_runs_and_resumes_have_the_same_bits(ranks, tiny_shards, tmp_path):
    """On a CPU so does a run without the switch."""
    arguments = str(FOLDER / "cpu.json"), str(tiny_shards), str(tmp_path)
    for equal, switches in ranks(1).run("tests.support.cases_determinism:runs", *arguments):
        assert equal == [True] * 4
        assert switches == [(True, ":4096:8")] * 3 + [(False, ":4096:8")]


def test_an_operator_that_torch_refuses_is_one_line():
    choose_algorithms(load(PretrainConfig, None, [ON]))
    with pytest.raises(RuntimeError) as caught:
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))
    error = as_user_error(caught.value)
    assert isinstance(error, ConfigError)
    assert str(error) == (
        "train.deterministic is true but torch has no deterministic put_ for this device; set "
        "train.deterministic=false"
    )
    assert as_user_error(RuntimeError("shapes differ")) is None
