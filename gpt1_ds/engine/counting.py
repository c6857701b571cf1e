"""Operators, waits for the device and bytes of collectives in a block of code.

It counts on any device, also on one rank of thousands over torch's fake process group. So a CPU
shows what the host of a GPU has to do.
"""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gpt1_ds.base.protocols import Json
from gpt1_ds.engine.internals import replaced

Arguments = tuple[Any, ...]
"""Of an operator."""
VIEWS = frozenset(
    "view transpose t slice split expand unsqueeze squeeze select detach alias as_strided "
    "_unsafe_view permute _reshape_alias split_with_sizes unbind narrow lift_fresh is_same_size "
    "empty empty_like new_empty empty_strided resize_".split()
)
"""Operators without work for the device: nothing is launched."""
WAITING = frozenset("_local_scalar_dense equal nonzero is_nonzero".split())
"""Operators whose result the host must have."""


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


class Counting(TorchDispatchMode):
    """Counts into `counts` while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()

    def __torch_dispatch__(
        self, function: Any, types: object, args: Arguments = (), kwargs: Json | None = None
    ) -> object:
        name = function.overloadpacket.__name__
        counts = self.counts
        if function.namespace == "c10d":
            counts.messages += 1
            counts.message_bytes += _given_bytes(args)
        elif name not in VIEWS:
            counts.operators[name] += 1
        if name in WAITING:
            counts.waits[name] += 1
        result = function(*args, **(kwargs or {}))
        if name in ("copy_", "_to_copy") and _is_pageable(args, result, kwargs or {}):
            counts.waits["pageable copy"] += 1
        return result


def _given_bytes(args: Arguments) -> int:
    """Bytes of the smaller side: an all-gather gives a part of what it receives."""
    sizes = []
    for side in args[:2]:
        leaves = [leaf for leaf in tree_leaves(side) if isinstance(leaf, Tensor)]
        sizes += [sum(leaf.nbytes for leaf in leaves)] if leaves else []
    return min(sizes, default=0)


def _is_pageable(args: Arguments, result: object, kwargs: Json) -> bool:
    """Whether this copy is one between host and device that the host has to wait for."""
    tensors = [tensor for tensor in (*args[:2], result) if isinstance(tensor, Tensor)]
    if len({tensor.device.type == "cpu" for tensor in tensors}) < 2:
        return False
    of_host = [tensor for tensor in tensors if tensor.device.type == "cpu"]
    told_not_to_wait = kwargs.get("non_blocking") or (len(args) > 2 and bool(args[2]))
    return not told_not_to_wait or not all(tensor.is_pinned() for tensor in of_host)


@contextmanager
def counted() -> Iterator[Counts]:
    """Count what this block does.

    DeepSpeed's calls of `synchronize` are counted too: they wait for all streams of the device.
    """
    from deepspeed.accelerator import get_accelerator

    accelerator, counting = get_accelerator(), Counting()
    synchronize = accelerator.synchronize

    def waiting(*device: object) -> None:
        counting.counts.waits["synchronize"] += 1
        synchronize(*device)

    with replaced(accelerator, "synchronize", waiting), counting:
        yield counting.counts


def join_fake_group(world_size: int) -> None:
    """Make this process rank 0 of `world_size` ranks that do not exist; collectives return at once.

    The tensors that they would fill stay as they are.
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore

    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}  # DeepSpeed asks for one
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(world_size)}
    os.environ.update(address | ranks)
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
