"""Functions that ranks run for test_losses.py: pre-training on partly bad data, with kills."""

import importlib
import io
import json
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import torch

from gpt1_ds import train
from gpt1_ds.base.records import read_records
from gpt1_ds.checkpoints.folder import find_checkpoint
from gpt1_ds.checkpoints.loading import load_checkpoint
from gpt1_ds.data.batches import Batches
from gpt1_ds.distributed import collectives
from gpt1_ds.distributed.preemption import SIGNALS
from gpt1_ds.runs import directory
from tests.support.cases_checkpoint import read
from tests.support.cases_engine import TINY, Trainer

RARE = 500
"""A piece that is rare in the sample. A batch of only this piece causes a real loss spike."""
RUN = [
    *TINY,
    "data.order=grouped-1",  # in which the steps and losses of these tests were found
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
    garbage: Sequence[int] = (0, 0),
    nan_calls: Sequence[int] = (),
    kill_call: int = 0,
) -> tuple[dict[str, list[float]], list[dict], list[dict]]:
    """Pre-train; returns sums of the final tensors, and the records of metrics and skipped steps.

    Steps that begin with a window in `garbage` (from, to) read only one rare piece. On rank 1, the
    loss is NaN at the steps with a number in `nan_calls`, and the rank is killed before step number
    `kill_call`. These numbers count the steps of this process.
    """
    words = [*RUN, *overrides, f"data.shards={shards}", f"run.dir={runs}", f"run.name={name}"]
    with garbled_batches(garbage), faulty_steps(nan_calls, kill_call), end_of_process():
        train.main(["--deepspeed_config", ds, *words])
    folder = Path(runs) / name
    sums = {}
    for parameter, state in read(find_checkpoint(folder)).items():
        for key, value in state.items():
            tensor = torch.as_tensor(value).double()
            assert tensor.isfinite().all()
            sums[f"{parameter}.{key}"] = [tensor.sum().item(), tensor.square().sum().item()]
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return sums, metrics, read_records(folder / "skipped.jsonl")


def said(target: str, *arguments: object) -> tuple[object, str]:
    """What a case returns, and what it prints on standard output."""
    module, _, function = target.partition(":")
    with redirect_stdout(io.StringIO()) as text:
        result = getattr(importlib.import_module(module), function)(*arguments)
    return result, text.getvalue()


@contextmanager
def garbled_batches(garbage: Sequence[int]) -> Iterator[None]:
    plain_read = Batches.read

    def read_garbled(batches: Batches, first: int, size: int | None = None) -> list[torch.Tensor]:
        ids = plain_read(batches, first, size)
        if garbage[0] <= first < garbage[1]:
            return [torch.full_like(part, RARE) for part in ids]
        return ids

    Batches.read = read_garbled
    try:
        yield
    finally:
        Batches.read = plain_read


@contextmanager
def faulty_steps(nan_calls: Sequence[int], kill_call: int) -> Iterator[None]:
    plain_step, calls = train.train_step, 0

    def faulty_step(engine, *batch) -> torch.Tensor:
        nonlocal calls
        calls += 1
        victim = collectives.rank() == 1
        if victim and calls == kill_call:
            os.kill(os.getpid(), signal.SIGKILL)
        factor = torch.nan if victim and calls in nan_calls else 1

        def scale_loss(_module, _inputs, outputs: tuple) -> tuple:
            hidden, nll = outputs
            return hidden, nll * factor

        hook = engine.module.register_forward_hook(scale_loss)
        try:
            return plain_step(engine, *batch)
        finally:
            hook.remove()

    train.train_step = faulty_step
    try:
        yield
    finally:
        train.train_step = plain_step


@contextmanager
def end_of_process() -> Iterator[None]:
    """Undo a run's changes that last until the process ends: its lock and signal handlers."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        directory._locks.clear()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def replay(
    ds: str, shards: str, folder: str, window: int, last: int, overrides: list[str]
) -> list[float]:
    """Resume the checkpoint in `folder` with a new engine; returns the losses up to step `last`.

    The first step begins with window `window` of the order.
    """
    trainer = Trainer(ds, shards, [*RUN, *overrides])
    state = load_checkpoint(trainer.engine, Path(folder))
    losses = trainer.run(state.step, last, window)
    trainer.close()
    return losses
