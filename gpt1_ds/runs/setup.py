"""The start of a run: checks that the data, the tokenizer and the checkpoint belong together."""

from pathlib import Path

import torch

from gpt1_ds.base.errors import DataError
from gpt1_ds.checkpoints.loading import load_weights
from gpt1_ds.data.manifest import Manifest
from gpt1_ds.data.tokenizer import Tokenizer, load_tokenizer
from gpt1_ds.model.gpt import GPT
from gpt1_ds.settings.sections import PretrainConfig


def check_tokenizer(config: PretrainConfig, folder: Path, manifest: Manifest) -> Tokenizer:
    tokenizer = load_tokenizer(folder)
    if tokenizer.sha256 != manifest.tokenizer["sha256"]:
        raise DataError(
            f"{folder}: not the tokenizer these shards were made with; restore it or rerun build_shards"
        )
    tokenizer.check_choice(**vars(config.tokenizer))
    return tokenizer


def load_initial_weights(
    module: GPT, config: PretrainConfig, facts: dict
) -> dict[str, torch.Tensor]:
    weights, state = load_weights(config.init.checkpoint)
    check_state(state, facts, config.init.checkpoint)
    module.load_state_dict(weights)
    return weights


def check_state(state: dict, facts: dict, source: Path | str) -> None:
    """Refuse a checkpoint whose model has other shapes, or whose tokenizer gives other ids, than this run's."""
    there, here = (
        {**(s.get("model") or {}), "tokenizer": s.get("tokenizer_sha256", "")[:12]}
        for s in (state, facts)
    )
    differing = [
        f"{k} {there.get(k)} there, {v} here"
        for k, v in here.items()
        if there.get(k) != v and "pdrop" not in k
    ]
    if differing:
        raise DataError(
            f"{source}: checkpoint of another model: {', '.join(differing)}; choose another run.name or checkpoint"
        )


def check_data(state: dict, facts: dict, folder: Path) -> None:
    """Refuse to go on in another order: the cursor counts windows of the shards that the run began with."""
    for corpus, here in facts["data"].items():
        if (there := state.get("data", {}).get(corpus, here)) != here:
            raise DataError(
                f"{folder}: began with other shards of {corpus} ({there}; now {here}); restore them, or "
                "choose another run.name"
            )
