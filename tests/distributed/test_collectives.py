"""Copies to a GPU, and sums that the host does not wait for."""

import torch

from gpt1_ds.distributed import collectives


def test_a_tensor_for_a_gpu_is_copied_from_pinned_memory(monkeypatch):
    calls = []

    def pinned(tensor: torch.Tensor) -> torch.Tensor:
        calls.append("pinned")
        return tensor

    def copied(tensor: torch.Tensor, to: torch.device, non_blocking: bool = False) -> torch.Tensor:
        calls.append((to.type, non_blocking))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pinned)
    monkeypatch.setattr(torch.Tensor, "to", copied)
    collectives.upload(torch.zeros(2), torch.device("cuda"))
    assert calls == ["pinned", ("cuda", True)]
    collectives.upload(torch.zeros(2), torch.device("cpu"))
    assert calls[2:] == [("cpu", True)]


def sums() -> list[list[float]]:
    """Of two sums at once, the later one read first."""
    rank = float(collectives.rank())
    first = collectives.PendingSum([rank, 1.0])
    second = collectives.PendingSum([10 * rank + 1])
    return [second.read(), first.read(), first.read()]


def test_several_sums_go_on_at_once(ranks):
    here, there = ranks(2).run("tests.distributed.test_collectives:sums")
    assert here == there == [[12.0], [1.0, 2.0], [1.0, 2.0]]
