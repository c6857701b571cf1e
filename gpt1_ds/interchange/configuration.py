"""Converts between `config.json` of transformers' OpenAI GPT and our `GPTConfig`."""

import json
from pathlib import Path

from gpt1_ds.base.errors import DataError
from gpt1_ds.base.protocols import Json
from gpt1_ds.data.tokenizer import CONTROL_PIECES
from gpt1_ds.model.gpt import GPTConfig

SHAPE = {"n_ctx": "n_positions", "n_embd": "n_embd", "n_layer": "n_layer", "n_head": "n_head"}
"""Our names of the sizes -> the names in transformers."""
PDROPS = ("embd_pdrop", "attn_pdrop", "resid_pdrop")
MODEL_TYPE = "openai-gpt"
ACTIVATION = "gelu"
EPSILON = 1e-5
"""Epsilon of the LayerNorms."""
THEIR_VOCABULARY = 40_478
"""Rows of the embedding if `config.json` does not say."""


def read_config(folder: Path) -> Json:
    """`config.json` of an OpenAI GPT folder. DataError for another architecture or activation."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        kind = (
            config["model_type"],
            config.get("afn", ACTIVATION),
            config.get("layer_norm_epsilon", EPSILON),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: {error!r}; give a folder that transformers can load") from error
    if kind != (MODEL_TYPE, ACTIVATION, EPSILON):
        raise DataError(f"{path}: {kind} is not this model: openai-gpt with gelu and epsilon 1e-5")
    return dict(config)


def gpt_config(theirs: Json, vocab_size: int, source: Path) -> GPTConfig:
    """Convert `config.json` to our configuration; the tokenizer has `vocab_size` pieces.

    The embedding must have one row for each piece, except that rows for the five control pieces may
    be missing. Raises DataError for another number of rows, and for impossible sizes.
    """
    rows = theirs.get("vocab_size", THEIR_VOCABULARY)
    if vocab_size not in (rows, rows + len(CONTROL_PIECES)):
        raise DataError(
            f"{source}: {rows} rows of embedding are not for a tokenizer of {vocab_size} entries, "
            "five of them control pieces; put the model's own tokenizer beside it"
        )
    shape = {ours: theirs.get(key, getattr(GPTConfig, ours)) for ours, key in SHAPE.items()}
    positive = all(isinstance(number, int) and number > 0 for number in shape.values())
    if not positive or shape["n_embd"] % shape["n_head"]:
        raise DataError(f"{source}: no model has the shape {shape}; repair its config.json")
    pdrops = {name: theirs.get(name, 0.1) for name in PDROPS}
    return GPTConfig(vocab_size, **shape, **pdrops)


def config_json(config: GPTConfig, special_ids: dict[str, int], labels: list[str] | None) -> Json:
    """The content of `config.json`; with `labels`, for a sequence classifier."""
    head = "OpenAIGPTForSequenceClassification" if labels else "OpenAIGPTLMHeadModel"
    theirs: Json = {
        "architectures": [head],
        "model_type": MODEL_TYPE,
        "afn": ACTIVATION,
        "layer_norm_epsilon": EPSILON,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "dtype": "float32",
        "vocab_size": config.vocab_size,
        "bos_token_id": special_ids["eot"],
        "eos_token_id": special_ids["eot"],
        "pad_token_id": special_ids["pad"],
    }
    theirs |= {key: getattr(config, ours) for ours, key in SHAPE.items()}
    theirs |= {name: getattr(config, name) for name in PDROPS}
    if labels:
        theirs["id2label"] = dict(enumerate(labels))
        theirs["label2id"] = {label: i for i, label in enumerate(labels)}
    return theirs
