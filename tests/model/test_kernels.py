"""The kernels against plain torch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gpt1_ds.data.order import mix
from gpt1_ds.model.kernels import (
    append,
    causal_attention,
    dropout,
    head_cross_entropy,
    linear,
    site_keys,
)
from gpt1_ds.model.loss import IGNORE

NEARLY_NEVER = 1e-9  # takes the training path of a kernel and drops nothing


def keys(*seeds: int) -> torch.Tensor:
    """A key a sequence, as the loader makes them."""
    return torch.from_numpy(mix(7, np.array(seeds)).view(np.int32).reshape(-1, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_keeps_the_mean_and_drops_p(dtype):
    x = torch.ones(1, 2_000_003, dtype=dtype)
    y = dropout(x, 0.1, keys(1)).float()
    # Five standard deviations of a binomial share.
    assert abs((y == 0).float().mean() - 0.1) < 5 * (0.09 / x.numel()) ** 0.5
    assert torch.allclose(y[y != 0], torch.tensor(1 / 0.9).to(dtype).float())


def test_dropout_is_a_pure_function_of_each_rows_key():
    x = torch.rand(3, 5, 7)
    whole = dropout(x, 0.5, keys(1, 2, 3))
    assert torch.equal(whole, dropout(x, 0.5, keys(1, 2, 3)))
    assert torch.equal(whole[1:2], dropout(x[1:2], 0.5, keys(2)))
    assert not torch.equal(whole, dropout(x, 0.5, keys(1, 2, 4)))


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """Of two 0/1 samples of mean 0.1, in standard deviations of independent ones."""
    a, b = a.flatten().float() - 0.1, b.flatten().float() - 0.1
    return ((a * b).mean() / 0.09 * a.numel() ** 0.5).abs().item()


def test_dropout_is_independent_across_elements_sequences_sites_and_seeds():
    """Masks have no correlation between elements at small and at structured lags, between windows
    next to each other in the order, between sites of the model, and between seeds.

    300 comparisons stay below 5.5 standard deviations (by chance one is above: 1e-5).
    """
    places, sites, elements = 40, 37, 1 << 16
    x = torch.ones(places, elements)
    by_site = site_keys(keys(*range(places)), sites)
    # (sites, places, elements)
    dropped = torch.stack([dropout(x, 0.1, by_site[site]) == 0 for site in range(sites)])
    assert abs(dropped.float().mean() - 0.1) < 5 * (0.09 / dropped.numel()) ** 0.5
    lags = (1, 2, 3, 4, 8, 64, 128, 512, 768, 4096)
    scores = [correlation(dropped[0, :, lag:], dropped[0, :, :-lag]) for lag in lags]
    scores += [correlation(dropped[:, 0], dropped[:, place]) for place in range(1, places)]
    for a in (0, 5):
        scores += [correlation(dropped[a], dropped[b]) for b in range(sites) if a != b]
    other_seed = torch.from_numpy(mix(8, np.arange(places)).view(np.int32).reshape(-1, 2))
    scores += [correlation(dropped[0], dropout(x, 0.1, site_keys(other_seed, sites)[0]) == 0)]
    # Element-wise comparison would not find a shifted copy: all shifts, by Fourier transform.
    spectrum = torch.fft.rfft(dropped[:8, :4].float().flatten(0, 1) - 0.1)
    for a, b in [(0, 1), (0, 5), (1, 9), (3, 30), (8, 16)]:
        shifts = torch.fft.irfft(spectrum[a] * spectrum[b].conj()) / 0.09 / elements**0.5
        assert shifts.abs().max() < 6.5
    assert max(scores) < 5.5


def test_dropout_counts_of_short_blocks_are_binomial():
    """Dropped elements in blocks of 64 have the variance of a binomial, not more and not less."""
    dropped = dropout(torch.ones(64, 1 << 16), 0.1, keys(*range(64))) == 0
    counts = dropped.view(-1, 64).sum(1).double()
    assert abs(counts.var() / (64 * 0.09) - 1) < 0.02


def test_dropout_off_is_the_identity():
    x = torch.randn(10, 3)
    assert dropout(x, 0.1, None) is x and dropout(x, 0.0, keys(*range(10))) is x


@pytest.mark.parametrize("length", [1, 127, 128, 129, 300])
def test_attention_equals_the_plain_one_with_gradients(length):
    torch.manual_seed(length)
    q, k, v = (torch.randn(2, 3, length, 16, requires_grad=True) for _ in range(3))
    weight = torch.randn(2, 3, length, 16)
    scores = (q @ k.transpose(2, 3)) / 4 + torch.full((length, length), float("-inf")).triu(1)
    plain = scores.softmax(-1) @ v
    plain_grads = torch.autograd.grad((plain * weight).sum(), (q, k, v))
    for dropout_keys in (None, keys(1, 2)):
        fast = causal_attention(q, k, v, NEARLY_NEVER, dropout_keys)
        torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)
        grads = torch.autograd.grad((fast * weight).sum(), (q, k, v))
        torch.testing.assert_close(grads, plain_grads, rtol=1e-5, atol=1e-5)


def test_attention_of_the_last_queries_equals_the_whole():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 20, 16) for _ in range(3))
    whole = causal_attention(q, k, v, 0.1, None)
    torch.testing.assert_close(causal_attention(q[:, :, 15:], k, v, 0.1, None), whole[:, :, 15:])


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
    plain = F.cross_entropy(
        (hidden @ weight.T)[0, :, :vocab_size], targets[0], ignore_index=IGNORE, reduction="none"
    )
    torch.testing.assert_close(nll[0], plain, rtol=1e-5, atol=1e-5)
    grads = torch.autograd.grad((nll * upstream).sum(), (hidden, weight))
    plain_grads = torch.autograd.grad((plain * upstream[0]).sum(), (hidden, weight))
    torch.testing.assert_close(grads, plain_grads, rtol=1e-4, atol=1e-4)
    assert (nll[0, ::5] == 0).all() and (grads[1][vocab_size:] == 0).all()


def test_head_cross_entropy_in_bfloat16_keeps_its_softmax():
    """Its gradients are those of float32, to the rounding of bfloat16."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(1, 700, 32), torch.randn(384, 32) * 0.3
    targets = torch.randint(0, 300, (1, 700))
    grads = []
    for dtype in (torch.float32, torch.bfloat16):
        h = hidden.bfloat16().to(dtype).requires_grad_()
        w = weight.bfloat16().to(dtype).requires_grad_()
        head_cross_entropy(h, w, targets, 300).mean().backward()
        grads.append((h.grad.float(), w.grad.float()))
    for exact, rounded in zip(*grads, strict=True):
        assert (exact - rounded).norm() < 0.01 * exact.norm()


@pytest.mark.parametrize("shape", [(1, 24), (3, 1, 24), (2, 5, 24)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_linear_without_gradient_equals_torchs(shape, dtype):
    x, weight = torch.randn(shape, dtype=dtype), torch.randn(40, 24, dtype=dtype)
    bias = torch.randn(40, dtype=dtype)
    with torch.inference_mode():
        for b in (bias, None):
            plain = F.linear(x, weight, b)
            torch.testing.assert_close(linear(x, weight, b), plain, rtol=1e-5, atol=1e-5)
    # With gradient it is the same call.
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))


@pytest.mark.parametrize("room", [6, 64])
@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad])
def test_append_equals_cat_and_then_writes_in_place(room, context):
    with context():
        features = [torch.randn(2, length, 12) for length in (2, 1, 3, 1)]
        parts = [part.view(2, -1, 3, 4).transpose(1, 2) for part in features]
        whole, places = parts[0], []
        for end, part in enumerate(parts[1:], 2):
            whole = append(whole, part, room)
            places.append(whole.data_ptr())
            assert torch.equal(whole, torch.cat(parts[:end], dim=2))
    assert (len(set(places)) == 1) == (room == 64 and context is torch.no_grad)
