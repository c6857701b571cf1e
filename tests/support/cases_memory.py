"""Commands that run out of memory, each in a process that may take few more bytes.

    python -m tests.support.cases_memory < cases.json

A case is [name of the command, bytes that it may take, words of its command line]. Each one runs
in a fork of this process, which has everything imported. Prints a JSON list of exit code, standard
output and standard error.
"""

import importlib
import json
import os
import resource
import sys
import tempfile
from pathlib import Path

from gpt1_ds.base.errors import guard

PAGE = resource.getpagesize()


def address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * PAGE


def ended(command: str, room: int, words: list[str]) -> list[object]:
    """Run the command with `room` bytes of address space beside what this process has."""
    module = importlib.import_module(f"gpt1_ds.{command}")
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("out", "err")]
        child = os.fork()
        if not child:
            for number, path in enumerate(files, 1):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
            _, hard = resource.getrlimit(resource.RLIMIT_AS)
            resource.setrlimit(resource.RLIMIT_AS, (address_space() + room, hard))
            sys.argv = [command, *words]
            try:
                guard(module.main)
            except SystemExit as end:
                sys.stdout.flush()
                os._exit(end.code if isinstance(end.code, int) else 1)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        return [code, *(path.read_text(encoding="utf-8") for path in files)]


if __name__ == "__main__":
    import deepspeed  # noqa: F401 (so that no fork imports it again)

    for name in ("train", "finetune", "eval", "generate", "export"):
        importlib.import_module(f"gpt1_ds.{name}")
    found = [ended(*case) for case in json.load(sys.stdin)]
    print(json.dumps(found))
