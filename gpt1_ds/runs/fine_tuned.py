"""A fine-tuned run loaded again: its outcomes for examples, and its calibration.

`calibration.json` in the run's folder holds one temperature and names, by hash, the checkpoint that
it was fitted for. It is used for no other checkpoint.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpt1_ds.base.errors import ConfigError, DataError
from gpt1_ds.base.files import write_atomically
from gpt1_ds.base.protocols import Json
from gpt1_ds.checkpoints.averaging import load_mean
from gpt1_ds.checkpoints.folder import (
    MANIFEST,
    checkpoint_folders,
    checkpoint_sha256,
    find_checkpoint,
    read_state,
)
from gpt1_ds.checkpoints.loading import load_weights
from gpt1_ds.data.tokenizer import Tokenizer
from gpt1_ds.reports.suite_files import RUN_NAME
from gpt1_ds.runs.trained import build_task_model, run_tokenizer
from gpt1_ds.settings.sections import TaskConfig
from gpt1_ds.tasks import Encoded, Example, Task, build_task
from gpt1_ds.tasks.examples import Label
from gpt1_ds.tasks.heads import TaskModel
from gpt1_ds.tasks.predicting import whole_logits
from gpt1_ds.tasks.probabilities import Calibration, label_of, outcome

OF_ONES_OWN = ("kind", "columns", "labels", "files", "metrics")
"""The keys that describe a task in place of its name."""
CALIBRATION = "calibration.json"


class FineTuned(NamedTuple):
    """The model with a fine-tuned run's best weights, its task and its tokenizer."""

    model: TaskModel
    task: Task
    name: str
    """The task that the run was trained for."""
    tokenizer: Tokenizer
    folder: Path
    """The checkpoint of the weights."""
    data: str
    """The folder of the task's files in training."""


class Outcomes(NamedTuple):
    """Predictions for examples, and what they were chosen from."""

    labels: list[Label]
    values: list[np.ndarray]
    """Of each example, see `probabilities.outcome`."""


def load_fine_tuned(run: str | Path, name: str | None, average: int | None = None) -> FineTuned:
    """Load the best weights of `run`, or the mean of its last `average` checkpoints.

    Another task `name` must have the same kind and labels. It keeps the options of the run's task,
    such as squared_error: the head was trained with them.
    """
    if average:
        weights, state, (folder, *_) = load_mean(run, average)
    else:
        folder = best_checkpoint(run)
        weights, state = load_weights(folder)
    model, task = build_task_model(weights, state, folder)
    facts = state.task or {}
    trained_for = facts["name"]
    if name and name != trained_for:
        trained = task
        options = {**facts["config"], "name": name, **dict.fromkeys(OF_ONES_OWN)}
        task = build_task(TaskConfig(**options), strict=False)
        if (task.kind, task.classes) != (trained.kind, trained.classes):
            raise ConfigError(
                f"--task {name}: {folder} was trained for {trained_for}, with other labels"
            )
    tokenizer = run_tokenizer(folder, state)
    return FineTuned(model, task, trained_for, tokenizer, folder, facts["config"].get("data", ""))


def best_checkpoint(run: str | Path) -> Path:
    """The checkpoint of the best weights of `run`, or `run` itself if it is a checkpoint."""
    best = Path(run) / "best"
    return find_checkpoint(best if best.is_dir() else run)


def run_of(checkpoint: Path) -> Path:
    """The run's folder, from RUN/checkpoints/step-N or RUN/best/checkpoints/step-N."""
    in_best = checkpoint.parents[1].name == "best"
    return checkpoint.parents[2] if in_best else checkpoint.parents[1]


def encode(tuned: FineTuned, examples: Sequence[Example]) -> list[Encoded]:
    return tuned.task.encode(examples, tuned.tokenizer, tuned.model.gpt.config.n_ctx)


def logits_of(tuned: FineTuned, encoded: Sequence[Encoded]) -> list:
    return whole_logits(tuned.model, encoded, tuned.tokenizer.special_ids, tuned.name)


def outcomes(tuned: FineTuned, examples: Sequence[Example], temperature: float = 1.0) -> Outcomes:
    """The run's predictions and probabilities for `examples`."""
    encoded = encode(tuned, examples)
    values = [
        outcome(tuned.task, logits, example, temperature)
        for logits, example in zip(logits_of(tuned, encoded), encoded, strict=True)
    ]
    return Outcomes([label_of(tuned.task, value) for value in values], values)


def predictions(tuned: FineTuned, examples: Sequence[Example]) -> list[Label]:
    return outcomes(tuned, examples).labels


def mean_outcomes(task: Task, members: Sequence[Outcomes]) -> Outcomes:
    """The prediction of an ensemble: the mean of its members' probabilities or scores."""
    of_examples = zip(*(member.values for member in members), strict=True)
    values = [np.mean(of_example, axis=0) for of_example in of_examples]
    return Outcomes([label_of(task, value) for value in values], values)


def temperature_of(checkpoint: Path) -> float:
    """The temperature in the calibration.json of the run of `checkpoint`; 1 without one.

    Warns if it was fitted for another checkpoint, and then does not use it.
    """
    if not (checkpoint / MANIFEST).exists():
        return 1.0  # a folder for transformers, which is in no run
    path = run_of(checkpoint) / CALIBRATION
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        fitted_for, temperature = content["checkpoint_sha256"], float(content["temperature"])
    except FileNotFoundError:
        return 1.0
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: {error!r}; run --calibrate again, or remove it") from error
    if not 0 < temperature < np.inf:
        raise DataError(f"{path}: temperature is {temperature}; run --calibrate again")
    if fitted_for != checkpoint_sha256(checkpoint):
        print(
            f"warning: {path} was fitted for other weights than {checkpoint}; it is not used, "
            "run --calibrate again",
            file=sys.stderr,
        )
        return 1.0
    return temperature


def write_calibration(tuned: FineTuned, data: Path, found: Calibration) -> Path:
    """calibration.json in the run's folder."""
    path = run_of(tuned.folder) / CALIBRATION
    content: Json = {
        "temperature": found.temperature,
        "checkpoint": tuned.folder.name,
        "checkpoint_sha256": checkpoint_sha256(tuned.folder),
        "data": str(data),
        "labels": found.labels,
        "nll": dict(zip(("before", "after"), found.nll, strict=True)),
        "ece": dict(zip(("before", "after"), found.ece, strict=True)),
    }
    write_atomically(path, json.dumps(content, indent=2) + "\n")
    return path


def member_runs(paths: Iterable[str], task: str | None) -> list[str]:
    """The runs of an ensemble. In place of a suite's folder stand its full runs of `task`.

    ConfigError if a suite has none, or runs of several tasks and `task` is None.
    """
    runs: list[str] = []
    for path in paths:
        found = _suite_runs(Path(path))
        if not found:
            runs.append(path)
            continue
        if task is None and len(found) > 1:
            raise ConfigError(f"--ensemble {path}: has runs of {', '.join(found)}; add --task")
        chosen = task or next(iter(found))
        if chosen not in found:
            raise ConfigError(f"--ensemble {path}: no runs of {chosen}; it has {', '.join(found)}")
        runs += found[chosen]
    return runs


def refuse_misfits(runs: Sequence[str]) -> None:
    """ConfigError for an ensemble of different tasks, labels or tokenizers."""
    first: dict[str, str] = {}
    for run in runs:
        folder = best_checkpoint(run)
        state = read_state(folder)
        task = state.task or {}
        facts = {
            "task": str(task.get("name")),
            "kind": str(task.get("kind")),
            "labels": ", ".join(task.get("classes", [])),
            "squared_error": str(task.get("config", {}).get("squared_error", False)),
            "tokenizer": str(state.tokenizer_sha256)[:12],
        }
        first = first or facts
        for name, value in facts.items():
            if value != first[name]:
                raise ConfigError(
                    f"--ensemble: {name} of {run} is {value}, but of {runs[0]} it is "
                    f"{first[name]}; give runs of one task with one tokenizer"
                )


def _suite_runs(folder: Path) -> dict[str, list[str]]:
    """The runs in the folder of a suite by task, without ablations and grids.

    Empty for another folder.
    """
    found: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*-seed-*")):
        name = RUN_NAME.fullmatch(path.name)
        is_plain = name and not name["variant"] and not name["point"]
        if name and is_plain and checkpoint_folders(path / "best" / "checkpoints"):
            found.setdefault(name["task"], []).append(str(path))
    return found
