"""Counts what one of many ranks does for a save, over torch's fake process group. Prints JSON.

    python -m tests.support.cases_many_ranks DEEPSPEED.json RUNS RANKS ..

One fork for each number of ranks. A line has operators, collectives, bytes given to them, and calls
of Python functions.
"""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from gpt1_ds.checkpoints.saving import save_checkpoint
from gpt1_ds.checkpoints.state import CheckpointState
from gpt1_ds.engine.counting import counted, join_fake_group
from gpt1_ds.engine.internals import import_deepspeed
from gpt1_ds.engine.start import initialize
from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.settings.deepspeed_json import resolve
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import CheckpointConfig, PretrainConfig

SHAPE = GPTConfig(300, 2, 2, 32, 32)


def count_save(ds_path: str, folder: Path, ranks: int) -> dict[str, int]:
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE=str(ranks))
    torch.set_num_threads(1)
    join_fake_group(ranks)
    config = load(PretrainConfig, None, [f"train.global_batch={ranks}", "train.micro_batch=1"])
    engine = initialize(GPT(SHAPE), config, resolve(ds_path, config, ranks))
    state = CheckpointState(step=1, model=asdict(SHAPE), tokenizer_sha256="ab" * 32)
    calls = 0

    def count(_frame: object, event: str, _what: object) -> None:
        nonlocal calls
        calls += event == "call"

    # The first save allocates the moments of some stages.
    save_checkpoint(engine, folder / "first", 1, state, CheckpointConfig(keep=1))
    with counted() as counts:
        save_checkpoint(engine, folder / "second", 1, state, CheckpointConfig(keep=1))
    sys.setprofile(count)
    save_checkpoint(engine, folder / "third", 1, state, CheckpointConfig(keep=1))
    sys.setprofile(None)
    operators = sum(counts.operators.values())
    return {
        "operators": operators,
        "messages": counts.messages,
        "bytes": counts.message_bytes,
        "calls": calls,
    }


def main(ds_path: str, runs: str, *worlds: str) -> None:
    import_deepspeed()
    for ranks in map(int, worlds):
        if (child := os.fork()) == 0:
            try:
                found = count_save(ds_path, Path(runs) / str(ranks), ranks)
                print(json.dumps(found), flush=True)
                os._exit(0)
            finally:
                os._exit(1)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
