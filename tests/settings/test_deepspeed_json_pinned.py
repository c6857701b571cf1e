"""The DeepSpeed JSON, resolved: what is filled in, and each bound from both sides."""

import json
from pathlib import Path

import pytest
from deepspeed.ops.op_builder import AsyncIOBuilder

from gpt1_ds.base.errors import ConfigError
from gpt1_ds.settings.deepspeed_json import precision, resolve, zero_stage
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import PretrainConfig

BATCH = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


def resolved(
    tmp_path: Path, keys: dict, *overrides: str, world_size: int = 1, on_this_machine: bool = False
) -> dict:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(keys))
    return resolve(path, load(PretrainConfig, None, list(overrides)), world_size, on_this_machine)


def refused(tmp_path: Path, keys: dict, *overrides: str, world_size: int = 1) -> str:
    with pytest.raises(ConfigError) as error:
        resolved(tmp_path, keys, *overrides, world_size=world_size)
    return str(error.value)


def test_what_an_empty_json_becomes(tmp_path):
    assert resolved(tmp_path, {}, on_this_machine=True) == {
        "train_batch_size": 64,
        "train_micro_batch_size_per_gpu": 16,
        "gradient_accumulation_steps": 4,
        "gradient_clipping": 1.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2_147_483_647,
    }


def test_what_the_json_says_stays(tmp_path):
    keys = {
        "steps_per_print": 5,
        "zero_allow_untested_optimizer": False,
        "zero_force_ds_cpu_optimizer": True,
        "train_batch_size": 64,
        "gradient_clipping": "auto",
    }
    ds = resolved(tmp_path, keys)
    assert {key: ds[key] for key in keys} == keys | {"gradient_clipping": 1.0}


@pytest.mark.parametrize(
    ("overrides", "world_size", "micro_batch", "accumulation"),
    [
        (["train.global_batch=1"], 1, 1, 1),
        (["train.global_batch=15"], 1, 15, 1),
        (["train.global_batch=16"], 1, 16, 1),
        (["train.global_batch=17"], 1, 1, 17),
        (["train.global_batch=34"], 2, 1, 17),
        (["train.global_batch=36"], 1, 12, 3),
        (["train.batch_start=6", "train.batch_warmup_steps=2"], 1, 2, 32),
        (["train.batch_start=6", "train.batch_warmup_steps=2"], 2, 1, 32),
        (["train.batch_start=12", "train.batch_warmup_steps=2", "train.micro_batch=4"], 1, 4, 16),
        (["train.global_batch=12", "train.batch_start=8", "train.batch_warmup_steps=2"], 2, 2, 3),
    ],
)
def test_the_micro_batch_divides_every_batch(
    tmp_path, overrides, world_size, micro_batch, accumulation
):
    ds = resolved(tmp_path, {}, *overrides, world_size=world_size)
    assert [ds[key] for key in BATCH[1:]] == [micro_batch, accumulation]


def test_the_jsons_micro_batch_is_the_runs(tmp_path):
    literal = {"train_micro_batch_size_per_gpu": 8}
    assert [resolved(tmp_path, literal)[key] for key in BATCH] == [64, 8, 8]
    assert resolved(tmp_path, literal, "train.micro_batch=8")["gradient_accumulation_steps"] == 8
    auto = {"train_micro_batch_size_per_gpu": "auto"}
    assert resolved(tmp_path, auto, "train.micro_batch=4")["gradient_accumulation_steps"] == 16


@pytest.mark.parametrize(
    ("overrides", "world_size", "words"),
    [
        ([], 6, "train.global_batch 64 is not a multiple of 6 ranks; use 66"),
        (["train.global_batch=2"], 6, "use 6, or other ranks"),
        (["train.global_batch=14"], 6, "use 12, or other ranks"),
        (["train.micro_batch=5"], 2, "not a multiple of 2 ranks x micro-batch 5; use 60"),
        (["train.micro_batch=3"], 1, "use 63"),
        (
            ["train.batch_start=9", "train.batch_warmup_steps=1", "train.micro_batch=2"],
            2,
            "train.batch_start 9 is not a multiple of 2 ranks x micro-batch 2; use 8",
        ),
    ],
)
def test_the_nearest_batch_that_fits_is_named(tmp_path, overrides, world_size, words):
    assert words in refused(tmp_path, {}, *overrides, world_size=world_size)


def test_a_first_batch_is_ignored_without_a_warm_up(tmp_path):
    assert (
        resolved(tmp_path, {}, "train.batch_start=9", "train.micro_batch=2")["train_batch_size"]
        == 64
    )


FP16 = {"fp16": {"enabled": True}, "zero_optimization": {"stage": 1}}


def test_a_loss_scale_of_2_to_the_16_takes_17_steps_to_come_down(tmp_path):
    assert resolved(tmp_path, FP16, "train.max_skipped=18")["fp16"] == {"enabled": True}
    assert "may skip 17 steps" in refused(tmp_path, FP16, "train.max_skipped=17")
    patient = FP16 | {"fp16": {"enabled": True, "initial_scale_power": 10, "hysteresis": 5}}
    assert "may skip 14 steps" in refused(tmp_path, patient, "train.max_skipped=14")
    resolved(tmp_path, patient, "train.max_skipped=15")
    static = FP16 | {"fp16": {"enabled": True, "loss_scale": 1}}
    resolved(tmp_path, static, "train.max_skipped=1")


def test_precisions_and_stages(tmp_path):
    both = {"fp16": {"enabled": True}, "bf16": {"enabled": True}}
    assert "fp16 and bf16 are both enabled" in refused(tmp_path, both)
    assert "fp16 without ZeRO" in refused(tmp_path, {"fp16": {"enabled": True}})
    assert precision({}) == precision({"fp16": {"enabled": False}, "bf16": {}}) == "fp32"
    assert precision(FP16) == "fp16" and precision(both) == "bf16"
    assert zero_stage({}) == zero_stage({"zero_optimization": {}}) == 0 and zero_stage(FP16) == 1
    for stage in (0, 1, 2, 3):
        resolved(tmp_path, {"zero_optimization": {"stage": stage}}, "train.compile=true")


def offloaded(**sections: dict) -> dict:
    return {"zero_optimization": {"stage": 3} | sections}


def test_offload_to_nvme(tmp_path):
    nvme = {"device": "nvme", "nvme_path": "/local"}
    ds = resolved(tmp_path, offloaded(offload_param=nvme, offload_optimizer=nvme), "run.name=mine")
    zero = ds["zero_optimization"]
    assert (
        zero["offload_param"]["nvme_path"]
        == zero["offload_optimizer"]["nvme_path"]
        == "/local/mine"
    )
    assert zero["stage3_prefetch_bucket_size"] == 0
    optimizer = resolved(tmp_path, offloaded(offload_optimizer=nvme))["zero_optimization"]
    assert "stage3_prefetch_bucket_size" not in optimizer
    zero_bucket = offloaded(
        offload_param=nvme, offload_optimizer=nvme, stage3_prefetch_bucket_size=0
    )
    resolved(tmp_path, zero_bucket)
    zero_bucket["zero_optimization"]["stage3_prefetch_bucket_size"] = 1
    assert "needs stage3_prefetch_bucket_size 0" in refused(tmp_path, zero_bucket)
    assert "needs offload_optimizer there too" in refused(tmp_path, offloaded(offload_param=nvme))
    no_path = offloaded(offload_optimizer={"device": "nvme"})
    assert "has no nvme_path" in refused(tmp_path, no_path)
    stage2 = {"zero_optimization": {"stage": 2, "offload_optimizer": nvme}}
    assert "needs zero_optimization.stage 3" in refused(tmp_path, stage2)
    pageable = {"stage": 2, "offload_optimizer": {"device": "cpu", "pin_memory": False}}
    cpu = {"zero_optimization": pageable}
    assert resolved(tmp_path, cpu)["zero_optimization"] == pageable


def test_a_json_for_another_machine_makes_no_folder_here(tmp_path):
    nvme = {"device": "nvme", "nvme_path": str(tmp_path / "local")}
    resolved(tmp_path, offloaded(offload_optimizer=nvme), on_this_machine=False)
    assert not (tmp_path / "local").exists()


def test_a_folder_on_nvme_is_made_once(tmp_path, monkeypatch):
    """As on a machine with libaio."""
    monkeypatch.setattr(AsyncIOBuilder, "is_compatible", lambda self, verbose: True)
    nvme = {"device": "nvme", "nvme_path": str(tmp_path / "local")}
    for _ in range(2):
        resolved(tmp_path, offloaded(offload_optimizer=nvme), "run.name=a", on_this_machine=True)
        assert (tmp_path / "local" / "a").is_dir()


def test_the_optimizer_section_gets_the_numbers_it_names(tmp_path):
    auto = {"optimizer": {"type": "AdamW", "params": {"eps": "auto", "weight_decay": 0.01}}}
    ds = resolved(tmp_path, auto, "optim.eps=1e-6")
    assert ds["optimizer"] == {
        "type": "AdamW",
        "params": {"eps": 1e-6, "weight_decay": 0.01, "lr": 2.5e-4},
    }
    assert "zero_allow_untested_optimizer" not in ds and "zero_force_ds_cpu_optimizer" not in ds
    assert resolved(tmp_path, {"optimizer": {"type": "Lion"}})["optimizer"]["params"] == {
        "lr": 2.5e-4
    }
    other = {"optimizer": {"params": {"betas": [0.9, 0.95]}}}
    assert "optimizer.params.betas is [0.9, 0.95] but optim.betas" in refused(tmp_path, other)
    left = {"optimizer": {"params": {"momentum": "auto", "nesterov": "auto"}}}
    assert 'optimizer.params.momentum is "auto"' in refused(tmp_path, left)


def test_jsons_that_are_no_objects(tmp_path):
    (tmp_path / "ds.json").write_text("[1]")
    with pytest.raises(ConfigError, match="expected an object, found list"):
        resolve(tmp_path / "ds.json", load(PretrainConfig, None, []), 1)
