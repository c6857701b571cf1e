"""The resolved DeepSpeed configuration from JSON, run and world size, and refused inputs."""

import json
import sys
from pathlib import Path

import pytest
import torch
from deepspeed.ops.op_builder import AsyncIOBuilder

from gpt1_ds.base.errors import ConfigError
from gpt1_ds.engine.start import require_async_io
from gpt1_ds.settings.deepspeed_json import precision, resolve, zero_stage
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import FinetuneConfig, PretrainConfig
from gpt1_ds.settings.shipped import config_path, configs, ds_config_path

FOLDER = Path(__file__).resolve().parents[2] / "ds_configs"
EXPECTED = {
    "cpu": (2, "bf16"),
    "cpu_fp32": (2, "fp32"),
    "zero0_fp32": (0, "fp32"),
    "zero1_bf16": (1, "bf16"),
    "zero2_bf16": (2, "bf16"),
    "zero2_fp16": (2, "fp16"),
    "zero3_bf16": (3, "bf16"),
    "zero2_offload": (2, "bf16"),
    "zero3_offload": (3, "bf16"),
}


def written(tmp_path: Path, **keys) -> Path:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(keys))
    return path


def test_every_shipped_config_is_expected():
    assert {path.stem for path in FOLDER.glob("*.json")} == set(EXPECTED)


@pytest.mark.parametrize("name", sorted(set(EXPECTED) - {"zero2_fp16"}))
def test_shipped_configs_resolve(name):
    ds = resolve(FOLDER / f"{name}.json", load(PretrainConfig, None, []), 8)
    assert (zero_stage(ds), precision(ds)) == EXPECTED[name]
    keys = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    assert [ds[key] for key in keys] == [64, 8, 1]
    assert ds["gradient_clipping"] == 1.0 and "auto" not in json.dumps(ds)


@pytest.mark.parametrize("name", configs(False))
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_shipped_pre_trainings_divide_their_batch_among_ranks(name, ranks):
    config = load(PretrainConfig, config_path(False)(name), [])
    ds = resolve(ds_config_path("cpu_fp32"), config, ranks)
    assert ds["train_batch_size"] == config.train.global_batch


def test_fp16_on_a_cpu_is_refused_in_one_line_that_names_bf16():
    assert not torch.cuda.is_available()  # the suite hides GPUs from itself
    with pytest.raises(ConfigError, match="zero2_fp16.json.*fp16.*bf16"):
        resolve(FOLDER / "zero2_fp16.json", load(PretrainConfig, None, []), 2)


@pytest.mark.parametrize(
    ("overrides", "world_size", "batch"),
    [
        ([], 1, (16, 4)),
        ([], 64, (1, 1)),
        (["train.micro_batch=2"], 4, (2, 8)),
        (["train.global_batch=6"], 2, (3, 1)),
        (["train.global_batch=34"], 1, (2, 17)),
        (["train.batch_start=12", "train.batch_warmup_steps=9"], 2, (2, 16)),
    ],
)
def test_the_batch_is_divided_exactly(overrides, world_size, batch):
    ds = resolve(FOLDER / "cpu.json", load(PretrainConfig, None, overrides), world_size)
    assert (ds["train_micro_batch_size_per_gpu"], ds["gradient_accumulation_steps"]) == batch
    assert ds["train_batch_size"] == batch[0] * batch[1] * world_size


@pytest.mark.parametrize(
    ("keys", "overrides", "world_size", "words"),
    [
        ({}, [], 6, ["64", "6 ranks", "use 66"]),
        ({}, ["train.micro_batch=3"], 2, ["64", "micro-batch 3"]),
        (
            {},
            ["train.batch_start=12", "train.batch_warmup_steps=4", "train.micro_batch=4"],
            2,
            ["train.batch_start 12", "2 ranks x micro-batch 4", "use 16"],
        ),
        (
            {"optimizer": {"type": "Muon", "params": {"momentum": "auto"}}},
            [],
            2,
            ["params.momentum", "lr, betas"],
        ),
        ({"train_batch_size": 32}, [], 2, ["ds.json", "32", "train.global_batch", "64"]),
        ({"gradient_clipping": 0.5}, [], 2, ["gradient_clipping", "0.5", "train.grad_clip", "1.0"]),
        (
            {"train_micro_batch_size_per_gpu": 4},
            ["train.micro_batch=8"],
            2,
            ["4", "8", "train.micro_batch"],
        ),
        ({"zero_optimisation": {"stage": 2}}, [], 2, ["zero_optimisation", "zero_optimization"]),
        ({"scheduler": {"type": "WarmupLR"}}, [], 2, ["scheduler", "schedule.kind"]),
        (
            {"optimizer": {"type": "AdamW", "params": {"lr": 1.0}}},
            [],
            2,
            ["optimizer.params.lr", "optim.lr"],
        ),
    ],
)
def test_contradictions_name_both_sides(tmp_path, keys, overrides, world_size, words):
    with pytest.raises(ConfigError) as error:
        resolve(written(tmp_path, **keys), load(PretrainConfig, None, overrides), world_size)
    assert all(word in str(error.value) for word in words)


def test_what_this_machine_has_not_is_refused_before_anything_starts(tmp_path, monkeypatch):
    run = load(PretrainConfig, None, [])
    monkeypatch.setitem(sys.modules, "wandb", None)  # as where it is not installed
    with pytest.raises(
        ConfigError, match="ds.json: wandb is enabled but not installed; pip install wandb"
    ):
        resolve(written(tmp_path, wandb={"enabled": True}), run, 2)
    with pytest.raises(ConfigError, match="train.cuda_graphs is true but this machine has no GPU"):
        resolve(FOLDER / "zero1_bf16.json", load(PretrainConfig, None, [*GRAPHS]), 8)


GRAPHS = ("train.cuda_graphs=true", "train.micro_batch=8")


@pytest.mark.parametrize(
    ("config", "name", "overrides", "world_size", "reason"),
    [
        (PretrainConfig, "zero3_bf16", [], 8, "ZeRO-3 moves the weights"),
        (FinetuneConfig, "zero1_bf16", [], 4, "the batches of fine-tuning differ in length"),
        (PretrainConfig, "zero1_bf16", ["model.kind=lstm"], 8, "model.kind is lstm"),
        (
            PretrainConfig,
            "zero1_bf16",
            ["train.activation_checkpointing=true"],
            8,
            "train.activation_checkpointing calls the blocks twice",
        ),
        (
            PretrainConfig,
            "zero1_bf16",
            ["train.batch_warmup_steps=9", "train.batch_start=64"],
            8,
            "train.batch_warmup_steps changes the micro-batches",
        ),
        (PretrainConfig, "zero1_bf16", [], 4, "a step has 2 micro-batches"),
    ],
)
def test_cuda_graphs_where_they_cannot_be(config, name, overrides, world_size, reason):
    """A plan for other machines is told, too. The paper's batch on 8 GPUs is accepted."""
    run = load(config, None, [*GRAPHS, *overrides])
    with pytest.raises(
        ConfigError, match=f"train.cuda_graphs is true but {reason}.*leave it false"
    ):
        resolve(FOLDER / f"{name}.json", run, world_size, on_this_machine=False)
    fine = load(PretrainConfig, None, [*GRAPHS])
    resolve(FOLDER / "zero1_bf16.json", fine, 8, on_this_machine=False)


@pytest.mark.parametrize("written", ["auto", "true", "false", "True", "off"])
def test_compile_takes_a_word_or_a_truth_value(written):
    expected = {"auto": "auto", "true": True, "false": False, "True": True, "off": False}
    run = load(PretrainConfig, None, [f"train.compile={written}"])
    assert run.train.compile == expected[written]
    again = load(PretrainConfig, None, [f"train.compile={str(run.train.compile).lower()}"])
    assert again.train.compile == run.train.compile
    with pytest.raises(
        ConfigError, match="train.compile is 'maybe'; choose from: auto, false, true"
    ):
        load(PretrainConfig, None, ["train.compile=maybe"])


def test_sections_that_the_run_does_not_know_pass_through(tmp_path):
    zero = {
        "stage": 3,
        "zero_hpz_partition_size": 8,
        "zero_quantized_weights": True,
        "zero_quantized_gradients": True,
        "stage3_max_live_parameters": 1e8,
        "overlap_comm": True,
    }
    keys = {
        "zero_optimization": zero,
        "comms_logger": {"enabled": True},
        "aio": {"queue_depth": 32},
        "flops_profiler": {"enabled": True, "profile_step": 3},
    }
    resolved = resolve(written(tmp_path, **keys), load(PretrainConfig, None, []), 8)
    assert {key: resolved[key] for key in keys} == keys


def test_offload_to_nvme_is_refused_where_it_cannot_be(tmp_path, monkeypatch):
    run = load(PretrainConfig, None, ["run.name=mine"])
    section = {"device": "nvme", "nvme_path": str(tmp_path)}
    refused = [
        (
            {"stage": 3, "offload_param": section},
            "offload_param to nvme needs offload_optimizer there too",
        ),
        (
            {
                "stage": 3,
                "offload_param": section,
                "offload_optimizer": section,
                "stage3_prefetch_bucket_size": 1000,
            },
            "offload_param to nvme needs stage3_prefetch_bucket_size 0",
        ),
        (
            {"stage": 2, "offload_optimizer": section},
            "offload_optimizer to nvme needs zero_optimization.stage 3",
        ),
        (
            {"stage": 3, "offload_optimizer": {"device": "nvme"}},
            "to nvme has no nvme_path; give a folder",
        ),
    ]
    for zero, words in refused:
        with pytest.raises(ConfigError, match=words):
            resolve(written(tmp_path, zero_optimization=zero), run, 2)
    zero3 = written(tmp_path, zero_optimization={"stage": 3, "offload_optimizer": section})
    monkeypatch.setattr(AsyncIOBuilder, "is_compatible", lambda self, verbose: False)
    with pytest.raises(ConfigError, match="to nvme needs DeepSpeed's async_io.*install libaio-dev"):
        require_async_io(zero3, resolve(zero3, run, 2))
    monkeypatch.setattr(AsyncIOBuilder, "is_compatible", lambda self, verbose: True)
    require_async_io(zero3, resolve(zero3, run, 2))
    resolved = resolve(zero3, run, 2)["zero_optimization"]["offload_optimizer"]
    assert resolved["nvme_path"] == str(tmp_path / "mine")
    (tmp_path / "mine").rmdir()
    (tmp_path / "mine").write_text("a file in its place")
    with pytest.raises(
        ConfigError, match=f"nvme_path: {tmp_path}/mine: .*; give a folder on a local disk"
    ):
        resolve(zero3, run, 2)


def test_a_loss_scale_that_cannot_come_down_in_time_is_refused(tmp_path):
    """From 2^16 it takes 17 skipped steps at most, of the 20 that would end the run."""
    run = load(PretrainConfig, None, [])
    assert (
        resolve(FOLDER / "zero2_fp16.json", run, 2, on_this_machine=False)["fp16"]["loss_scale"]
        == 0
    )
    scale = {"enabled": True, "initial_scale_power": 24}
    with pytest.raises(
        ConfigError,
        match="initial_scale_power is 24.* 25 steps.*train.max_skipped of the run is 20",
    ):
        resolve(
            written(tmp_path, fp16=scale, zero_optimization={"stage": 1}),
            run,
            2,
            on_this_machine=False,
        )
    static = written(tmp_path, fp16=scale | {"loss_scale": 128}, zero_optimization={"stage": 1})
    assert resolve(static, run, 2, on_this_machine=False)
    with pytest.raises(ConfigError, match="fp16 without ZeRO has no loss scale"):
        resolve(written(tmp_path, fp16=scale), run, 2, on_this_machine=False)


def test_missing_and_malformed_files(tmp_path):
    run = load(PretrainConfig, None, [])
    with pytest.raises(ConfigError, match="nowhere.json.*ds_configs"):
        resolve("nowhere.json", run, 1)
    (tmp_path / "bad.json").write_text("{'stage': 2}")
    with pytest.raises(ConfigError, match="bad.json: not valid JSON"):
        resolve(tmp_path / "bad.json", run, 1)


@pytest.mark.parametrize(
    "kind", ["AdamW", "Adam", "Lamb", "Lion", "Muon", "Adagrad", "SGD", "RMSprop"]
)
def test_every_optimizer_of_deepspeed_resolves_with_auto(tmp_path, kind):
    auto = dict.fromkeys(["lr", "betas", "eps", "weight_decay"], "auto")
    ds = resolve(
        written(tmp_path, optimizer={"type": kind, "params": auto}),
        load(PretrainConfig, None, []),
        2,
    )
    numbers = {"lr": 2.5e-4, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01}
    unknown = {"Lion": ["eps"], "Adagrad": ["betas"], "SGD": ["betas", "eps"], "RMSprop": ["betas"]}
    for key in unknown.get(kind, []):
        del numbers[key]
    assert ds["optimizer"] == {"type": kind, "params": numbers}


def test_an_optimizer_section_gets_the_runs_numbers(tmp_path):
    path = written(
        tmp_path,
        optimizer={"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "torch_adam": True}},
    )
    params = resolve(path, load(PretrainConfig, None, ["optim.lr=1e-3"]), 1)["optimizer"]["params"]
    assert params == {"lr": 1e-3, "betas": [0.9, 0.999], "torch_adam": True}
