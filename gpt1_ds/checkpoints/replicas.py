"""Compare what all ranks keep a copy of: a rank whose copy has changed trains another model.

A failing chip or a broken collective may change weights without any error. What is compared is
`flat_tensors.replicated`: whatever exists once only, on one rank, no other rank can contradict.
One number of each rank, a hash of all its copies, goes into the gather that precedes every save.

ZeRO gathers the module's weights anew in each step, over whatever has happened to them. So in the
step before a checkpoint they are hashed before the update too, when forward and backward have used
them.
"""

import socket
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from gpt1_ds.base.protocols import Engine
from gpt1_ds.checkpoints.flat_tensors import replicated
from gpt1_ds.distributed import collectives
from gpt1_ds.engine.update import before_update
from gpt1_ds.settings.sections import CheckpointConfig

WORD_BYTES = 8
ROW_BYTES = 1024 * WORD_BYTES
MOST_RANKS_SHOWN = 8
REMEDY = "the last checkpoint is kept: start again, without these hosts if it happens again"


class Replicas:
    """The hashes of this rank's copies, and how they differ from those of the other ranks."""

    def __init__(self, config: CheckpointConfig):
        self.every = config.every
        self.is_on = config.compare_replicas and collectives.world_size() > 1
        self.names: list[str] = []
        self.noted_step = -1
        self.noted = torch.zeros(0, dtype=torch.int64)
        """The hashes before the update of the step `noted_step`."""
        self.looks: list[Tensor] = []
        """The hashes of all copies, before the last update (0: not looked at) and now."""

    def watch(self, engine: Engine) -> None:
        """Hash the copies before each update of `engine` that a regular checkpoint follows.

        ZeRO-0 needs no such look: what has changed there stays so.
        """
        if not self.is_on or not engine.zero_optimization_stage():
            return

        def look() -> None:
            step = engine.global_steps + 1
            if step % self.every == 0:
                self.noted_step, self.noted = step, self._look(engine)

        before_update(engine, look)

    def _look(self, engine: Engine) -> Tensor:
        """The hash of each copy, on this rank's device: nothing waits for them here."""
        copies = replicated(engine)
        self.names = list(copies)
        hashes = [tensor_hash(copy).to(collectives.device()) for copy in copies.values()]
        return torch.stack(hashes) if hashes else torch.zeros(0, dtype=torch.int64)

    def numbers(self, engine: Engine, step: int) -> list[int]:
        """One number for each of `looks`, the same on ranks with the same copies."""
        if not self.is_on:
            return [0, 0]
        now = self._look(engine)
        before = self.noted if self.noted_step == step else torch.zeros_like(now)
        self.looks = [before, now]
        return torch.stack([_weighted(look) for look in self.looks]).tolist()

    def difference(self, *numbers_R: Tensor) -> str:
        """What differs and on which ranks, in words; empty if nothing does. All ranks call.

        `numbers_R`: the `numbers` of every rank, each (ranks,).
        """
        differ = [bool((numbers != numbers[0]).any()) for numbers in numbers_R]
        if not any(differ):
            return ""
        which = differ.index(True)
        own = self.looks[which].tolist()
        pairs = zip(self.names, own, collectives.from_main(own), strict=True)
        name = next((name for name, here, there in pairs if here != there), "")
        hosts, names = zip(*collectives.gather_json([socket.gethostname(), name]), strict=True)
        name = next(filter(None, names)) + ("" if which else " before the last update")
        ranks = odd_ranks(numbers_R[which], hosts)
        return f"{name} is not the same on all ranks: {ranks}; {REMEDY}"


def odd_ranks(hashes_R: Tensor, hosts: Sequence[str]) -> str:
    """The ranks that differ from most others, with their hosts; all, if there is no majority."""
    values, counts = hashes_R.unique(return_counts=True)
    most = values[counts.argmax()]
    has_majority = 2 * int(counts.max()) > len(hosts)
    odd = [rank for rank, own in enumerate(hashes_R.tolist()) if own != most or not has_majority]
    shown = [f"{rank} ({hosts[rank]})" for rank in odd[:MOST_RANKS_SHOWN]]
    more = f" and {len(odd) - len(shown)} more" if len(odd) > len(shown) else ""
    ranks = f"rank{'s' if len(odd) > 1 else ''} {', '.join(shown)}{more}"
    if not has_majority:
        return f"{ranks} disagree"
    return f"{ranks} differ{'' if len(odd) > 1 else 's'} from the other {len(hosts) - len(odd)}"


def tensor_hash(tensor: Tensor) -> Tensor:
    """A number of 64 bits on the device of `tensor`, which any one changed bit changes.

    The sum of the words of each row, times an odd number of that row, modulo 2**64. It takes no
    memory but where the words of a tensor are not aligned.
    """
    content = tensor.detach().contiguous().view(-1).view(torch.uint8)
    if content.storage_offset() % WORD_BYTES:
        content = content.clone()
    rows = len(content) // ROW_BYTES
    whole, rest = content[: rows * ROW_BYTES], content[rows * ROW_BYTES :]
    rest = functional.pad(rest, (0, ROW_BYTES - len(rest)))
    sums = whole.view(torch.int64).view(rows, ROW_BYTES // WORD_BYTES).sum(1)
    return _weighted(torch.cat([sums, rest.view(torch.int64).sum(0, keepdim=True)]))


def _weighted(numbers_N: Tensor) -> Tensor:
    """The sum of the numbers, each times an odd number of its own, modulo 2**64."""
    return (numbers_N * (2 * torch.arange(len(numbers_N), device=numbers_N.device) + 1)).sum()
