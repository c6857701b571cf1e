"""Functions that ranks of the pool run for tests of `train.deterministic`."""

import os
from pathlib import Path

import torch

from gpt1_ds.checkpoints.folder import find_checkpoint
from gpt1_ds.engine.determinism import WORKSPACE
from tests.support.cases_checkpoint import read, same
from tests.support.cases_losses import pretrain

ON, STEPS = "train.deterministic=true", "train.max_steps=6"
Found = tuple[list[bool], list[tuple[bool, str]]]


def runs(ds: str, shards: str, folder: str) -> Found:
    """Six steps with the switch; the same again; again with a resume; at last without the switch.

    Returns which runs end with the bits of the first one, and whether torch was deterministic after
    each, with the workspace of cuBLAS.
    """
    equal, switches = [], []
    os.environ.pop(WORKSPACE, None)
    pretrain(ds, shards, folder, "resumed", [ON, "train.max_steps=4"])
    settings = {"once": [ON], "again": [ON], "resumed": [ON], "plain": []}
    try:
        for name, words in settings.items():
            pretrain(ds, shards, folder, name, [STEPS, *words])
            switches.append((torch.are_deterministic_algorithms_enabled(), os.environ[WORKSPACE]))
            first, last = (find_checkpoint(Path(folder, run)) for run in ("once", name))
            assert last.name == "step-00000006"
            equal.append(same(read(first), read(last)))
    finally:
        os.environ.pop(WORKSPACE, None)
    return equal, switches
