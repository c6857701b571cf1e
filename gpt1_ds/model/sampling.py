"""Text from a language model: prompts written on token by token, by `generate` and by a run in training (layer 2)."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from gpt1_ds.data.tokenizer import Tokenizer
from gpt1_ds.model.gpt import GPT, KVCache

BATCH_SEQUENCES = 32


def sample_text(
    engine, tokenizer: Tokenizer, prompt: str, max_new_tokens: int = 120, seed: int = 0
) -> str:
    """`prompt` and what the model in training writes after it, at temperature 0.8 of the 40 likeliest.

    Every rank calls: under ZeRO-3 each forward gathers the weights. The global generator is left as it was.
    """
    model, ids = engine.module, [tokenizer.special_ids["eot"], *tokenizer.encode(prompt)]
    model.eval()
    try:
        tokens = generate(model, tokenizer.special_ids, [ids], max_new_tokens, 0.8, 40, seed=seed)
        return tokenizer.decode([*ids, *(token for _, token in tokens)])
    finally:
        model.train()


def generate(
    model: GPT,
    special_ids: dict[str, int],
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Iterator[tuple[int, int]]:
    """(index of a prompt, its next token), as they come, each prompt's until `max_new_tokens` or its `<eot>`.

    A prompt's continuation depends on it, its index and the seed, not on the others. Of a prompt longer than the
    context the end is read; a context that is full is begun anew with its newer half.
    """
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for rows in (
        order[first : first + BATCH_SEQUENCES] for first in range(0, len(order), BATCH_SEQUENCES)
    ):
        seeds = [int(np.random.SeedSequence((seed, index)).generate_state(1)[0]) for index in rows]
        choices = [
            partial(_choose, temperature, top_k, top_p, torch.Generator().manual_seed(s))
            for s in seeds
        ]
        texts = [list(prompts[index][-model.config.n_ctx :]) for index in rows]
        for row, token in _batch(model, special_ids, texts, max_new_tokens, choices):
            yield rows[row], token


@torch.inference_mode()
def _batch(
    model: GPT,
    special_ids: dict[str, int],
    texts: list[list[int]],
    max_new_tokens: int,
    choices: list[Callable[[Tensor], int]],
) -> Iterator[tuple[int, int]]:
    """`generate` for `texts`, which grow: all stand at position 0, so that nothing is padded, and the end of the longer
    ones is still being read while the shortest is already written on."""
    n_ctx, device, eot = model.config.n_ctx, model.wte.device, special_ids["eot"]
    silent = [number for name, number in special_ids.items() if name != "eot"]
    limits = [len(text) + max_new_tokens for text in texts]
    unended = set(range(len(texts)))
    cache: KVCache = []
    start, fed, length = (
        0,
        0,
        min(map(len, texts)),
    )  # tokens `start` to `fed` are cached; up to `length` come next
    while unended:
        if length - start > n_ctx:
            cache, start = [], length - n_ctx // 2
            fed = start
        ids_BT = torch.tensor([text[fed:length] for text in texts], device=device)
        logits_BV = model(ids_BT, cache=cache, logits=True)[1].cpu()
        logits_BV[:, silent] = float("-inf")
        for row in [row for row, text in enumerate(texts) if len(text) == length]:
            token = eot
            if row in unended:
                token = choices[row](logits_BV[row])
                if token != eot:
                    yield row, token
                if token == eot or length + 1 == limits[row]:
                    unended.remove(row)
            texts[row].append(token)
        fed, length = length, length + 1


def _choose(
    temperature: float, top_k: int, top_p: float, generator: torch.Generator, logits_V: Tensor
) -> int:
    if temperature == 0:
        return int(logits_V.argmax())
    values_K, ids_K = logits_V.topk(min(top_k or len(logits_V), len(logits_V)))
    weights_K = ((values_K - values_K[0]) / temperature).softmax(-1)
    weights_K[weights_K.cumsum(-1) - weights_K >= top_p] = (
        0.0  # those after the likeliest that reach `top_p`
    )
    return int(ids_K[torch.multinomial(weights_K, 1, generator=generator)])
