"""What the decoder computes inside: the states between its blocks, and the weights of attention.

The letters of the shapes are those of `gpt.py`.
"""

import math
from typing import cast

import torch
from torch import Tensor, nn

from gpt1_ds.model.gpt import GPT, Block


@torch.no_grad()
def hidden_states(model: GPT, ids_BT: Tensor) -> list[Tensor]:
    """The states (B, T, C) before the first block and after each block. `model` is in eval mode."""
    states: list[Tensor] = []

    def keep(block: nn.Module, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        if not states:
            states.append(inputs[0])
        states.append(output[0])

    hooks = [block.register_forward_hook(keep) for block in model.blocks]
    try:
        model(ids_BT)
    finally:
        for hook in hooks:
            hook.remove()
    return states


@torch.no_grad()
def attention_weights(model: GPT, ids_BT: Tensor, layer: int) -> Tensor:
    """The weights (B, H, T, T) float32 of block `layer`: how much a token looks at each token.

    The kernels of the model never write all weights. So they are computed here by equation 1 of
    Vaswani et al. 2017, from the state before the block.
    """
    attention = cast(Block, model.blocks[layer]).attn
    x_BTC = hidden_states(model, ids_BT)[layer]
    B, T, C = x_BTC.shape
    H = attention.config.n_head
    heads_BTHD = (part.view(B, T, H, C // H) for part in attention.c_attn(x_BTC).split(C, dim=2))
    q_BHTD, k_BHTD, _ = (part.transpose(1, 2).float() for part in heads_BTHD)
    scores_BHTT = q_BHTD @ k_BHTD.transpose(2, 3) / math.sqrt(C // H)
    later_TT = torch.ones(T, T, dtype=torch.bool, device=x_BTC.device).triu(1)
    return scores_BHTT.masked_fill(later_TT, -math.inf).softmax(-1)
