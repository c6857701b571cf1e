"""Finds the launchers among the ancestors of this process, by the programs that they run."""

import os
import re

import psutil

PROGRAMS = {
    "accelerate",
    "deepspeed",
    "ds",
    "hydra_pmi_proxy",
    "mpiexec",
    "mpiexec.hydra",
    "mpirun",
    "orted",
    "orterun",
    "prted",
    "prterun",
    "slurmstepd",
    "srun",
    "torchrun",
}
"""Names of binaries, and of scripts that Python runs."""
MODULES = {
    "accelerate.commands.accelerate_cli",
    "accelerate.commands.launch",
    "deepspeed",
    "deepspeed.launcher.launch",
    "deepspeed.launcher.runner",
    "torch.distributed.launch",
    "torch.distributed.run",
}
"""What follows `python -m`."""
PYTHON = re.compile(r"(python|pypy)[\d.]*t?")
OPTIONS_WITH_A_VALUE = ("-W", "-X", "--check-hash-based-pycs")


def launchers() -> list[psutil.Process]:
    """Ancestors of this process that are launchers."""
    found = []
    for process in psutil.Process().parents():
        if process.pid == 1:
            break
        try:
            words = process.cmdline()
        except psutil.Error:
            break
        if is_launcher(words):
            found.append(process)
    return found


def is_launcher(words: list[str]) -> bool:
    """Whether a process with this command line is a launcher.

    Only the program counts, and not the folder that it lies in. A shell script is no launcher: it
    may start a run in the background and end. A launcher that it starts has a process of its own.
    """
    if not words:
        return False
    # slurmstepd writes the number of its step behind its name.
    program = os.path.basename(words[0]).partition(":")[0]
    if not PYTHON.fullmatch(program):
        return program in PROGRAMS
    rest = iter(words[1:])
    for word in rest:
        if word.startswith("-m"):
            return (word[2:] or next(rest, "")) in MODULES
        if word.startswith("-c") or word == "-":
            return False
        if word in OPTIONS_WITH_A_VALUE:
            next(rest, None)
        elif not word.startswith("-"):
            return os.path.basename(word) in PROGRAMS
    return False


def is_alive(process: psutil.Process) -> bool:
    """Whether the process runs. psutil notices if another process got the same id."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
