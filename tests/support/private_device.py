"""A device of torch named `private` that computes on the CPU, and refuses tensors of the CPU.

Code for GPUs runs on it: whatever asks whether a device is the CPU hears that it is not. An
operator that meets tensors of both raises an error. `private_device.cpp` has the kernels; they are
compiled once for each version of torch, in some seconds.
"""

import hashlib
import os
import subprocess
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch

SOURCE = Path(__file__).with_suffix(".cpp")
CACHE = Path(__file__).resolve().parents[2] / ".pytest_cache" / "private_device"
COMPILE_SECONDS = 240.0


class Module(ModuleType):
    """What torch asks of a device: `torch.private`."""

    def __init__(self) -> None:
        super().__init__("private")
        # The device has the generator of the CPU.
        self.get_rng_state = lambda device=None: torch.get_rng_state()
        self.set_rng_state = lambda state, device=None: torch.set_rng_state(state)
        self.device = lambda index: nullcontext()
        self.is_available = self.is_initialized = lambda: True
        self._is_in_bad_fork = lambda: False
        self.manual_seed_all = lambda seed: None
        self.device_count = lambda: 1
        self.current_device = lambda: 0
        self.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]


def library() -> Path:
    """The compiled kernels."""
    source = SOURCE.read_bytes() + f"{torch.__version__}".encode()
    path = CACHE / f"{hashlib.sha256(source).hexdigest()[:16]}.so"
    if path.exists():
        return path
    CACHE.mkdir(parents=True, exist_ok=True)
    folder = Path(torch.__file__).parent
    unfinished = path.with_suffix(f".{os.getpid()}")
    command = ["c++", "-std=c++20", "-O0", "-w", "-shared", "-fPIC", f"-I{folder}/include"]
    command += [str(SOURCE), "-o", str(unfinished), f"-L{folder}/lib", "-ltorch_cpu", "-lc10"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS)
    assert done.returncode == 0, done.stderr[-4000:]
    unfinished.replace(path)
    return path


def make_device() -> torch.device:
    """Load the kernels into this process, for good; the device."""
    torch.ops.load_library(str(library()))
    torch.utils.rename_privateuse1_backend("private")
    torch._register_device_module("private", Module())
    torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)
    return torch.device("private", 0)


def operators() -> int:
    """How many operators have run on the device."""
    return int(torch.ops.private_device.operators())


class Given(NamedTuple):
    """What the cases on the device work with."""

    device: torch.device
    shards: Path
    run: Path
    """Trained on the shards."""
    sample: Path
    """The embedded sample."""
    folder: Path
    """For new runs."""
