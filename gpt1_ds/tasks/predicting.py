"""Predictions of a task model for a split, computed on all ranks."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from gpt1_ds.distributed import collectives
from gpt1_ds.distributed.console import progress
from gpt1_ds.tasks.base import Task
from gpt1_ds.tasks.batches import collate, scoring_batches
from gpt1_ds.tasks.examples import Encoded, Label


@torch.no_grad()
def predict(
    model: nn.Module,
    task: Task,
    examples: Sequence[Encoded],
    special: dict[str, int],
    name: str,
    stopping: Callable[[], bool] = lambda: False,
) -> list[Label] | None:
    """Predictions for `examples` in their order. Every rank gets all of them.

    Each rank computes a part of them. The batches, and so the bits of the logits, do not depend on
    the number of ranks. `model` is a `TaskModel` in eval mode. The progress shows `name`. All
    ranks call `stopping` before each batch and get the same answer; if it is True, the result is
    None.
    """
    rows_of_this_rank = logits_of_rank(model, examples, special, name, stopping)
    if rows_of_this_rank is None:
        return None
    rows = {}
    for part in collectives.gather_json(rows_of_this_rank):
        rows.update({int(index): row for index, row in part.items()})
    return [task.predict(rows[index], example) for index, example in enumerate(examples)]


@torch.no_grad()
def whole_logits(
    model: nn.Module, examples: Sequence[Encoded], special: dict[str, int], name: str
) -> list[list[Any]]:
    """The logits of `examples` in their order, computed by this process alone.

    Token classification: those of each word's first sub-token; empty for a word without one. The
    batches are those of `predict`, and so are the bits.
    """
    rows = logits_of_rank(model, examples, special, name, of_words=True)
    assert rows is not None  # None only if a stop was requested, which cannot happen here
    return [rows[index] for index in range(len(examples))]


def logits_of_words(logits: list[Any], example: Encoded) -> list[Any]:
    """Those of each word's first sub-token, out of those of every token; empty without one."""
    return [logits[at] if at >= 0 else [] for at in example.words]


def logits_of_rank(
    model: nn.Module,
    examples: Sequence[Encoded],
    special: dict[str, int],
    name: str,
    stopping: Callable[[], bool] = lambda: False,
    of_words: bool = False,
) -> dict[int, list[Any]] | None:
    """The logits of this rank's examples by index.

    For tokens it is the best class of each token, or with `of_words` all logits of each word.
    """
    batches = scoring_batches(examples)
    rank, world_size = collectives.rank(), collectives.world_size()
    shares = batches[rank::world_size]
    # Every rank takes part in as many calls of `stopping`.
    shares += [[]] * (-(-len(batches) // world_size) - len(shares))
    rows: dict[int, list[Any]] = {}
    device = next(model.parameters()).device
    with progress(name, len(shares), "batch") as bar:
        for share in shares:
            if stopping():
                return None
            batch = collate([examples[index] for index in share], special, examples[0])
            batch = batch.to(device)
            _, _, logits = model(batch.ids_BST, batch.end_BS, batch.targets)
            is_per_token = logits.ndim == 3
            if is_per_token and not of_words:
                logits = logits.argmax(-1)
            # An empty share gives one blank row, which `zip` leaves out.
            for index, row in zip(share, logits.tolist(), strict=False):
                words = is_per_token and of_words
                rows[index] = logits_of_words(row, examples[index]) if words else row
            bar.update()
    return rows
