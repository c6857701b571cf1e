"""Reads OpenAI's release of GPT-1: arrays `params_0.npy` .. `params_9.npy` and two BPE files.

The order of the arrays is that of `train.py` in openai/finetune-transformer-lm.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gpt1_ds.base.errors import DataError
from gpt1_ds.base.protocols import Json
from gpt1_ds.data.openai_bpe import OPENAI_FILES, PIPELINE_FILE, chosen_pipeline

PARTS = 10
HEAD_WIDTH = 64
LAYERS = ("attn.c_attn", "attn.c_proj", "ln_1", "mlp.c_fc", "mlp.c_proj", "ln_2")
TENSORS_A_BLOCK = 2 * len(LAYERS)
TRANSFORMERS_FILES = ("vocab.json", "merges.txt")


class Release(NamedTuple):
    tensors: dict[str, Tensor]
    """By their names in transformers."""
    config: Json
    """With the keys of `config.json`. Attention heads are 64 wide."""
    left_out: int = 0
    """Number of arrays after those of the decoder."""

    @property
    def tensors_of_decoder(self) -> dict[str, Tensor]:
        """The tensors by their names in the decoder, without the prefix of a model around it."""
        return {name.removeprefix("transformer."): item for name, item in self.tensors.items()}


def read_openai(folder: Path) -> Release:
    """The arrays in `folder`, and the configuration by their shapes; DataError if incomplete."""
    try:
        text = (folder / "params_shapes.json").read_text(encoding="utf-8")
        shapes = json.loads(text)
        parts = [np.load(folder / f"params_{i}.npy", allow_pickle=False) for i in range(PARTS)]
        flat = np.concatenate([part.ravel() for part in parts])
        n_ctx, n_embd = shapes[0]
        rows, _ = shapes[1]
        ends = np.cumsum([np.prod(shape, dtype=np.int64) for shape in shapes])
    except (OSError, ValueError, TypeError, EOFError, IndexError, KeyError) as error:
        raise DataError(
            f"{folder}: not OpenAI's params_0..9.npy and params_shapes.json ({error})"
        ) from error
    if flat.dtype != np.float32 or flat.size != ends[-1]:
        raise DataError(
            f"{folder}: params_*.npy hold {flat.size} {flat.dtype}, params_shapes.json asks for "
            f"{ends[-1]} float32; fetch the files again"
        )
    n_layer = (len(shapes) - 2) // TENSORS_A_BLOCK
    tensors = {}
    arrays = np.split(flat, ends[:-1])
    # The files may have a task head after the decoder's arrays; `zip` stops before it.
    for name, array, shape in zip(_names(n_layer), arrays, shapes, strict=False):
        tensors[name] = torch.from_numpy(array.reshape(shape[-2:]))
    config = {
        "vocab_size": rows,
        "n_positions": n_ctx,
        "n_embd": n_embd,
        "n_layer": n_layer,
        "n_head": n_embd // HEAD_WIDTH or 1,
    }
    return Release(tensors, config, len(shapes) - len(tensors))


def _names(n_layer: int) -> list[str]:
    """The names of the arrays in transformers, in the order of the release."""
    names = ["positions_embed.weight", "tokens_embed.weight"]
    for block in range(n_layer):
        for layer in LAYERS:
            names += [f"h.{block}.{layer}.weight", f"h.{block}.{layer}.bias"]
    return names


def openai_files(
    folder: Path, pipeline: str | None = None, usual: str = "transformers"
) -> dict[str, str]:
    """The texts of OpenAI's tokenizer files, by name, from a transformers or OpenAI folder.

    The text pipeline is `pipeline`, or that of the folder's `pipeline.json`, or the `usual` one.
    Raises DataError if the folder has no such tokenizer.
    """
    choice = json.dumps({"openai_pipeline": pipeline or chosen_pipeline(folder) or usual})
    try:
        return {**_vocabulary_and_merges(folder), PIPELINE_FILE: choice}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder}: no tokenizer known here ({error}); put vocab.json and merges.txt, or "
            f"OpenAI's {' and '.join(OPENAI_FILES)}, beside the weights"
        ) from error


def _vocabulary_and_merges(folder: Path) -> dict[str, str]:
    for names in (OPENAI_FILES, TRANSFORMERS_FILES):
        if (folder / names[0]).exists():
            texts = [(folder / name).read_text(encoding="utf-8") for name in names]
            return dict(zip(OPENAI_FILES, texts, strict=True))
    return _from_tokenizer_json(folder / "tokenizer.json")


def _from_tokenizer_json(path: Path) -> dict[str, str]:
    model = json.loads(path.read_text(encoding="utf-8"))["model"]
    if model["end_of_word_suffix"] != "</w>":
        raise ValueError("tokenizer.json is of another kind")
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    texts = [json.dumps(model["vocab"]), "\n".join(["#version: 0.2", *pairs, ""])]
    return dict(zip(OPENAI_FILES, texts, strict=True))
