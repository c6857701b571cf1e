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


def gathered() -> list[list[object]]:
    """Values that differ in length, and values that are the same: on all ranks, and on rank 0."""
    own = {"file \u00e9" * (collectives.rank() + 1): [collectives.rank(), None, True]}
    both = collectives.gather_json, collectives.gather_json_on_main
    return [gather(value) for gather in both for value in (own, "same")]


def test_values_of_all_ranks_reach_all_ranks_or_rank_0_alone(ranks):
    here, there = ranks(2).run("tests.distributed.test_collectives:gathered")
    values = [{"file \u00e9": [0, None, True]}, {"file \u00e9file \u00e9": [1, None, True]}]
    assert here == [values, ["same", "same"]] * 2
    assert there == [values, ["same", "same"], [], []]


def test_one_rank_alone_has_its_own_value():
    assert collectives.gather_json([1]) == collectives.gather_json_on_main([1]) == [[1]]
