"""GPT-1: the decoder of Radford et al. 2018, section 4.1 (`train.py` of openai/finetune-transformer-lm).

Post-LN blocks, learned positions, tanh GELU, tied input and output embedding, no final LayerNorm, no head bias.
B batch, T tokens, C = n_embd, H = n_head, D = C / H, V vocabulary.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gpt1_ds.model.kernels import (
    IGNORE,
    append,
    causal_attention,
    dropout,
    gelu,
    head_cross_entropy,
    linear,
    site_keys,
)

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
    kind: str = "transformer"

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding: matrix units like a multiple of 128. The padding is never counted nor sampled."""
        return -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    @property
    def parameters(self) -> int:
        """Parameters of the model, padding left out: 116,534,784 for GPT-1's shape and its 40,478 entries."""
        blocks = self.n_layer * (12 * self.n_embd**2 + 13 * self.n_embd)
        if self.kind == "lstm":
            blocks = self.lstm_units * (4 * self.lstm_units + 5 * self.n_embd + 8) + self.n_embd
        return (self.vocab_size + self.n_ctx) * self.n_embd + blocks

    @property
    def flops_per_token(self) -> int:
        """Forward and backward matrix products of one token at full context: 6 a weight, 12 n_ctx n_embd a layer."""
        if self.kind == "lstm":
            return 6 * (self.parameters - self.n_ctx * self.n_embd)
        weights = 12 * self.n_layer * self.n_embd**2 + self.vocab_size * self.n_embd
        return 6 * weights + 12 * self.n_layer * self.n_ctx * self.n_embd

    @property
    def lstm_units(self) -> int:
        """2,048 at the paper's width of 768."""
        return self.n_embd * 8 // 3


KeysValues = tuple[Tensor, Tensor]  # of attention, (B, H, S, D) each
KVCache = list[KeysValues]  # of each block
Keys = Tensor | tuple[None, ...]  # of dropout, (sites, B, 2), or none for each site
SITES = 3  # places of a block that drop: attention weights, attention output, MLP output


class Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class CausalSelfAttention(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = Linear(config.n_embd, config.n_embd)

    def forward(
        self, x_BTC: Tensor, past: KeysValues | None, keys_SB2: Keys
    ) -> tuple[Tensor, KeysValues]:
        B, T, C = x_BTC.shape
        heads = (B, T, self.config.n_head, C // self.config.n_head)
        q_BHTD, k_BHSD, v_BHSD = (
            part.view(heads).transpose(1, 2) for part in self.c_attn(x_BTC).split(C, dim=2)
        )
        if past is not None:
            k_BHSD, v_BHSD = (
                append(*pair, self.config.n_ctx)
                for pair in zip(past, (k_BHSD, v_BHSD), strict=True)
            )
        out_BHTD = causal_attention(q_BHTD, k_BHSD, v_BHSD, self.config.attn_pdrop, keys_SB2[0])
        out_BTC = self.c_proj(out_BHTD.transpose(1, 2).reshape(B, T, C))
        return dropout(out_BTC, self.config.resid_pdrop, keys_SB2[1]), (k_BHSD, v_BHSD)


class MLP(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.resid_pdrop = config.resid_pdrop
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x_BTC: Tensor, keys_B2: Tensor | None) -> Tensor:
        out_BTC = self.c_proj(gelu(self.c_fc(x_BTC)))
        return dropout(out_BTC, self.resid_pdrop, keys_B2)


class Block(nn.Module):
    """Post-LN: each LayerNorm follows the residual sum."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.attn = CausalSelfAttention(config)
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=1e-5)
        self.mlp = MLP(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=1e-5)

    def forward(
        self, x_BTC: Tensor, past: KeysValues | None, keys_SB2: Keys
    ) -> tuple[Tensor, KeysValues]:
        attention_BTC, present = self.attn(x_BTC, past, keys_SB2)
        x_BTC = self.ln_1(x_BTC + attention_BTC)
        return self.ln_2(x_BTC + self.mlp(x_BTC, keys_SB2[2])), present


class LSTMBlock(nn.Module):
    """The paper's ablation (section 5): one LSTM layer, projected to n_embd, in place of all blocks."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.resid_pdrop = config.resid_pdrop
        self.lstm = nn.LSTM(config.n_embd, config.lstm_units, batch_first=True)
        self.c_proj = Linear(config.lstm_units, config.n_embd)

    def forward(
        self, x_BTC: Tensor, past: KeysValues | None, keys_SB2: Keys
    ) -> tuple[Tensor, KeysValues]:
        out_BTU, state = self.lstm(x_BTC, past and past[1])
        # Beside the state an empty tensor, of which the cache's reader takes the length.
        seen = x_BTC.new_empty(1, 1, x_BTC.shape[1] + (past[0].shape[2] if past else 0), 0)
        return dropout(self.c_proj(out_BTU), self.resid_pdrop, keys_SB2[2]), (seen, state)


class GPT(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        # Parameters of this module itself, not of an nn.Embedding: ZeRO-3 gathers them for the whole forward, in
        # which the tied matrix is used at both ends.
        self.wte = nn.Parameter(torch.empty(config.padded_vocab_size, config.n_embd))
        self.wpe = nn.Parameter(torch.empty(config.n_ctx, config.n_embd))
        blocks = (
            [LSTMBlock(config)]
            if config.kind == "lstm"
            else (Block(config) for _ in range(config.n_layer))
        )
        self.blocks = nn.ModuleList(blocks)
        self.activation_checkpointing = (
            False  # forget each block's inner states; compute them again in backward
        )
        init_weights(self)

    def forward(
        self,
        ids_BT: Tensor,
        targets_BT: Tensor | None = None,
        cache: KVCache | None = None,
        logits: bool = False,
        dropout_keys_B2: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Hidden states (B, T, C), and beside them nll_BT (float32, 0 where the target is `IGNORE`), or with `logits`
        the last token's logits (B, V) in float32.

        A `cache` list is filled, and on later calls extended, in place: `ids_BT` are then the tokens after it. In
        training each sequence drops by its own `dropout_keys_B2` (int32 pairs; drawn from the global generator where
        none are given).
        """
        past_tokens = cache[0][0].shape[2] if cache else 0
        B, T = ids_BT.shape
        keys_SB2: Keys = (None,) * (1 + SITES * len(self.blocks))
        if self.training:
            if dropout_keys_B2 is None:
                dropout_keys_B2 = torch.empty(
                    B, 2, dtype=torch.int32, device=ids_BT.device
                ).random_(-(2**31), None)
            keys_SB2 = site_keys(dropout_keys_B2, len(keys_SB2))
        x_BTC = F.embedding(ids_BT, self.wte) + self.wpe[past_tokens : past_tokens + T]
        x_BTC = dropout(x_BTC, self.config.embd_pdrop, keys_SB2[0])
        presents = []
        for layer, block in enumerate(self.blocks):
            inputs = x_BTC, cache[layer] if cache else None, keys_SB2[1 + SITES * layer :][:SITES]
            if self.activation_checkpointing and self.training:
                x_BTC, present = checkpoint(block, *inputs, use_reentrant=False)
            else:
                x_BTC, present = block(*inputs)
            presents.append(present)
        if cache is not None:
            cache[:] = presents
        if logits:
            return x_BTC, linear(x_BTC[:, -1], self.wte).float()[:, : self.config.vocab_size]
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
