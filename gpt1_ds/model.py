"""GPT-1: the decoder of Radford et al. 2018, section 4.1 (`train.py` of openai/finetune-transformer-lm).

Post-LN blocks, learned positions, tanh GELU, tied input and output embedding, no final LayerNorm, no head bias.
B batch, T tokens, C = n_embd, H = n_head, D = C / H, V vocabulary.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt1_ds.kernels import IGNORE, causal_attention, dropout, head_cross_entropy

__all__ = ["GPT", "GPTConfig", "IGNORE", "init_weights"]

VOCAB_MULTIPLE = 128


@dataclass(frozen=True)
class GPTConfig:
    vocab_size: int
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    n_ctx: int = 512
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    resid_pdrop: float = 0.1

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding: matrix units like a multiple of 128. The padding is never counted nor sampled."""
        return -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    @property
    def parameters(self) -> int:
        """Parameters of the model, padding left out: 116,534,784 for GPT-1's shape and its 40,478 entries."""
        block = 12 * self.n_embd**2 + 13 * self.n_embd
        return (self.vocab_size + self.n_ctx) * self.n_embd + self.n_layer * block

    @property
    def flops_per_token(self) -> int:
        """Forward and backward matrix products of one token at full context: 6 a weight, 12 n_ctx n_embd a layer."""
        weights = 12 * self.n_layer * self.n_embd**2 + self.vocab_size * self.n_embd
        return 6 * weights + 12 * self.n_layer * self.n_ctx * self.n_embd


KVCache = list[tuple[Tensor, Tensor]]  # keys and values (B, H, S, D) of each block


class CausalSelfAttention(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x_BTC: Tensor, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        B, T, C = x_BTC.shape
        heads = (B, T, self.config.n_head, C // self.config.n_head)
        q_BHTD, k_BHSD, v_BHSD = (part.view(heads).transpose(1, 2) for part in self.c_attn(x_BTC).split(C, dim=2))
        if past is not None:
            k_BHSD, v_BHSD = torch.cat([past[0], k_BHSD], dim=2), torch.cat([past[1], v_BHSD], dim=2)
        out_BHTD = causal_attention(q_BHTD, k_BHSD, v_BHSD, self.config.attn_pdrop, self.training)
        out_BTC = self.c_proj(out_BHTD.transpose(1, 2).reshape(B, T, C))
        return dropout(out_BTC, self.config.resid_pdrop, self.training), (k_BHSD, v_BHSD)


class MLP(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.resid_pdrop = config.resid_pdrop
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x_BTC: Tensor) -> Tensor:
        out_BTC = self.c_proj(F.gelu(self.c_fc(x_BTC), approximate="tanh"))
        return dropout(out_BTC, self.resid_pdrop, self.training)


class Block(nn.Module):
    """Post-LN: each LayerNorm follows the residual sum."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.attn = CausalSelfAttention(config)
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=1e-5)
        self.mlp = MLP(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=1e-5)

    def forward(self, x_BTC: Tensor, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        attention_BTC, present = self.attn(x_BTC, past)
        x_BTC = self.ln_1(x_BTC + attention_BTC)
        return self.ln_2(x_BTC + self.mlp(x_BTC)), present


class GPT(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        # Parameters of this module itself, not of an nn.Embedding: ZeRO-3 gathers them for the whole forward, in
        # which the tied matrix is used at both ends.
        self.wte = nn.Parameter(torch.empty(config.padded_vocab_size, config.n_embd))
        self.wpe = nn.Parameter(torch.empty(config.n_ctx, config.n_embd))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        init_weights(self)

    def forward(
        self, ids_BT: Tensor, targets_BT: Tensor | None = None, cache: KVCache | None = None, logits: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Hidden states (B, T, C), and beside them nll_BT (float32, 0 where the target is `IGNORE`), or with `logits`
        the last token's logits (B, V) in float32.

        A `cache` list is filled, and on later calls extended, in place: `ids_BT` are then the tokens after it.
        """
        past_tokens = cache[0][0].shape[2] if cache else 0
        T = ids_BT.shape[1]
        x_BTC = F.embedding(ids_BT, self.wte) + self.wpe[past_tokens : past_tokens + T]
        x_BTC = dropout(x_BTC, self.config.embd_pdrop, self.training)
        presents = []
        for layer, block in enumerate(self.blocks):
            x_BTC, present = block(x_BTC, cache[layer] if cache else None)
            presents.append(present)
        if cache is not None:
            cache[:] = presents
        if logits:
            return x_BTC, F.linear(x_BTC[:, -1], self.wte).float()[:, : self.config.vocab_size]
        if targets_BT is None:
            return x_BTC, None
        return x_BTC, head_cross_entropy(x_BTC, self.wte, targets_BT, self.config.vocab_size)


def init_weights(module: nn.Module) -> None:
    """Draw every parameter from the global generator, in order of definition.

    | parameter                          | drawn as          |
    |------------------------------------|-------------------|
    | token and position embedding       | normal, std 0.02  |
    | weights of linear layers           | normal, std 0.02  |
    | biases                             | 0                 |
    | LayerNorm gain, bias               | 1, 0              |
    | padding rows of the embedding      | 0                 |
    """
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.02)
            else:
                parameter.fill_(1.0 if ".ln_" in f".{name}" and name.endswith("weight") else 0.0)
        if isinstance(module, GPT):
            module.wte[module.config.vocab_size :] = 0.0
