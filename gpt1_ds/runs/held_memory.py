"""The memory that a rank holds during a step, by part: what lies in tensors, and the process."""

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from gpt1_ds.base.memory import forget_peak, peak_resident_bytes, resident_bytes
from gpt1_ds.base.protocols import Engine
from gpt1_ds.engine.counting import counted
from gpt1_ds.engine.internals import replaced

Around = Callable[[str, Callable[[], None]], None]
"""Runs a part of a step (forward, backward, step), of which the name comes first."""


class Held(NamedTuple):
    """Bytes of the model's state that this rank held at most, by part."""

    weights: int
    optimizer: int
    reduction: int
    """Gradients and buckets, in the backward pass."""
    update: int
    """Gradients in float32, at the optimizer's step."""


class Watch:
    """Follows the memory of one step: run its parts by `around`, inside `updates`."""

    def __init__(self) -> None:
        """To be made before the model is: what is in memory by then is not the run's."""
        gc.collect()
        self.kept_alive = [thing for thing in gc.get_objects() if isinstance(thing, Tensor)]
        """So that nothing of the run gets their addresses."""
        self.before = _storages(self.kept_alive)
        gc.freeze()  # what is there by now need not be looked through again and again
        self.resident = {"start": resident_bytes()}
        """Of the process after each phase, and its peak."""
        self.reduction = 0
        self.update = 0
        self.activations = 0
        """Bytes that a forward pass keeps for the backward pass."""
        self.kept: dict[int, tuple[int, weakref.ref[Tensor]]] = {}
        """By address: their sizes, and the tensors for as long as the backward pass needs them."""

    def begin(self, engine: Engine) -> None:
        self.engine = engine
        self.resident["engine"] = resident_bytes()
        self.weights = _storages(self._weights())
        zero = engine.optimizer
        self.overlaps = engine.zero_optimization_stage() in (1, 2) and zero.overlap_comm
        self.in_flight: list[Tensor] = []
        """With overlap, what is reduced while the next bucket fills: a network takes that long."""

    def end(self) -> None:
        """Let go of the engine."""
        del self.engine
        gc.unfreeze()

    @contextmanager
    def updates(self) -> Iterator[None]:
        """Look at the memory where the optimizer's step begins, and at the peak, in this block."""
        forget_peak()
        optimizer = self.engine.basic_optimizer
        update: Callable[..., object] = optimizer.step

        def observed(*args: object, **options: object) -> object:
            self.update = max(self.update, self._others())
            return update(*args, **options)

        with replaced(optimizer, "step", observed):
            yield
        self.resident["peak"] = peak_resident_bytes()

    def held(self) -> Held:
        weights = sum(self.weights.values())
        return Held(weights, sum(self._optimizer().values()), self.reduction, self.update)

    def around(self, name: str, part: Callable[[], None]) -> None:
        if name == "forward":
            self.kept.clear()
            with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor):
                part()
            sizes = [size for size, _ in self.kept.values()]
            self.activations = max(self.activations, sum(sizes))
        elif name == "backward":
            with counted(self._in_backward):
                part()
            self._in_backward([])
        else:
            part()
        self.resident[name] = resident_bytes()

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        # Under ZeRO-3 weights lie elsewhere each time that they are gathered.
        if storage.data_ptr() not in {**self.weights, **_storages(self._weights())}:
            self.kept[storage.data_ptr()] = (storage.nbytes(), weakref.ref(tensor))
        return tensor

    def _in_backward(self, message: list[Tensor]) -> None:
        self.reduction = max(self.reduction, self._others())
        if self.overlaps:
            self.in_flight = message

    def _others(self) -> int:
        """Bytes of all tensors that are neither weights, activations nor the optimizer's, nor were
        there."""
        gc.collect()  # gradients that only a cycle of references keeps
        activations = [tensor for _, kept in self.kept.values() if (tensor := kept()) is not None]
        known = {**self.before, **self.weights, **_storages(activations), **self._optimizer()}
        gradients = [p.grad for p in self.engine.module.parameters() if p.grad is not None]
        now = _storages([*gc.get_objects(), *gradients])
        return sum(size for place, size in now.items() if place not in known)

    def _weights(self) -> list[Tensor]:
        tensors: list[Tensor] = []
        for parameter in self.engine.module.parameters():
            tensors.append(parameter.data)
            part = getattr(parameter, "ds_tensor", None)
            if part is not None:
                tensors.append(part)
        return tensors

    def _optimizer(self) -> dict[int, int]:
        optimizer = self.engine.basic_optimizer
        # ZeRO-3 gives its float32 weights to the optimizer only during a step.
        tensors = list(getattr(self.engine.optimizer, "fp32_partitioned_groups_flat", ()))
        for group in optimizer.param_groups:
            tensors += group["params"]
        for state in optimizer.state.values():
            tensors += state.values()
        found = _storages(tensors)
        return {place: size for place, size in found.items() if place not in self.weights}


def _storages(objects: list[object] | list[Tensor]) -> dict[int, int]:
    """Bytes of the storages of the tensors among `objects`, by address."""
    found = {}
    for thing in objects:
        if isinstance(thing, Tensor) and thing.device.type == "cpu" and not thing.is_sparse:
            storage = thing.untyped_storage()
            if storage.nbytes():
                found[storage.data_ptr()] = storage.nbytes()
    return found
