"""Commands of an older tree, several in one process: `python old_commands.py JOBS ANSWERS`.

`test_compatibility.py` starts it in the root of that tree, alone or once for each rank. JOBS is a
JSON list of `{"module", "words", "folder", "stop"}`: the command's module, its arguments, its
working folder, and the optimizer step after which the process gets a SIGTERM (null: none). Rank 0
writes ANSWERS: what each command printed, its exit code, and the files of all imported modules.
This script imports nothing of today's tree.
"""

import contextlib
import ctypes
import importlib
import io
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGES = ("gpt1_ds", "data_prep")
PR_SET_PDEATHSIG = 1


def stop_after(module: ModuleType, steps: int) -> Callable[[], None]:
    """Have the command in `module` stop after so many steps; the result undoes this."""
    train_step, calls = module.train_step, []

    def counted(*args: Any, **options: Any) -> Any:
        loss = train_step(*args, **options)
        calls.append(None)
        if len(calls) == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    def undo() -> None:
        module.train_step = train_step

    module.train_step = counted
    return undo


def answer(job: dict[str, Any]) -> dict[str, Any]:
    """Run one command; an error that has no exit code ends this process."""
    os.chdir(job["folder"])
    module, code = importlib.import_module(job["module"]), 0
    undo = stop_after(module, job["stop"]) if job["stop"] else lambda: None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            code = module.main(job["words"]) or 0
        except Exception as error:
            code = getattr(error, "exit_code", None)
            if code is None:
                raise
        finally:
            undo()
    return {"printed": printed.getvalue(), "exit_code": code}


def main(jobs: Path, answers: Path) -> None:
    # A launcher that is killed does not end its ranks.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    sys.path[0] = os.getcwd()
    # Without bfloat16 units a CPU needs 20 s for this measurement; only `mfu` depends on it.
    importlib.import_module("gpt1_ds.profiling")._peak_flops = lambda precision: 1e12
    answered = [answer(job) for job in json.loads(jobs.read_text())]
    if os.environ.get("RANK", "0") == "0":
        modules = {
            name: module for name, module in sys.modules.items() if name.split(".")[0] in PACKAGES
        }
        files = sorted(str(module.__file__) for module in modules.values())
        answers.write_text(json.dumps({"answers": answered, "files": files}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
