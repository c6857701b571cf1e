"""Functions that `test_gpu.py` works as rows, in child processes of `benchmarks/on_gpu`."""

import os
import signal
import time
from pathlib import Path


def passes(word: str = "") -> dict:
    return {"passed": True, "found": f"{word} {os.getpid()}"}


def fails() -> dict:
    return {"passed": False, "found": "0.0625 measured, 0.1 asked for"}


def raises() -> dict:
    raise RuntimeError("out of\n memory")


def dies() -> dict:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def hangs(pid_file: str = "") -> dict:
    if pid_file:
        Path(pid_file).write_text(str(os.getpid()))
    time.sleep(600)
    return {}
