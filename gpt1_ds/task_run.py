"""A fine-tuning run: its examples, the order they are trained in, and the files it leaves (layer 2)."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt1_ds import distributed
from gpt1_ds.config import FinetuneConfig
from gpt1_ds.dataloader import Cursor
from gpt1_ds.files import write_atomically
from gpt1_ds.metrics import RunLog
from gpt1_ds.preemption import StopFlag
from gpt1_ds.profiling import Throughput
from gpt1_ds.tasks import Encoded, Example, Task
from gpt1_ds.tasks.batches import epoch_batches
from gpt1_ds.tokenizer import Tokenizer


@dataclass
class TaskData:
    """A task's examples as the model sees them, and what judges the answers."""

    task: Task
    tokenizer: Tokenizer
    train: list[Encoded]
    dev: list[Encoded]
    gold: list[Any]
    """Answers of the dev examples, as the task's metrics take them."""
    parts: list[str]
    """Part of dev (RACE: middle or high) that each dev example belongs to, scored by itself; empty: none."""
    others: dict[str, list[Example]]
    """Every further split whose file is there: test, MNLI's mismatched half. Predicted at the end."""
    majority: float
    """The score on dev of the training set's commonest answer."""

    @property
    def cut(self) -> dict[str, dict[str, int]]:
        """For each split: examples that were too long for the context, and the tokens they lost, in all and at most."""
        lost = {"train": [e.cut for e in self.train if e.cut], "dev": [e.cut for e in self.dev if e.cut]}
        return {split: {"examples": len(cuts), "tokens": sum(cuts), "most": max(cuts, default=0)}
                for split, cuts in lost.items()}  # fmt: skip

    def tokens(self, batch: list[int]) -> int:
        """Real tokens of the training examples with these indices."""
        return sum(len(sequence) for index in batch for sequence in self.train[index].sequences)


@dataclass
class Run:
    """What the loop needs beside the engine."""

    config: FinetuneConfig
    folder: Path
    data: TaskData
    facts: dict
    """Model shape, tokenizer hash, task and initial weights, saved in every checkpoint."""
    stop: StopFlag
    throughput: Throughput
    log: RunLog
    saves: Any
    """Its checkpoints: a `saving.Saves`."""
    bar: Any

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.data.train) // self.config.train.global_batch)

    @property
    def total_steps(self) -> int:
        return total_steps(self.config, self.data)

    def score_due(self, step: int, cursor: Cursor) -> bool:
        """Whether dev is scored after `step`: each `eval.every` steps or at the end of an epoch, and after the last."""
        every = self.config.eval.every
        return step == self.total_steps or (cursor.index == 0 if every is None else step % every == 0)

    def given_up(self, best: dict | None) -> bool:
        """Whether the last `task.patience` scores brought nothing better."""
        return None not in (best, self.config.task.patience) and best["stale"] >= self.config.task.patience

    def batches(self, cursor: Cursor) -> Iterator[tuple[list[int], Cursor]]:
        """Global batches (indices of the training examples) from `cursor` on, epoch after epoch, and the cursor after
        each; its index counts batches of the epoch."""
        lengths = [example.length for example in self.data.train]
        epoch, index, config = cursor.epoch, cursor.index, self.config
        while True:
            for batch in epoch_batches(lengths, config.train.global_batch, config.run.seed, epoch)[index:]:
                index += 1
                yield batch, Cursor(epoch, index) if index < self.steps_per_epoch else Cursor(epoch + 1, 0)
            epoch, index = epoch + 1, 0


def total_steps(config: FinetuneConfig, data: TaskData) -> int:
    """`train.max_steps`, or the steps of `train.epochs` (the last batch of an epoch may be a partial one)."""
    train = config.train
    by_epochs = None if train.epochs is None else math.ceil(train.epochs * -(-len(data.train) // train.global_batch))
    return min(steps for steps in (by_epochs, train.max_steps) if steps is not None)


def write_predictions(folder: Path, task: Task, split: str, gold: Sequence[Any], predictions: Sequence[Any]) -> None:
    """predictions-SPLIT.tsv in `folder`; for a test file of GLUE also glue/NAME.tsv, as its site takes it."""
    shown = list(map(task.show, predictions))
    labels = ("" if label is None else task.show(label) for label in gold)
    rows = [f"{index}\t{label}\t{mine}\n" for index, (label, mine) in enumerate(zip(labels, shown, strict=True))]
    write_atomically(folder / f"predictions-{split}.tsv", "index\tgold\tprediction\n" + "".join(rows))
    if split in task.glue:
        (folder / "glue").mkdir(exist_ok=True)
        rows = [f"{index}\t{mine}\n" for index, mine in enumerate(shown)]
        write_atomically(folder / "glue" / f"{task.glue[split]}.tsv", "index\tprediction\n" + "".join(rows))


def write_result(run: Run, best: dict, steps: int, splits: dict[str, dict[str, float]]) -> None:
    """result.json: the best score on dev, what it took, and the scores of the labelled splits beside it."""
    config, data = run.config, run.data
    metric = data.task.metrics[0]
    result = {
        "task": config.task.name,
        "metric": metric,
        "score": best["metrics"][metric],
        "metrics": best["metrics"],
        "majority": data.majority,
        "seed": config.run.seed,
        "epochs": round(steps / run.steps_per_epoch, 3),
        "examples": {"train": len(data.train), "dev": len(data.dev)},
        "init": run.facts["init"],
        "best_step": best["step"],
        "cut": data.cut,
        "splits": best["parts"] | splits,
        "confusion": best["confusion"] and {"classes": list(data.task.classes), "counts": best["confusion"]},
    }
    write_atomically(run.folder / "result.json", json.dumps(result, indent=2) + "\n")
    distributed.say(f"{config.task.name}: {metric} {result['score']:.4f} on {len(data.dev)} dev examples at step "
                    f"{best['step']} (majority {data.majority:.4f}); see {run.folder}/result.json")  # fmt: skip
