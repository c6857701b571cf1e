"""The Triton kernel of the loss against plain torch, on Triton's interpreter.

    PYTHONPATH=.venv/triton:. TRITON_INTERPRET=1 python -m pytest tests/support/triton_cases.py

`tests/model/test_triton_loss.py` does this: a process with another library on its path.
"""

import pytest
import torch
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter

from gpt1_ds.model import kernels, triton_loss
from gpt1_ds.model.kernels import HeadCrossEntropy
from gpt1_ds.model.loss import IGNORE, InPlaceLoss, cross_entropy

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}
"""Largest error of a gradient in [-1, 1], in its dtype."""


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch):
    """So that a small vocabulary has several blocks, the last one not full."""
    monkeypatch.setattr(triton_loss, "BLOCK", tl.constexpr(128))


def targets_of(rows: int, vocab_size: int, ignored: slice) -> Tensor:
    targets = torch.randint(0, vocab_size, (rows,))
    targets[ignored] = IGNORE
    return targets


def assert_equal_losses(
    logits: Tensor, targets: Tensor, vocab_size: int, own_logits: Tensor | None = None
):
    """The kernel writes over `logits` what the reference writes over a copy of them."""
    plain_logits, counted = logits.clone(), targets != IGNORE
    own_logits = logits.clone() if own_logits is None else own_logits
    plain_nll, nll = torch.empty(len(targets)), torch.full((len(targets),), -7.0)
    cross_entropy(plain_logits, targets, plain_nll, vocab_size, True)
    triton_loss.cross_entropy(own_logits, targets, nll, vocab_size, True)
    torch.testing.assert_close(nll, plain_nll * counted, rtol=1e-5, atol=1e-5)
    plain = plain_logits * counted[:, None]
    torch.testing.assert_close(own_logits, plain, rtol=0, atol=ROUNDING[logits.dtype])
    assert (own_logits[:, vocab_size:] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("vocab_size", "padded"), [(300, 384), (256, 256), (5, 5), (61, 128), (129, 256)]
)
def test_the_kernel_equals_plain_torch(dtype, vocab_size, padded):
    torch.manual_seed(padded)
    logits = (torch.randn(4, padded) * 5).to(dtype)
    assert_equal_losses(logits, targets_of(4, vocab_size, slice(1, 2)), vocab_size)


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_large_and_equal_logits(scale):
    torch.manual_seed(0)
    logits = torch.randn(4, 384) * scale
    assert_equal_losses(logits, targets_of(4, 300, slice(0, 0)), 300)


def test_a_row_of_ignored_targets_is_not_read():
    """Whatever its logits are, its loss and its gradient are 0."""
    logits = torch.full((2, 128), float("nan"), dtype=torch.float16)
    nll = torch.full((2,), float("nan"))
    triton_loss.cross_entropy(logits, torch.full((2,), IGNORE), nll, 100, True)
    assert not logits.any() and not nll.any()


def test_rows_that_lie_apart():
    torch.manual_seed(0)
    wide = torch.randn(6, 500).bfloat16()
    before = wide.clone()
    own = wide[:, 100:484]
    assert_equal_losses(own.clone(), targets_of(6, 300, slice(2, 3)), 300, own)
    assert torch.equal(wide[:, :100], before[:, :100])
    assert torch.equal(wide[:, 484:], before[:, 484:])


def test_rows_beyond_2_to_the_31_elements(monkeypatch):
    """128 windows of 512 tokens have 2.7e9 logits. Only the touched pages take memory."""
    # The interpreter copies each storage back to its device, here all 4 GB onto themselves.
    monkeypatch.setattr(interpreter.GridExecutor, "_restore_args_dev", lambda *arguments: None)
    torch.manual_seed(0)
    rows = torch.empty(2**31 + 384, dtype=torch.bfloat16).as_strided((3, 384), (2**30, 1))
    rows.copy_(torch.randn(3, 384))
    assert_equal_losses(rows.clone(), targets_of(3, 300, slice(0, 0)), 300, rows)


def test_without_gradient_the_logits_stay():
    torch.manual_seed(0)
    logits = torch.randn(5, 384)
    kept, targets = logits.clone(), targets_of(5, 300, slice(1, 2))
    nll, plain = torch.empty(5), torch.empty(5)
    triton_loss.cross_entropy(logits, targets, nll, 300, False)
    cross_entropy(kept.clone(), targets, plain, 300, False)
    torch.testing.assert_close(nll, plain * (targets != IGNORE))
    assert torch.equal(logits, kept)


def head(dtype: torch.dtype, ignored: slice, keep: bool = True) -> list[Tensor]:
    """The losses of a head and, with `keep`, the gradients of its inputs, from fixed numbers."""
    torch.manual_seed(1)
    hidden = torch.randn(18, 16).to(dtype).requires_grad_(keep)
    weight = (torch.randn(256, 16) * 0.3).to(dtype).requires_grad_(keep)
    upstream = torch.rand(18)
    nll = HeadCrossEntropy.apply(hidden, weight, targets_of(18, 200, ignored), 200, keep)
    if not keep:
        return [nll]
    return [nll, *torch.autograd.grad((nll * upstream).sum(), (hidden, weight))]


@pytest.mark.parametrize("rows", [4, 4096])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ignored", [slice(0, None, 3), slice(0, None)], ids=["some", "all"])
def test_the_head_in_chunks_of_rows(monkeypatch, dtype, rows, ignored):
    """Many chunks, the last one not full, and a part of one chunk."""
    plain = head(dtype, ignored) + head(dtype, ignored, keep=False)
    fast = InPlaceLoss(rows, triton_loss.cross_entropy)
    monkeypatch.setattr(kernels, "loss_for", lambda device_type: fast)
    own = head(dtype, ignored) + head(dtype, ignored, keep=False)
    for ours, theirs in zip(own, plain, strict=True):
        error = (ours.float() - theirs.float()).norm()
        assert error <= 4 * ROUNDING[dtype] * theirs.float().norm()
        assert torch.isfinite(ours).all()
