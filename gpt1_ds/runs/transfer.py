"""The weights of a pre-trained decoder, on their way into a model to fine-tune."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from gpt1_ds.base.errors import ConfigError, DataError
from gpt1_ds.checkpoints.by_parameter import Source, WholeWeights
from gpt1_ds.checkpoints.loading import open_weights
from gpt1_ds.model.gpt import GPT
from gpt1_ds.runs.setup import InitialWeights


class Transferred:
    """The weights of a decoder, named as in a `TaskModel`; those in `kept` in place of its own."""

    def __init__(self, decoder: Source, kept: dict[str, Tensor]):
        self.decoder = decoder
        self.kept = WholeWeights(kept.items())

    def names(self) -> list[str]:
        return [f"gpt.{name}" for name in self.decoder.names()]

    def shape(self, name: str) -> torch.Size:
        return self.decoder.shape(name.removeprefix("gpt."))

    def elements(self, name: str, start: int, length: int) -> Tensor:
        name = name.removeprefix("gpt.")
        source = self.kept if name in self.kept.tensors else self.decoder
        return source.elements(name, start, length)

    def shares(self, part: int, parts: int) -> Iterator[tuple[str, int, int]]:
        for name, start, length in self.decoder.shares(part, parts):
            yield f"gpt.{name}", start, length


def open_transferred_weights(
    gpt: GPT, source: Path | None, n_transfer: int | None
) -> InitialWeights | None:
    """The weights for a decoder from the checkpoint at `source`, if there is one; all ranks call.

    Every name and shape must be the same on both sides. With `n_transfer`, the blocks from that
    one on keep their random weights; with 0 all but the embeddings do, with -1 these too. `gpt`, on
    the meta device, is about to get its initial values from the global generator.
    """
    if source is None:
        return None
    weights, _ = open_weights(source)
    there = {name: tuple(weights.shape(name)) for name in weights.names()}
    here = {name: tuple(parameter.shape) for name, parameter in gpt.named_parameters()}
    for name in sorted(there.keys() | here.keys()):
        if there.get(name) != here.get(name):
            raise DataError(
                f"{source}: checkpoint of another model: {name} is {there.get(name, 'nothing')} "
                f"there, {here.get(name, 'nothing')} here; give a pre-training run"
            )
    if not -1 <= (n_transfer or 0) <= len(gpt.blocks):
        raise ConfigError(f"task.n_transfer is {n_transfer}; {source} has {len(gpt.blocks)} blocks")
    kept = {}
    if n_transfer is not None:
        with torch.random.fork_rng(devices=[]):
            for name, value in gpt.initial_values():
                if _layer(name) >= n_transfer:
                    kept[name] = value.clone()
    return InitialWeights(Transferred(weights, kept), source)


def _layer(name: str) -> int:
    """Number of the block of a parameter; -1: an embedding; 0: none of these."""
    if name.startswith("blocks."):
        return int(name.split(".")[1])
    return -1 if name in ("wte", "wpe") else 0
