"""Continues prompts token by token with a language model.

The command `generate` uses it, and training uses it for the samples of a run.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from gpt1_ds.base.bounds import Bounds
from gpt1_ds.base.protocols import Engine
from gpt1_ds.data.tokenizer import Tokenizer
from gpt1_ds.model.gpt import GPT, KVCache

BATCH_SEQUENCES = 32
FLOAT32 = torch.finfo(torch.float32)
NEW_TOKENS = Bounds(high=10_000_000, open_low=True)
SAMPLES = Bounds(high=100_000, open_low=True)
TOP_P = Bounds(high=1, open_low=True)


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; by default it is the likeliest one."""

    temperature: float = 0.0
    """Divides the logits; 0: always choose the likeliest token."""
    top_k: int = 0
    """Draw from the `top_k` likeliest tokens (Fan et al. 2018); 0: from all tokens."""
    top_p: float = 1.0
    """Draw from the likeliest tokens with this total probability (Holtzman et al. 2020)."""

    def choose(self, logits_V: Tensor, generator: torch.Generator) -> int:
        if self.temperature == 0:
            return int(logits_V.argmax())
        values_K, ids_K = logits_V.topk(min(self.top_k or len(logits_V), len(logits_V)))
        # Outside the range of float32 the division would give 0/0 or inf/inf.
        temperature = min(max(self.temperature, FLOAT32.tiny), FLOAT32.max)
        weights_K = ((values_K - values_K[0]) / temperature).softmax(-1)
        reached_K = weights_K.cumsum(-1) - weights_K >= self.top_p  # the likelier tokens suffice
        reached_K[0] = False  # a top_p below the smallest float32 counts as 0
        weights_K[reached_K] = 0.0
        return int(ids_K[torch.multinomial(weights_K, 1, generator=generator)])


GREEDY = Sampling()
SAMPLES_IN_TRAINING = Sampling(temperature=0.8, top_k=40)


def sample_text(
    engine: Engine, tokenizer: Tokenizer, prompt: str, max_new_tokens: int = 120, seed: int = 0
) -> str:
    """`prompt` and its continuation by the model in training.

    All ranks must call it, because under ZeRO-3 each forward pass gathers the weights. It does not
    change the state of the global generator.
    """
    model = cast(GPT, engine.module)
    ids = [tokenizer.special_ids["eot"], *tokenizer.encode(prompt)]
    model.eval()
    try:
        tokens = generate(
            model, tokenizer.special_ids, [ids], max_new_tokens, SAMPLES_IN_TRAINING, seed
        )
        return tokenizer.decode([*ids, *(token for _, token in tokens)])
    finally:
        model.train()


def generate(
    model: GPT,
    special_ids: dict[str, int],
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    seed: int = 0,
) -> Iterator[tuple[int, int]]:
    """Yields (index of a prompt, its next token), one token at a time.

    Each prompt gets up to `max_new_tokens`. `<eot>` ends a continuation and is not yielded. A
    continuation depends on the prompt, its index and the seed, but not on the other prompts. If a
    prompt is longer than the context, only its end is read. When the context is full, its newer
    half becomes the new context.
    """
    if max_new_tokens < 1:
        return
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for first in range(0, len(by_length), BATCH_SEQUENCES):
        indices = by_length[first : first + BATCH_SEQUENCES]
        texts = [list(prompts[index][-model.config.n_ctx :]) for index in indices]
        generators = [_generator(seed, index) for index in indices]
        batch = _Batch(texts, max_new_tokens, generators)
        for row, token in _continue(model, special_ids, batch, sampling):
            yield indices[row], token


def _generator(seed: int, index: int) -> torch.Generator:
    mixed = np.random.SeedSequence((seed, index)).generate_state(1)[0]
    return torch.Generator().manual_seed(int(mixed))


@dataclass
class _Batch:
    """Prompts that are continued at the same time."""

    texts: list[list[int]]
    """Ids of each prompt; the new tokens are appended."""
    max_new_tokens: int
    generators: list[torch.Generator]


# Not in inference mode: the weights that ZeRO-3 gathers in it could not be trained afterwards.
@torch.no_grad()
def _continue(
    model: GPT, special_ids: dict[str, int], batch: _Batch, sampling: Sampling
) -> Iterator[tuple[int, int]]:
    """Yields (row, next token), one token at a time.

    All texts start at position 0, so there is no padding. The first forward pass reads as many
    tokens as the shortest text has. After that, each pass reads one more token of every text. A
    text gets new tokens once its whole prompt is read.
    """
    texts = batch.texts
    n_ctx, device, eot = model.config.n_ctx, model.wte.device, special_ids["eot"]
    never_sampled = [number for name, number in special_ids.items() if name != "eot"]
    limits = [len(text) + batch.max_new_tokens for text in texts]
    unfinished = set(range(len(texts)))
    cache: KVCache = []
    # The cache holds the tokens from `start` to `cached`; the next pass reads up to `length`.
    start, cached, length = 0, 0, min(map(len, texts))
    while unfinished:
        if length - start > n_ctx:
            cache = []
            start = cached = length - n_ctx // 2
        ids_BT = torch.tensor([text[cached:length] for text in texts], device=device)
        _, logits_BV = model(ids_BT, cache=cache, logits=True)
        logits_BV = logits_BV.cpu()
        logits_BV[:, never_sampled] = float("-inf")
        for row in [row for row, text in enumerate(texts) if len(text) == length]:
            token = eot  # finished texts get any token, because all rows must have one length
            if row in unfinished:
                token = sampling.choose(logits_BV[row], batch.generators[row])
                if token != eot:
                    yield row, token
                if token == eot or length + 1 == limits[row]:
                    unfinished.remove(row)
            texts[row].append(token)
        cached = length
        length += 1
