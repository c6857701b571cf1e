"""A run that predicts only how often each token occurs is told, once."""

import math

import numpy as np
import pytest
import torch

from gpt1_ds.runs.plateau import Plateau
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import PretrainConfig

P_V = np.array([0.4, 0.3, 0.2, 0.1])
ENTROPY = -float((P_V * np.log(P_V)).sum())


def plateau(tokens: int = 40_000) -> Plateau:
    found = Plateau(load(PretrainConfig, None, ["optim.lr=0.02"]), 4, warmup_steps=20)
    generator = np.random.default_rng(1)
    ids_N = torch.from_numpy(generator.choice(4, tokens, p=P_V))
    found.count([half_NT.view(-1, 10) for half_NT in ids_N.split(tokens // 2)])
    return found


@pytest.mark.parametrize("tokens", [1000, 40_000])
def test_the_entropy_is_that_of_the_data(tokens: int):
    assert plateau(tokens).entropy() == pytest.approx(ENTROPY, rel=0.02)


def test_a_stuck_run_is_told_once_after_its_warm_up():
    found = plateau()
    near = found.entropy() * 1.015
    lines = [found.check(step, near) for step in range(10, 100, 10)]
    assert lines[:4] == [None] * 4 and lines[5:] == [None] * 4  # 30, 40, 50 are past the warm-up
    assert lines[4].startswith(f"step 50: loss {near:.3f} is the unigram entropy of the data (1.2")
    assert lines[4].endswith("lower optim.lr (now 0.02) or lengthen schedule.warmup_steps (now 20)")


@pytest.mark.parametrize("share", [0.97, 1.03, math.nan])
def test_other_losses_are_not_told(share: float):
    found = plateau()
    assert not any(found.check(step, found.entropy() * share) for step in range(30, 90, 10))


def test_a_run_that_passes_the_plateau_is_not_told():
    found = plateau()
    losses = [1.1, 1.01, 1.0, 0.9, 1.0, 1.0, 0.9]
    assert not any(found.check(30 + n, found.entropy() * x) for n, x in enumerate(losses))


def test_nothing_is_told_without_data():
    found = Plateau(load(PretrainConfig, None, []), 4, warmup_steps=0)
    assert not any(found.check(step, 0.0) for step in range(9))
