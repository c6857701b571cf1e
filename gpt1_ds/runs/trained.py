"""A trained run loaded again: its model, its tokenizer, its task head."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from gpt1_ds import tasks
from gpt1_ds.base.errors import DataError
from gpt1_ds.checkpoints.averaging import load_mean
from gpt1_ds.checkpoints.folder import find_checkpoint
from gpt1_ds.checkpoints.loading import load_weights
from gpt1_ds.checkpoints.state import CheckpointState
from gpt1_ds.data.tokenizer import Tokenizer, load_tokenizer
from gpt1_ds.distributed import collectives
from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.settings.sections import TaskConfig
from gpt1_ds.tasks import Task
from gpt1_ds.tasks.heads import TaskModel


class LanguageModel(NamedTuple):
    """The model of a pre-training run."""

    model: GPT
    """Float32, in eval mode, on the CPU."""
    state: CheckpointState
    folder: Path
    """The checkpoint that it came from; of a mean the newest one."""


def load_gpt(path: Path | str, average: int | None = None) -> LanguageModel:
    """The model of the pre-training run or checkpoint at `path`; DataError if it is none.

    `average`: with the mean of the weights of so many checkpoints.
    """
    if average:
        weights, state, (folder, *_) = load_mean(path, average)
    else:
        folder = find_checkpoint(path)
        weights, state = load_weights(folder)
    return LanguageModel(build_gpt(weights, state, folder), state, folder)


def title_of(checkpoint: Path | str, average: int | None) -> str:
    """What a command that scores calls the weights that it loaded."""
    return f"mean of {average} checkpoints to {checkpoint}" if average else str(checkpoint)


def build_gpt(weights: dict[str, Tensor], state: CheckpointState, source: Path) -> GPT:
    """The decoder around these tensors, which are not copied, in eval mode."""
    try:
        with torch.device("meta"):
            model = GPT(GPTConfig(**state.model)).eval()
        model.load_state_dict(weights, assign=True)
    except (TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{source}: not the weights of a pre-training run ({reason})") from error
    return model


def build_task_model(
    weights: dict[str, Tensor], state: CheckpointState, source: Path
) -> tuple[TaskModel, Task]:
    """The model and the task of a fine-tuned run, in eval mode, on this rank's device."""
    try:
        if state.task is None:
            raise KeyError("task")
        config = TaskConfig(**state.task["config"])
        task = tasks.build_task(config, strict=False)
        gpt = GPT(GPTConfig(**state.model))
        model = TaskModel(gpt, task.kind, task.n_outputs, config.pool, config.clf_pdrop)
        model.load_state_dict(weights)
    except (KeyError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{source}: not a fine-tuned run ({reason}); give one of finetune's"
        ) from error
    return model.eval().to(collectives.device()), task


def run_tokenizer(folder: Path, state: CheckpointState) -> Tokenizer:
    """The tokenizer of the run whose checkpoint is `folder`.

    DataError if another one lies there.
    """
    path = folder.parents[1] / "tokenizer"
    tokenizer = load_tokenizer(path)
    if state.tokenizer_sha256 != tokenizer.sha256:
        raise DataError(f"{path}: not the tokenizer of {folder}; restore the run's own")
    return tokenizer
