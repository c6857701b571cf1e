"""Fast versions of dropout, causal attention, GELU, linear layers, and head + loss.

Each function chooses the version by the device. `tests/model/test_kernels.py` compares each with
plain torch. On a CPU, the cost of a step is its matrix products and its passes over memory. These
versions save passes over memory. Dropout masks are bits that one integer "and" applies. Forward
also computes the factors that backward needs, while the inputs are in the CPU cache.

Names of tensors end with their shape. Capital letters are whole sizes, small letters parts of them:

| letter | size                                                             |
|--------|------------------------------------------------------------------|
| B      | sequences                                                        |
| T, t   | queries; queries of a block                                      |
| S, s   | keys; keys that a block of queries sees                          |
| H, D   | heads, and the width of a head                                   |
| N, n   | tokens of all sequences, B T; tokens of a chunk                  |
| C      | width of the model                                               |
| V      | vocabulary with its padding                                      |
| O, I   | outputs and inputs of a linear layer                             |
| P      | places of the model with dropout                                 |
| E, e   | elements of a sequence; elements of a part that fits in a cache  |
| 1, 2   | this size                                                        |
"""

from functools import lru_cache
from math import prod
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from gpt1_ds.model.loss import IGNORE, loss_for

QUERY_BLOCK = 128
"""Queries of a block of `BlockAttention`."""
CACHED_ELEMENTS = 1 << 18
INTEGER_OF_BYTES = {2: torch.int16, 4: torch.int32, 8: torch.int64}
ONEDNN = torch.backends.mkldnn.is_available()

# Constants of MurmurHash3's finaliser (Appleby), and the golden ratio of 2^32, as int32.
MURMUR_1 = -2048144789  # 0x85EBCA6B
MURMUR_2 = -1028477387  # 0xC2B2AE35
GOLDEN = -1640531527  # 0x9E3779B9


class Context(Protocol):
    """The members of autograd's context that are used here."""

    scale: float

    @property
    def saved_tensors(self) -> tuple[Tensor, ...]: ...

    def save_for_backward(self, *tensors: Tensor) -> None: ...


# Dropout (Srivastava et al. 2014), by hashed masks on a CPU


def site_keys(keys_B2: Tensor, sites: int) -> Tensor:
    """Keys (P, B, 2) int32 for all places with dropout, from one key of two int32 a sequence."""
    numbers_P = torch.arange(1, sites + 1, dtype=torch.int32, device=keys_B2.device)
    keys_PB2 = keys_B2 ^ (numbers_P[:, None, None] * GOLDEN)
    keys_PB2 = (keys_PB2 ^ (keys_PB2 >> 15)) * MURMUR_1
    return keys_PB2 ^ (keys_PB2 >> 13) ^ keys_B2.flip(-1)


def keys_of_places(keys_B2: Tensor, places: int, device: torch.device) -> Tensor:
    """The keys that a model on `device` hands to its places with dropout: `site_keys` on a CPU.

    A GPU draws its masks from its generator, and asks only whether there is a key. It gets keys of
    no sequence, (P, 0, 2), which the host neither copies nor mixes.
    """
    if device.type != "cpu":
        return torch.empty(places, 0, 2, dtype=torch.int32, device=device)
    return site_keys(keys_B2, places)


def dropout(x: Tensor, p: float, keys_B2: Tensor | None) -> Tensor:
    """Dropout of `x` (B, ..) with probability `p`. Without keys (outside training) it returns `x`.

    On a CPU the mask is a function of the sequence's key and the element's index. So it needs no
    random generator and is the same on any number of ranks. It takes a third of torch's time.
    """
    if keys_B2 is None or p == 0.0:
        return x
    return F.dropout(x, p) if x.device.type != "cpu" else Dropout.apply(x, p, keys_B2)


class Dropout(Function):
    """y = x mask / (1 - p). Saved for backward: the mask, in the shape of x."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, p: float, keys_B2: Tensor) -> Tensor:
        kept = keep_mask(x.shape, p, keys_B2)
        ctx.scale = 1.0 / (1.0 - p)
        ctx.save_for_backward(kept)
        return _masked(x, kept).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor, None, None]:
        (kept,) = ctx.saved_tensors
        return _masked(grad, kept).mul_(ctx.scale), None, None


def keep_mask(shape: torch.Size, p: float, keys_B2: Tensor) -> Tensor:
    """Mask of `shape` (B, ..) int16: -1 (all bits set) with probability 1 - p, else 0.

    Sequence b has key b. The error of the probability is at most 1/65536.

    A 32-bit hash of the key and the index of a pair of elements gives two 15-bit random numbers.
    The hash consists of the two rounds of MurmurHash3's finaliser; one half of the key is mixed in
    before each round. An element is dropped if its number is below p 2^15. Its mask is the sign bit
    of (p 2^15 - 1 - number), copied to all bits.
    """
    elements = prod(shape[1:])
    hash_Bh = _pair_numbers((elements + 1) // 2) ^ keys_B2[:, :1]
    hash_Bh.bitwise_xor_(hash_Bh >> 15).mul_(MURMUR_1).add_(keys_B2[:, 1:])
    hash_Bh.bitwise_xor_(hash_Bh >> 13).mul_(MURMUR_2)
    # The low bits of a product are less random, so the high bits are mixed into them.
    hash_Bh.bitwise_xor_(hash_Bh >> 16).bitwise_and_(0x7FFF7FFF)
    draws_BE = hash_Bh.view(torch.int16)[:, :elements]
    return draws_BE.neg_().add_(round(p * 32768) - 1).bitwise_right_shift_(15).reshape(shape)


def _masked(x: Tensor, kept: Tensor) -> Tensor:
    """A new tensor: `x` if `kept` has all bits set, 0 if it has none."""
    bits = x.contiguous().view(INTEGER_OF_BYTES[x.element_size()])
    return (bits & kept).view(x.dtype)


@lru_cache(maxsize=64)
def _pair_numbers(count: int) -> Tensor:
    """0, 1, 2 .. times the golden ratio, so that neighbours differ in many of the 32 bits."""
    return torch.arange(count, dtype=torch.int32) * GOLDEN


# Attention


def causal_attention(
    q_BHTD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor, p: float, keys_B2: Tensor | None
) -> Tensor:
    """softmax(q k^T / sqrt(D)) v (Vaswani et al. 2017, equation 1), (B, H, T, D).

    The T queries belong to the last T of the S tokens. Each query sees the keys up to its own
    token. With dropout keys, the weights have dropout with probability `p`.

    torch's fused CPU kernel has no dropout, and its other CPU kernel also computes the masked half.
    So training on a CPU uses `BlockAttention`.
    """
    T, S = q_BHTD.shape[2], k_BHSD.shape[2]
    if keys_B2 is not None and p > 0.0 and q_BHTD.device.type == "cpu":
        return BlockAttention.apply(q_BHTD, k_BHSD, v_BHSD, p, keys_B2)
    if T == S:
        drop = p if keys_B2 is not None else 0.0
        return F.scaled_dot_product_attention(
            q_BHTD, k_BHSD, v_BHSD, is_causal=True, dropout_p=drop
        )
    visible_TS = None  # a single query sees all keys
    if T > 1:
        visible_TS = torch.ones(T, S, dtype=torch.bool, device=q_BHTD.device).tril(S - T)
    return F.scaled_dot_product_attention(q_BHTD, k_BHSD, v_BHSD, attn_mask=visible_TS)


class BlockAttention(Function):
    """Causal attention with dropout, for T = S, in blocks of `QUERY_BLOCK` queries.

    Each block uses only the keys up to its own last token, which saves almost half of the work.
    Saved for backward: scaled q, k, v (B, H, T, D), and for each block its weights before dropout
    and its mask, (B, H, t, s) each.
    """

    @staticmethod
    def forward(
        ctx: Context, q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, p: float, keys_B2: Tensor
    ) -> Tensor:
        q_BHTD = q_BHTD * q_BHTD.shape[-1] ** -0.5
        k_BHTD = k_BHTD.contiguous()
        v_BHTD = v_BHTD.contiguous()
        out_BHTD = torch.empty_like(v_BHTD)
        blocks: list[Tensor] = []
        for first, last in _query_blocks(q_BHTD):
            weights_BHts = q_BHTD[:, :, first:last] @ k_BHTD[:, :, :last].transpose(2, 3)
            weights_BHts[..., first:] += _minus_infinity_above(last - first, weights_BHts.dtype)
            weights_BHts = weights_BHts.softmax(-1)
            kept_BHts = keep_mask(weights_BHts.shape, p, keys_B2 + first)
            out_BHTD[:, :, first:last] = _masked(weights_BHts, kept_BHts) @ v_BHTD[:, :, :last]
            blocks += [weights_BHts, kept_BHts]
        ctx.scale = 1.0 / (1.0 - p)
        ctx.save_for_backward(q_BHTD, k_BHTD, v_BHTD, *blocks)
        return out_BHTD.mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Context, grad_BHTD: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of q, k and v, (B, H, T, D) each.

        Let W be the weights and M the mask, so out = (W M) v. Then dv = (W M)^T grad, and the
        gradient of W is (grad v^T) M. The backward pass of softmax turns it into dscores. Finally
        dq = dscores k and dk = dscores^T q.
        """
        q_BHTD, k_BHTD, v_BHTD, *blocks = ctx.saved_tensors
        dq_BHTD = torch.empty_like(v_BHTD)
        dk_BHTD = torch.zeros_like(k_BHTD)
        dv_BHTD = torch.zeros_like(v_BHTD)
        grad_BHTD = grad_BHTD * ctx.scale
        by_block = zip(_query_blocks(q_BHTD), blocks[::2], blocks[1::2], strict=True)
        for (first, last), weights_BHts, kept_BHts in by_block:
            grad_BHtD = grad_BHTD[:, :, first:last]
            dweights_BHts = _masked(grad_BHtD @ v_BHTD[:, :, :last].transpose(2, 3), kept_BHts)
            dscores_BHts = torch._softmax_backward_data(
                dweights_BHts, weights_BHts, -1, weights_BHts.dtype
            )
            dq_BHTD[:, :, first:last] = dscores_BHts @ k_BHTD[:, :, :last]
            dk_BHTD[:, :, :last] += dscores_BHts.transpose(2, 3) @ q_BHTD[:, :, first:last]
            dv_BHTD[:, :, :last] += _masked(weights_BHts, kept_BHts).transpose(2, 3) @ grad_BHtD
        return dq_BHTD.mul_(q_BHTD.shape[-1] ** -0.5), dk_BHTD, dv_BHTD, None, None


def _query_blocks(q_BHTD: Tensor) -> list[tuple[int, int]]:
    """(first, last + 1) of each block of queries."""
    T = q_BHTD.shape[2]
    return [(first, min(first + QUERY_BLOCK, T)) for first in range(0, T, QUERY_BLOCK)]


@lru_cache(maxsize=64)
def _minus_infinity_above(length: int, dtype: torch.dtype) -> Tensor:
    """A matrix (length, length): minus infinity above the diagonal, else 0."""
    return torch.full((length, length), float("-inf"), dtype=dtype).triu_(1)


def append(past_BHSD: Tensor, new_BHTD: Tensor, room: int) -> Tensor:
    """Append the keys or values of new tokens to those of the cache, (B, H, S + T, D).

    Without gradient the past is copied once to memory for `room` tokens, and later tokens are
    written after it in place. (A copy of everything for each token took longer than the matrix
    products.) So do not continue the same past twice with different tokens.
    """
    (B, H, S, D), T = past_BHSD.shape, new_BHTD.shape[2]
    if torch.is_grad_enabled() or S + T > room:
        return torch.cat([past_BHSD, new_BHTD], dim=2)
    strides = (H * room * D, room * D, D, 1)
    if past_BHSD.stride() != strides:
        past_BHSD = F.pad(past_BHSD, (0, 0, 0, room - S))
    whole_BHSD = past_BHSD.as_strided((B, H, S + T, D), strides)
    whole_BHSD[:, :, S:] = new_BHTD
    return whole_BHSD


# GELU (Hendrycks and Gimpel 2016, its tanh form; `gelu` of OpenAI's train.py)


def gelu(x: Tensor) -> Tensor:
    """`F.gelu(x, approximate="tanh")`. Bfloat16 training on a CPU uses `SigmoidGelu`."""
    trains = x.requires_grad and torch.is_grad_enabled()
    fast = trains and x.device.type == "cpu" and x.dtype == torch.bfloat16
    if fast and not torch.compiler.is_compiling():
        return SigmoidGelu.apply(x)
    return F.gelu(x, approximate="tanh")


class SigmoidGelu(Function):
    """The tanh GELU written as y = x sigmoid(z), z = 2 sqrt(2/pi) (x + 0.044715 x^3).

    The two forms are equal, but torch's vectorised sigmoid takes a third of the time of its tanh.
    Saved for backward: the slope dy/dx in the shape of x, and not x itself.
    """

    @staticmethod
    def forward(ctx: Context, x: Tensor) -> Tensor:
        """With z = x (a + b x^2) and s = sigmoid(z), the slope is s + s (1 - s) x (a + 3 b x^2)."""
        a, b = torch.tensor(1.5957691216057308), 0.07135481627159628  # 2 sqrt(2/pi), 0.044715 a
        y, slope = torch.empty_like(x), torch.empty_like(x)
        parts = (tensor.view(-1).split(CACHED_ELEMENTS) for tensor in (x, y, slope))
        for x_e, y_e, slope_e in zip(*parts, strict=True):
            x_e = x_e.float()
            square_e = x_e * x_e
            sigmoid_e = torch.add(a, square_e, alpha=b).mul_(x_e).sigmoid_()
            inner_e = torch.add(a, square_e, alpha=3 * b, out=square_e).mul_(x_e)
            y_e.copy_(x_e.mul_(sigmoid_e))
            slope_e.copy_(torch.ops.aten.sigmoid_backward(inner_e, sigmoid_e).add_(sigmoid_e))
        ctx.save_for_backward(slope)
        return y

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensors
        return grad * slope


# Linear layers


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """`F.linear`, (.., O). For float32 on a CPU without gradient it uses oneDNN.

    With oneDNN a single row takes half the time, because MKL's product of a matrix and a vector
    uses only one core. For many rows oneDNN is not slower. torch's compiler cannot take its
    operator.
    """
    fits = x.device.type == "cpu" and x.dtype == torch.float32 and ONEDNN
    if not fits or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return F.linear(x, weight_OI, bias_O)
    return torch.ops.mkldnn._linear_pointwise(x, weight_OI, bias_O, "none", [], "")


# Head and loss: -log softmax(h W_e^T) at the target (Radford et al. 2018, equations 1 and 2)


def head_cross_entropy(
    hidden_BTC: Tensor, weight_VC: Tensor, targets_BT: Tensor, vocab_size: int
) -> Tensor:
    """Negative log-likelihood (B, T) float32, in nats, of the targets under the tied head.

    `HeadCrossEntropy` computes it. On a CPU, rows without a target are left out. On a GPU they are
    computed too, because counting them would make the CPU wait for the GPU.
    """
    keep = torch.is_grad_enabled() and (hidden_BTC.requires_grad or weight_VC.requires_grad)
    hidden_NC, targets_N = hidden_BTC.flatten(0, 1), targets_BT.flatten()
    rows_n = targets_N
    if hidden_NC.device.type == "cpu":
        rows_n = (targets_N != IGNORE).nonzero()[:, 0]
    if len(rows_n) == len(targets_N):
        nll_N = HeadCrossEntropy.apply(hidden_NC, weight_VC, targets_N, vocab_size, keep)
        return nll_N.view(targets_BT.shape)
    nll_n = HeadCrossEntropy.apply(
        hidden_NC[rows_n], weight_VC, targets_N[rows_n], vocab_size, keep
    )
    nll_N = nll_n.new_zeros(len(targets_N)).index_copy(0, rows_n, nll_n)
    return nll_N.view(targets_BT.shape)


class HeadCrossEntropy(Function):
    """Negative log-likelihood (N,) float32 of `targets_N`; logits are `hidden_NC @ weight_VC.T`.

    `loss.py` has the loss of a chunk of rows, on a GPU as one kernel. At most a few rows of float32
    logits exist at a time. The rows of the weight from `vocab_size` on are padding and have
    probability 0. A target of `IGNORE` gives 0.

    Saved for backward, if `keep`: hidden, weight, targets, and softmax - onehot, the gradient of
    the logits, (N, V) in the dtype of `hidden_NC`.
    """

    @staticmethod
    def forward(
        ctx: Context,
        hidden_NC: Tensor,
        weight_VC: Tensor,
        targets_N: Tensor,
        vocab_size: int,
        keep: bool,
    ) -> Tensor:
        N, V = len(hidden_NC), len(weight_VC)
        loss = loss_for(hidden_NC.device.type)
        nll_N = torch.empty(N, dtype=torch.float32, device=hidden_NC.device)
        logits_NV = hidden_NC.new_empty(N if keep else min(N, loss.rows), V)
        for first in range(0, N, loss.rows):
            chunk = slice(first, first + loss.rows)
            logits_nV = logits_NV[chunk] if keep else logits_NV[: N - first]
            torch.mm(hidden_NC[chunk], weight_VC.T, out=logits_nV)
            loss.write(logits_nV, targets_N[chunk], nll_N[chunk], vocab_size, keep)
        if keep:
            ctx.save_for_backward(hidden_NC, weight_VC, targets_N, logits_NV)
        return nll_N * (targets_N != IGNORE)

    @staticmethod
    def backward(ctx: Context, grad_N: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of hidden (N, C) and weight (V, C)."""
        hidden_NC, weight_VC, targets_N, dlogits_NV = ctx.saved_tensors
        scale_N1 = (grad_N * (targets_N != IGNORE))[:, None].to(hidden_NC.dtype)
        dhidden_NC = (dlogits_NV @ weight_VC) * scale_N1
        dweight_VC = dlogits_NV.T @ (hidden_NC * scale_N1)
        return dhidden_NC, dweight_VC, None, None, None
