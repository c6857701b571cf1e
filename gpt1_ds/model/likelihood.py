"""Log-likelihoods of the last tokens of many sequences; the ranks share the work.

Names of arrays end with their shape: N sequences, U different ones, B of a batch, T tokens.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gpt1_ds.base.protocols import Engine
from gpt1_ds.distributed import collectives
from gpt1_ds.distributed.console import progress
from gpt1_ds.model.gpt import GPT
from gpt1_ds.model.perplexity import Window, padded

BATCH_TOKENS = 4096


class Query(NamedTuple):
    """A sequence whose last `scored` tokens are scored, given those before them."""

    ids_T: np.ndarray
    """int64, at most n_ctx + 1. The first id is only context."""
    scored: int


class Likelihoods(NamedTuple):
    """What the model says of each query."""

    nats_N: np.ndarray
    """The log-likelihood of the scored tokens, float64; at most 0."""
    greedy_N: np.ndarray
    """Whether each scored token is the likeliest one at its place; False if not asked for."""


# Not in inference mode: the weights that ZeRO-3 gathers in it could not be trained afterwards.
@torch.no_grad()
def log_likelihoods(
    model: GPT | Engine,
    queries: Sequence[Query],
    name: str,
    greedy: bool = False,
    batch_tokens: int = BATCH_TOKENS,
    stopping: Callable[[], bool] = lambda: False,
) -> Likelihoods | None:
    """The log-likelihood of each query, on all ranks; the progress shows `name`.

    Equal sequences are scored once, so that they get equal results. Sequences of similar lengths
    are in one batch. The batches are the same for any number of ranks. All ranks call, and run the
    same number of forward passes, as ZeRO-3 requires.

    All ranks call `stopping` before each pass and get the same answer. If it is True, the result is
    None.
    """
    places: dict[tuple[bytes, int], int] = {}
    windows: list[Window] = []
    place_N = []
    for ids_T, scored in queries:
        place = places.setdefault((ids_T.tobytes(), scored), len(places))
        if place == len(windows):
            windows.append(Window(ids_T, scored, place))
        place_N.append(place)
    batches = _batches(windows, batch_tokens)
    rank, ranks = collectives.rank(), collectives.world_size()
    found_2U = torch.zeros(2, len(windows), dtype=torch.float64)
    with progress(name, len(windows), "sequence") as bar:
        for first in range(0, len(batches), ranks):
            if stopping():
                return None
            # A rank without a batch of its own repeats the last one, which does not count.
            batch = batches[min(first + rank, len(batches) - 1)]
            result_2B = _score(model, batch, greedy)
            if first + rank < len(batches):
                found_2U[:, [window.place for window in batch]] = result_2B
            bar.update(sum(map(len, batches[first : first + ranks])))
    nats_U, greedy_U = collectives.all_sum(found_2U).numpy()
    return Likelihoods(nats_U[place_N], greedy_U[place_N] > 0)


def _batches(windows: Sequence[Window], batch_tokens: int) -> list[list[Window]]:
    """The longest first, so that a batch needs little padding."""
    ordered = sorted(windows, key=lambda window: (-len(window.ids_T), window.place))
    batches = []
    first = 0
    while first < len(ordered):
        rows = max(1, batch_tokens // (len(ordered[first].ids_T) - 1))
        batches.append(ordered[first : first + rows])
        first += rows
    return batches


def _score(model: GPT | Engine, batch: list[Window], greedy: bool) -> Tensor:
    """Log-likelihood, and 1 if every scored token is the likeliest, (2, B) float64."""
    device = collectives.device()
    ids_BT, targets_BT = padded(batch, len(batch[0].ids_T) - 1)
    _, found = model(ids_BT.to(device), targets_BT.to(device), greedy=greedy)
    nll_BT, likeliest_BT = found if greedy else (found, torch.zeros_like(found))
    scored_B = torch.tensor([window.scored for window in batch])
    nats_B = -nll_BT.double().sum(1).cpu()
    return torch.stack([nats_B, (likeliest_BT.sum(1).cpu() == scored_B).double()])
