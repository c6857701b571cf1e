"""GPT-1: the decoder of Radford et al. 2018, sections 3.1 and 4.1.

The docstring of a class names the function of `train.py` in openai/finetune-transformer-lm that it
corresponds to. The model has post-LN blocks, learned positions, tanh GELU, and one matrix for the
input and the output embedding. There is no LayerNorm after the last block and no bias in the head.

Names of tensors end with their shape:

| letter | size                                                                |
|--------|---------------------------------------------------------------------|
| B      | sequences of a micro-batch                                          |
| T      | tokens of a sequence in this call                                   |
| S      | tokens that attention sees: those in the cache and the T new ones   |
| C      | n_embd, the width of the model                                      |
| H, D   | n_head, and the width of a head, C / H                              |
| V      | vocabulary                                                          |
| U      | units of the LSTM                                                   |
| P      | places with dropout (only in names of dropout keys: PB2, two int32) |
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TypeVar, TypeVarTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gpt1_ds.base.protocols import Json
from gpt1_ds.model.kernels import (
    IGNORE,
    append,
    causal_attention,
    dropout,
    gelu,
    head_cross_entropy,
    keys_of_places,
    linear,
)

VOCAB_MULTIPLE = 128
INITIAL_STD = 0.02
LAYER_NORM_EPS = 1e-5
SITES = 3
"""Places with dropout in a block: attention weights, attention output, MLP output."""

KeysValues = tuple[Tensor, Tensor]
"""Keys and values of attention, (B, H, S, D) each."""
KVCache = list[KeysValues]
"""Keys and values of each block."""
Inputs = TypeVarTuple("Inputs")
Output = TypeVar("Output")
DropoutKeys = Tensor | tuple[None, ...]
"""A key for each place and sequence, (P, B, 2) int32, on a GPU (P, 0, 2); else None for each."""


@dataclass(frozen=True)
class GPTConfig:
    """Shape of a model; the defaults are the paper's (section 4.1)."""

    vocab_size: int
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    n_ctx: int = 512
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    resid_pdrop: float = 0.1
    kind: str = "transformer"
    """`transformer`, or `lstm` for the ablation of section 5."""
    embd_dropout: str = "vectors"
    """What `embd_pdrop` drops: elements of the sum of token and position embedding, or, with
    `matrix`, elements of the embedding matrix, as in the released code."""
    position_logits: bool = False
    """Whether the softmax of the head has a row for each position, as in the released code."""

    def to_dict(self) -> Json:
        """What a checkpoint says of the model; choices of the released code only if they are on."""
        content = asdict(self)
        for name in ("embd_dropout", "position_logits"):
            if content[name] == getattr(GPTConfig, name):
                del content[name]
        return content

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding: the next multiple of 128, for fast matrix products on GPUs.

        The padding rows have probability 0: they do not count in the loss and are never sampled.
        """
        return -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    @property
    def parameters(self) -> int:
        """Number of parameters without padding rows.

        It is 116,534,784 for the paper's shape and a vocabulary of 40,478.
        """
        blocks = self.n_layer * (12 * self.n_embd**2 + 13 * self.n_embd)
        if self.kind == "lstm":
            blocks = self.lstm_units * (4 * self.lstm_units + 5 * self.n_embd + 8) + self.n_embd
        return (self.vocab_size + self.n_ctx) * self.n_embd + blocks

    @property
    def flops_per_token(self) -> int:
        """FLOPs of a token's matrix products at full context, forward and backward.

        6 for each weight, and 12 n_ctx n_embd for the attention of each layer (Chowdhery et al.
        2022, appendix B).
        """
        if self.kind == "lstm":
            return 6 * (self.parameters - self.n_ctx * self.n_embd)
        weights = 12 * self.n_layer * self.n_embd**2 + self.vocab_size * self.n_embd
        return 6 * weights + 12 * self.n_layer * self.n_ctx * self.n_embd

    @property
    def lstm_units(self) -> int:
        """2,048 at the paper's width of 768."""
        return self.n_embd * 8 // 3


class Linear(nn.Linear):
    """`conv1d` with rf = 1. The weight has the shape (outputs, inputs), transposed to `conv1d`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class CausalSelfAttention(nn.Module):
    """`attn`: masked self-attention with H heads."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = Linear(config.n_embd, config.n_embd)

    def forward(
        self, x_BTC: Tensor, past: KeysValues | None, keys_PB2: DropoutKeys
    ) -> tuple[Tensor, KeysValues]:
        """The output (B, T, C), and all keys and values: those of the past and of this call."""
        B, T, C = x_BTC.shape
        q_BTC, k_BTC, v_BTC = self.c_attn(x_BTC).split(C, dim=2)
        q_BHTD, k_BHSD, v_BHSD = self._heads(q_BTC), self._heads(k_BTC), self._heads(v_BTC)
        if past is not None:
            past_k_BHSD, past_v_BHSD = past
            k_BHSD = append(past_k_BHSD, k_BHSD, self.config.n_ctx)
            v_BHSD = append(past_v_BHSD, v_BHSD, self.config.n_ctx)
        out_BHTD = causal_attention(q_BHTD, k_BHSD, v_BHSD, self.config.attn_pdrop, keys_PB2[0])
        out_BTC = self.c_proj(out_BHTD.transpose(1, 2).reshape(B, T, C))
        return dropout(out_BTC, self.config.resid_pdrop, keys_PB2[1]), (k_BHSD, v_BHSD)

    def _heads(self, x_BTC: Tensor) -> Tensor:
        """Split (B, T, C) into heads, (B, H, T, D): head h has the features from h D on."""
        B, T, C = x_BTC.shape
        n_head = self.config.n_head
        return x_BTC.view(B, T, n_head, C // n_head).transpose(1, 2)


class MLP(nn.Module):
    """`mlp`: the position-wise network with 4 C inner units."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.resid_pdrop = config.resid_pdrop
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x_BTC: Tensor, keys_B2: Tensor | None) -> Tensor:
        out_BTC = self.c_proj(gelu(self.c_fc(x_BTC)))
        return dropout(out_BTC, self.resid_pdrop, keys_B2)


class Block(nn.Module):
    """`block`: n = ln_1(x + attn(x)), output ln_2(n + mlp(n)). Each LayerNorm follows its sum."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.attn = CausalSelfAttention(config)
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=LAYER_NORM_EPS)
        self.mlp = MLP(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=LAYER_NORM_EPS)

    def forward(
        self, x_BTC: Tensor, past: KeysValues | None, keys_PB2: DropoutKeys
    ) -> tuple[Tensor, KeysValues]:
        attention_BTC, present = self.attn(x_BTC, past, keys_PB2)
        x_BTC = self.ln_1(x_BTC + attention_BTC)
        return self.ln_2(x_BTC + self.mlp(x_BTC, keys_PB2[2])), present


@dataclass(frozen=True)
class Span:
    """Some blocks in a row as one function, for calls without a cache: see `engine.compiling`."""

    keys: slice
    """Their places in the dropout keys of the model."""
    run: Callable[[Tensor, DropoutKeys], Tensor]
    """States before and keys to states after."""


class LSTMBlock(nn.Module):
    """The ablation of section 5: one LSTM layer, projected to n_embd, replaces all blocks."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.resid_pdrop = config.resid_pdrop
        self.lstm = nn.LSTM(config.n_embd, config.lstm_units, batch_first=True)
        self.c_proj = Linear(config.lstm_units, config.n_embd)

    def forward(
        self, x_BTC: Tensor, past: KeysValues | None, keys_PB2: DropoutKeys
    ) -> tuple[Tensor, KeysValues]:
        """The output, and the `past` of the next call.

        The past is a pair. Its first tensor has no elements, and its size along S is the number of
        tokens seen. The second entry is the state of the LSTM.
        """
        out_BTU, state = self.lstm(x_BTC, past and past[1])
        seen = x_BTC.shape[1] + (past[0].shape[2] if past else 0)
        empty_11S0 = x_BTC.new_empty(1, 1, seen, 0)
        return dropout(self.c_proj(out_BTU), self.resid_pdrop, keys_PB2[2]), (empty_11S0, state)


class GPT(nn.Module):
    """`model`: h_0 = U W_e + W_p, h_l = block(h_l-1), P(u) = softmax(h_n W_e^T) (equation 2)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        # The embeddings are parameters of this module, not of an nn.Embedding. So ZeRO-3 gathers
        # them once for the whole forward pass, which uses the tied matrix at its start and end.
        self.wte = nn.Parameter(torch.empty(config.padded_vocab_size, config.n_embd))
        self.wpe = nn.Parameter(torch.empty(config.n_ctx, config.n_embd))
        self.blocks = nn.ModuleList()
        if config.kind == "lstm":
            self.blocks.append(LSTMBlock(config))
        else:
            self.blocks.extend(Block(config) for _ in range(config.n_layer))
        self.position_rows = config.n_ctx
        """Rows of positions in the softmax, with `position_logits`. The released code has as many
        as its longest sequence has tokens."""
        self.spans: list[Span] = []
        """All blocks, some at a time, where they do not run one by one."""
        self.activation_checkpointing = False
        """Keep only the input of each block, and compute its activations again in backward."""
        init_weights(self)

    def initial_values(self) -> Iterator[tuple[str, Tensor]]:
        """What the constructor sets each parameter to, name and float32, one after the other.

        The values are those of a module on the CPU, also for one on the meta device. All lie in the
        same memory, one after the other: a copy of a value is the caller's to make.
        """
        pass_over_defaults(self)
        room = torch.empty(max(parameter.numel() for parameter in self.parameters()))
        for name, parameter in self.named_parameters():
            value = room[: parameter.numel()].view(parameter.shape)
            set_initial(name, value)
            if name == "wte":
                value[self.config.vocab_size :] = 0.0
            yield name, value

    def forward(
        self,
        ids_BT: Tensor,
        targets_BT: Tensor | None = None,
        cache: KVCache | None = None,
        logits: bool = False,
        dropout_keys_B2: Tensor | None = None,
        greedy: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Hidden states (B, T, C), and one of these:

        - with `logits`: the logits of the last token, (B, V) float32
        - with `targets_BT`: the negative log-likelihood of each target, (B, T) float32, in nats;
          0 where the target is `IGNORE`
        - with `targets_BT` and `greedy`: the same, and 1 where a target is the likeliest token,
          (2, B, T) float32
        - else None

        The call adds the new keys and values to the list `cache`. In later calls with this list,
        `ids_BT` are the next tokens only. In training each sequence has its own dropout key, a pair
        of int32 in `dropout_keys_B2`. By default the keys are drawn from the global generator. A
        GPU does not look at them: they may stay on the CPU.
        """
        past_tokens = cache[0][0].shape[2] if cache else 0
        T = ids_BT.shape[1]
        keys_PB2 = self._keys_of_places(ids_BT, dropout_keys_B2)
        wte_VC, wpe_TC = self._embeddings(keys_PB2[0])
        x_BTC = F.embedding(ids_BT, wte_VC) + wpe_TC[past_tokens : past_tokens + T]
        if self.config.embd_dropout == "vectors":
            x_BTC = dropout(x_BTC, self.config.embd_pdrop, keys_PB2[0])
        x_BTC = self._through_blocks(x_BTC, cache, keys_PB2)
        if logits:
            return x_BTC, linear(x_BTC[:, -1], wte_VC).float()[:, : self.config.vocab_size]
        if targets_BT is None:
            return x_BTC, None
        rows = self.config.vocab_size
        if self.config.position_logits:
            wte_VC = torch.cat([wte_VC[:rows], wpe_TC[: self.position_rows]])
            rows = len(wte_VC)
        nll_BT = head_cross_entropy(x_BTC, wte_VC, targets_BT, rows)
        if not greedy:
            return x_BTC, nll_BT
        return x_BTC, torch.stack([nll_BT, likeliest(x_BTC, wte_VC[:rows], targets_BT)])

    def _through_blocks(
        self, x_BTC: Tensor, cache: KVCache | None, keys_PB2: DropoutKeys
    ) -> Tensor:
        if self.spans and cache is None:
            for span in self.spans:
                x_BTC = self._call(span.run, x_BTC, keys_PB2[span.keys])
            return x_BTC
        presents = []
        for layer, block in enumerate(self.blocks):
            first = 1 + SITES * layer
            past = cache[layer] if cache else None
            x_BTC, present = self._call(block, x_BTC, past, keys_PB2[first : first + SITES])
            presents.append(present)
        if cache is not None:
            cache[:] = presents
        return x_BTC

    def _call(self, part: Callable[[*Inputs], Output], *inputs: *Inputs) -> Output:
        if self.activation_checkpointing and self.training:
            return cast(Output, checkpoint(part, *inputs, use_reentrant=False))
        return part(*inputs)

    def _embeddings(self, keys_B2: Tensor | None) -> tuple[Tensor, Tensor]:
        """The matrices of tokens and of positions, in training perhaps with dropout.

        One mask holds for all sequences, as in the released code. Its key is that of the first
        sequence, so it depends on how a batch is divided into micro-batches.
        """
        if self.config.embd_dropout == "vectors" or keys_B2 is None:
            return self.wte, self.wpe
        matrix_1RC = torch.cat([self.wte, self.wpe])[None]
        matrix_RC = dropout(matrix_1RC, self.config.embd_pdrop, keys_B2[:1])[0]
        return matrix_RC[: len(self.wte)], matrix_RC[len(self.wte) :]

    def _keys_of_places(self, ids_BT: Tensor, keys_B2: Tensor | None) -> DropoutKeys:
        """Dropout keys for the embedding, then for the places of each block."""
        places = 1 + SITES * len(self.blocks)
        if not self.training:
            return (None,) * places
        if keys_B2 is None:
            keys_B2 = torch.empty(len(ids_BT), 2, dtype=torch.int32).random_(-(2**31), None)
        return keys_of_places(keys_B2, places, ids_BT.device)


def likeliest(x_BTC: Tensor, weight_VC: Tensor, targets_BT: Tensor) -> Tensor:
    """1 where the target is the likeliest token, else 0, (B, T) float32."""
    found_BT = torch.zeros(targets_BT.shape, device=targets_BT.device)
    is_target_BT = targets_BT != IGNORE
    logits_nV = linear(x_BTC[is_target_BT], weight_VC).float()
    found_BT[is_target_BT] = (logits_nV.argmax(-1) == targets_BT[is_target_BT]).float()
    return found_BT


def init_weights(module: nn.Module) -> None:
    """Draw every parameter from the global generator, in order of definition.

    | parameter                           | value            | source                           |
    |-------------------------------------|------------------|----------------------------------|
    | token and position embedding        | N(0, 0.02)       | section 4.1; `model`             |
    | weights of linear layers            | N(0, 0.02)       | section 4.1; `conv1d`            |
    | weights of the LSTM and of its      | N(0, 0.02)       | ours: the paper does not say     |
    | projection                          |                  |                                  |
    | biases                              | 0                | `conv1d`                         |
    | gain of a LayerNorm                 | 1                | `norm`                           |
    | bias of a LayerNorm                 | 0                | `norm`                           |
    | padding rows of the token embedding | 0                | ours                             |
    """
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            set_initial(name, parameter)
        if isinstance(module, GPT):
            module.wte[module.config.vocab_size :] = 0.0


def set_initial(name: str, parameter: Tensor) -> None:
    """Draw one parameter; see `init_weights`."""
    if parameter.ndim > 1:
        parameter.normal_(std=INITIAL_STD)
    else:
        is_gain = ".ln_" in f".{name}" and name.endswith("weight")
        parameter.fill_(1.0 if is_gain else 0.0)


def pass_over_defaults(module: nn.Module) -> None:
    """Draw as many values from the global generator as the constructors of torch's layers do.

    They draw values of their own first, which `init_weights` replaces.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.LSTM):
            for parameter in layer.parameters(recurse=False):
                torch.empty(parameter.shape).uniform_()
