"""The fast paths of the model: dropout, causal attention, head + cross-entropy.

Each is chosen by device, not by the user, and stands beside a plain torch reference in `tests/test_kernels.py`.
B batch, T tokens, N = B*T rows, H heads, D head width, C model width, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100
QUERY_BLOCK = 128
HEAD_ROWS = 512


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """`F.dropout` in distribution; on a CPU four masks from each 64-bit draw, about six times as fast as torch's."""
    if not training or p == 0.0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    drop_below = round(p * 65536) - 32768  # p to within 1/131072
    keep = draws.view(torch.int16)[: x.numel()].view(x.shape) >= drop_below
    return x * (keep.to(x.dtype) * (1.0 / (1.0 - p)))


def causal_attention(q_BHTD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor, p: float, training: bool) -> Tensor:
    """Softmax(q k' / sqrt(D)) v, each query seeing the keys up to its own place; T queries are the last of S keys.

    torch's fused CPU kernel has no dropout, and its fallback computes the masked half too; so on a CPU in training,
    blocks of queries meet only the keys at or before their last one.
    """
    T, S = q_BHTD.shape[2], k_BHSD.shape[2]
    if not training or p == 0.0 or q_BHTD.device.type != "cpu":
        if T == S:
            return F.scaled_dot_product_attention(q_BHTD, k_BHSD, v_BHSD, is_causal=True, dropout_p=p * training)
        visible_TS = torch.ones(T, S, dtype=torch.bool, device=q_BHTD.device).tril(S - T)
        return F.scaled_dot_product_attention(q_BHTD, k_BHSD, v_BHSD, attn_mask=visible_TS)
    blocks = []
    q_BHTD = q_BHTD * (q_BHTD.shape[-1] ** -0.5)
    for first in range(0, T, QUERY_BLOCK):
        last = min(first + QUERY_BLOCK, T)
        scores_BHts = q_BHTD[:, :, first:last] @ k_BHSD[:, :, :last].transpose(2, 3)
        hidden_ts = torch.ones(last - first, last, dtype=torch.bool).triu(first + 1)
        weights_BHts = scores_BHts.masked_fill(hidden_ts, float("-inf")).softmax(-1)
        blocks.append(dropout(weights_BHts, p, training) @ v_BHSD[:, :, :last])
    return torch.cat(blocks, dim=2)


class HeadCrossEntropy(torch.autograd.Function):
    """nll_N of `hidden_NC @ weight_VC.T` against targets_N, some rows at a time.

    The float32 logits exist for `HEAD_ROWS` rows only; the softmax is kept for backward in the dtype of `hidden_NC`.
    Rows past `vocab_size` of the weight are padding and take no probability. Targets of `IGNORE` have nll 0.
    """

    @staticmethod
    def forward(ctx, hidden_NC: Tensor, weight_VC: Tensor, targets_N: Tensor, vocab_size: int, keep: bool) -> Tensor:
        nll_N = torch.empty(len(hidden_NC), dtype=torch.float32, device=hidden_NC.device)
        probabilities = []
        valid_N = targets_N != IGNORE
        for rows in range(0, len(hidden_NC), HEAD_ROWS):
            chunk = slice(rows, rows + HEAD_ROWS)
            logits_nV = (hidden_NC[chunk] @ weight_VC.T).float()
            logits_nV[:, vocab_size:] = float("-inf")
            lse_n = logits_nV.logsumexp(-1, keepdim=True)
            index_n1 = targets_N[chunk].clamp(min=0)[:, None]
            nll_N[chunk] = (lse_n - logits_nV.gather(1, index_n1))[:, 0]
            if keep:
                logits_nV.sub_(lse_n).exp_()
                logits_nV.scatter_add_(1, index_n1, torch.full_like(lse_n, -1.0))
                probabilities.append(logits_nV.to(hidden_NC.dtype))
        ctx.save_for_backward(hidden_NC, weight_VC, valid_N, *probabilities)
        return nll_N * valid_N

    @staticmethod
    def backward(ctx, grad_N: Tensor):
        hidden_NC, weight_VC, valid_N, *dlogits = ctx.saved_tensors
        scale_N1 = (grad_N * valid_N)[:, None].to(hidden_NC.dtype)
        grad_hidden_NC = torch.cat([d_nV @ weight_VC for d_nV in dlogits]) * scale_N1
        grad_weight_VC = torch.cat(dlogits).T @ (hidden_NC * scale_N1)
        return grad_hidden_NC, grad_weight_VC, None, None, None


def head_cross_entropy(hidden_BTC: Tensor, weight_VC: Tensor, targets_BT: Tensor, vocab_size: int) -> Tensor:
    """nll_BT, float32, of the tied head; see `HeadCrossEntropy`."""
    keep = torch.is_grad_enabled() and (hidden_BTC.requires_grad or weight_VC.requires_grad)
    nll_N = HeadCrossEntropy.apply(hidden_BTC.flatten(0, 1), weight_VC, targets_BT.flatten(), vocab_size, keep)
    return nll_N.view(targets_BT.shape)
