"""Whole commands on the device of `private_device.py`, beside the same commands on the CPU."""

import importlib
import io
import json
import operator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch

from gpt1_ds.base.records import read_records
from gpt1_ds.checkpoints.folder import find_checkpoint
from gpt1_ds.checkpoints.loading import load_weights
from gpt1_ds.runs import directory
from gpt1_ds.runs.trained_model import load
from tests.support.cases_checkpoint import read, same
from tests.support.private_device import Given
from tests.support.private_run import taken
from tests.support.task_folders import FOLDERS

COMMON = [
    "model.n_layer=2",
    "model.n_head=2",
    "model.n_embd=32",
    "model.n_ctx=32",
    "train.global_batch=8",
    "log.every=1",
    "optim.lr=3e-3",
    "schedule.kind=constant",
    "schedule.warmup_steps=0",
    "eval.batches=1",
    "eval.every=2",
    "checkpoint.every=2",
    "log.samples_every=4",
]
NO_DROPOUT = ["model.embd_pdrop=0", "model.attn_pdrop=0", "model.resid_pdrop=0"]


def started(command: str, words: list[str], folder: Path, name: str) -> Path:
    """Run a command as a user would, with standard output dropped; the run's folder."""
    main = importlib.import_module(f"gpt1_ds.{command}").main
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        main([*words, f"run.dir={folder}", f"run.name={name}"])
    directory._locks.clear()  # the end of a process does the same
    return folder / name


def pretrained(ds: str, given: Given, name: str, *words: str) -> Path:
    """Four steps by default, on small shards."""
    command = ["--deepspeed_config", ds, f"data.shards={given.shards}", "train.max_steps=4"]
    return started("train", [*command, *COMMON, *words], given.folder, name)


def logged(run: Path, split: str) -> list[float]:
    records = read_records(run / "metrics.jsonl")
    return [record["loss"] for record in records if record["split"] == split]


def pre_training(given: Given) -> None:
    """Losses, validation and final weights beside those of the CPU; samples, checkpoints.

    Without dropout, whose masks are others. bfloat16 rounds the sums of other kernels differently.
    """
    for ds, near in {"zero0_fp32": 1e-4, "zero3_bf16": 0.02}.items():
        here = pretrained(ds, given, f"{ds}-cpu", *NO_DROPOUT)
        with taken(given.device):
            there = pretrained(ds, given, f"{ds}-private", *NO_DROPOUT)
        for split in ("train", "valid"):
            expected, found = logged(here, split), logged(there, split)
            assert len(expected) == len(found) >= 2
            assert max(map(abs, map(operator.sub, expected, found))) < near, (ds, expected, found)
        weights, theirs = (load_weights(run)[0] for run in (here, there))
        for name, tensor in weights.items():
            torch.testing.assert_close(theirs[name], tensor, rtol=0, atol=30 * near)


def runs_with_dropout(given: Given) -> None:
    """Four steps; two and two; with activation checkpointing: bit for bit the same.

    So a checkpoint has all of the device's state, and a recomputed block the masks of the first
    time.
    """
    ds = "zero1_bf16"
    with taken(given.device):
        whole = pretrained(ds, given, "whole")
        pretrained(ds, given, "parts", "train.max_steps=2")
        parts = pretrained(ds, given, "parts")
        computed = pretrained(ds, given, "computed", "train.activation_checkpointing=true")
    for run in (parts, computed):
        assert logged(whole, "train") == logged(run, "train")
        assert same(read(find_checkpoint(whole)), read(find_checkpoint(run)))


def fine_tuning(given: Given) -> None:
    """Two kinds of head on a run: training, scoring, the best weights, predictions from them."""
    for task in ("sst2", "wnut17"):
        words = ["--deepspeed_config", "zero1_bf16", f"init.checkpoint={given.run}"]
        words += [f"task.name={task}", f"task.data={given.sample / 'tasks' / FOLDERS[task]}"]
        words += ["task.max_examples=8", "train.global_batch=4", "train.epochs=1"]
        with taken(given.device):
            run = started("finetune", [*words, "log.every=1", "eval.batches=1"], given.folder, task)
        assert json.loads((run / "result.json").read_text())["task"] == task
    labels = []
    for place in (given.device, "cpu"):
        predictions = load(given.folder / "sst2", place).predict(["a fine day", "no"])
        labels.append([prediction.label for prediction in predictions])
    assert labels[0] == labels[1]
