"""The fast paths against plain torch."""

import pytest
import torch
import torch.nn.functional as F

from gpt1_ds.kernels import IGNORE, causal_attention, dropout, head_cross_entropy

NEARLY_NEVER = 1e-9  # takes the training path of a kernel and drops nothing


def test_dropout_keeps_the_mean_and_drops_p():
    torch.manual_seed(0)
    x = torch.ones(1_000_003)
    y = dropout(x, 0.1, True)
    # Five standard deviations of a binomial share.
    assert abs((y == 0).float().mean() - 0.1) < 5 * (0.09 / len(x)) ** 0.5
    assert torch.allclose(y[y != 0], torch.tensor(1 / 0.9)) and abs(y.mean() - 1) < 3e-3
    assert not torch.equal(dropout(x, 0.1, True), y)


def test_dropout_is_independent_across_elements():
    torch.manual_seed(0)
    dropped = dropout(torch.ones(4, 250_000), 0.1, True) == 0
    flat = dropped.flatten().float() - 0.1
    for lag in (1, 2, 3, 4, 7, 250_000):
        correlation = (flat[lag:] * flat[:-lag]).mean() / 0.09
        assert abs(correlation) < 6 / len(flat) ** 0.5


def test_dropout_off_is_the_identity():
    x = torch.randn(10)
    assert dropout(x, 0.1, False) is x and dropout(x, 0.0, True) is x


@pytest.mark.parametrize("length", [1, 127, 128, 129, 300])
def test_attention_equals_the_plain_one_with_gradients(length):
    torch.manual_seed(length)
    q, k, v = (torch.randn(2, 3, length, 16, requires_grad=True) for _ in range(3))
    weight = torch.randn(2, 3, length, 16)
    scores = (q @ k.transpose(2, 3)) / 4 + torch.full((length, length), float("-inf")).triu(1)
    plain = scores.softmax(-1) @ v
    plain_grads = torch.autograd.grad((plain * weight).sum(), (q, k, v))
    for training in (False, True):
        fast = causal_attention(q, k, v, NEARLY_NEVER, training)
        torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)
        grads = torch.autograd.grad((fast * weight).sum(), (q, k, v))
        torch.testing.assert_close(grads, plain_grads, rtol=1e-5, atol=1e-5)


def test_attention_of_the_last_queries_equals_the_whole():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 20, 16) for _ in range(3))
    whole = causal_attention(q, k, v, 0.1, False)
    torch.testing.assert_close(causal_attention(q[:, :, 15:], k, v, 0.1, False), whole[:, :, 15:])


@pytest.mark.parametrize("rows", [1, 512, 1300])
def test_head_cross_entropy_equals_torchs(rows):
    torch.manual_seed(rows)
    vocab_size, padded = 300, 384
    hidden = torch.randn(1, rows, 32, requires_grad=True)
    weight = torch.randn(padded, 32, requires_grad=True)
    targets = torch.randint(0, vocab_size, (1, rows))
    targets[0, ::5] = IGNORE
    upstream = torch.rand(1, rows)

    nll = head_cross_entropy(hidden, weight, targets, vocab_size)
    plain = F.cross_entropy((hidden @ weight.T)[0, :, :vocab_size], targets[0], ignore_index=IGNORE, reduction="none")
    torch.testing.assert_close(nll[0], plain, rtol=1e-5, atol=1e-5)
    grads = torch.autograd.grad((nll * upstream).sum(), (hidden, weight))
    plain_grads = torch.autograd.grad((plain * upstream[0]).sum(), (hidden, weight))
    torch.testing.assert_close(grads, plain_grads, rtol=1e-4, atol=1e-4)
    assert (nll[0, ::5] == 0).all() and (grads[1][vocab_size:] == 0).all()
