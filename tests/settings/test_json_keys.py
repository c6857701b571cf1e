"""The table of the DeepSpeed JSON: complete, strict, and honest about what does not act."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from deepspeed.comm.config import CommsLoggerConfig
from deepspeed.compile.config import CompileConfig
from deepspeed.monitor.config import CSVConfig, TensorBoardConfig, WandbConfig
from deepspeed.runtime import constants
from deepspeed.runtime.activation_checkpointing.config import ACT_CHKPT_DEFAULT
from deepspeed.runtime.config import _REMOVED_TOP_LEVEL_CONFIG_KEYS, DeepSpeedConfig
from deepspeed.runtime.config_utils import DeepSpeedConfigModel
from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
from deepspeed.runtime.swap_tensor.aio_config import AIO_DEFAULT_DICT
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.runtime.zero.offload_config import (
    DeepSpeedZeroOffloadOptimizerConfig,
    DeepSpeedZeroOffloadParamConfig,
)
from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

from gpt1_ds.base.errors import ConfigError
from gpt1_ds.settings.deepspeed_json import resolve, warnings
from gpt1_ds.settings.json_keys import (
    OFFLOAD_OPTIMIZER,
    OFFLOAD_PARAM,
    REFUSED,
    TABLE,
    ZERO,
    Key,
    Table,
)
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import PretrainConfig

MODELS: dict[str, tuple[object, type[DeepSpeedConfigModel]]] = {
    "zero_optimization": (ZERO, DeepSpeedZeroConfig),
    "offload_optimizer": (OFFLOAD_OPTIMIZER, DeepSpeedZeroOffloadOptimizerConfig),
    "offload_param": (OFFLOAD_PARAM, DeepSpeedZeroOffloadParamConfig),
    "bf16": (TABLE["bf16"], DeepSpeedBF16Config),
    "fp16": (TABLE["fp16"], DeepSpeedFP16Config),
    "comms_logger": (TABLE["comms_logger"], CommsLoggerConfig),
    "compile": (TABLE["compile"], CompileConfig),
    "csv_monitor": (TABLE["csv_monitor"], CSVConfig),
    "tensorboard": (TABLE["tensorboard"], TensorBoardConfig),
    "throughput": (TABLE["timers"]["throughput"], DeepSpeedThroughputTimerConfig),
    "wandb": (TABLE["wandb"], WandbConfig),
}
WRONG = [None, True, -1, -2, 0.5, 1e30, 2**64, "x", "true", "4", "auto", [], {}, [1], {"x": 1}]


def keys(table: Table, *above: str) -> Iterator[tuple[tuple[str, ...], Key]]:
    for name, entry in table.items():
        if isinstance(entry, Key):
            yield (*above, name), entry
        else:
            yield from keys(entry, *above, name)


def nested(names: tuple[str, ...], value: object) -> dict:
    for name in reversed(names):
        value = {name: value}
    assert isinstance(value, dict)
    return value


def resolved(tmp_path: Path, ds: dict | str, *overrides: str) -> tuple[dict, list[str]]:
    path = tmp_path / "ds.json"
    path.write_text(ds if isinstance(ds, str) else json.dumps(ds))
    run = load(PretrainConfig, None, ["train.max_skipped=200", *overrides])
    found = resolve(path, run, 1, on_this_machine=False)
    return found, warnings(path, found, run)


@pytest.mark.parametrize("name", MODELS)
def test_the_table_has_every_key_of_deepspeed(name):
    table, model = MODELS[name]
    fields = model.model_fields
    aliases = {field.alias for field in fields.values() if field.alias}
    assert isinstance(table, dict) and set(table) - {
        "stage3_gather_fp16_weights_on_model_save"
    } == (set(fields) | aliases) - {"stage3_gather_fp16_weights_on_model_save"}


def test_sections_that_deepspeed_has_no_class_for():
    assert set(AIO_DEFAULT_DICT) == set(TABLE["aio"])
    assert set(ACT_CHKPT_DEFAULT) == set(TABLE["activation_checkpointing"])
    assert {constants.GRAD_ACCUM_DTYPE, constants.KEEP_IN_FP32_MODULES} < set(TABLE["data_types"])


class Recording(dict):
    """A JSON that notes which of its keys are asked for."""

    def __init__(self, *given: object):
        super().__init__(*given)
        self.asked: set[str] = set()

    def __getitem__(self, key: str) -> object:
        self.asked.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def get(self, key: str, default: object = None) -> object:
        self.asked.add(key)
        return super().get(key, default)

    def keys(self) -> "Recording":
        return self


def test_whatever_deepspeed_reads_at_top_level_acts_or_is_refused_by_name(tmp_path):
    """The list is what its configuration asks a JSON for."""
    ds = Recording({"train_batch_size": 1})
    DeepSpeedConfig(ds)
    read = ds.asked | set(_REMOVED_TOP_LEVEL_CONFIG_KEYS)
    assert {"zero_optimization", "timers", "tensor_parallel", "elasticity"} < read
    assert read - set(TABLE) - {"scheduler"} == set(REFUSED)
    for key, reason in REFUSED.items():
        with pytest.raises(ConfigError) as refused:
            resolved(tmp_path, {key: {}})
        assert f"'{key}' has no place here: {reason}; remove it" in str(refused.value)


def right(value: object, key: Key) -> bool:
    """Whether the key may have it, by its kind alone; its bounds are tested below."""
    if value is None or value == "auto":
        return key.null if value is None else key.auto or (key.kind is str and not key.bounds)
    if key.refusal and value:
        return False
    if isinstance(value, bool) or key.kind is bool:
        return isinstance(value, bool) and key.kind is bool
    if key.kind in (int, float) and isinstance(value, int | float):
        bounds = key.bounds
        assert bounds is not None
        whole = key.kind is float or float(value).is_integer()
        above = value > bounds.low if bounds.open_low else value >= bounds.low
        return whole and above and value <= bounds.high
    return isinstance(value, key.kind) and (key.kind is not str or key.bounds is None)


def test_every_value_of_every_key_is_right_or_refused_by_name(tmp_path):
    """No exception but a ConfigError; one that the table allows may still contradict the run."""
    for names, key in keys(TABLE):
        assert key.kind not in (int, float) or key.bounds is not None
        for value in WRONG:
            ds = nested(names, value)
            try:
                resolved(tmp_path, ds)
            except ConfigError as error:
                assert "\n" not in str(error) and "ds.json" in str(error), ds
                refused_by_kind = f"{'.'.join(names)} is {json.dumps(value)}; " in str(error)
                assert not (right(value, key) and refused_by_kind), error
            else:
                assert right(value, key), ds


@pytest.mark.parametrize(
    ("ds", "words"),
    [
        ({"bf16": True}, "bf16 is true; expected an object with keys such as 'enabled'"),
        ({"bf16": {"enable": True}}, "unknown key 'bf16.enable'; did you mean 'enabled'?"),
        ({"bf16": {"enabled": "false"}}, 'enabled is "false"; expected true or false, without'),
        ({"bf16": {"enabled": "auto"}}, 'bf16.enabled is "auto"; the run does not decide it'),
        ({"zero_optimization": 2}, "zero_optimization is 2; expected an object"),
        ({"zero_optimization": None}, "zero_optimization is null; expected an object"),
        ({"zero_optimization": {"stage": 4}}, "stage is 4; it must be at most 3"),
        ({"zero_optimization": {"stage": "auto"}}, 'stage is "auto"; the run does not decide it'),
        ({"zero_optimization": {"overlap_com": 1}}, "did you mean 'overlap_comm'?"),
        ({"zero_optimization": {"offload_optimizer": {"device": "gpu"}}}, "did you mean 'cpu'?"),
        ({"train_micro_batch_size_per_gpu": "4"}, 'expected an integer, without quotes or "auto"'),
        ({"optimizer": {"type": "Adamm"}}, "optimizer.type is Adamm; did you mean 'Adam'?"),
        ({"optimizer": {"type": "OneBitAdam"}}, "optimizer.type is OneBitAdam; "),
        ({"optimizer": {"params": {"lr": "auto"}}}, "optimizer.type is missing"),
        ({"checkpoint": {"writer": {"type": "mock"}}}, "checkpoint.writer is"),
        (
            {"zero_optimization": {"stage": 2, "elastic_checkpoint": True}},
            "checkpoints itself; rem",
        ),
        ({"zero_allow_untested_optimizer": False, "zero_optimization": {"stage": 1}}, "remove it"),
        ('{"bf16": {"enabled": true, "enabled": true}}', "key 'enabled' is given twice"),
        ('{"bf16": {}, "bf16": {}}', "key 'bf16' is given twice"),
        ('{"gradient_clipping": NaN}', "not valid JSON: NaN is no number"),
        ('{"gradient_clipping": 1e999}', "gradient_clipping is Infinity; it must be finite"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_refusals_name_key_value_and_fix(tmp_path, ds, words):
    with pytest.raises(ConfigError) as error:
        resolved(tmp_path, ds)
    assert words in str(error.value) and "ds.json" in str(error.value)


def test_auto_in_zero_optimization_is_deepspeeds_default(tmp_path):
    auto = {"stage": 3, "reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": "auto"}
    null = {"overlap_comm": "auto", "offload_param": None, "sub_group_size": 1e9}
    found, lines = resolved(tmp_path, {"zero_optimization": auto | null})
    assert found["zero_optimization"] == {"stage": 3, "sub_group_size": 10**9} and not lines


@pytest.mark.parametrize(
    ("type_", "params", "overrides", "words"),
    [
        ("AdamW", {}, ["optim.kind=openai_adam"], "optim.kind of the run is openai_adam"),
        ("AdamW", {"betas": [0.9, 0.98]}, [], "optimizer.params.betas is [0.9, 0.98] but optim"),
        ("AdamW", {"eps": 1e-6}, [], "optimizer.params.eps is 1e-06 but optim.eps"),
        ("AdamW", {"weight_decay": 0.1}, [], "params.weight_decay is 0.1 but optim.weight_decay"),
    ],
)
def test_an_optimizer_section_against_the_run(tmp_path, type_, params, overrides, words):
    with pytest.raises(ConfigError) as error:
        resolved(tmp_path, {"optimizer": {"type": type_, "params": params}}, *overrides)
    assert words in str(error.value)


def test_betas_and_eps_of_the_run_reach_an_adam_that_does_not_name_them(tmp_path):
    overrides = ["optim.betas=[0.5,0.6]", "optim.eps=1e-3"]
    found, lines = resolved(tmp_path, {"optimizer": {"type": "adamw"}}, *overrides)
    assert found["optimizer"]["params"] == {"betas": [0.5, 0.6], "eps": 1e-3, "lr": 2.5e-4}
    assert not lines
    plain = {"optimizer": {"type": "Adam", "params": {"adam_w_mode": False}}}
    assert "Adam takes the place of optim.kind adamw" in resolved(tmp_path, plain)[1][0]
    lion = {"optimizer": {"type": "Lion", "params": {"eps": "auto"}}}
    assert "Lion takes the place of optim.kind" in resolved(tmp_path, lion)[1][0]


def test_a_tilde_in_a_path_of_the_json_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    nvme = {"device": "nvme", "nvme_path": "~/nvme"}
    sections = {"zero_optimization": {"stage": 3, "offload_optimizer": nvme}}
    sections["csv_monitor"] = {"enabled": True, "output_path": "~/csv"}
    found = resolved(tmp_path, sections, "run.name=a")[0]
    assert found["zero_optimization"]["offload_optimizer"]["nvme_path"] == "/home/me/nvme/a"
    assert found["csv_monitor"]["output_path"] == "/home/me/csv"
