"""Which windows are validated on, and nats a token, with values made by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch

from gpt1_ds.base import progress
from gpt1_ds.data.token_stream import TokenStream
from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.model.loss import IGNORE
from gpt1_ds.model.perplexity import sum_and_error, token_nll, validation_loss, validation_windows
from tests.support.shards_built import build


class Plain(GPT):
    """The model itself in the place of DeepSpeed's engine, two windows at a time."""

    device = torch.device("cpu")

    def train_micro_batch_size_per_gpu(self) -> int:
        return 2


@pytest.fixture
def model() -> Plain:
    torch.manual_seed(0)
    model = Plain(GPTConfig(300, n_layer=1, n_head=2, n_embd=16, n_ctx=10)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


@pytest.fixture
def stream(tmp_path: Path) -> TokenStream:
    """103 tokens: 102 targets, which are 10 windows of 10 and one of 2."""
    built = build(tmp_path, [[60, 43]], vocab_size=300)
    return TokenStream(built.root, built.manifest, "train", "a")


@torch.no_grad()
def mean_nll(model: GPT, stream: TokenStream, windows: list[int]) -> float:
    model.eval()
    ids = stream.read(np.array([0]), 103)[0].tolist()
    nlls = []
    for window in windows:
        text = torch.tensor([ids[window * 10 : window * 10 + 11]])
        nlls += model(text[:, :-1], text[:, 1:])[1].double()[0].tolist()
    return sum(nlls) / len(nlls)


@pytest.mark.parametrize(
    ("global_batch", "batches", "windows"),
    [
        (2, None, list(range(11))),
        (4, None, list(range(11))),
        (2, 99, list(range(11))),
        (2, 1, [0, 5]),
        (2, 2, [0, 2, 5, 8]),
        (4, 1, [0, 2, 5, 8]),
        (2, 4, [0, 1, 2, 4, 5, 6, 8, 9]),
    ],
)
def test_windows_of_a_validation_are_spread_evenly(model, stream, global_batch, batches, windows):
    loss = validation_loss(model.train(), stream, 10, global_batch, batches)
    assert model.training
    assert loss == pytest.approx(mean_nll(model, stream, windows), rel=1e-6)


def test_a_last_window_without_targets_is_none(model, tmp_path):
    """101 tokens are 100 targets: exactly 10 windows, spread evenly."""
    built = build(tmp_path, [[101]], vocab_size=300)
    stream = TokenStream(built.root, built.manifest, "train", "a")
    for global_batch, windows in ((2, [0, 5]), (4, [0, 2, 5, 7])):
        loss = validation_loss(model, stream, 10, global_batch, 1)
        ids_BT, targets_BT = validation_windows(stream, 10, np.array(windows))
        with torch.no_grad():
            expected = model.eval()(ids_BT, targets_BT)[1].mean().item()
        assert loss == pytest.approx(expected, rel=1e-6)


def test_a_validation_that_is_cut_short(model, stream):
    asked = iter([False, False, True])
    assert validation_loss(model.train(), stream, 10, 2, None, lambda: next(asked)) is None
    assert model.training and not list(asked)


def test_targets_past_the_end_are_ignored(stream):
    ids_BT, targets_BT = validation_windows(stream, 10, np.array([0, 10]))
    whole = stream.read(np.array([0]), 103)[0].tolist()
    assert ids_BT[0].tolist() == whole[:10] and targets_BT[0].tolist() == whole[1:11]
    assert targets_BT[1].tolist() == [*whole[101:103], *[IGNORE] * 8]
    assert ids_BT[1, :3].tolist() == whole[100:103]


def test_the_standard_error_of_two_runs():
    """Sums 3 and 7 of 2 tokens each lie 2 away from their mean: the error is sqrt(8 * 2 / 1)."""
    nll_T = np.array([1.0, 2.0, 3.0, 4.0], np.float32)
    assert sum_and_error(nll_T, [np.zeros(5)], 2) == (10.0, 4.0)
    assert sum_and_error(nll_T, [np.zeros(3), np.zeros(3)], 512) == (10.0, 4.0)
    # Runs of 3 tokens and of 1, expected 7.5 and 2.5, are 6 and 4.
    assert sum_and_error(nll_T, [np.zeros(5)], 3) == pytest.approx((10.0, 3.0))
    total, error = sum_and_error(nll_T, [np.zeros(5)], 4)
    assert total == 10.0 and np.isnan(error)


def test_nats_of_each_token_of_short_documents(model, monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0)
    documents = [np.arange(5, 5 + size) for size in (3, 2, 1, 11)]
    expected = []
    with torch.no_grad():
        for ids_T in documents:
            text = torch.from_numpy(ids_T)[None]
            if len(ids_T) > 1:
                expected += model(text[:, :-1], text[:, 1:])[1][0].tolist()
    np.testing.assert_allclose(token_nll(model, documents, 10, ""), expected, rtol=1e-5)
    assert len(expected) == 2 + 1 + 10
    assert "13/13" in capsys.readouterr().err, "the progress counts tokens from 0 on"
