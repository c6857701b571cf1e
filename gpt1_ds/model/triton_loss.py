"""The loss of rows of logits as one Triton kernel, for CUDA (`loss.cross_entropy` is its meaning).

Plain torch reads and writes each row of logits about ten times in float32. Here a row is read
twice, the second time mostly from the GPU's cache, and written once in its own dtype. There is no
copy of the logits in float32.

Only `loss.loss_for` imports this file, and only on CUDA. On a CPU it runs on Triton's interpreter
(TRITON_INTERPRET=1), as in its test.
"""

import triton
import triton.language as tl
from torch import Tensor

ROWS = 4096
"""Rows of logits in one matrix product, which fill a GPU."""
BLOCK = tl.constexpr(4096)
"""Entries of a row that a program holds in registers at a time."""
WARPS = 8


def cross_entropy(
    logits_nV: Tensor, targets_n: Tensor, nll_n: Tensor, vocab_size: int, gradient: bool
) -> None:
    """As `loss.cross_entropy`; rows whose target is `IGNORE` become 0, and so does their loss.

    The rows of `logits_nV` may lie apart, but its columns, the targets and the losses may not.
    """
    assert logits_nV.stride(1) == 1 and targets_n.is_contiguous() and nll_n.is_contiguous()
    rows, padded = logits_nV.shape
    _cross_entropy[(rows,)](
        logits_nV,
        targets_n,
        nll_n,
        logits_nV.stride(0),
        VOCAB=vocab_size,
        PADDED=padded,
        GRADIENT=gradient,
        num_warps=WARPS,
    )


@triton.jit
def _cross_entropy(
    logits: tl.tensor,
    targets: tl.tensor,
    nll: tl.tensor,
    row_stride: tl.tensor,
    VOCAB: tl.constexpr,
    PADDED: tl.constexpr,
    GRADIENT: tl.constexpr,
) -> None:
    """One program for each row. The sum of exponentials is scaled anew where a block has a new
    highest logit (Milakov and Gimelshein 2018)."""
    row = tl.program_id(0).to(tl.int64)  # row * row_stride may pass 2^31
    target = tl.load(targets + row)
    logits += row * row_stride
    if target < 0:  # IGNORE
        tl.store(nll + row, 0.0)
        if GRADIENT:
            for first in range(0, PADDED, BLOCK):
                at = first + tl.arange(0, BLOCK)
                zeros = tl.zeros([BLOCK], tl.float32).to(logits.dtype.element_ty)
                tl.store(logits + at, zeros, mask=at < PADDED)
    else:
        chosen = tl.load(logits + target).to(tl.float32)
        highest = float("-inf")
        total = 0.0
        for first in range(0, PADDED, BLOCK):
            at = first + tl.arange(0, BLOCK)
            block = tl.load(logits + at, mask=at < VOCAB, other=float("-inf")).to(tl.float32)
            higher = tl.maximum(highest, tl.max(block, 0))
            total = total * tl.exp(highest - higher) + tl.sum(tl.exp(block - higher), 0)
            highest = higher
        tl.store(nll + row, highest + tl.log(total) - chosen)
        if GRADIENT:
            tl.debug_barrier()  # all threads have read the target's logit before one overwrites it
            for first in range(0, PADDED, BLOCK):
                at = first + tl.arange(0, BLOCK)
                block = tl.load(logits + at, mask=at < VOCAB, other=float("-inf")).to(tl.float32)
                gradient = tl.exp(block - highest) / total - tl.where(at == target, 1.0, 0.0)
                tl.store(logits + at, gradient.to(logits.dtype.element_ty), mask=at < PADDED)
