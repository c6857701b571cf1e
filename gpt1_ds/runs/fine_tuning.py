"""A fine-tuning run: its examples, the order they are trained in, and the files it leaves (layer 2)."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from gpt1_ds.base.errors import ConfigError, DataError
from gpt1_ds.base.files import write_atomically
from gpt1_ds.checkpoints import loading
from gpt1_ds.checkpoints.folder import find_checkpoint, read_state
from gpt1_ds.data.opening import local_shards
from gpt1_ds.data.order import Cursor
from gpt1_ds.data.tokenizer import Tokenizer, load_tokenizer
from gpt1_ds.distributed.console import say
from gpt1_ds.distributed.preemption import StopFlag
from gpt1_ds.engine.timing import Throughput
from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.runs.log import RunLog
from gpt1_ds.settings.loading import run_folder
from gpt1_ds.settings.sections import PRESETS, FinetuneConfig
from gpt1_ds.tasks import LABELLED, Encoded, Example, Task
from gpt1_ds.tasks.batches import (
    epoch_batches,
    subset,
)
from gpt1_ds.tasks.scores import majority_score, task_metrics


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
        lost = {
            "train": [e.cut for e in self.train if e.cut],
            "dev": [e.cut for e in self.dev if e.cut],
        }
        return {
            split: {"examples": len(cuts), "tokens": sum(cuts), "most": max(cuts, default=0)}
            for split, cuts in lost.items()
        }

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
        return step == self.total_steps or (
            cursor.index == 0 if every is None else step % every == 0
        )

    def given_up(self, best: dict | None) -> bool:
        """Whether the last `task.patience` scores brought nothing better."""
        return (
            None not in (best, self.config.task.patience)
            and best["stale"] >= self.config.task.patience
        )

    def batches(self, cursor: Cursor) -> Iterator[tuple[list[int], Cursor]]:
        """Global batches (indices of the training examples) from `cursor` on, epoch after epoch, and the cursor after
        each; its index counts batches of the epoch."""
        lengths = [example.length for example in self.data.train]
        epoch, index, config = cursor.epoch, cursor.index, self.config
        while True:
            for batch in epoch_batches(lengths, config.train.global_batch, config.run.seed, epoch)[
                index:
            ]:
                index += 1
                yield (
                    batch,
                    Cursor(epoch, index) if index < self.steps_per_epoch else Cursor(epoch + 1, 0),
                )
            epoch, index = epoch + 1, 0


def total_steps(config: FinetuneConfig, data: TaskData) -> int:
    """`train.max_steps`, or the steps of `train.epochs` (the last batch of an epoch may be a partial one)."""
    train = config.train
    by_epochs = (
        None
        if train.epochs is None
        else math.ceil(train.epochs * -(-len(data.train) // train.global_batch))
    )
    return min(steps for steps in (by_epochs, train.max_steps) if steps is not None)


def write_predictions(
    folder: Path, task: Task, split: str, gold: Sequence[Any], predictions: Sequence[Any]
) -> None:
    """predictions-SPLIT.tsv in `folder`; for a test file of GLUE also glue/NAME.tsv, as its site takes it."""
    shown = list(map(task.show, predictions))
    labels = ("" if label is None else task.show(label) for label in gold)
    rows = [
        f"{index}\t{label}\t{mine}\n"
        for index, (label, mine) in enumerate(zip(labels, shown, strict=True))
    ]
    write_atomically(
        folder / f"predictions-{split}.tsv", "index\tgold\tprediction\n" + "".join(rows)
    )
    if split in task.glue:
        (folder / "glue").mkdir(exist_ok=True)
        rows = [f"{index}\t{mine}\n" for index, mine in enumerate(shown)]
        write_atomically(
            folder / "glue" / f"{task.glue[split]}.tsv", "index\tprediction\n" + "".join(rows)
        )


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
        "confusion": best["confusion"]
        and {"classes": list(data.task.classes), "counts": best["confusion"]},
    }
    write_atomically(run.folder / "result.json", json.dumps(result, indent=2) + "\n")
    say(
        f"{config.task.name}: {metric} {result['score']:.4f} on {len(data.dev)} dev examples at step "
        f"{best['step']} (majority {data.majority:.4f}); see {run.folder}/result.json"
    )


def read_task_data(
    config: FinetuneConfig, task: Task, tokenizer: Tokenizer, n_ctx: int
) -> TaskData:
    """Every split of the task that is there, train and dev encoded."""
    if not config.task.data:
        raise ConfigError(f"task.data is not set; give the folder of {config.task.name}'s files")
    others = {
        split
        for split in task.files
        if split not in LABELLED and task.path(config.task.data, split)
    }
    train, dev, *rest = (
        task.read(config.task.data, split) for split in (*LABELLED, *sorted(others))
    )
    train = [
        train[index] for index in subset(len(train), config.task.max_examples, config.run.seed)
    ]
    if config.eval.batches is not None:
        dev = [
            dev[i]
            for i in subset(
                len(dev), config.eval.batches * config.train.global_batch, config.run.seed
            )
        ]
    gold, parts = [example.label for example in dev], [example.part for example in dev]
    task_metrics(
        task.metrics, gold, gold
    )  # an unknown metric is told before training, not after an epoch
    majority = majority_score(task.metrics[0], [example.label for example in train], gold)
    train, dev = (task.encode(examples, tokenizer, n_ctx) for examples in (train, dev))
    return TaskData(
        task,
        tokenizer,
        train,
        dev,
        gold,
        parts,
        dict(zip(sorted(others), rest, strict=True)),
        majority,
    )


def starting_point(
    config: FinetuneConfig, resumes: bool
) -> tuple[GPTConfig, Tokenizer, Path | None]:
    """Shape of the decoder, its tokenizer, and the checkpoint that holds its weights (None: from scratch).

    A run that resumes reads its own: what it once started from may be gone.
    """
    if config.init.checkpoint is None:
        tokenizer = load_tokenizer(local_shards(config.data) / "tokenizer")
        return GPTConfig(tokenizer.vocab_size, **shape_of(config.model)), tokenizer, None
    folder = find_checkpoint(run_folder(config) if resumes else config.init.checkpoint)
    state = read_state(folder)
    tokenizer = load_tokenizer(folder.parents[1] / "tokenizer")
    if tokenizer.sha256 != state.get("tokenizer_sha256"):
        raise DataError(
            f"{folder.parents[1] / 'tokenizer'}: not the tokenizer of {folder}; restore the run's own"
        )
    kind = state["model"].get("kind", "transformer")
    if config.model.kind not in ("transformer", kind):
        raise ConfigError(
            f"model.kind is {config.model.kind}, but {folder} holds a {kind}; set init.checkpoint=none"
        )
    for key, usual in PRESETS["gpt1"].items():
        if getattr(config.model, key) not in (usual, state["model"][key]):
            raise ConfigError(
                f"model.{key} is {getattr(config.model, key)}, but {folder} holds a model with "
                f"{state['model'][key]}; leave it out, or set init.checkpoint=none"
            )
    pdrops = {
        name: value for name, value in shape_of(config.model).items() if name.endswith("_pdrop")
    }
    return GPTConfig(**state["model"] | pdrops), tokenizer, folder


def shape_of(model: Any) -> dict[str, Any]:
    """What `ModelConfig` and `GPTConfig` have in common."""
    return {
        key: value for key, value in asdict(model).items() if key not in ("preset", "vocab_size")
    }


def load_transferred_weights(gpt: GPT, source: Path, n_transfer: int | None) -> dict[str, Tensor]:
    """Fill the decoder from a checkpoint and return its weights in float32; every name and shape must be met.

    With `n_transfer`, blocks from that one on (0: all but the embeddings; -1: those too) keep their random weights.
    """
    weights, _ = loading.load_weights(source)
    wanted = gpt.state_dict()
    for name in sorted(weights.keys() | wanted.keys()):
        there, here = (
            tuple(side[name].shape) if name in side else "nothing" for side in (weights, wanted)
        )
        if there != here:
            raise DataError(
                f"{source}: checkpoint of another model: {name} is {there} there, {here} here; give a "
                "pre-training run"
            )
    if not -1 <= (n_transfer or 0) <= len(gpt.blocks):
        raise ConfigError(f"task.n_transfer is {n_transfer}; {source} has {len(gpt.blocks)} blocks")
    for name in weights:
        layer = (
            int(name.split(".")[1])
            if name.startswith("blocks.")
            else -1
            if name in ("wte", "wpe")
            else 0
        )
        if n_transfer is not None and layer >= n_transfer:
            weights[name] = wanted[name].clone()
    gpt.load_state_dict(weights)
    return weights
