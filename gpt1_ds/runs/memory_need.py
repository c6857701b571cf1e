"""The memory that a run needs: told before anything is allocated, and named if it is not there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Generic, NamedTuple

import torch

from gpt1_ds.base.errors import MemoryShortage, UserError
from gpt1_ds.base.memory import GB, is_shortage, memory_left, shortage
from gpt1_ds.distributed import collectives
from gpt1_ds.distributed.console import say, warn
from gpt1_ds.distributed.environment import ranks_here
from gpt1_ds.engine.memory import (
    StateBytes,
    activation_bytes,
    gpu_bytes,
    model_states,
    state_bytes,
    zero_variant,
)
from gpt1_ds.model.gpt import GPTConfig
from gpt1_ds.runs.setup import ConfigT, Settings
from gpt1_ds.settings import deepspeed_json


class Estimate(NamedTuple):
    """Bytes that a rank needs, by the formulas of `engine/memory.py`."""

    states: StateBytes
    activations: float
    gpu: bool

    @property
    def device(self) -> float:
        """All bytes on the device; on a CPU, what is offloaded lies in the same memory."""
        if self.gpu:
            return gpu_bytes(self.states.device, self.activations)
        return self.states.device + self.states.host + self.activations

    def __str__(self) -> str:
        host = f", {_gb(self.states.host)} on the host" if self.states.host else ""
        return (
            f"about {_gb(self.states.device)} a rank for weights, gradients and moments{host}, "
            f"and {_gb(self.activations)} for activations"
        )


class Place(NamedTuple):
    """A memory, with the bytes that the run needs in it and those that are free."""

    name: str
    needed: float
    free: float


class MemoryNeed(Generic[ConfigT]):
    """The need of one start of a run."""

    def __init__(self, settings: Settings[ConfigT]):
        self.settings = settings
        self.estimate: Estimate | None = None

    def tell(self, shape: GPTConfig, sequences: int = 1, length: int | None = None) -> None:
        """Print the estimate, and a warning if it is more than there is.

        An example has so many `sequences`, of at most `length` tokens (None: the context).
        """
        ds, train = self.settings.ds, self.settings.config.train
        gpu, ranks = torch.cuda.is_available(), collectives.world_size()
        precision = deepspeed_json.precision(ds)
        states = state_bytes(model_states(shape, ds, precision, ranks, gpu), zero_variant(ds))
        activations = activation_bytes(
            replace(shape, n_ctx=length or shape.n_ctx),
            sequences * ds["train_micro_batch_size_per_gpu"],
            precision,
            train.activation_checkpointing,
            gpu,
        )
        self.estimate = Estimate(states, activations, gpu)
        places = _places(self.estimate, ranks)
        free = ", ".join(f"{place.free / GB:.1f} GB are free on {place.name}" for place in places)
        say(f"memory   {self.estimate}; {free}")
        for place in places:
            if place.needed > place.free and collectives.is_main():
                warn(
                    f"about {place.needed / GB:.1f} GB are needed on {place.name}, and only "
                    f"{place.free / GB:.1f} GB are free; {self._remedy()}"
                )

    @contextmanager
    def explained(self) -> Iterator[None]:
        """An allocation that fails in the block becomes a MemoryShortage with the need in it."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            if not is_shortage(error):
                raise
            need = f"the run needs {self.estimate}; " if self.estimate else ""
            raise MemoryShortage(
                f"not enough memory: {need}{shortage(error)}; {self._remedy()}"
            ) from error

    def _remedy(self) -> str:
        micro_batch = self.settings.ds["train_micro_batch_size_per_gpu"]
        return (
            f"lower train.micro_batch (now {micro_batch}), set train.activation_checkpointing=true,"
            f" or take a higher ZeRO stage (now {zero_variant(self.settings.ds)}) or offload "
            "(--deepspeed_config zero3_offload); `python -m gpt1_ds.plan` shows what each needs"
        )


def _gb(size: float) -> str:
    """Bytes as text: one digit behind the point, and two digits of what is below 1 GB."""
    return f"{size / GB:.1f} GB" if size >= GB else f"{size / GB:.2g} GB"


def _places(estimate: Estimate, ranks: int) -> list[Place]:
    """The GPU of this rank, and this machine if some of the need of its ranks lies there."""
    here = ranks_here(os.environ, ranks)
    if not estimate.gpu:
        return [Place("this machine", estimate.device * here, memory_left())]
    places = [Place("the GPU", estimate.device, torch.cuda.mem_get_info()[0])]
    if estimate.states.host:
        places.append(Place("this machine", estimate.states.host * here, memory_left()))
    return places
