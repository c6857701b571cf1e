"""Weights, tokenizers and configurations in the formats of transformers and of OpenAI's release (layer 2).

Pure conversion, without transformers itself. Of names such as `h.0.attn.c_attn` ours is `blocks.0.attn.c_attn`; else:

| transformers                       | params_N.npy  | here                              |
|------------------------------------|---------------|-----------------------------------|
| transformer.positions_embed.weight | [n_ctx, C]    | wpe                               |
| transformer.tokens_embed.weight    | [V, C]        | wte, with rows of padding         |
| lm_head.weight (tied: not written) | -             | wte                               |
| c_attn, c_proj, c_fc (in, out)     | [1, in, out]  | linear layers (out, in)           |

Only safetensors and plain arrays are read: a pickle may run code.
"""

import json
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from gpt1_ds.base.errors import DataError
from gpt1_ds.base.files import write_atomically
from gpt1_ds.data.tokenizer import CONTROL_PIECES
from gpt1_ds.model.gpt import GPT, GPTConfig

PREFIX, INDEX = "transformer.", "model.safetensors.index.json"
LINEAR = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
# masks, counters, the tied head, a task's
NOT_WEIGHTS = ("attn.bias", "position_ids", "lm_head.weight", "score.weight")
SHAPE = {"n_ctx": "n_positions", "n_embd": "n_embd", "n_layer": "n_layer", "n_head": "n_head"}
PDROPS = ("embd_pdrop", "attn_pdrop", "resid_pdrop")


def to_theirs(name: str, tensor: Tensor, config: GPTConfig) -> tuple[str, Tensor]:
    """Name and (view of the) tensor in transformers' model, vocabulary padding left out."""
    if name in ("wte", "wpe"):
        return f"{PREFIX}{'tokens' if name == 'wte' else 'positions'}_embed.weight", tensor[
            : config.vocab_size
        ]
    return PREFIX + name.replace("blocks.", "h.", 1), tensor.t() if name.endswith(
        LINEAR
    ) else tensor


def to_ours(theirs: dict[str, Tensor], config: GPTConfig, source: Path) -> dict[str, Tensor]:
    """Float32 weights of `GPT(config)`; five rows that the source may lack are N(0, 0.02) from a fixed seed."""
    with torch.device("meta"):
        wanted = GPT(config).state_dict()
    theirs = {PREFIX + name.removeprefix(PREFIX): tensor for name, tensor in theirs.items()}
    weights, lacking = {}, torch.empty(len(CONTROL_PIECES), config.n_embd)
    for name, like in wanted.items():
        key, view = to_theirs(name, like, config)
        tensor = theirs.pop(key, torch.empty(0))
        if name == "wte" and tensor.shape == (config.vocab_size - len(lacking), config.n_embd):
            lacking.normal_(std=0.02, generator=torch.Generator().manual_seed(0))
            tensor = torch.cat([tensor.float(), lacking])
        if tensor.shape != view.shape:
            raise DataError(
                f"{source}: {key} is {tuple(tensor.shape) if tensor.numel() else 'missing'}, should be "
                f"{tuple(view.shape)}; not whole weights of its own configuration"
            )
        weights[name] = (tensor.t() if name.endswith(LINEAR) else tensor).float().contiguous()
    weights["wte"] = torch.cat(
        [weights["wte"], torch.zeros(len(wanted["wte"]) - config.vocab_size, config.n_embd)]
    )
    if strays := [name for name in theirs if not name.endswith(NOT_WEIGHTS)]:
        raise DataError(
            f"{source}: {strays[0]} is no weight of this model; give a folder of OpenAI GPT"
        )
    return weights


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of `model.safetensors` or of the shards that its index names."""
    names, tensors = {"model.safetensors"}, {}
    try:
        if (folder / INDEX).exists():
            names = set(
                json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()
            )
        for path in (folder / Path(name).name for name in sorted(names)):
            if not path.exists() and list(folder.glob("*.bin")):
                raise DataError(
                    f"{folder}: pickled weights are not read, they may run code; save them as safetensors"
                )
            with safetensors.safe_open(path, "pt") as file:
                tensors |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (
        OSError,
        ValueError,
        KeyError,
        AttributeError,
        TypeError,
        safetensors.SafetensorError,
    ) as error:
        raise DataError(
            f"{folder}: no whole weights in safetensors ({error}); fetch the folder again"
        ) from error
    return tensors


def write_weights(folder: Path, tensors: dict[str, Tensor], shard_bytes: int) -> None:
    """`model.safetensors`, or shards of at most `shard_bytes` (a larger tensor alone) and their index."""
    shards: list[dict[str, Tensor]] = [{}]
    for name, tensor in tensors.items():
        if (
            shards[-1]
            and tensor.nbytes + sum(other.nbytes for other in shards[-1].values()) > shard_bytes
        ):
            shards.append({})
        shards[-1][name] = tensor
    files = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    files = files if len(files) > 1 else ["model.safetensors"]
    for file, shard in zip(files, shards, strict=True):
        write_safetensors(folder / file, shard, {"format": "pt"})
    if len(shards) > 1:
        places = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        size = sum(tensor.nbytes for tensor in tensors.values())
        write_atomically(
            folder / INDEX,
            json.dumps({"metadata": {"total_size": size}, "weight_map": places}, indent=2),
        )


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Float32 tensors or views, made contiguous one at a time; safetensors' own writer holds a copy of them all."""
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [end, end := end + tensor.nbytes],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(memoryview(tensor.detach().contiguous().numpy()).cast("B"))


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of an OpenAI GPT folder. DataError where it is another architecture or activation."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = (
            config["model_type"],
            config.get("afn", "gelu"),
            config.get("layer_norm_epsilon", 1e-5),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder / 'config.json'}: {error!r}; give a folder that transformers can load"
        ) from error
    if kind != ("openai-gpt", "gelu", 1e-5):
        raise DataError(
            f"{folder / 'config.json'}: {kind} is not this model: openai-gpt with gelu and epsilon 1e-5"
        )
    return config


def gpt_config(theirs: dict[str, Any], vocab_size: int, source: Path) -> GPTConfig:
    """Ours for theirs, for a tokenizer of `vocab_size`: the source's own, or the source's and five control pieces."""
    rows = theirs.get("vocab_size", 40478)
    shape = {ours: theirs.get(key, getattr(GPTConfig, ours)) for ours, key in SHAPE.items()}
    if vocab_size not in (rows, rows + len(CONTROL_PIECES)):
        raise DataError(
            f"{source}: {rows} rows of embedding are not for a tokenizer of {vocab_size} entries, five "
            "of them control pieces; put the model's own tokenizer beside it"
        )
    if (
        not all(isinstance(n, int) and n > 0 for n in shape.values())
        or shape["n_embd"] % shape["n_head"]
    ):
        raise DataError(f"{source}: no model has the shape {shape}; repair its config.json")
    return GPTConfig(vocab_size, **shape, **{name: theirs.get(name, 0.1) for name in PDROPS})


def config_json(
    config: GPTConfig, special_ids: dict[str, int], labels: list[str] | None
) -> dict[str, Any]:
    """`config.json`; with `labels`, of a sequence classifier."""
    theirs = {
        "architectures": [
            "OpenAIGPTForSequenceClassification" if labels else "OpenAIGPTLMHeadModel"
        ],
        "model_type": "openai-gpt",
        "afn": "gelu",
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "dtype": "float32",
        "vocab_size": config.vocab_size,
        **{
            f"{name}_token_id": special_ids[id]
            for name, id in (("bos", "eot"), ("eos", "eot"), ("pad", "pad"))
        },
        **{key: getattr(config, ours) for ours, key in SHAPE.items()},
        **{name: getattr(config, name) for name in PDROPS},
    }
    if labels:
        theirs |= {
            "id2label": dict(enumerate(labels)),
            "label2id": {label: i for i, label in enumerate(labels)},
        }
    return theirs


def score_weight(
    head: dict[str, Tensor], gain: Tensor, bias: Tensor, sequences: int
) -> Tensor | None:
    """A (K, C) matrix without bias of the same logits, summed over `sequences`, on states of a LayerNorm; else None.

    Such a state h has sum(h / gain) = sum(bias / gain), whatever the input: the head's bias can be read off it.
    """
    constant = (bias.double() / gain.double()).sum()
    if not constant.isfinite() or constant.abs() < 1e-3:
        return None
    return (
        head["weight"] + head["bias"].double()[:, None] / (sequences * constant) / gain.double()
    ).float()
