"""Errors of the settings: YAML, overrides, DeepSpeed JSON, launcher's variables, planner."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from gpt1_ds.data.remote import ShardCache
from gpt1_ds.distributed.environment import rank_environment
from gpt1_ds.finetune import main as finetune
from gpt1_ds.plan import main as plan
from gpt1_ds.train import main as train
from tests.conftest import ROOT
from tests.golden.refusals import Act, add, add_commands, write
from tests.golden.store import Group

SETTING_ERRORS = Group("errors_settings")

CPU = f"--deepspeed_config {ROOT}/ds_configs/cpu.json"
TRAIN = {
    "unknown section": "trian.max_steps=3",
    "unknown key": "optim.lrr=1e-4",
    "no value": "init.checkpoint",
    "not YAML": "run.name={",
    "no number": "optim.lr=high",
    "no integer": "train.max_steps=1.5",
    "no truth value": "data.verify=maybe",
    "no list": "optim.betas=0.9",
    "no mapping": "data.weights=books",
    "no number in a mapping": "data.weights.books=many",
    "a key below a plain one": "run.seed.books=1",
    "null where a value must be": "run.seed=null",
    "unknown preset": "model.preset=gpt2",
    "unknown kind of model": "model.kind=lstms",
    "unknown optimizer": "optim.kind=adam",
    "unknown schedule": "schedule.kind=cosin",
    "unknown tokenizer": "tokenizer.kind=bpe",
    "unknown pipeline": "tokenizer.openai_pipeline=spacy",
    "probability above 1": "model.attn_pdrop=1.5",
    "share below 0": "schedule.decay_fraction=-0.1",
    "batch of 0": "train.global_batch=0",
    "interval of 0": "checkpoint.every=0",
    "width and heads": "model.n_embd=100",
    "no end": "train.epochs=null",
    "interval of no benchmark": "eval.zero_shot_every=5",
    "ramp without a start": "train.batch_warmup_steps=10",
    "ramp with a large start": "train.batch_warmup_steps=10 train.batch_start=128",
    "betas": "optim.betas=[0.9,1.0]",
    "name with a folder": "run.name=a/b",
    "hidden name": "run.name=.hidden",
    "absent YAML": "--config {tmp}/absent.yaml",
    "absent JSON": "--deepspeed_config {tmp}/absent.json",
    "absent shards": "data.shards={tmp}/absent",
    "batch and micro-batch": "train.global_batch=63 train.micro_batch=2",
    "URL of no known kind": "data.shards=gopher://host/shards",
}
FINETUNE = {
    "tokens": "train.tokens=1e6",
    "ramp": "train.batch_warmup_steps=10 train.batch_start=8",
    "no end": "train.epochs=null",
    "pool": "task.pool=middle",
    "weight of a loss": "task.lm_coef=1.5",
    "unknown task": "task.name=sst3",
    "patience of 0": "task.patience=0",
}
PLAN = {
    "no node": "--nodes 0",
    "utilization above 1": "--utilization 1.5",
    "batch and GPUs": "--nodes 3 train.global_batch=64",
    "less than a batch": "--tokens 100 train.epochs=1",
}
YAMLS = {
    "not YAML": "run: {name: [",
    "not sections": "- run\n",
    "section without keys": "run: gpt1\n",
    "unknown section": "trian: {max_steps: 3}\n",
    "unknown key": "train: {max_step: 3}\n",
    "wrong type": "optim: {lr: fast}\n",
}
ZERO_3 = {"stage": 3}
NO_PATH = {"device": "nvme"}
NVME = {"device": "nvme", "nvme_path": "/nvme"}
JSONS: dict[str, Any] = {
    "not an object": [1, 2],
    "unknown key": {"zero_optimisation": {"stage": 2}},
    "scheduler": {"scheduler": {"type": "WarmupLR"}},
    "batch": {"train_batch_size": 128},
    "accumulation": {"gradient_accumulation_steps": 3},
    "clipping": {"gradient_clipping": 0.5},
    "micro-batch that does not fit": {"train_micro_batch_size_per_gpu": 7},
    "two precisions": {"bf16": {"enabled": True}, "fp16": {"enabled": True}},
    "fp16 without ZeRO": {"fp16": {"enabled": True}},
    "fp16 and max_skipped": {
        "fp16": {"enabled": True, "initial_scale_power": 24},
        "zero_optimization": {"stage": 1},
    },
    "nvme without ZeRO-3": {"zero_optimization": {"stage": 2, "offload_optimizer": NVME}},
    "nvme without a path": {"zero_optimization": {**ZERO_3, "offload_optimizer": NO_PATH}},
    "nvme for parameters alone": {"zero_optimization": {**ZERO_3, "offload_param": NVME}},
    "nvme with prefetch": {
        "zero_optimization": {
            **ZERO_3,
            "offload_param": NVME,
            "offload_optimizer": NVME,
            "stage3_prefetch_bucket_size": 5,
        }
    },
    "rate of the optimizer": {"optimizer": {"type": "Adam", "params": {"lr": 1.0}}},
    "auto that no setting decides": {"optimizer": {"type": "Adam", "params": {"momentum": "auto"}}},
}
MICRO_BATCH = {"train_micro_batch_size_per_gpu": 8}
RANKS: dict[str, Mapping[str, str]] = {
    "half a set": {"RANK": "0", "WORLD_SIZE": "2"},
    "no integer": {"RANK": "first", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
    "rank too high": {"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
    "two launchers": {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "OMPI_COMM_WORLD_RANK": "0",
        "OMPI_COMM_WORLD_SIZE": "4",
        "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    },
    "several nodes without an address": {
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": "0",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_LOCALID": "0",
        "SLURM_STEP_NUM_NODES": "2",
    },
}


def on_cpu(words: Mapping[str, str]) -> dict[str, str]:
    return {name: f"{CPU} {words[name]}" for name in words}


def with_yaml(text: str, tmp: Path) -> None:
    train(["--config", str(write(tmp / "run.yaml", text)), *CPU.split()])


def with_json(text: str, overrides: str, tmp: Path) -> None:
    train(["--deepspeed_config", str(write(tmp / "ds.json", text)), *overrides.split()])


def planned_with_json(content: Any, tmp: Path) -> None:
    """The planner reads the JSON without asking what this machine has."""
    path = write(tmp / "ds.json", json.dumps(content))
    cluster = ["--nodes", "1", "--gpus-per-node", "4"]
    plan(["--deepspeed_config", str(path), *cluster, "--tokens", "1000000"])


def ranks_of(environment: Mapping[str, str], tmp: Path) -> None:
    rank_environment(environment)


def deepspeed_acts() -> dict[str, Act]:
    acts: dict[str, Act] = {name: partial(planned_with_json, JSONS[name]) for name in JSONS}
    acts["not JSON"] = partial(with_json, '{"zero_optimization": ', "")
    acts["micro-batch"] = partial(with_json, json.dumps(MICRO_BATCH), "train.micro_batch=4")
    ramp = "train.batch_warmup_steps=10 train.batch_start=12"
    acts["start of a ramp"] = partial(with_json, json.dumps(MICRO_BATCH), ramp)
    return acts


def cache_acts() -> dict[str, Act]:
    def on_a_file(tmp: Path) -> None:
        ShardCache("https://host/shards", str(write(tmp / "file", "")), 1000)

    return {
        "no host": lambda tmp: ShardCache("https://", str(tmp), 1000),
        "folder that is a file": on_a_file,
    }


add_commands(SETTING_ERRORS, "train", train, on_cpu(TRAIN))
add_commands(SETTING_ERRORS, "finetune", finetune, on_cpu(FINETUNE))
add_commands(SETTING_ERRORS, "plan", plan, PLAN)
add(SETTING_ERRORS, "yaml", {name: partial(with_yaml, YAMLS[name]) for name in YAMLS})
add(SETTING_ERRORS, "deepspeed", deepspeed_acts())
add(SETTING_ERRORS, "ranks", {name: partial(ranks_of, RANKS[name]) for name in RANKS})
add(SETTING_ERRORS, "cache", cache_acts())
