"""Other code that trains a GPT-1 of the same shape; every way returns a function of one step.

The peers from other projects are in `benchmarks/train_step.py`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.train_step import N_CTX, Size, Step, plain_loop
from gpt1_ds.model.gpt import GPT

HEADS, RATE, STD = 12, 0.1, 0.02


class TorchGPT(nn.Module):
    """GPT-1 of torch's own modules: its transformer layer is the block of the paper."""

    def __init__(self, size: Size):
        super().__init__()
        width = size.width
        self.wte = nn.Embedding(size.vocab_size, width)
        self.wpe = nn.Embedding(N_CTX, width)
        nn.init.normal_(self.wte.weight, std=STD)
        layer = nn.TransformerEncoderLayer(
            width, HEADS, 4 * width, RATE, activation=nn.GELU("tanh"), batch_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, size.layers, enable_nested_tensor=False)

    def forward(self, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        x_BTC = F.dropout(self.wte(ids_BT) + self.wpe.weight[: ids_BT.shape[1]], RATE)
        mask_TT = nn.Transformer.generate_square_subsequent_mask(
            ids_BT.shape[1], device=ids_BT.device, dtype=x_BTC.dtype
        )
        x_BTC = self.blocks(x_BTC, mask_TT, is_causal=True)
        logits_BTV = F.linear(x_BTC, self.wte.weight)
        return F.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten())


def torch_modules(size: Size, compiled: bool = False) -> Step:
    """A plain loop around torch's own modules."""
    model = TorchGPT(size).train()
    forward = torch.compile(model) if compiled else model
    return plain_loop(model, lambda ids_BT: forward(ids_BT[:, :-1], ids_BT[:, 1:]))


def own_model(size: Size) -> Step:
    """A plain loop around this project's model: what DeepSpeed adds to it is the difference."""
    model = GPT(size.shape()).train()
    return plain_loop(model, lambda ids_BT: model(ids_BT[:, :-1], ids_BT[:, 1:])[1].mean())
