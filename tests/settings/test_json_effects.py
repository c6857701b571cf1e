"""Each section of the DeepSpeed JSON acts, or a line at the start says that it does not."""

import json
from pathlib import Path

import pytest

from gpt1_ds.settings.deepspeed_json import resolve, warnings
from gpt1_ds.settings.json_keys import TABLE
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import PretrainConfig
from tests.conftest import ROOT

ON = {"enabled": True}
ACTS = {
    "train_batch_size": 64,
    "train_micro_batch_size_per_gpu": 8,
    "gradient_accumulation_steps": 4,
    "gradient_clipping": 1.0,
    "zero_optimization": {"stage": 2, "overlap_comm": True, "offload_optimizer": {"device": "cpu"}},
    "bf16": ON,
    "fp16": {"enabled": False},
    "optimizer": {"type": "AdamW", "params": {"torch_adam": True}},
    "communication_data_type": "fp32",
    "csv_monitor": ON,
    "tensorboard": ON | {"job_name": "x"},
    "wandb": ON,
    "data_types": {"grad_accum_dtype": "fp32"},
    "flops_profiler": ON | {"profile_step": 2},
    "prescale_gradients": True,
    "gradient_predivide_factor": 2.0,
    "torch_autocast": ON | {"dtype": "bfloat16"},
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
    "checkpoint": {"tag_validation": "Fail"},
    "timers": {"throughput": {"enabled": True}},
    "disable_python_gc": True,
}
IDLE = {
    "activation_checkpointing": ({"cpu_checkpointing": True}, "train.activation_checkpointing"),
    "aio": ({"queue_depth": 16}, "without offload to nvme"),
    "comms_logger": (ON, "metrics.jsonl"),
    "compile": ({"deepcompile": True}, "train.compile"),
    "dump_state": (True, "metrics.jsonl"),
    "memory_breakdown": (True, "metrics.jsonl"),
    "seq_parallel_communication_data_type": ("bf16", "sequence-parallel"),
    "steps_per_print": (5, "metrics.jsonl"),
    "wall_clock_breakdown": (True, "metrics.jsonl"),
    "log_level": ("info", "metrics.jsonl"),
    "load_universal": (True, "checkpoints itself"),
}


def lines_of(tmp_path: Path, ds: dict) -> list[str]:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(ds))
    run = load(PretrainConfig, None, [])
    return warnings(path, resolve(path, run, 2, on_this_machine=False), run)


def test_every_section_is_in_one_of_the_two_lists():
    assert set(ACTS) | set(IDLE) == set(TABLE) and not set(ACTS) & set(IDLE)


def test_nothing_is_said_of_what_acts_or_is_off(tmp_path):
    assert lines_of(tmp_path, ACTS) == []
    off = {"comms_logger": {"enabled": False, "verbose": True}, "dump_state": False}
    off |= {"activation_checkpointing": {"profile": False}, "steps_per_print": 2**31 - 1}
    assert lines_of(tmp_path, off | {"compile": {}, "wandb": {"enabled": False}}) == []


@pytest.mark.parametrize("name", IDLE)
def test_one_line_is_said_of_what_does_not_act(tmp_path, name):
    value, words = IDLE[name]
    (line,) = lines_of(tmp_path, {name: value})
    assert line.startswith(f"warning: {tmp_path}/ds.json: {name} has no effect") and words in line


@pytest.mark.parametrize(
    ("ds", "words"),
    [
        ({"zero_optimization": {"overlap_comm": True}}, "no effect in stage 0: overlap_comm"),
        (
            {
                "zero_optimization": {
                    "stage": 2,
                    "sub_group_size": 10,
                    "offload_param": {"device": "cpu"},
                }
            },
            "no effect in stage 2: sub_group_size, offload_param",
        ),
        ({"zero_optimization": {"stage": 3, "round_robin_gradients": True}}, "stage 3: round"),
        (
            {"zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}},
            "gpt1_ds.export writes",
        ),
        ({"wandb": {"project": "x"}}, 'wandb has no effect without "enabled": true'),
        ({"checkpoint": {"parallel_write": {"pipeline_stage": True}}}, "checkpoint.parallel_write"),
    ],
)
def test_keys_that_do_not_act(tmp_path, ds, words):
    (line,) = lines_of(tmp_path, ds)
    assert words in line


def test_nothing_is_said_of_the_shipped_files():
    run = load(PretrainConfig, None, [])
    for path in sorted((ROOT / "ds_configs").glob("*.json")):
        assert warnings(path, resolve(path, run, 2, on_this_machine=False), run) == []
