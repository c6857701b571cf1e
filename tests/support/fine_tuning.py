"""Command lines and files of the fine-tuning tests."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import torch

from gpt1_ds.checkpoints.loading import load_weights
from gpt1_ds.checkpoints.saving import save_weights
from gpt1_ds.runs.trained import load_gpt, run_tokenizer
from gpt1_ds.settings.sections import TaskConfig
from gpt1_ds.tasks import build_task
from gpt1_ds.tasks.heads import TaskModel
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


def save_tuned(folder: Path, source: Path, seed: int = 0, **task: object) -> Path:
    """A run of fine-tuning at step 0: the weights of the run `source` under a random head."""
    gpt, state, checkpoint = load_gpt(source)
    config = TaskConfig(**task)
    built = build_task(config)
    torch.manual_seed(seed)
    model = TaskModel(gpt, built.kind, built.n_outputs, config.pool, config.clf_pdrop)
    with torch.no_grad():
        for parameter in (model.head.weight, model.head.bias):
            parameter.normal_()
        gpt.blocks[-1].ln_2.bias.add_(0.1)
    classes = list(built.classes)
    facts = {"name": config.name, "kind": built.kind, "classes": classes, "config": asdict(config)}
    state = replace(state, step=0, task=facts, init="none")
    save_weights(folder / "best", model.state_dict(), state)
    for home in (folder, folder / "best"):
        run_tokenizer(checkpoint, state).copy_to(home / "tokenizer")
    return folder
