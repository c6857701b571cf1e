"""The decisions of a rank that sees GPUs. A stand-in takes the place of the driver."""

import pytest
import torch

from gpt1_ds.base.errors import ConfigError
from gpt1_ds.distributed import rendezvous
from gpt1_ds.distributed.environment import RankEnv
from gpt1_ds.settings.deepspeed_json import resolve
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import PretrainConfig
from tests.settings.test_deepspeed_json import FOLDER


@pytest.fixture
def driver(monkeypatch) -> list[int]:
    """Eight GPUs; returns the numbers of those that are taken."""
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    return taken


def prepare(local_rank: int) -> str:
    return rendezvous._prepare_device(RankEnv(local_rank, 16, local_rank, "127.0.0.1", 29_500))


def test_a_rank_takes_the_gpu_of_its_number_or_the_only_one(driver, monkeypatch):
    assert prepare(3) == "nccl" and driver == [3]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert prepare(3) == "nccl" and driver == [3, 0]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="local rank 3 has no GPU of its own, 2 are visible"):
        prepare(3)


def test_attention_with_dropout_is_not_cudnns(driver):
    """Its kernel rounds the rate of dropout (torch 2.11)."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        torch.backends.cuda.enable_cudnn_sdp(True)
        prepare(0)
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.flash_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def test_freed_memory_stays_in_the_heap_with_gpus_too(driver, monkeypatch):
    calls: list[str] = []
    monkeypatch.setattr(rendezvous, "_call_libc", lambda name, *_: calls.append(name))
    prepare(0)
    assert calls == ["mallopt", "mallopt"]


@pytest.mark.parametrize("name", ["zero2_offload", "zero3_offload"])
def test_offloaded_tensors_are_pinned_for_a_gpu_alone(driver, monkeypatch, name):
    def pinned() -> set[bool]:
        ds = resolve(FOLDER / f"{name}.json", load(PretrainConfig, None, []), 8)
        zero = ds["zero_optimization"]
        return {zero[key]["pin_memory"] for key in zero if key.startswith("offload")}

    assert pinned() == {True}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pinned() == {False}
