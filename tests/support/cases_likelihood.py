"""Log-likelihoods by the ranks of a pool."""

import torch

from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.model.likelihood import Query, log_likelihoods

CONFIG = GPTConfig(300, n_layer=2, n_head=2, n_embd=32, n_ctx=24)


def small_model() -> GPT:
    torch.manual_seed(0)
    model = GPT(CONFIG).eval()
    with torch.no_grad():
        model.wte.mul_(20.0)  # at initialisation all tokens are nearly alike
    return model


def queries(count: int = 40) -> list[Query]:
    generator = torch.Generator().manual_seed(1)
    found = []
    for number in range(count):
        length = 3 + number * 7 % 21
        ids_T = torch.randint(300, (length,), generator=generator).numpy()
        found.append(Query(ids_T, 1 + number % (length - 1)))
    return found


def scored_by_this_rank(batch_tokens: int) -> list[list[float]]:
    found = log_likelihoods(small_model(), queries(), "test", True, batch_tokens)
    assert found is not None
    return [found.nats_N.tolist(), found.greedy_N.tolist()]
