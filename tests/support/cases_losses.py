"""What the ranks of the pool do for test_ledger.py: pre-train on partly poisoned data, some of them killed."""

import json
import os
import signal
from pathlib import Path

import torch

from gpt1_ds import train
from gpt1_ds.checkpoints import loading
from gpt1_ds.checkpoints.folder import find_checkpoint
from gpt1_ds.data.batches import Batches
from gpt1_ds.distributed import collectives
from gpt1_ds.runs import directory
from tests.support.cases_checkpoint import read
from tests.support.cases_engine import TINY, Trainer

RARE = (
    500  # a piece that the sample hardly has: a batch of nothing else is a real spike of the loss
)
RUN = [
    *TINY,
    "run.seed=1",
    "schedule.kind=constant",
    "log.every=1",
    "checkpoint.every=4",
    "checkpoint.keep=9",
    "eval.every=100",
    "eval.batches=1",
]


def pretrain(
    ds: str,
    shards: str,
    runs: str,
    name: str,
    overrides: list[str],
    garbage: list[int] = (0, 0),
    nan_calls: list[int] = (),
    kill_call: int = 0,
) -> tuple[dict, list[dict], list[dict]]:
    """Steps that begin with a window in `garbage` are of one rare piece; on rank 1, the loss of the `nan_calls`-th
    steps of this process is NaN, and the `kill_call`-th never begins. Final tensors, metrics, and the ledger."""
    plain_read, plain_step, calls = Batches.read, train.train_step, 0
    handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}

    def garbled(batches, first, size=None):
        ids = plain_read(batches, first, size)
        return (
            [torch.full_like(part, RARE) for part in ids]
            if garbage[0] <= first < garbage[1]
            else ids
        )

    def step(engine, *batch):
        nonlocal calls
        calls += 1
        if collectives.rank() == 1 and calls == kill_call:
            os.kill(os.getpid(), signal.SIGKILL)
        poison = calls in nan_calls and collectives.rank() == 1
        hook = engine.module.register_forward_hook(
            lambda *call: (call[2][0], call[2][1] * (torch.nan if poison else 1))
        )
        try:
            return plain_step(engine, *batch)
        finally:
            hook.remove()

    Batches.read, train.train_step = garbled, step
    folder = Path(runs) / name
    try:
        train.main(
            [
                "--deepspeed_config",
                ds,
                *RUN,
                *overrides,
                f"data.shards={shards}",
                f"run.dir={runs}",
                f"run.name={name}",
            ]
        )
    finally:
        Batches.read, train.train_step = plain_read, plain_step
        directory._locks.clear()  # as the end of the process would
        for number, handler in handlers.items():
            signal.signal(number, handler)
    files = (folder / "metrics.jsonl", folder / "skipped.jsonl")
    lines = [
        list(map(json.loads, path.read_text().splitlines())) if path.exists() else []
        for path in files
    ]
    tensors = {
        f"{name}.{key}": torch.as_tensor(value).double()
        for name, state in read(find_checkpoint(folder)).items()
        for key, value in state.items()
    }
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    exact = {
        key: [tensor.sum().item(), tensor.square().sum().item()] for key, tensor in tensors.items()
    }
    return exact, *lines


def replay(
    ds: str, shards: str, folder: str, window: int, last: int, overrides: list[str]
) -> list[float]:
    """Losses of the steps up to `last` that a new engine takes from the checkpoint in `folder`, from `window` on."""
    trainer = Trainer(ds, shards, [*RUN, *overrides])
    state = loading._load(trainer.engine, Path(folder))
    losses = trainer.run(state["step"], last, window)
    trainer.close()
    return losses
