"""A fine-tuning run: its examples, the order they are trained in, and the files it leaves."""

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from gpt1_ds.base.errors import ConfigError, StopRequested
from gpt1_ds.base.files import file_sha256, write_atomically
from gpt1_ds.base.protocols import Json
from gpt1_ds.checkpoints.deepspeed_files import saved_batch
from gpt1_ds.checkpoints.folder import (
    checkpoint_folders,
    find_checkpoint,
    read_checkpoint_manifest,
    read_state,
    step_folder,
)
from gpt1_ds.checkpoints.state import CheckpointState
from gpt1_ds.data.opening import local_shards
from gpt1_ds.data.order import Cursor
from gpt1_ds.data.tokenizer import Tokenizer, load_tokenizer
from gpt1_ds.distributed import collectives
from gpt1_ds.distributed.console import say
from gpt1_ds.distributed.preemption import StopFlag
from gpt1_ds.model.gpt import GPTConfig
from gpt1_ds.runs.budget import tell_schedule
from gpt1_ds.runs.predictions import report_of_predictions
from gpt1_ds.runs.provenance import differences, made_from
from gpt1_ds.runs.remote_run import local_run
from gpt1_ds.runs.setup import Run, Settings, Started, shape_of
from gpt1_ds.runs.task_data import TaskData
from gpt1_ds.runs.trained import run_tokenizer
from gpt1_ds.settings.loading import run_folder
from gpt1_ds.settings.sections import PRESETS, FinetuneConfig
from gpt1_ds.tasks.batches import classes_of, epoch_batches
from gpt1_ds.tasks.class_report import brief


class FineTuning(Run[FinetuneConfig]):
    """A fine-tuning run in progress."""

    def __init__(
        self, settings: Settings[FinetuneConfig], started: Started, stop: StopFlag, data: TaskData
    ):
        config = settings.config
        self.state = continued(config, data, started)
        """Where training begins."""
        steps = total_steps(config, data, self.state)

        def earlier_total(earlier: FinetuneConfig) -> int:
            return total_steps(earlier, data, started.state)

        tell_schedule(started, config, steps, earlier_total)
        super().__init__(settings, started, stop, steps, config.task.name)
        self.data = data
        self.steps_per_epoch = data.steps_per_epoch(config.train.global_batch)

    def epochs(self) -> float:
        """How often each training example was seen; starts may have had batches of other sizes."""
        cursor, steps = self.state.cursor, self.engine.global_steps - self.state.step
        return (cursor.epoch * self.steps_per_epoch + cursor.index + steps) / self.steps_per_epoch

    def score_due(self, step: int, cursor: Cursor) -> bool:
        """Whether dev is scored after `step`.

        Each `eval.every` steps, or at the end of an epoch if that is null; and after the last step.
        """
        every = self.config.eval.every
        due = cursor.index == 0 if every is None else step % every == 0
        return due or step >= self.total_steps

    def is_done(self, state: CheckpointState) -> bool:
        """Whether a start at `state` has nothing to train, and dev was scored there."""
        at_the_end = state.step >= self.total_steps or self.given_up(state.best)
        return at_the_end and state.best is not None and self.log.has(state.step, "task")

    def given_up(self, best: Json | None) -> bool:
        """Whether the last `task.patience` scores brought nothing better."""
        return given_up(self.config.task.patience, best)

    def stopped(self, step: int) -> StopRequested:
        return StopRequested(f"step {step} of {self.total_steps} {self.kept()}")

    def batches(self, cursor: Cursor) -> Iterator[tuple[list[int], Cursor]]:
        """Global batches from `cursor` on, epoch after epoch, and the cursor after each.

        A batch is indices of training examples. The cursor's index counts batches of the epoch.
        """
        config = self.config
        lengths = [example.length for example in self.data.train]
        classes = None
        if config.task.sampling == "balanced":
            classes = [classes_of(example)[0] for example in self.data.train]
        batch, seed = config.train.global_batch, config.run.seed
        plain = config.task.sampling == "plain"
        epoch, index = cursor.epoch, cursor.index
        while True:
            batches = epoch_batches(lengths, batch, seed, epoch, classes, plain)
            for indices in batches[index : self.steps_per_epoch]:
                index += 1
                ends_epoch = index >= self.steps_per_epoch
                yield indices, Cursor(epoch + 1, 0) if ends_epoch else Cursor(epoch, index)
            epoch, index = epoch + 1, 0


def given_up(patience: int | None, best: Json | None) -> bool:
    return best is not None and patience is not None and best["stale"] >= patience


def total_steps(
    config: FinetuneConfig, data: TaskData, state: CheckpointState | None = None
) -> int:
    """`train.max_steps`, or the steps of `train.epochs`, whichever is less.

    A run at `state` needs as many further steps as there are batches between its cursor and the end
    of the epochs. It has no further ones if it has more steps already.
    """
    train = config.train
    done, cursor = (state.step, state.cursor) if state else (0, Cursor())
    limits = []
    if train.epochs is not None:
        an_epoch = data.steps_per_epoch(train.global_batch)
        seen = cursor.epoch * an_epoch + cursor.index
        limits.append(done + math.ceil(train.epochs * an_epoch) - seen)
    if train.max_steps is not None:
        limits.append(train.max_steps)
    return max(done, min(limits))


def continued(config: FinetuneConfig, data: TaskData, started: Started) -> CheckpointState:
    """The state to go on from: its cursor counts batches of the present size.

    Batches of another size hold other examples. So within an epoch the place is about the same.
    """
    state, cursor = started.state, started.state.cursor
    if not cursor.index:
        return state
    folder = step_folder(started.folder / "checkpoints", state.step)
    before = saved_batch(folder, read_checkpoint_manifest(folder))
    if before in (None, config.train.global_batch):
        return state
    steps, steps_before = map(data.steps_per_epoch, (config.train.global_batch, before))
    index = round(cursor.index * steps / steps_before)
    say(
        f"train.global_batch was {before}: epoch {cursor.epoch + 1} goes on after {index} of its "
        f"{steps} batches; some examples come twice in it, and others not at all"
    )
    place = Cursor(cursor.epoch + 1, 0) if index >= steps else Cursor(cursor.epoch, index)
    return replace(state, cursor=place)


def starting_point(
    config: FinetuneConfig, resumes: bool
) -> tuple[GPTConfig, Tokenizer, Path | None]:
    """Shape of the decoder, its tokenizer, and the checkpoint with its weights (None: no such).

    A run that resumes reads its own checkpoint: what it once started from may be gone.
    """
    if config.init.checkpoint is None:
        if config.task.n_transfer not in (None, -1):
            raise ConfigError(
                f"task.n_transfer is {config.task.n_transfer}, but init.checkpoint=none has no "
                "weights to take; leave it out"
            )
        tokenizer = load_tokenizer(local_shards(config.data) / "tokenizer")
        return GPTConfig(tokenizer.vocab_size, **shape_of(config.model)), tokenizer, None
    origin = run_folder(config) if resumes else local_run(config.init.checkpoint)
    folder = find_checkpoint(origin)
    state = read_state(folder)
    tokenizer = run_tokenizer(folder, state)
    shape = shape_of(config.model)
    kind = state.model.get("kind", "transformer")
    if config.model.kind not in ("transformer", kind):
        raise ConfigError(
            f"model.kind is {config.model.kind}, but {folder} holds a {kind}; set "
            "init.checkpoint=none"
        )
    for key, usual in PRESETS["gpt1"].items():
        if shape[key] not in (usual, state.model[key]):
            raise ConfigError(
                f"model.{key} is {shape[key]}, but {folder} holds a model with "
                f"{state.model[key]}; leave it out, or set init.checkpoint=none"
            )
    chosen = {name: value for name, value in shape.items() if "drop" in name}
    released = state.model.get("position_logits", False)
    chosen["position_logits"] = shape["position_logits"] or released
    return GPTConfig(**state.model | chosen), tokenizer, folder


def settle_best(folder: Path, best: Json | None) -> Json | None:
    """Remove from best/ what the state that a start begins with does not know; `best` again.

    A start that was killed may have left weights of a later step, or of other settings. If those of
    `best` itself are gone, the result is None, and the best score is looked for anew. All ranks
    call.
    """
    is_there = False
    if collectives.is_main():
        for path in checkpoint_folders(folder / "best" / "checkpoints"):
            if best is not None and read_state(path).best == {**best, "stale": 0}:
                is_there = True
                continue
            shutil.rmtree(path)
            say(f"{path}: left by a start that was cut off; removed")
        if best is None:
            for path in folder.glob("predictions-*.tsv"):
                path.unlink()
    is_there = collectives.from_main(is_there)
    if best is not None and not is_there:
        say(f"warning: {folder}/best does not hold step {best['step']}; the best is chosen anew")
    return best if is_there else None


def write_result(
    run: FineTuning, best: Json, splits: dict[str, dict[str, float]], earlier: Json | None
) -> None:
    """result.json: the best score on dev, what it took, and the scores of the other splits.

    `earlier` is what the result of a run that was done before this start was made from: if this
    start has other settings, they trained nothing, and the result stays as it is.
    """
    config, data = run.config, run.data
    path = run.folder / "result.json"
    facts = made_from(config, run.facts)
    changed = differences(earlier or {}, facts)
    if changed:
        say(f"warning: {path} stays as it is: the run was done, made with {'; '.join(changed)}")
        return
    metric = data.task.metrics[0]
    score = best["metrics"][metric]
    confusion = best["confusion"]
    report = report_of_predictions(run.folder, data.task, data.gold)
    files = [run.folder / f"predictions-{split}.tsv" for split in ("dev", *data.others)]
    result = {
        "task": config.task.name,
        "metric": metric,
        "score": score,
        "metrics": best["metrics"],
        "majority": data.majority,
        "seed": config.run.seed,
        "epochs": round(run.epochs(), 3),
        "examples": {"train": len(data.train), "dev": len(data.dev)},
        "init": run.facts.init,
        "best_step": best["step"],
        "cut": data.cut,
        "splits": best["parts"] | splits,
        "by_class": report,
        "confusion": confusion and {"classes": list(data.task.classes), "counts": confusion},
        "files": {file.name: file_sha256(file) for file in files if file.exists()},
        "made_from": facts,
        "predicted": data.predicted,
    }
    write_atomically(path, json.dumps(result, indent=2) + "\n")
    say(
        f"{config.task.name}: {metric} {score:.4f} on {len(data.dev)} dev examples at step "
        f"{best['step']} (majority {data.majority:.4f}); see {path}"
    )
    if report:
        say(f"F1 by class: {brief(report)}")
