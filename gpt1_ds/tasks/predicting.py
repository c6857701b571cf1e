"""Predictions of a task model over a split, on all ranks."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from gpt1_ds.distributed import collectives
from gpt1_ds.distributed.console import progress_bar
from gpt1_ds.tasks import Encoded, Task
from gpt1_ds.tasks.batches import collate, micro_batches


@torch.no_grad()
def predict(
    model: nn.Module,
    task: Task,
    examples: Sequence[Encoded],
    special: dict[str, int],
    micro_batch: int,
    name: str,
    stopping: Callable[[], bool] = lambda: False,
) -> list[Any] | None:
    """Predictions for `examples` in their order, on every rank; each example is run by one of them.

    `model` is a `TaskModel` or the engine around one; `name` is for the progress bar. None where `stopping`, which all
    ranks ask before each micro-batch and get one answer, cut it short.
    """
    rank, world_size, training = collectives.rank(), collectives.world_size(), model.training
    shares = micro_batches(
        [example.length for example in examples], micro_batch, None, rank, world_size
    )
    model.eval()
    mine: dict[int, list] = {}
    with progress_bar(len(shares), 0, "batch", name) as bar:
        for share in shares:
            if stopping():
                model.train(training)
                return None
            batch = collate([examples[index] for index in share], special, examples[0]).to(
                collectives.device()
            )
            _, _, logits = model(batch.ids_BST, batch.end_BS, batch.targets)
            rows = (
                logits.argmax(-1) if logits.ndim == 3 else logits
            )  # of tokens only the best class is asked for
            mine.update(
                zip(share, rows.tolist(), strict=False)
            )  # no share: one blank row, dropped here
            bar.update()
    model.train(training)
    rows = {
        int(index): row for part in collectives.gather_json(mine) for index, row in part.items()
    }
    return [task.predict(rows[index], example) for index, example in enumerate(examples)]
