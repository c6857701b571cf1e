"""Command lines and files of the fine-tuning tests."""

import json
from pathlib import Path

import torch

from gpt1_ds.checkpoints.loading import load_weights
from tests.conftest import ROOT
from tests.support.task_folders import FOLDERS

TINY = ["model.n_layer=2", "model.n_head=2", "model.n_embd=32", "model.n_ctx=64"]
NO_DROPOUT = ["model.embd_pdrop=0", "model.attn_pdrop=0", "model.resid_pdrop=0", "task.clf_pdrop=0"]


def arguments(run_dir: Path, ds: str, *overrides: object) -> list[str]:
    ds_config = str(ROOT / "ds_configs" / f"{ds}.json")
    return [
        "--deepspeed_config",
        ds_config,
        f"run.dir={run_dir}",
        "log.every=1",
        *map(str, overrides),
    ]


def task_of(sample: Path, name: str) -> list[str]:
    return [
        f"task.name={name}",
        f"task.data={sample / 'tasks' / FOLDERS[name]}",
        f"run.name={name}",
    ]


def logged(run: Path, split: str) -> list[dict]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["split"] == split]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_weights(run)[0]
