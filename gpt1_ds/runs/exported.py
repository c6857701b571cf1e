"""A folder for transformers, loaded without it: one of `gpt1_ds.export`, or OpenAI GPT."""

import json
import tempfile
from pathlib import Path
from typing import NamedTuple

import safetensors
from torch import Tensor

from gpt1_ds.base.errors import DataError
from gpt1_ds.base.files import write_atomically
from gpt1_ds.base.protocols import Json
from gpt1_ds.checkpoints.state import CheckpointState
from gpt1_ds.data.tokenizer import Tokenizer, load_tokenizer
from gpt1_ds.interchange.configuration import gpt_config, read_config
from gpt1_ds.interchange.openai_release import openai_files
from gpt1_ds.interchange.safetensors_files import read_weights
from gpt1_ds.interchange.weights import to_ours

CONFIG, HEAD = "config.json", "head.safetensors"


class Exported(NamedTuple):
    """Weights under the names of a checkpoint, and what a checkpoint would say of them."""

    weights: dict[str, Tensor]
    state: CheckpointState
    tokenizer: Tokenizer


def is_exported(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def load_exported(folder: Path) -> Exported:
    """The model, and the task head if it is one of a fine-tuned run; DataError if it is damaged."""
    theirs = read_config(folder)
    tokenizer = _tokenizer(folder)
    shape = gpt_config(theirs, tokenizer.vocab_size, folder)
    weights = to_ours(read_weights(folder), shape, folder)
    task, head = _task_and_head(folder / HEAD)
    if task:
        weights = {f"gpt.{name}": weight for name, weight in weights.items()} | head
    state = CheckpointState(
        step=0, model=shape.to_dict(), tokenizer_sha256=tokenizer.sha256, task=task
    )
    return Exported(weights, state, tokenizer)


def _tokenizer(folder: Path) -> Tokenizer:
    """Our files in tokenizer/ of an export, else OpenAI's files beside the weights."""
    if (folder / "tokenizer").is_dir():
        return load_tokenizer(folder / "tokenizer")
    with tempfile.TemporaryDirectory() as home:
        for name, text in openai_files(folder).items():
            write_atomically(Path(home, name), text)
        return load_tokenizer(home)


def _task_and_head(path: Path) -> tuple[Json | None, dict[str, Tensor]]:
    """What the file says of its task, and its tensors. A head of transformers' own has no task."""
    if not path.exists():
        return None, {}
    try:
        with safetensors.safe_open(path, "pt") as file:
            task = {
                name: json.loads(text)
                for name, text in (file.metadata() or {}).items()
                if name != "format"
            }
            head = {f"head.{name}": file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise DataError(f"{path}: cannot be read ({error}); export the run again") from error
    return (task, head) if task else (None, {})
