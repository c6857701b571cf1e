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
from gpt1_ds.distributed import heartbeat, waiting

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


@waiting.for_peers()
def all_sum(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of `tensor` over ranks, on the device of `tensor`."""
    if world_size() == 1:
        return tensor
    total = tensor.detach().to(device(), copy=True)
    dist.all_reduce(total)
    return total.to(tensor.device)


def upload(tensor: torch.Tensor, to: torch.device) -> torch.Tensor:
    """`tensor` on the device `to`, without a wait of the host: a GPU copies from pinned memory."""
    if to.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(to, non_blocking=True)


class Pending:
    """Numbers that a collective fills, which goes on while the host does something else."""

    def __init__(self, numbers: torch.Tensor, work: dist.Work | None):
        assert work is not None
        self.numbers = numbers
        self.work = work
        self.on_host = numbers
        self.copied: torch.cuda.Event | None = None
        if numbers.device.type == "cuda":
            self._copy_later()

    def _copy_later(self) -> None:
        """Copy them to the host in a stream of their own, behind which nothing else waits."""
        self.on_host = torch.empty(self.numbers.shape, pin_memory=True)
        self.copied = copied = torch.cuda.Event()
        with torch.cuda.stream(torch.cuda.Stream()):
            self.work.wait()
            self.on_host.copy_(self.numbers, non_blocking=True)
            copied.record()

    @waiting.for_peers()
    def read(self) -> list[float]:
        """The numbers. Waits until they are there."""
        if self.copied is None:
            self.work.wait()
        else:
            self.copied.synchronize()
        return self.on_host.tolist()


class PendingSum(Pending):
    """The sum of each of some numbers over ranks."""

    def __init__(self, values: list[float]):
        total = upload(torch.tensor(values), device())
        super().__init__(total, dist.all_reduce(total, async_op=True))


class PendingGather(Pending):
    """One number of each rank, in rank order."""

    def __init__(self, value: float):
        own = upload(torch.tensor([value]), device())
        numbers_R = own.new_empty(world_size())
        super().__init__(numbers_R, dist.all_gather_into_tensor(numbers_R, own, async_op=True))


@waiting.for_peers()
def gather_json(value: Any) -> list[Any]:
    """The `value` (plain JSON data) of every rank, in rank order, on all ranks.

    Where values differ, each rank parses those of all: see `gather_json_on_main`.
    """
    return [value] if world_size() == 1 else _parsed(*_gather_text(value))


@waiting.for_peers()
def gather_json_on_main(value: Any) -> list[Any]:
    """The `value` (plain JSON data) of every rank, in rank order, on rank 0; none on the others.

    To parse thousands of values takes milliseconds, which only the rank that needs them spends.
    """
    if world_size() == 1:
        return [value]
    gathered = _gather_text(value)
    return _parsed(*gathered) if is_main() else []


def _gather_text(value: Any) -> tuple[bytes, torch.Tensor]:
    """The text of this rank's `value`, and those of all ranks: bytes, (ranks, length).

    The values are sent as JSON and not as pickles, because loading a pickle can run code. The
    text of a rank is filled up with blanks, which JSON ignores, and ends with a comma.
    """
    content = json.dumps(value).encode()
    longest = torch.tensor([len(content)], device=device())
    dist.all_reduce(longest, dist.ReduceOp.MAX)
    content = content.ljust(int(longest.item())) + b","
    return content, _all_gather(torch.frombuffer(bytearray(content), dtype=torch.uint8))


def _parsed(own: bytes, gathered: torch.Tensor) -> list[Any]:
    """All values, from one JSON text that is parsed in one go; once, if they are the same."""
    text = gathered.numpy().tobytes()
    if text == own * len(gathered):
        return [json.loads(own[:-1])] * len(gathered)
    values: list[Any] = json.loads("[" + text[:-1].decode("ascii") + "]")
    return values


def gather_numbers(numbers: list[int]) -> torch.Tensor:
    """The numbers of every rank, (ranks, numbers) int64 on the CPU, on all ranks.

    One collective, and no work for each rank.
    """
    own = torch.tensor(numbers)
    return own[None] if world_size() == 1 else _all_gather(own)


@waiting.for_peers()
def _all_gather(tensor_N: torch.Tensor) -> torch.Tensor:
    """The tensors of all ranks, (ranks, N) on the CPU.

    One tensor for all ranks: thousands of small ones would be thousands of copies from a GPU.
    """
    gathered = tensor_N.new_empty(world_size() * len(tensor_N), device=device())
    dist.all_gather_into_tensor(gathered, tensor_N.to(device()))
    return gathered.cpu().view(world_size(), len(tensor_N))


@waiting.for_peers()
def from_main(value: Any) -> Any:
    """The `value` (plain JSON data) of rank 0, on all ranks; that of another rank is not used.

    What a rank receives does not grow with the number of ranks.
    """
    if world_size() == 1:
        return value
    content = json.dumps(value).encode() if is_main() else b""
    size = torch.tensor([len(content)], device=device())
    dist.broadcast(size, 0)
    text = torch.frombuffer(bytearray(content.ljust(int(size.item()))), dtype=torch.uint8)
    text = text.to(device())
    dist.broadcast(text, 0)
    return json.loads(text.cpu().numpy().tobytes())


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
    fault = from_main(fault)
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
        heartbeat.begin_to_end()
        heartbeat.choose_speaker(error)
        raise
    except RuntimeError as error:
        heartbeat.begin_to_end()
        text = str(error)
        of_a_backend = any(word in text for word in BACKEND_WORDS)
        if not isinstance(error, dist.DistError) and not of_a_backend:
            raise
        fault = heartbeat.lost_peer(rank(), text.splitlines()[0][:200])
        heartbeat.choose_speaker(fault)
        raise fault from error
