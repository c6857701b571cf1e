"""The rank of this process, and the few collectives that the rest of the code uses.

Every rank must call each collective here, in the same order.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from gpt1_ds.base.errors import ConfigError, DataError, PeerError, UserError
from gpt1_ds.distributed import heartbeat

BACKEND_WORDS = ("gloo", "NCCL", "peer")
"""The text of every backend error about a lost peer contains one of these words."""


def device() -> torch.device:
    """This rank's GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def barrier() -> None:
    all_sum(torch.zeros(1))


def all_sum(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of `tensor` over ranks, on the device of `tensor`."""
    if world_size() == 1:
        return tensor
    total = tensor.detach().to(device(), copy=True)
    dist.all_reduce(total)
    return total.to(tensor.device)


def gather_json(value: Any) -> list[Any]:
    """The `value` (plain JSON data) of every rank, in rank order, on all ranks.

    The values are sent as JSON and not as pickles, because loading a pickle can run code.
    """
    if world_size() == 1:
        return [value]
    content = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    sizes = _all_gather(torch.tensor([len(content)])).tolist()
    longest = max(sizes)
    # One tensor for all ranks: thousands of small ones would be thousands of copies from a GPU.
    gathered = _all_gather(torch.nn.functional.pad(content, (0, longest - len(content))))
    slots = gathered.view(len(sizes), longest).numpy()
    return [json.loads(slot[:size].tobytes()) for slot, size in zip(slots, sizes, strict=True)]


def _all_gather(tensor_N: torch.Tensor) -> torch.Tensor:
    """The tensors of all ranks, one after the other, on the CPU."""
    gathered = tensor_N.new_empty(world_size() * len(tensor_N), device=device())
    dist.all_gather_into_tensor(gathered, tensor_N.to(device()))
    return gathered.cpu()


def on_main(action: Callable[[], object]) -> None:
    """Run `action` on rank 0.

    If it raises a `UserError`, every rank raises the same error, so that no rank waits for ever.
    """
    fault = None
    if is_main():
        try:
            action()
        except UserError as error:
            fault = [error.exit_code, str(error)]
    fault = gather_json(fault)[0]
    if fault:
        exit_code, text = fault
        kinds = {kind.exit_code: kind for kind in (ConfigError, DataError, PeerError)}
        raise kinds[exit_code](text)


@contextmanager
def peer_faults() -> Iterator[None]:
    """Turns the error of a collective into a `PeerError` if a peer died or hung.

    Of any error that ends this rank, it decides whether this rank prints it.
    """
    try:
        yield
    except UserError as error:
        heartbeat.choose_speaker(error)
        raise
    except RuntimeError as error:
        text = str(error)
        of_a_backend = any(word in text for word in BACKEND_WORDS)
        if not isinstance(error, dist.DistError) and not of_a_backend:
            raise
        suspects = heartbeat.suspects() or "see which rank died"
        fault = PeerError(
            f"rank {rank()} lost a peer ({text.splitlines()[0][:200]}); {suspects}; "
            "start the run again to resume",
            of_this_rank=suspects.startswith("rank 0 "),
        )
        heartbeat.choose_speaker(fault)
        raise fault from error
