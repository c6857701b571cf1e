"""Converts parameters between transformers' OpenAI GPT, OpenAI's release, and this project.

The conversion does not need transformers. The name `h.0.attn.c_attn` in transformers is
`blocks.0.attn.c_attn` here. The other differences are:

| transformers                       | params_N.npy  | here                         |
|------------------------------------|---------------|------------------------------|
| transformer.positions_embed.weight | [n_ctx, C]    | wpe                          |
| transformer.tokens_embed.weight    | [V, C]        | wte, with rows of padding    |
| lm_head.weight (tied: not written) | -             | wte                          |
| c_attn, c_proj, c_fc (in, out)     | [1, in, out]  | linear layers (out, in)      |

Shapes: V vocabulary, C width (n_embd), K classes.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from gpt1_ds.base.errors import DataError
from gpt1_ds.data.tokenizer import CONTROL_PIECES
from gpt1_ds.model.gpt import GPT, GPTConfig

PREFIX = "transformer."
EMBEDDINGS = {"wte": "tokens_embed.weight", "wpe": "positions_embed.weight"}
LINEAR = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
OUTPUT, CLASSIFIER = "lm_head.weight", "score.weight"
"""The output matrix of a language model, and the head of a sequence classifier."""
NOT_WEIGHTS = (".attn.bias", "position_ids", CLASSIFIER)
"""Ends of the names of tensors that the decoder does not need: masks, positions, a task's head."""
SMALLEST_CONSTANT = 1e-3
"""`score_weight` gives None below it, because it divides by the constant."""


class Parameter(NamedTuple):
    name: str
    tensor: Tensor


def to_theirs(name: str, tensor: Tensor, config: GPTConfig) -> Parameter:
    """Convert our parameter to transformers': a view of the tensor, without padding rows."""
    if name in EMBEDDINGS:
        return Parameter(PREFIX + EMBEDDINGS[name], tensor[: config.vocab_size])
    view = tensor.t() if name.endswith(LINEAR) else tensor
    return Parameter(PREFIX + name.replace("blocks.", "h.", 1), view)


def to_ours(theirs: dict[str, Tensor], config: GPTConfig, source: Path) -> dict[str, Tensor]:
    """Float32 weights for `GPT(config)` from transformers' tensors, which were read from `source`.

    If the source has no rows for the five control pieces, they are drawn from N(0, 0.02) with a
    fixed seed. Raises DataError for a missing tensor, a wrong shape, an unknown tensor, and for an
    output matrix that is not the token embedding.
    """
    with torch.device("meta"):
        wanted = GPT(config).state_dict()
    theirs = {PREFIX + name.removeprefix(PREFIX): tensor for name, tensor in theirs.items()}
    output = theirs.pop(PREFIX + OUTPUT, None)
    embedding = theirs.get(PREFIX + EMBEDDINGS["wte"])
    if output is not None and embedding is not None and not torch.equal(output, embedding):
        raise DataError(
            f"{source}: {OUTPUT} is not the token embedding (tie_word_embeddings is false); this "
            "model has one matrix for both, so take a source with tied weights"
        )
    weights = {}
    for name, like in wanted.items():
        key, view = to_theirs(name, like, config)
        tensor = theirs.pop(key, torch.empty(0))
        if name == "wte":
            tensor = _with_control_rows(tensor, config)
        if tensor.shape != view.shape:
            found = tuple(tensor.shape) if tensor.numel() else "missing"
            raise DataError(
                f"{source}: {key} is {found}, should be {tuple(view.shape)}; "
                "not whole weights of its own configuration"
            )
        weights[name] = (tensor.t() if name.endswith(LINEAR) else tensor).float().contiguous()
    padding = torch.zeros(len(wanted["wte"]) - config.vocab_size, config.n_embd)
    weights["wte"] = torch.cat([weights["wte"], padding])
    strays = [name for name in theirs if not name.endswith(NOT_WEIGHTS)]
    if strays:
        raise DataError(
            f"{source}: {strays[0]} is no weight of this model; give a folder of OpenAI GPT"
        )
    return weights


def _with_control_rows(tensor: Tensor, config: GPTConfig) -> Tensor:
    """The token embedding (V, C). Adds the rows of the control pieces if only they are missing."""
    control = len(CONTROL_PIECES)
    if tensor.shape != (config.vocab_size - control, config.n_embd):
        return tensor
    rows = torch.empty(control, config.n_embd)
    rows.normal_(std=0.02, generator=torch.Generator().manual_seed(0))
    return torch.cat([tensor.float(), rows])


def score_weight(
    head: dict[str, Tensor], gain: Tensor, bias: Tensor, sequences: int
) -> Tensor | None:
    """A matrix (K, C) without bias that gives the logits of `head`; None if it does not exist.

    transformers' classifier has no bias. But its input h is the output of a LayerNorm with `gain`
    and `bias`. So sum(h / gain) = sum(bias / gain) is the same constant for every input, and a
    multiple of it can replace the head's bias. The logits are a sum over `sequences` sequences.
    """
    constant = (bias.double() / gain.double()).sum()
    if not constant.isfinite() or constant.abs() < SMALLEST_CONSTANT:
        return None
    share = head["bias"].double()[:, None] / (sequences * constant) / gain.double()
    return (head["weight"] + share).float()
