"""Predictions of a task model for a split, computed on all ranks."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from gpt1_ds.base.protocols import Engine
from gpt1_ds.distributed import collectives
from gpt1_ds.distributed.console import progress_bar
from gpt1_ds.tasks.base import Task
from gpt1_ds.tasks.batches import collate, micro_batches
from gpt1_ds.tasks.examples import Encoded, Label


@torch.no_grad()
def predict(
    model: nn.Module | Engine,
    task: Task,
    examples: Sequence[Encoded],
    special: dict[str, int],
    micro_batch: int,
    name: str,
    stopping: Callable[[], bool] = lambda: False,
) -> list[Label] | None:
    """Predictions for `examples` in their order. Every rank gets all of them.

    Each rank computes a part of them. `model` is a `TaskModel`, or the engine that holds one. The
    progress bar shows `name`. All ranks call `stopping` before each micro-batch and get the same
    answer; if it is True, the result is None.
    """
    was_training = model.training
    model.eval()
    try:
        rows_of_this_rank = _logits(model, examples, special, micro_batch, name, stopping)
    finally:
        model.train(was_training)
    if rows_of_this_rank is None:
        return None
    rows = {}
    for part in collectives.gather_json(rows_of_this_rank):
        rows.update({int(index): row for index, row in part.items()})
    return [task.predict(rows[index], example) for index, example in enumerate(examples)]


def _logits(
    model: nn.Module | Engine,
    examples: Sequence[Encoded],
    special: dict[str, int],
    micro_batch: int,
    name: str,
    stopping: Callable[[], bool],
) -> dict[int, list[Any]] | None:
    """The logits of this rank's examples by index; for tokens only the best class."""
    lengths = [example.length for example in examples]
    rank, world_size = collectives.rank(), collectives.world_size()
    shares = micro_batches(lengths, micro_batch, None, rank, world_size)
    rows: dict[int, list[Any]] = {}
    with progress_bar(len(shares), 0, "batch", name) as bar:
        for share in shares:
            if stopping():
                return None
            batch = collate([examples[index] for index in share], special, examples[0])
            batch = batch.to(collectives.device())
            _, _, logits = model(batch.ids_BST, batch.end_BS, batch.targets)
            if logits.ndim == 3:
                logits = logits.argmax(-1)
            # An empty share gives one blank row, which `zip` leaves out.
            rows.update(zip(share, logits.tolist(), strict=False))
            bar.update()
    return rows
