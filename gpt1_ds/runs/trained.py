"""A finished run loaded: its model, its tokenizer, its task head."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt1_ds import tasks
from gpt1_ds.base.errors import DataError
from gpt1_ds.checkpoints.folder import find_checkpoint
from gpt1_ds.checkpoints.loading import load_weights
from gpt1_ds.data.tokenizer import Tokenizer, load_tokenizer
from gpt1_ds.distributed import collectives
from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.settings.sections import TaskConfig
from gpt1_ds.tasks import Task
from gpt1_ds.tasks.heads import TaskModel


def rebuild(
    weights: dict[str, Tensor], state: dict[str, Any], source: Any
) -> tuple[TaskModel, Task]:
    """The model and the task of a fine-tuned run from its checkpoint's weights and state, in eval mode."""
    try:
        config = TaskConfig(**state["task"]["config"])
        task, gpt = tasks.build(config), GPT(GPTConfig(**state["model"]))
        model = TaskModel(gpt, task.kind, task.n_outputs, config.pool, config.clf_pdrop)
        model.load_state_dict(weights)
    except (KeyError, TypeError, RuntimeError) as error:
        raise DataError(
            f"{source}: not a fine-tuned run ({str(error).splitlines()[0]}); give one of finetune's"
        ) from error
    return model.eval().to(collectives.device()), task


def load_gpt(path: Path | str) -> tuple[GPT, dict[str, Any], Path]:
    """The model of a pre-training run, float32, in eval mode; its state; and the checkpoint it came from."""
    folder = find_checkpoint(path)
    weights, state = load_weights(folder)
    return build_gpt(weights, state, folder), state, folder


def run_tokenizer(folder: Path, state: dict[str, Any]) -> Tokenizer:
    """The tokenizer that lies beside the checkpoints of the run of `folder`; DataError where it is not theirs."""
    tokenizer = load_tokenizer(folder.parents[1] / "tokenizer")
    if state.get("tokenizer_sha256") != tokenizer.sha256:
        raise DataError(
            f"{folder.parents[1] / 'tokenizer'}: not the tokenizer of {folder}; restore the run's own"
        )
    return tokenizer


def build_gpt(weights: dict[str, Tensor], state: dict[str, Any], source: Path) -> GPT:
    """The decoder around these very tensors, which are not copied, in eval mode."""
    try:
        with torch.device("meta"):
            model = GPT(GPTConfig(**state["model"])).eval()
        model.load_state_dict(weights, assign=True)
    except (KeyError, TypeError, RuntimeError) as error:
        raise DataError(
            f"{source}: not the weights of a pre-training run ({str(error).splitlines()[0]})"
        ) from error
    return model
