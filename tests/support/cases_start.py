"""Functions that ranks of the pool run for tests of the start: several starts in one process."""

import importlib
import io
import os
from contextlib import ExitStack, redirect_stdout
from unittest.mock import patch

import torch.distributed as dist

from gpt1_ds.base.errors import DataError, PeerError, UserError
from gpt1_ds.distributed import agreement, collectives, heartbeat, rendezvous
from gpt1_ds.runs import directory
from gpt1_ds.runs.setup import read_settings
from gpt1_ds.settings.sections import PretrainConfig


def starts(cases: list[list[tuple[list[str], dict[str, str]]]], ports: list[int]) -> list[str]:
    """For each case: the error of a start with this rank's words and variables; empty if none.

    The error begins with `!` if this rank has to print it, and with its exit code.
    """
    said = []
    # These processes live on, and where WORLD_SIZE is 3, a rank is missing.
    with patch.multiple(agreement, LEAVE_SECONDS=0.1, PATIENCE_SECONDS=2.0):
        for case, port in zip(cases, ports, strict=True):
            words, variables = case[collectives.rank()]
            with patch.dict(os.environ, {**variables, "MASTER_PORT": str(port)}):
                said.append(start(words))
    return said


def start(words: list[str]) -> str:
    with ExitStack() as before:
        before.enter_context(patch.object(dist, "is_initialized", return_value=False))
        try:
            with rendezvous.joining() as meeting:
                read_settings(meeting, PretrainConfig, words, None)
                before.close()  # the ranks of the pool have joined already
            collectives.barrier()  # rank 0 keeps the store until the others have read its verdict
        except UserError as error:
            return f"{'!' * error.of_this_rank}{error.exit_code} {error}"
    return ""


def speakers() -> list[bool]:
    """Whether this rank prints an error that rank 1 alone has (twice), and one that both have."""
    beats, said = heartbeat._heartbeat, []
    with patch.object(heartbeat, "SAY_SECONDS", 0.2):
        for error in (DataError("one"), PeerError("lost"), DataError("both")):
            if str(error) == "both":
                collectives.barrier()
            elif collectives.rank() == 0:
                continue
            heartbeat._heartbeat = beats  # these processes live on
            heartbeat.choose_speaker(error)
            said.append(error.of_this_rank)
    heartbeat._heartbeat = beats
    return said


def output_of_trainings(command: str, *starts: list[str]) -> list[str]:
    """Standard output of each start of train or finetune, one after the other, with errors."""
    main = importlib.import_module(f"gpt1_ds.{command}").main
    outputs = []
    for words in starts:
        with redirect_stdout(io.StringIO()) as output:
            try:
                main(words)
            except UserError as error:
                print(f"error: {error}")
        directory._locks.clear()  # the end of a process does the same
        outputs.append(output.getvalue())
    return outputs
