"""Lets DeepSpeed and the project take the device of `private_device.py` for that of this rank.

Torch's fake process group stands for the backend of the device: one rank has nobody to talk to.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch.testing._internal.distributed import fake_pg

from gpt1_ds.distributed import collectives
from gpt1_ds.engine.internals import import_deepspeed, replaced
from tests.support.private_device import operators

ADDRESS = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}


def join_group() -> None:
    """A process group of this rank alone, for tensors of the CPU and of the device."""
    os.environ.update(ADDRESS | ALONE)
    devices = ["cpu", "private"]
    dist.Backend.register_backend("lone", fake_pg._create_fake_pg, True, devices)
    dist.init_process_group("lone", store=fake_pg.FakeStore(), rank=0, world_size=1)


@contextmanager
def taken(device: torch.device) -> Iterator[None]:
    """In the block, `device` is this rank's device, for the project and for DeepSpeed."""
    deepspeed = import_deepspeed()
    from deepspeed.accelerator import real_accelerator
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    class Accelerator(CPU_Accelerator):
        def __init__(self) -> None:
            super().__init__()
            self._name = device.type

        def device_name(self, device_index: int | None = None) -> str:
            return device.type if device_index is None else f"{device.type}:{device_index}"

        def current_device(self) -> int:
            return 0

        def current_device_name(self) -> str:
            return str(device)

        def device_count(self) -> int:
            return 1

        def on_accelerator(self, tensor: torch.Tensor) -> bool:
            return tensor.device.type == device.type

    usual = deepspeed.accelerator.get_accelerator()
    real_accelerator.ds_accelerator = Accelerator()
    before = operators()
    try:
        with replaced(collectives, "device", lambda: device):
            yield
        assert operators() > before + 1000, "the block has hardly used the device"
    finally:
        real_accelerator.ds_accelerator = usual
