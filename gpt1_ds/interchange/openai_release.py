"""OpenAI's released parameter files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpt1_ds.base.errors import DataError
from gpt1_ds.data.openai_bpe import OPENAI_FILES


def read_openai(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Arrays of OpenAI's release under transformers' names, and the shape they imply; heads are 64 wide."""
    try:
        shapes = json.loads((folder / "params_shapes.json").read_text(encoding="utf-8"))
        flat = np.concatenate(
            [np.load(folder / f"params_{i}.npy", allow_pickle=False).ravel() for i in range(10)]
        )
        (n_ctx, n_embd), (rows, _), n_layer = *shapes[:2], (len(shapes) - 2) // 12
        ends = np.cumsum([np.prod(shape, dtype=np.int64) for shape in shapes])
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise DataError(
            f"{folder}: not OpenAI's params_0..9.npy and params_shapes.json ({error})"
        ) from error
    if flat.dtype != np.float32 or flat.size != ends[-1]:
        raise DataError(
            f"{folder}: params_*.npy hold {flat.size} {flat.dtype}, params_shapes.json asks for {ends[-1]} "
            "float32; fetch the files again"
        )
    layers = ("attn.c_attn", "attn.c_proj", "ln_1", "mlp.c_fc", "mlp.c_proj", "ln_2")
    names = ["positions_embed.weight", "tokens_embed.weight"]
    names += [
        f"h.{n}.{layer}.{part}"
        for n in range(n_layer)
        for layer in layers
        for part in ("weight", "bias")
    ]
    arrays = zip(names, np.split(flat, ends[:-1]), shapes, strict=False)
    theirs = {name: torch.from_numpy(array.reshape(shape[-2:])) for name, array, shape in arrays}
    heads = n_embd // 64 or 1
    return theirs, dict(
        vocab_size=rows, n_positions=n_ctx, n_embd=n_embd, n_layer=n_layer, n_head=heads
    )


def openai_files(folder: Path) -> dict[str, str]:
    """OpenAI's two tokenizer files, by name, out of a transformers or OpenAI folder."""
    try:
        for names in (OPENAI_FILES, ("vocab.json", "merges.txt")):
            if (folder / names[0]).exists():
                texts = [(folder / name).read_text(encoding="utf-8") for name in names]
                return dict(zip(OPENAI_FILES, texts, strict=True))
        model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
        if model["end_of_word_suffix"] != "</w>":
            raise ValueError("tokenizer.json is of another kind")
        pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        texts = json.dumps(model["vocab"]), "\n".join(["#version: 0.2", *pairs, ""])
        return dict(zip(OPENAI_FILES, texts, strict=True))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder}: no tokenizer known here ({error}); put vocab.json and merges.txt, or OpenAI's "
            f"{' and '.join(OPENAI_FILES)}, beside the weights"
        ) from error
