"""The fast paths of the model: dropout, causal attention, head + cross-entropy.

Each is chosen by device, not by the user, and stands beside a plain torch reference in `tests/test_kernels.py`.
B batch, T tokens, N = B*T rows, H heads, D head width, C model width, V vocabulary.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100
QUERY_BLOCK = 128
HEAD_ROWS = 512
ONEDNN = torch.backends.mkldnn.is_available()


def site_keys(keys_B2: Tensor, sites: int) -> Tensor:
    """Keys (sites, B, 2) of every place that drops, from one 64-bit key a sequence, as two int32."""
    numbers_S11 = torch.arange(1, sites + 1, dtype=torch.int32, device=keys_B2.device)[:, None, None]
    keys_SB2 = keys_B2 ^ (numbers_S11 * -1640531527)
    keys_SB2 = (keys_SB2 ^ (keys_SB2 >> 15)) * -2048144789
    return keys_SB2 ^ (keys_SB2 >> 13) ^ keys_B2.flip(-1)


def dropout(x: Tensor, p: float, keys_B2: Tensor | None) -> Tensor:
    """`F.dropout` in distribution, row b of `x` by its own key; without keys (outside training) the identity.

    On a CPU the mask is a pure function of key and element, two 16-bit draws a hash: it needs no generator's state, is
    the same for any number of ranks, and costs under half of torch's. Two rounds of MurmurHash3's finaliser (Appleby).
    """
    if keys_B2 is None or p == 0.0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    elements = x[0].numel()
    hash_Bh = _counters((elements + 1) // 2) ^ keys_B2[:, :1]
    hash_Bh = (hash_Bh ^ (hash_Bh >> 15)) * -2048144789 + keys_B2[:, 1:]
    hash_Bh = (hash_Bh ^ (hash_Bh >> 13)) * -1028477387
    hash_Bh = hash_Bh ^ ((hash_Bh >> 16) & 0xFFFF)  # the low bits of a product are weak
    drop_below = round(p * 65536) - 32768  # p to within 1/131072
    dropped = hash_Bh.view(torch.int16)[:, :elements].reshape(x.shape) < drop_below
    return x.masked_fill(dropped, 0.0) * (1.0 / (1.0 - p))


@lru_cache(maxsize=64)
def _counters(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.int32) * -1640531527


def causal_attention(q_BHTD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor, p: float, keys_B2: Tensor | None) -> Tensor:
    """Softmax(q k' / sqrt(D)) v, each query seeing the keys up to its own place; T queries are the last of S keys.

    torch's fused CPU kernel has no dropout, and its fallback computes the masked half too; so on a CPU in training,
    blocks of queries meet only the keys at or before their last one.
    """
    T, S = q_BHTD.shape[2], k_BHSD.shape[2]
    if keys_B2 is None or p == 0.0 or q_BHTD.device.type != "cpu":
        if T == S:
            drop = p if keys_B2 is not None else 0.0
            return F.scaled_dot_product_attention(q_BHTD, k_BHSD, v_BHSD, is_causal=True, dropout_p=drop)
        visible_TS = None if T == 1 else torch.ones(T, S, dtype=torch.bool, device=q_BHTD.device).tril(S - T)
        return F.scaled_dot_product_attention(q_BHTD, k_BHSD, v_BHSD, attn_mask=visible_TS)
    blocks = []
    q_BHTD = q_BHTD * (q_BHTD.shape[-1] ** -0.5)
    for first in range(0, T, QUERY_BLOCK):
        last = min(first + QUERY_BLOCK, T)
        scores_BHts = q_BHTD[:, :, first:last] @ k_BHSD[:, :, :last].transpose(2, 3)
        hidden_ts = torch.ones(last - first, last, dtype=torch.bool).triu(first + 1)
        weights_BHts = scores_BHts.masked_fill(hidden_ts, float("-inf")).softmax(-1)
        blocks.append(dropout(weights_BHts, p, keys_B2 + first) @ v_BHSD[:, :, :last])
    return torch.cat(blocks, dim=2)


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


class HeadCrossEntropy(torch.autograd.Function):
    """nll_N of `hidden_NC @ weight_VC.T` against targets_N, some rows at a time.

    The float32 logits exist for `HEAD_ROWS` rows only; for backward the softmax is kept in the dtype of `hidden_NC`, or
    computed again where that is float32 too. Rows past `vocab_size` of the weight are padding and take no
    probability. Targets of `IGNORE` have nll 0.
    """

    @staticmethod
    def forward(ctx, hidden_NC: Tensor, weight_VC: Tensor, targets_N: Tensor, vocab_size: int, keep: bool) -> Tensor:
        nll_N = torch.empty(len(hidden_NC), dtype=torch.float32, device=hidden_NC.device)
        dlogits, keep = [], keep and hidden_NC.dtype != torch.float32
        for chunk in _chunks(len(hidden_NC)):
            logits_nV = _logits(hidden_NC[chunk], weight_VC, vocab_size)
            index_n1 = targets_N[chunk].clamp(min=0)[:, None]
            lse_n1 = logits_nV.logsumexp(-1, keepdim=True)
            nll_N[chunk] = (lse_n1 - logits_nV.gather(1, index_n1))[:, 0]
            if keep:
                dlogits.append(_dlogits(logits_nV, lse_n1, index_n1).to(hidden_NC.dtype))
        ctx.vocab_size = vocab_size
        ctx.save_for_backward(hidden_NC, weight_VC, targets_N, *dlogits)
        return nll_N * (targets_N != IGNORE)

    @staticmethod
    def backward(ctx, grad_N: Tensor):
        hidden_NC, weight_VC, targets_N, *dlogits = ctx.saved_tensors
        scale_N1 = (grad_N * (targets_N != IGNORE))[:, None].to(hidden_NC.dtype)
        scaled_NC = hidden_NC * scale_N1
        if dlogits:
            grad_hidden_NC = torch.cat([d_nV @ weight_VC for d_nV in dlogits]) * scale_N1
            return grad_hidden_NC, torch.cat(dlogits).T @ scaled_NC, None, None, None
        grad_hidden_NC, grad_weight_VC = torch.empty_like(hidden_NC), torch.zeros_like(weight_VC)
        for chunk in _chunks(len(hidden_NC)):
            logits_nV = _logits(hidden_NC[chunk], weight_VC, ctx.vocab_size)
            index_n1 = targets_N[chunk].clamp(min=0)[:, None]
            d_nV = _dlogits(logits_nV, logits_nV.logsumexp(-1, keepdim=True), index_n1)
            grad_hidden_NC[chunk] = (d_nV @ weight_VC) * scale_N1[chunk]
            grad_weight_VC.addmm_(d_nV.T, scaled_NC[chunk])
        return grad_hidden_NC, grad_weight_VC, None, None, None


def _chunks(rows: int) -> list[slice]:
    return [slice(first, first + HEAD_ROWS) for first in range(0, rows, HEAD_ROWS)]


def _logits(hidden_nC: Tensor, weight_VC: Tensor, vocab_size: int) -> Tensor:
    logits_nV = (hidden_nC @ weight_VC.T).float()
    logits_nV[:, vocab_size:] = float("-inf")
    return logits_nV


def _dlogits(logits_nV: Tensor, lse_n1: Tensor, index_n1: Tensor) -> Tensor:
    """softmax - onehot, in the memory of the logits."""
    logits_nV.sub_(lse_n1).exp_()
    return logits_nV.scatter_add_(1, index_n1, torch.full_like(lse_n1, -1.0))


def head_cross_entropy(hidden_BTC: Tensor, weight_VC: Tensor, targets_BT: Tensor, vocab_size: int) -> Tensor:
    """nll_BT, float32, of the tied head; see `HeadCrossEntropy`. On a CPU rows without a target are left out."""
    keep = torch.is_grad_enabled() and (hidden_BTC.requires_grad or weight_VC.requires_grad)
    hidden_NC, targets_N = hidden_BTC.flatten(0, 1), targets_BT.flatten()
    rows_n = (targets_N != IGNORE).nonzero()[:, 0] if hidden_NC.device.type == "cpu" else targets_N  # a GPU would wait
    if len(rows_n) == len(targets_N):
        return HeadCrossEntropy.apply(hidden_NC, weight_VC, targets_N, vocab_size, keep).view(targets_BT.shape)
    nll_n = HeadCrossEntropy.apply(hidden_NC[rows_n], weight_VC, targets_N[rows_n], vocab_size, keep)
    return nll_n.new_zeros(len(targets_N)).index_copy(0, rows_n, nll_n).view(targets_BT.shape)
