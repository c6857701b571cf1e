"""The loss of rows of logits, written over the logits themselves.

Two versions with one meaning: plain torch, and on CUDA one Triton kernel (`triton_loss`). The first
is the reference of the second (`tests/model/test_triton_loss.py`). Shapes: n rows of a chunk, r of
a part of it that fits in a cache, V entries of the padded vocabulary.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from gpt1_ds.distributed.console import say

IGNORE = -100
"""Marks a target that does not count, as in torch's cross_entropy."""
HEAD_ROWS = 512
"""Rows of logits in one matrix product."""
CACHED_ROWS = 16
"""Rows of float32 logits that fit into a core's cache."""


class InPlaceLoss(NamedTuple):
    """A version of the loss, and the number of rows that it takes at a time."""

    rows: int
    write: Callable[[Tensor, Tensor, Tensor, int, bool], None]
    """write(logits_nV, targets_n, nll_n, vocab_size, gradient): see `cross_entropy`."""


@lru_cache
def loss_for(device_type: str) -> InPlaceLoss:
    """The version for a device. Rank 0 says once if CUDA has to do without the Triton kernel."""
    plain = InPlaceLoss(HEAD_ROWS, cross_entropy)
    if device_type != "cuda":
        return plain
    try:
        from gpt1_ds.model import triton_loss

        # Triton compiles a kernel at its first launch, with the machine's C compiler.
        logits_nV = torch.zeros(1, 1, device=device_type)
        targets_n = torch.zeros(1, dtype=torch.int64, device=device_type)
        triton_loss.cross_entropy(logits_nV, targets_n, logits_nV.new_zeros(1), 1, True)
    except Exception as error:  # an import, a compiler, a driver: whatever Triton may raise
        why = f"{error}".splitlines()[0] if f"{error}" else type(error).__name__
        say(
            f"head and loss: plain torch and not the Triton kernel, which is faster ({why}); "
            "pip install triton, and a C compiler such as gcc"
        )
        return plain
    return InPlaceLoss(triton_loss.ROWS, triton_loss.cross_entropy)


def cross_entropy(
    logits_nV: Tensor, targets_n: Tensor, nll_n: Tensor, vocab_size: int, gradient: bool
) -> None:
    """Write the negative log-likelihoods in nats to `nll_n`, (n,) float32.

    With `gradient`, the logits become softmax - onehot, their gradient. Those from `vocab_size` on
    are padding and have probability 0. Rows whose target is `IGNORE` get any finite values.
    """
    rows = CACHED_ROWS if logits_nV.device.type == "cpu" else len(logits_nV)
    parts = (tensor.split(rows) for tensor in (logits_nV, targets_n, nll_n))
    for logits_rV, targets_r, nll_r in zip(*parts, strict=True):
        _of_part(logits_rV, targets_r.clamp(min=0)[:, None], nll_r, vocab_size, gradient)


def _of_part(
    logits_rV: Tensor, index_r1: Tensor, nll_r: Tensor, vocab_size: int, gradient: bool
) -> None:
    exact_rV = logits_rV.float()
    exact_rV[:, vocab_size:] = float("-inf")
    highest_r1, chosen_r1 = exact_rV.amax(-1, keepdim=True), exact_rV.gather(1, index_r1)
    softmax_rV = exact_rV.softmax(-1)
    # -log p = log(sum exp(logit - highest)) + highest - chosen. The largest probability is
    # 1 / sum exp(logit - highest), so its logarithm gives the sum without new exponentials.
    nll_r.copy_((highest_r1 - chosen_r1 - softmax_rV.amax(-1, keepdim=True).log())[:, 0])
    if gradient:
        logits_rV.copy_(softmax_rV.scatter_add_(1, index_r1, torch.full_like(highest_r1, -1.0)))
