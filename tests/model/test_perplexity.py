"""Validation loss against a plain pass; sliding windows against a loop and another library."""

import numpy as np
import pytest
import torch

from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.model.perplexity import sum_and_error, token_nll
from tests.settings.test_deepspeed_json import FOLDER


@pytest.mark.parametrize("world_size", [1, 2])
def test_validation_loss_counts_every_target_once(ranks, tiny_shards, world_size):
    path = str(FOLDER / "zero0_fp32.json")
    case = "tests.support.cases_engine:all_windows_loss"
    for ours, plain in ranks(world_size).run(case, path, str(tiny_shards)):
        assert ours == pytest.approx(plain, rel=1e-6)


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(300, n_layer=2, n_head=2, n_embd=16, n_ctx=16)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


DOCUMENTS = [np.random.default_rng(0).integers(5, 300, size) for size in (70, 2, 17, 16, 1, 18, 33)]


@torch.inference_mode()
def nll_of(model: GPT, context: list[int], targets: list[int]) -> list[float]:
    """Nats of `targets` after `context`, by a softmax over the last states."""
    hidden_BTC, _ = model(torch.tensor([context + targets[:-1]]))
    logits_TV = (hidden_BTC[0] @ model.wte.T)[-len(targets) :, : model.config.vocab_size]
    return (-logits_TV.double().log_softmax(-1))[range(len(targets)), targets].tolist()


@pytest.mark.parametrize("stride", [16, 15, 5, 1])
def test_sliding_windows_equal_a_loop_and_those_of_lm_evaluation_harness(model, stride):
    windows_of = pytest.importorskip("lm_eval.utils").get_rolling_token_windows
    harness, loop = [], []
    for first, *rest in map(np.ndarray.tolist, DOCUMENTS):
        for context, targets in windows_of(rest, first, 16, 16 - stride + 1):
            context = context[: len(context) - (len(targets) - 1)]
            harness += nll_of(model, context, targets)
        # A token sees all tokens from the start of the window that scores it.
        for position in range(len(rest)):
            steps = max(0, -(-(position + 1 - 16) // stride))
            end = min(16 + steps * stride, len(rest))
            loop += nll_of(model, [first, *rest][max(0, end - 16) : position + 1], [rest[position]])
    ours_T = token_nll(model, DOCUMENTS, stride, "")
    np.testing.assert_allclose(ours_T, harness, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(ours_T, loop, rtol=2e-5, atol=2e-5)


def test_the_sum_does_not_depend_on_the_batch(model):
    batches = (1, 50, 100_000)
    sums = [token_nll(model, DOCUMENTS, 7, "", size).sum(dtype=np.float64) for size in batches]
    assert sums == pytest.approx([sums[0]] * 3, rel=1e-7)


def test_the_standard_error_is_that_of_independent_runs():
    nll_T = np.random.default_rng(1).normal(5, 2, 640).astype(np.float32)
    total, error = sum_and_error(nll_T, [np.zeros(641)], 64)
    means_R = nll_T.reshape(10, 64).mean(1, dtype=np.float64)
    assert total / 640 == pytest.approx(nll_T.mean(dtype=np.float64))
    assert error / 640 == pytest.approx(means_R.std(ddof=1) / 10**0.5)
    # A shorter document is one run.
    assert sum_and_error(nll_T, [np.zeros(65)] * 10, 512) == pytest.approx((total, error))
    assert np.isnan(sum_and_error(nll_T[:64], [np.zeros(65)], 64)[1])
