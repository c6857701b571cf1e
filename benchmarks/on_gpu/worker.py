"""A child process of `running`: works rows, and writes a result to the pipe after each.

    python -m benchmarks.on_gpu.worker DESCRIPTOR ROWS

A line `null` says that a row begins.
"""

import gc
import importlib
import json
import os
import sys
import traceback

from benchmarks.on_gpu.running import FAULT_CHARACTERS

BROKEN = "CUDA error"
"""After such an error no call of CUDA works any more in this process."""


def main(descriptor: int, rows: list[dict]) -> None:
    with os.fdopen(descriptor, "w") as pipe:
        for row in rows:
            print("null", file=pipe, flush=True)
            result = work(row["work"], row["arguments"])
            print(json.dumps(result), file=pipe, flush=True)
            if BROKEN in result.get("fault", ""):
                return
            _free_memory()


def work(name: str, arguments: dict) -> dict:
    module, function = name.split(":")
    try:
        return getattr(importlib.import_module(module), function)(**arguments)
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return {"fault": text[:FAULT_CHARACTERS]}


def _free_memory() -> None:
    """Give the device's memory back, as far as nothing holds it, so that rows are alike."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main(int(sys.argv[1]), json.loads(sys.argv[2]))
