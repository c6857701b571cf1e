"""The fast paths of the model: dropout, causal attention, GELU, head + cross-entropy.

Each is chosen by device, not by the user, and stands beside a plain torch reference in `tests/test_kernels.py`. On a
CPU a step's time beyond its matrix products is the number of passes over memory; so masks are bits that an integer
"and" applies, and what backward needs is computed where its inputs are at hand.
B batch, T tokens, N = B*T rows, H heads, D head width, C model width, V vocabulary.
"""

from functools import lru_cache
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

IGNORE = -100
QUERY_BLOCK = 128
HEAD_ROWS = 512
CACHED_ROWS = 16  # of float32 logits, in a CPU's cache
CACHED_ELEMENTS = 1 << 18
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
ONEDNN = torch.backends.mkldnn.is_available()


def site_keys(keys_B2: Tensor, sites: int) -> Tensor:
    """Keys (sites, B, 2) of every place that drops, from one 64-bit key a sequence, as two int32."""
    numbers_S11 = torch.arange(1, sites + 1, dtype=torch.int32, device=keys_B2.device)[
        :, None, None
    ]
    keys_SB2 = keys_B2 ^ (numbers_S11 * -1640531527)
    keys_SB2 = (keys_SB2 ^ (keys_SB2 >> 15)) * -2048144789
    return keys_SB2 ^ (keys_SB2 >> 13) ^ keys_B2.flip(-1)


def dropout(x: Tensor, p: float, keys_B2: Tensor | None) -> Tensor:
    """`F.dropout` in distribution, row b of `x` by its own key; without keys (outside training) the identity.

    On a CPU the mask is a pure function of key and element: it needs no generator's state, is the same for any number
    of ranks, and costs a third of torch's.
    """
    if keys_B2 is None or p == 0.0:
        return x
    return F.dropout(x, p) if x.device.type != "cpu" else Dropout.apply(x, p, keys_B2)


class Dropout(Function):
    @staticmethod
    def forward(ctx, x: Tensor, p: float, keys_B2: Tensor) -> Tensor:
        kept, ctx.scale = keep_mask(x.shape, p, keys_B2), 1.0 / (1.0 - p)
        ctx.save_for_backward(kept)
        return _masked(x, kept).mul_(ctx.scale)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _masked(grad, *ctx.saved_tensors).mul_(ctx.scale), None, None


def keep_mask(shape: torch.Size, p: float, keys_B2: Tensor) -> Tensor:
    """int16: all bits set (-1) with probability 1 - p (to within 1/65536), else 0; row b by key b.

    Two 15-bit draws a hash of (key, element): two rounds of MurmurHash3's finaliser (Appleby).
    """
    elements = prod(shape[1:])
    hash_Bh = _counters((elements + 1) // 2) ^ keys_B2[:, :1]
    hash_Bh.bitwise_xor_(hash_Bh >> 15).mul_(-2048144789).add_(keys_B2[:, 1:])
    hash_Bh.bitwise_xor_(hash_Bh >> 13).mul_(-1028477387)
    hash_Bh.bitwise_xor_(hash_Bh >> 16).bitwise_and_(
        0x7FFF7FFF
    )  # the low bits of a product are weak
    draws_Be = hash_Bh.view(torch.int16)[:, :elements]
    return draws_Be.neg_().add_(round(p * 32768) - 1).bitwise_right_shift_(15).reshape(shape)


def _masked(x: Tensor, kept: Tensor) -> Tensor:
    return (x.contiguous().view(BITS[x.element_size()]) & kept).view(x.dtype)


@lru_cache(maxsize=64)
def _counters(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.int32) * -1640531527


def causal_attention(
    q_BHTD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor, p: float, keys_B2: Tensor | None
) -> Tensor:
    """Softmax(q k' / sqrt(D)) v, each query seeing the keys up to its own place; T queries are the last of S keys.

    torch's fused CPU kernel has no dropout, and its fallback computes the masked half too; so on a CPU in training it
    is `BlockAttention`.
    """
    T, S = q_BHTD.shape[2], k_BHSD.shape[2]
    if keys_B2 is not None and p > 0.0 and q_BHTD.device.type == "cpu":
        return BlockAttention.apply(q_BHTD, k_BHSD, v_BHSD, p, keys_B2)
    if T == S:
        drop = p if keys_B2 is not None else 0.0
        return F.scaled_dot_product_attention(
            q_BHTD, k_BHSD, v_BHSD, is_causal=True, dropout_p=drop
        )
    visible_TS = (
        None if T == 1 else torch.ones(T, S, dtype=torch.bool, device=q_BHTD.device).tril(S - T)
    )
    return F.scaled_dot_product_attention(q_BHTD, k_BHSD, v_BHSD, attn_mask=visible_TS)


class BlockAttention(Function):
    """Causal attention with dropout, blocks of `QUERY_BLOCK` queries meeting only the keys at or before their last."""

    @staticmethod
    def forward(
        ctx, q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, p: float, keys_B2: Tensor
    ) -> Tensor:
        q_BHTD, k_BHTD, v_BHTD = (
            q_BHTD * q_BHTD.shape[-1] ** -0.5,
            k_BHTD.contiguous(),
            v_BHTD.contiguous(),
        )
        out_BHTD, saved = torch.empty_like(v_BHTD), []
        for first, last in _query_blocks(q_BHTD):
            weights_BHts = q_BHTD[:, :, first:last] @ k_BHTD[:, :, :last].transpose(2, 3)
            weights_BHts[..., first:] += _hidden(last - first, weights_BHts.dtype)
            weights_BHts = weights_BHts.softmax(-1)
            kept_BHts = keep_mask(weights_BHts.shape, p, keys_B2 + first)
            out_BHTD[:, :, first:last] = _masked(weights_BHts, kept_BHts) @ v_BHTD[:, :, :last]
            saved += [weights_BHts, kept_BHts]
        ctx.scale = 1.0 / (1.0 - p)
        ctx.save_for_backward(q_BHTD, k_BHTD, v_BHTD, *saved)
        return out_BHTD.mul_(ctx.scale)

    @staticmethod
    def backward(ctx, grad_BHTD: Tensor):
        q_BHTD, k_BHTD, v_BHTD, *saved = ctx.saved_tensors
        dq_BHTD, dk_BHTD, dv_BHTD = (
            torch.empty_like(v_BHTD),
            torch.zeros_like(k_BHTD),
            torch.zeros_like(v_BHTD),
        )
        grad_BHTD = grad_BHTD * ctx.scale
        for (first, last), weights_BHts, kept_BHts in zip(
            _query_blocks(q_BHTD), saved[::2], saved[1::2], strict=True
        ):
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
    T = q_BHTD.shape[2]
    return [(first, min(first + QUERY_BLOCK, T)) for first in range(0, T, QUERY_BLOCK)]


@lru_cache(maxsize=64)
def _hidden(length: int, dtype: torch.dtype) -> Tensor:
    return torch.full((length, length), float("-inf"), dtype=dtype).triu_(1)


def gelu(x: Tensor) -> Tensor:
    """`F.gelu(x, approximate="tanh")`; for training in bfloat16 on a CPU by `SigmoidGelu`."""
    fast = (
        x.device.type == "cpu"
        and x.dtype == torch.bfloat16
        and x.requires_grad
        and torch.is_grad_enabled()
    )
    return (
        SigmoidGelu.apply(x)
        if fast and not torch.compiler.is_compiling()
        else F.gelu(x, approximate="tanh")
    )


class SigmoidGelu(Function):
    """The tanh GELU as x sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3)), which is the same function: torch's vectorised
    sigmoid takes a third of its tanh. Its slope is kept for backward in place of x."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        linear, cubic = torch.tensor(1.5957691216057308), 0.07135481627159628
        y, slope = torch.empty_like(x), torch.empty_like(x)
        parts = zip(
            *(tensor.view(-1).split(CACHED_ELEMENTS) for tensor in (x, y, slope)), strict=True
        )
        for x_e, y_e, slope_e in parts:
            x_e = x_e.float()
            square_e = x_e * x_e
            gate_e = torch.add(linear, square_e, alpha=cubic).mul_(x_e).sigmoid_()
            inner_e = torch.add(linear, square_e, alpha=3 * cubic, out=square_e).mul_(x_e)
            y_e.copy_(x_e.mul_(gate_e))
            slope_e.copy_(torch.ops.aten.sigmoid_backward(inner_e, gate_e).add_(gate_e))
        ctx.save_for_backward(slope)
        return y

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad * ctx.saved_tensors[0]


def append(past_BHSD: Tensor, new_BHTD: Tensor, room: int) -> Tensor:
    """`torch.cat` along S of keys or values, of which a cache will soon hold one more; `room` tokens at most.

    Without gradient the past moves once to memory with that room and later tokens are written behind it: to copy all
    of it at each token took longer than the token's matrix products. So a past can be continued in one way only.
    """
    (B, H, S, D), T = past_BHSD.shape, new_BHTD.shape[2]
    if torch.is_grad_enabled() or S + T > room:
        return torch.cat([past_BHSD, new_BHTD], dim=2)
    if past_BHSD.stride() != (H * room * D, room * D, D, 1):
        past_BHSD = F.pad(past_BHSD, (0, 0, 0, room - S))
    whole_BHSD = past_BHSD.as_strided((B, H, S + T, D), (H * room * D, room * D, D, 1))
    whole_BHSD[:, :, S:] = new_BHTD
    return whole_BHSD


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """`F.linear`; in float32 on a CPU without gradient by oneDNN: one row takes half the time, since MKL's product of
    matrix and vector runs on one core, and many rows are no slower."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_grad_enabled() or not ONEDNN:
        return F.linear(x, weight_OI, bias_O)
    return torch.ops.mkldnn._linear_pointwise(x, weight_OI, bias_O, "none", [], "")


class HeadCrossEntropy(Function):
    """nll_N of `hidden_NC @ weight_VC.T` against targets_N.

    The float32 logits exist for a few rows only; softmax - onehot is kept for backward in the dtype of `hidden_NC`.
    Rows past `vocab_size` of the weight are padding and take no probability. Targets of `IGNORE` have nll 0.
    """

    @staticmethod
    def forward(
        ctx, hidden_NC: Tensor, weight_VC: Tensor, targets_N: Tensor, vocab_size: int, keep: bool
    ) -> Tensor:
        N, V = len(hidden_NC), len(weight_VC)
        nll_N = torch.empty(N, dtype=torch.float32, device=hidden_NC.device)
        logits_NV = hidden_NC.new_empty(N if keep else min(N, HEAD_ROWS), V)
        rows = CACHED_ROWS if hidden_NC.device.type == "cpu" else HEAD_ROWS
        for first in range(0, N, HEAD_ROWS):
            chunk = slice(first, first + HEAD_ROWS)
            logits_nV = logits_NV[chunk] if keep else logits_NV[: N - first]
            torch.mm(hidden_NC[chunk], weight_VC.T, out=logits_nV)
            parts = (tensor.split(rows) for tensor in (logits_nV, targets_N[chunk], nll_N[chunk]))
            for logits_rV, targets_r, nll_r in zip(*parts, strict=True):
                _cross_entropy(logits_rV, targets_r.clamp(min=0)[:, None], nll_r, vocab_size)
        if keep:
            ctx.save_for_backward(hidden_NC, weight_VC, targets_N, logits_NV)
        return nll_N * (targets_N != IGNORE)

    @staticmethod
    def backward(ctx, grad_N: Tensor):
        hidden_NC, weight_VC, targets_N, dlogits_NV = ctx.saved_tensors
        scale_N1 = (grad_N * (targets_N != IGNORE))[:, None].to(hidden_NC.dtype)
        return (
            (dlogits_NV @ weight_VC) * scale_N1,
            dlogits_NV.T @ (hidden_NC * scale_N1),
            None,
            None,
            None,
        )


def _cross_entropy(logits_rV: Tensor, index_r1: Tensor, nll_r: Tensor, vocab_size: int) -> None:
    """Fill `nll_r`, and put softmax - onehot in the place of the logits."""
    exact_rV = logits_rV.float()
    exact_rV[:, vocab_size:] = float("-inf")
    highest_r1, chosen_r1 = exact_rV.amax(-1, keepdim=True), exact_rV.gather(1, index_r1)
    softmax_rV = exact_rV.softmax(-1)
    # The largest probability is 1 / sum(exp(logit - highest)): its logarithm spares a second round of exponentials.
    nll_r.copy_((highest_r1 - chosen_r1 - softmax_rV.amax(-1, keepdim=True).log())[:, 0])
    logits_rV.copy_(softmax_rV.scatter_add_(1, index_r1, torch.full_like(highest_r1, -1.0)))


def head_cross_entropy(
    hidden_BTC: Tensor, weight_VC: Tensor, targets_BT: Tensor, vocab_size: int
) -> Tensor:
    """nll_BT, float32, of the tied head; see `HeadCrossEntropy`. On a CPU rows without a target are left out."""
    keep = torch.is_grad_enabled() and (hidden_BTC.requires_grad or weight_VC.requires_grad)
    hidden_NC, targets_N = hidden_BTC.flatten(0, 1), targets_BT.flatten()
    rows_n = (
        (targets_N != IGNORE).nonzero()[:, 0] if hidden_NC.device.type == "cpu" else targets_N
    )  # a GPU would wait
    if len(rows_n) == len(targets_N):
        return HeadCrossEntropy.apply(hidden_NC, weight_VC, targets_N, vocab_size, keep).view(
            targets_BT.shape
        )
    nll_n = HeadCrossEntropy.apply(
        hidden_NC[rows_n], weight_VC, targets_N[rows_n], vocab_size, keep
    )
    return nll_n.new_zeros(len(targets_N)).index_copy(0, rows_n, nll_n).view(targets_BT.shape)
