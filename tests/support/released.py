"""OpenAI's released code, written anew in NumPy, and weights and data in its published form.

The formulas are those of `train.py`, `opt.py`, `datasets.py` and `utils.py` of
openai/finetune-transformer-lm.
"""

import json
from pathlib import Path

import numpy as np
import torch

from gpt1_ds.data.openai_bpe import OPENAI_FILES

VALIDATION = "cloze_test_val__spring2016 - cloze_test_ALL_val.csv"
TEST = "cloze_test_test__spring2016 - cloze_test_ALL_test.csv"
STORY_COLUMNS = (
    "InputStoryid,InputSentence1,InputSentence2,InputSentence3,InputSentence4,"
    "RandomFifthSentenceQuiz1,RandomFifthSentenceQuiz2,AnswerRightEnding"
)


def small_bpe(folder: Path) -> Path:
    """A small vocabulary in OpenAI's two files."""
    merges = ["t h", "th e</w>", "a n", "an d</w>", "i t</w>", "o l", "ol d</w>"]
    characters = [chr(code) for code in range(33, 127)]
    pieces = [
        "<unk>",
        *characters,
        *(f"{c}</w>" for c in characters),
        *(m.replace(" ", "") for m in merges),
        "\n</w>",
    ]
    (folder / OPENAI_FILES[0]).write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (folder / OPENAI_FILES[1]).write_text("\n".join(["#version: 0.2", *merges, ""]))
    return folder


def openai_arrays(folder: Path, weights: dict[str, torch.Tensor], n_layer: int) -> list[np.ndarray]:
    """The arrays of a transformers model in the order and shapes in which OpenAI's code makes its
    variables."""
    arrays = [weights["positions_embed.weight"], weights["tokens_embed.weight"]]
    for layer in range(n_layer):
        for name in ("attn.c_attn", "attn.c_proj", "ln_1", "mlp.c_fc", "mlp.c_proj", "ln_2"):
            weight = weights[f"h.{layer}.{name}.weight"]
            arrays += [
                weight[None] if weight.ndim == 2 else weight,
                weights[f"h.{layer}.{name}.bias"],
            ]
    (folder / "params_shapes.json").write_text(json.dumps([list(array.shape) for array in arrays]))
    for n, part in enumerate(
        np.array_split(torch.cat([array.flatten() for array in arrays]).numpy(), 10)
    ):
        np.save(folder / f"params_{n}.npy", part)
    return arrays


def random_weights(rows: int, n_ctx: int, n_layer: int, width: int = 64) -> dict[str, torch.Tensor]:
    """Weights by their names in transformers, large enough that every part matters."""
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> torch.Tensor:
        return 0.2 * torch.randn(*shape, generator=generator)

    found = {"positions_embed.weight": normal(n_ctx, width)}
    found["tokens_embed.weight"] = normal(rows, width)
    sizes = {"attn.c_attn": (width, 3 * width), "attn.c_proj": (width, width)}
    sizes |= {"mlp.c_fc": (width, 4 * width), "mlp.c_proj": (4 * width, width)}
    for layer in range(n_layer):
        for name, size in sizes.items():
            found[f"h.{layer}.{name}.weight"] = normal(*size)
            found[f"h.{layer}.{name}.bias"] = normal(size[1])
        for name in ("ln_1", "ln_2"):
            found[f"h.{layer}.{name}.weight"] = 1 + normal(width)
            found[f"h.{layer}.{name}.bias"] = normal(width)
    return found


def write_stories(folder: Path, count: int) -> list[tuple[str, str, str, int]]:
    """Both published files. Returns story, endings and the right one of each validation row."""
    generator = np.random.default_rng(3)
    words = "the old and it hat dog ran fell house of gold".split()

    def sentence(most: int) -> str:
        return " ".join(generator.choice(words, generator.integers(1, most))) + "."

    stories = []
    for name, rows in ((VALIDATION, count), (TEST, 6)):
        lines = [STORY_COLUMNS]
        for row in range(rows):
            parts = [sentence(4) for _ in range(4)]
            endings, right = [sentence(3), sentence(9)], row % 2
            lines.append(",".join([f"id{row}", *parts, *endings, str(right + 1)]))
            if name == VALIDATION:
                stories.append((" ".join(parts), *endings, right))
        (folder / name).write_text("\n".join([*lines, ""]))
    return stories


# The formulas


def rate(t: int, total: int, peak: float, kind: str, warmup: float) -> float:
    """`opt.py`: the rate of update t = 1, 2 .. of `total`."""
    x = (t - 1) / total
    if x <= warmup:
        return peak * x / warmup
    return peak * {"cosine": 0.5 * (1 + np.cos(np.pi * x)), "linear": 1 - x, "constant": 1.0}[kind]


def transform_roc(
    story: list[int], ending: list[int], special: dict[str, int], n_ctx: int
) -> list[int]:
    """`transform_roc` of `train.py`: one of the two sequences of a story."""
    most = n_ctx // 2 - 2
    return [special["s"], *story[:most], special["delim"], *ending[:most], special["e"]]


def norm(x: np.ndarray, gain: np.ndarray, bias: np.ndarray) -> np.ndarray:
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return gain * (x - mean) / np.sqrt(variance + 1e-5) + bias


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def hidden_states(
    weights: dict[str, np.ndarray], ids: list[int], embedding: np.ndarray, positions: np.ndarray
) -> np.ndarray:
    """`model` for one sequence, with heads 64 wide; `embedding` and `positions`: its matrix."""
    x = embedding[ids] + positions[: len(ids)]
    n_layer = len([name for name in weights if name.endswith("ln_1.bias")])
    for layer in range(n_layer):
        of = {
            name.removeprefix(f"h.{layer}."): array.astype(np.float64)
            for name, array in weights.items()
            if name.startswith(f"h.{layer}.")
        }
        q, k, v = np.split(x @ of["attn.c_attn.weight"] + of["attn.c_attn.bias"], 3, -1)
        heads = []
        for first in range(0, q.shape[1], 64):
            part = slice(first, first + 64)
            scores = q[:, part] @ k[:, part].T / 8
            scores = np.where(np.tri(len(ids)) > 0, scores, -1e9)
            heads.append(np.exp(log_softmax(scores)) @ v[:, part])
        attention = np.concatenate(heads, -1) @ of["attn.c_proj.weight"] + of["attn.c_proj.bias"]
        n = norm(x + attention, of["ln_1.weight"], of["ln_1.bias"])
        inner = n @ of["mlp.c_fc.weight"] + of["mlp.c_fc.bias"]
        inner = 0.5 * inner * (1 + np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)))
        mlp = inner @ of["mlp.c_proj.weight"] + of["mlp.c_proj.bias"]
        x = norm(n + mlp, of["ln_2.weight"], of["ln_2.bias"])
    return x


def lm_loss(hidden: np.ndarray, ids: list[int], matrix: np.ndarray) -> float:
    """The mean over the targets of a sequence, with a softmax over all rows of the matrix."""
    scores = log_softmax(hidden[:-1] @ matrix.T)
    return -float(scores[np.arange(len(ids) - 1), ids[1:]].mean())
