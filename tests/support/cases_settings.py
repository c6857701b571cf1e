"""Functions that ranks of the pool run: tensors that are spoiled, settings that change."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from gpt1_ds import train
from gpt1_ds.base.errors import DivergedError
from gpt1_ds.base.protocols import Engine
from gpt1_ds.checkpoints.flat_tensors import flat_slices
from gpt1_ds.checkpoints.loading import resume
from gpt1_ds.checkpoints.saving import save_checkpoint
from gpt1_ds.distributed import collectives
from gpt1_ds.settings.sections import CheckpointConfig
from tests.support.cases_checkpoint import committed
from tests.support.cases_engine import Trainer
from tests.support.cases_losses import RUN, end_of_process

SPOILED = {
    "weight": torch.nan,
    "exp_avg": torch.inf,
    "exp_avg_sq": torch.nan,
    "module": -torch.inf,
}


def element(engine, kind: str) -> Tensor:
    """A view of one element of the last parameter that this rank keeps."""
    last = flat_slices(engine)[-1]
    if kind == "weight":
        return last.weights()[-1:]
    if kind == "module":
        parameter = dict(engine.module.named_parameters())[last.name]
        return getattr(parameter, "ds_tensor", parameter).detach().view(-1)[:1]
    return last.of_flat(engine.basic_optimizer.state[last.flat][kind])[-1:]


def spoiled_saves(ds_path: str, shards: str, folder: str) -> tuple[list[str], list[str], str]:
    """Save step 1, then four times a step 2 that is spoiled on rank 1, then a sound one.

    Returns the errors, the checkpoints after them, and `latest` then.
    """
    trainer, run = Trainer(ds_path, shards, []), Path(folder)
    trainer.run(0, 1)
    save_checkpoint(trainer.engine, run, 1, trainer.state(1), CheckpointConfig(keep=1))
    errors = []
    for kind, value in SPOILED.items():
        spoiled = element(trainer.engine, kind)
        before = spoiled.clone()
        if collectives.rank() == 1:
            spoiled.fill_(value)
        try:
            save_checkpoint(
                trainer.engine,
                run,
                2,
                trainer.state(2),
                CheckpointConfig(keep=1),
                must=kind != "weight",
            )
        except DivergedError as error:
            errors.append(str(error))
        spoiled.copy_(before)
    kept, latest = committed(folder), (run / "checkpoints" / "latest").read_text()
    collectives.barrier()
    save_checkpoint(trainer.engine, run, 2, trainer.state(2), CheckpointConfig(keep=1))
    kept += committed(folder)
    trainer.close()
    return errors, kept, latest


def spoiled_run(ds_path: str, shards: str, runs: str, at: int) -> None:
    """Pre-train four steps; in step `at`, a weight of rank 1 becomes NaN."""

    def spoil(engine, is_over: bool) -> None:
        if is_over:
            element(engine, "weight").fill_(torch.nan)

    run_four_steps(ds_path, shards, runs, at, spoil, [])


def flipped_run(
    ds_path: str, shards: str, runs: str, at: int, kind: str, overrides: list[str]
) -> None:
    """Pre-train four steps; one bit of rank 1 changes: of `kind` "module" before step `at`, of
    another (see `element`) after it."""

    def flip(engine, is_over: bool) -> None:
        if is_over == (kind != "module"):
            last = [*engine.module.parameters()][-1]
            one = last.detach().view(-1)[:1] if kind == "module" else element(engine, kind)
            one.view(torch.uint8)[0] ^= 1  # the lowest bit

    run_four_steps(ds_path, shards, runs, at, flip, overrides)


def run_four_steps(
    ds_path: str,
    shards: str,
    runs: str,
    at: int,
    fault: Callable[[Engine, bool], None],
    overrides: list[str],
) -> None:
    """Pre-train with a checkpoint each step; on rank 1, `fault(engine, is_over)` is called before
    and after step `at`."""
    plain_step, calls = train.train_step, 0

    def spoil(engine, *batch) -> Tensor:
        nonlocal calls
        calls += 1
        is_due = calls == at and collectives.rank() == 1
        if is_due:
            fault(engine, False)
        loss = plain_step(engine, *batch)
        if is_due:
            fault(engine, True)
        return loss

    words = [*RUN, "train.max_steps=4", "checkpoint.every=1", "checkpoint.keep=1", *overrides]
    words += [f"data.shards={shards}", f"run.dir={runs}", "run.name=run"]
    train.train_step = spoil
    try:
        with end_of_process():
            train.main(["--deepspeed_config", ds_path, *words])
    finally:
        train.train_step = plain_step


def settings_of(engine) -> dict:
    optimizer = engine.optimizer
    groups = []
    for group in engine.basic_optimizer.param_groups:
        groups.append([group["weight_decay"], list(group["betas"]), group["eps"]])
    found = {"groups": groups, "clip": getattr(optimizer, "clip_grad", None)}
    if engine.fp16_enabled():
        found |= {
            "scale": optimizer.loss_scale,
            "window": optimizer.loss_scaler.scale_window,
        }
    return found


def changed_settings(
    before: str, after: str, shards: str, folder: str, overrides: list[str]
) -> tuple[dict, dict]:
    """Save a run, and resume it with `overrides`; the settings of both engines."""
    first = Trainer(before, shards, [])
    first.run(0, 2)
    save_checkpoint(first.engine, Path(folder), 2, first.state(2), CheckpointConfig(keep=2))
    then = settings_of(first.engine)
    first.close()
    again = Trainer(after, shards, overrides)
    resume(again.engine, Path(folder))
    now = settings_of(again.engine)
    again.close()
    return then, now
