"""Where this process stands among its peers, and the few collectives the rest of the code uses.

The rank environment comes from the launcher (`RANK` ..), or Slurm (`SLURM_*`), or MPI (`OMPI_*`, `PMI_*`), in that
order. Every collective here must be called by all ranks.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from gpt1_ds.base.errors import ConfigError, DataError, PeerError, UserError
from gpt1_ds.distributed import heartbeat


def device() -> torch.device:
    return (
        torch.device("cuda", torch.cuda.current_device())
        if torch.cuda.is_available()
        else torch.device("cpu")
    )


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def barrier() -> None:
    all_sum(torch.zeros(1))


def all_sum(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of `tensor` over ranks, on its own device."""
    if world_size() == 1:
        return tensor
    total = tensor.detach().to(device(), copy=True)
    dist.all_reduce(total)
    return total.to(tensor.device)


def gather_json(value: Any) -> list[Any]:
    """Every rank's plain `value`, by rank, on all ranks. JSON and not pickle: nothing that arrives is executed."""
    if world_size() == 1:
        return [value]
    payload = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(
        device()
    )
    sizes = [torch.zeros(1, dtype=torch.long, device=device()) for _ in range(world_size())]
    dist.all_gather(sizes, torch.tensor([len(payload)], device=device()))
    longest = int(max(sizes))
    slots = [torch.zeros(longest, dtype=torch.uint8, device=device()) for _ in range(world_size())]
    dist.all_gather(slots, torch.nn.functional.pad(payload, (0, longest - len(payload))))
    return [
        json.loads(bytes(slot[: int(size)].tolist()))
        for slot, size in zip(slots, sizes, strict=True)
    ]


def on_main(action: Callable[[], None]) -> None:
    """Run `action` on rank 0; what the user did wrong there is raised on every rank, so that none is left waiting."""
    fault = None
    if is_main():
        try:
            action()
        except UserError as error:
            fault = [error.exit_code, str(error)]
    if fault := gather_json(fault)[0]:
        raise next(
            kind for kind in (ConfigError, DataError, PeerError) if kind.exit_code == fault[0]
        )(fault[1])


@contextmanager
def peer_faults() -> Iterator[None]:
    """A collective that fails because a peer died or hung becomes a `PeerError`."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not isinstance(error, dist.DistError) and not any(
            word in text for word in ("gloo", "NCCL", "peer")
        ):
            raise
        culprit = heartbeat.suspects() or "see which rank died"
        raise PeerError(
            f"rank {rank()} lost a peer ({text.splitlines()[0][:200]}); {culprit}; start the run again to "
            "resume",
            of_this_rank=culprit.startswith("rank 0 "),
        ) from error
