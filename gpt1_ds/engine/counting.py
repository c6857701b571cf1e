"""Operators, waits for the device and bytes of collectives in a block of code.

It counts on any device, also on one rank of thousands over torch's fake process group. So a CPU
shows what the host of a GPU has to do.
"""

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gpt1_ds.base.protocols import Json
from gpt1_ds.engine.internals import import_deepspeed, replaced

Arguments = tuple[Any, ...]
"""Of an operator."""
OnMessage = Callable[[list[Tensor]], None]
VIEWS = frozenset(
    "view transpose t slice split expand unsqueeze squeeze select detach alias as_strided "
    "_unsafe_view permute _reshape_alias split_with_sizes unbind narrow lift_fresh is_same_size "
    "empty empty_like new_empty empty_strided resize_".split()
)
"""Operators without work for the device: nothing is launched."""
WAITING = frozenset("_local_scalar_dense equal nonzero is_nonzero".split())
"""Operators whose result the host must have."""

ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER = "all-reduce", "all-gather", "reduce-scatter"
OTHER = "other"
KINDS = {
    "allreduce_": ALL_REDUCE,
    "allreduce_coalesced_": ALL_REDUCE,
    "_allgather_base_": ALL_GATHER,
    "allgather_": ALL_GATHER,
    "allgather_into_tensor_coalesced_": ALL_GATHER,
    "_reduce_scatter_base_": REDUCE_SCATTER,
    "reduce_scatter_": REDUCE_SCATTER,
    "reduce_scatter_tensor_coalesced_": REDUCE_SCATTER,
}
"""Of collectives, by the name of their operator."""
SMALL_BYTES = 64
"""Up to this size a collective carries a norm or a flag, and no part of the model."""


class Sent(NamedTuple):
    """Collectives of one kind."""

    messages: int
    bytes: int
    """Of the whole tensors: those that are reduced, or those that are gathered."""


@dataclass
class Counts:
    """What a block of code did."""

    operators: Counter[str] = field(default_factory=Counter)
    """By name, without `VIEWS`."""
    waits: Counter[str] = field(default_factory=Counter)
    """Times that the host waits for the device, by operator or call."""
    messages: int = 0
    """Collectives."""
    message_bytes: int = 0
    """Bytes that this rank gives to collectives."""
    sent: dict[str, Sent] = field(default_factory=dict)
    """Collectives of more than `SMALL_BYTES`, by kind."""

    @property
    def small_messages(self) -> int:
        """Collectives of a norm or a flag."""
        return self.messages - sum(sent.messages for sent in self.sent.values())

    def add_message(self, operator: str, sides: list[int]) -> None:
        """`sides`: bytes of the tensors that a collective takes and fills."""
        self.messages += 1
        self.message_bytes += min(sides, default=0)
        whole = max(sides, default=0)
        if whole > SMALL_BYTES:
            kind = KINDS.get(operator, OTHER)
            messages, size = self.sent.get(kind, Sent(0, 0))
            self.sent[kind] = Sent(messages + 1, size + whole)


class Counting(TorchDispatchMode):
    """Counts into `counts` while it is active; `on_message` gets the tensors of each collective
    before it begins."""

    def __init__(self, on_message: OnMessage) -> None:
        super().__init__()
        self.counts = Counts()
        self.on_message = on_message

    def __torch_dispatch__(
        self, function: Any, types: object, args: Arguments = (), kwargs: Json | None = None
    ) -> object:
        name = function.overloadpacket.__name__
        counts = self.counts
        if function.namespace == "c10d":
            counts.add_message(name, _sides(args))
            self.on_message([leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)])
        elif name not in VIEWS:
            counts.operators[name] += 1
        if name in WAITING:
            counts.waits[name] += 1
        result = function(*args, **(kwargs or {}))
        if name in ("copy_", "_to_copy") and _is_pageable(args, result, kwargs or {}):
            counts.waits["pageable copy"] += 1
        return result


def _sides(args: Arguments) -> list[int]:
    """Bytes of the tensors on either side: an all-gather gives a part of what it receives."""
    sizes = []
    for side in args[:2]:
        leaves = [leaf for leaf in tree_leaves(side) if isinstance(leaf, Tensor)]
        sizes += [sum(leaf.nbytes for leaf in leaves)] if leaves else []
    return sizes


def _is_pageable(args: Arguments, result: object, kwargs: Json) -> bool:
    """Whether this copy is one between host and device that the host has to wait for."""
    tensors = [tensor for tensor in (*args[:2], result) if isinstance(tensor, Tensor)]
    if len({tensor.device.type == "cpu" for tensor in tensors}) < 2:
        return False
    of_host = [tensor for tensor in tensors if tensor.device.type == "cpu"]
    told_not_to_wait = kwargs.get("non_blocking") or (len(args) > 2 and bool(args[2]))
    return not told_not_to_wait or not all(tensor.is_pinned() for tensor in of_host)


@contextmanager
def counted(on_message: OnMessage = lambda tensors: None) -> Iterator[Counts]:
    """Count what this block does. Before each collective, `on_message` gets its tensors.

    DeepSpeed's calls of `synchronize` are counted too: they wait for all streams of the device.
    """
    from deepspeed.accelerator import get_accelerator

    accelerator, counting = get_accelerator(), Counting(on_message)
    synchronize = accelerator.synchronize

    def waiting(*device: object) -> None:
        counting.counts.waits["synchronize"] += 1
        synchronize(*device)

    with replaced(accelerator, "synchronize", waiting), counting:
        yield counting.counts


def join_fake_group(world_size: int) -> None:
    """Make this process rank 0 of `world_size` ranks that do not exist; collectives return at once.

    They take this rank's tensors for those of all others.
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore

    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}  # DeepSpeed asks for one
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(world_size)}
    os.environ.update(address | ranks)
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)


@contextmanager
def fake_group(world_size: int) -> Iterator[None]:
    """`join_fake_group` for this block; the process has no group after it.

    A CPU passes for one that DeepSpeed takes for fp16, in which torch can compute on it, slowly.
    """
    deepspeed = import_deepspeed()
    environment = dict(os.environ)
    accelerator = deepspeed.accelerator.get_accelerator()
    join_fake_group(world_size)
    try:
        with replaced(accelerator, "is_fp16_supported", lambda: True), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Set timeout is now only supported")
            yield
    finally:
        deepspeed.comm.destroy_process_group()
        deepspeed.comm.comm.cdb = None  # else the next group would find this one
        os.environ.clear()
        os.environ.update(environment)
