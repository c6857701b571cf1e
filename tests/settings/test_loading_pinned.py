"""Every default of a run, and each bound of a setting from both sides."""

from pathlib import Path

import pytest

from gpt1_ds.base.errors import ConfigError
from gpt1_ds.settings.loading import load, run_folder, to_dict
from gpt1_ds.settings.sections import PRESETS, FinetuneConfig, PretrainConfig

ZERO_SHOT = {
    "zero_shot": None,
    "zero_shot_every": None,
    "zero_shot_data": "zero_shot",
    "zero_shot_sample": 100,
}
SECTIONS = {
    "run": {"name": "gpt1", "dir": "runs", "seed": 42},
    "model": {
        "preset": "gpt1",
        "kind": "transformer",
        "n_layer": 12,
        "n_head": 12,
        "n_embd": 768,
        "n_ctx": 512,
        "embd_pdrop": 0.1,
        "attn_pdrop": 0.1,
        "resid_pdrop": 0.1,
        "embd_dropout": "vectors",
        "position_logits": False,
    },
    "data": {
        "shards": "shards",
        "weights": {},
        "order": None,
        "verify": True,
        "quarantine": False,
        "cache": None,
        "cache_bytes": 20_000_000_000,
    },
    "tokenizer": {"kind": None, "openai_pipeline": None},
    "train": {
        "max_steps": None,
        "epochs": 100.0,
        "tokens": None,
        "flops": None,
        "global_batch": 64,
        "batch_warmup_steps": 0,
        "batch_start": None,
        "micro_batch": None,
        "grad_clip": 1.0,
        "max_skipped": 20,
        "spike_nats": 2.0,
        "max_rollbacks": 3,
        "activation_checkpointing": False,
        "compile": "auto",
        "cuda_graphs": False,
        "deterministic": False,
    },
    "optim": {
        "kind": "adamw",
        "lr": 2.5e-4,
        "betas": [0.9, 0.999],
        "eps": 1e-8,
        "weight_decay": 0.01,
    },
    "schedule": {
        "kind": "cosine",
        "decay_fraction": 0.1,
        "warmup_steps": 2000,
        "warmup_fraction": 0.002,
        "progress": "after_warmup",
        "total_steps": None,
    },
    "eval": {"every": 1000, "batches": 50, **ZERO_SHOT},
    "checkpoint": {
        "every": 1000,
        "keep": 3,
        "keep_every": None,
        "at_words": None,
        "mirror": None,
        "mirror_keep": 3,
        "compare_replicas": True,
        "stall_seconds": 120.0,
    },
    "log": {
        "every": 10,
        "layer_norms": False,
        "samples_every": None,
        "prompt": "",
        "profile": None,
        "slow_ratio": 1.3,
    },
    "distributed": {"timeout_seconds": 600.0},
    "fidelity": {"kind": "paper"},
    "init": {"checkpoint": None},
}
TASK = {
    "name": "sst2",
    "data": "",
    "lm_coef": 0.5,
    "task_coef": 1.0,
    "lm_mean": "token",
    "pool": "last",
    "clf_pdrop": 0.1,
    "label_all_subtokens": False,
    "max_examples": None,
    "n_transfer": None,
    "patience": None,
    "class_weights": None,
    "sampling": "shuffled",
    "drop_last": False,
    "split": "hash",
    "truncation": "longest",
    "predictions_with_text": False,
    "squared_error": False,
    "kind": None,
    "columns": None,
    "labels": None,
    "files": None,
    "metrics": None,
}


def test_defaults_of_a_pre_training():
    assert to_dict(load(PretrainConfig, None, [])) == SECTIONS


def test_defaults_of_a_fine_tuning():
    tuning = to_dict(load(FinetuneConfig, None, []))
    assert tuning == SECTIONS | {
        "task": TASK,
        "run": SECTIONS["run"] | {"name": "finetune"},
        "train": SECTIONS["train"] | {"epochs": 3.0, "global_batch": 32},
        "optim": SECTIONS["optim"] | {"lr": 6.25e-5},
        "schedule": SECTIONS["schedule"] | {"kind": "linear", "warmup_steps": None},
        "eval": {"every": None, "batches": None, **ZERO_SHOT},
    }


def test_shapes_of_the_presets():
    assert PRESETS == {
        "gpt1": {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_ctx": 512},
        "gpt1-tiny": {"n_layer": 2, "n_head": 4, "n_embd": 128, "n_ctx": 128},
        "350m": {"n_layer": 24, "n_head": 16, "n_embd": 1024, "n_ctx": 2048},
        "1.3b": {"n_layer": 24, "n_head": 16, "n_embd": 2048, "n_ctx": 2048},
        "6.7b": {"n_layer": 32, "n_head": 32, "n_embd": 4096, "n_ctx": 2048},
        "13b": {"n_layer": 40, "n_head": 40, "n_embd": 5120, "n_ctx": 2048},
    }
    model = load(PretrainConfig, None, ["model.preset=350m", "model.n_ctx=1024"]).model
    assert (model.n_layer, model.n_ctx) == (24, 1024)


DROPOUTS = ["model.embd_pdrop", "model.attn_pdrop", "model.resid_pdrop", "task.clf_pdrop"]
UNIT_INTERVAL = [
    "task.lm_coef",
    "task.task_coef",
    "schedule.warmup_fraction",
    "schedule.decay_fraction",
]


@pytest.mark.parametrize("name", UNIT_INTERVAL)
def test_settings_from_0_to_1(name: str):
    for value in ("0", "1", "0.5"):
        load(FinetuneConfig, None, [f"{name}={value}"])
    for value in ("-0.001", "1.001"):
        with pytest.raises(ConfigError, match=rf"{name} is {value}; it must lie in \[0, 1\]"):
            load(FinetuneConfig, None, [f"{name}={value}"])


@pytest.mark.parametrize("name", DROPOUTS)
def test_dropouts_leave_something(name: str):
    for value in ("0", "0.999"):
        load(FinetuneConfig, None, [f"{name}={value}"])
    for value in ("-0.001", "1"):
        with pytest.raises(ConfigError, match=rf"{name} is {value}.*; it must lie in \[0, 1\)"):
            load(FinetuneConfig, None, [f"{name}={value}"])


INTEGERS = [
    "model.n_layer",
    "train.max_steps",
    "train.global_batch",
    "train.batch_start",
    "train.micro_batch",
    "train.max_skipped",
    "eval.every",
    "eval.batches",
    "eval.zero_shot_sample",
    "checkpoint.every",
    "checkpoint.keep",
    "checkpoint.keep_every",
    "checkpoint.mirror_keep",
    "log.every",
    "log.samples_every",
    "log.profile",
    "data.cache_bytes",
    "task.max_examples",
    "task.patience",
    "model.n_head",
    "model.n_embd",
    "model.n_ctx",
]
NUMBERS = [
    "train.epochs",
    "train.spike_nats",
    "optim.lr",
    "optim.eps",
    "checkpoint.stall_seconds",
    "log.slow_ratio",
    "distributed.timeout_seconds",
]


@pytest.mark.parametrize(
    ("name", "smallest"), [*((n, "1") for n in INTEGERS), *((n, "1e-9") for n in NUMBERS)]
)
def test_settings_above_0(name: str, smallest: str):
    heads = ["model.n_head=1"] if name == "model.n_embd" else []
    load(FinetuneConfig, None, [*heads, f"{name}={smallest}"])
    for value in ("0", "-1"):
        with pytest.raises(ConfigError, match=f"{name} is {value}.*; it must be above 0"):
            load(FinetuneConfig, None, [f"{name}={value}"])


def refused(cls: type[PretrainConfig], *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        load(cls, None, list(overrides))
    return str(error.value)


def test_one_end_of_the_run_must_be_given():
    assert "are all null" in refused(PretrainConfig, "train.epochs=null")
    for end in ("train.max_steps=5", "train.tokens=5", "train.flops=1e17"):
        load(PretrainConfig, None, ["train.epochs=null", end])
    load(FinetuneConfig, None, ["train.epochs=null", "train.max_steps=5"])
    for end in ("train.tokens=5", "train.flops=5"):
        assert "are all null" in refused(FinetuneConfig, "train.epochs=null", end)


def test_settings_of_pre_training_alone():
    words = "train.tokens, train.flops and train.batch_warmup_steps are for pre-training"
    assert words in refused(FinetuneConfig, "train.tokens=5")
    assert words in refused(FinetuneConfig, "train.flops=5")
    assert words in refused(FinetuneConfig, "train.batch_warmup_steps=1", "train.batch_start=1")
    load(PretrainConfig, None, ["train.tokens=5"])
    assert "eval.zero_shot_every is for pre" in refused(FinetuneConfig, "eval.zero_shot_every=1")


def test_an_interval_of_no_benchmark():
    words = "eval.zero_shot_every is 5, but eval.zero_shot names no benchmark"
    assert words in refused(PretrainConfig, "eval.zero_shot_every=5")
    assert words in refused(PretrainConfig, "eval.zero_shot_every=5", "eval.zero_shot=[]")
    load(PretrainConfig, None, ["eval.zero_shot_every=5", "eval.zero_shot=[blimp]"])


def test_the_first_batch_of_a_batch_that_grows():
    for start in (1, 64):
        load(PretrainConfig, None, ["train.batch_warmup_steps=1", f"train.batch_start={start}"])
    assert "at most train.global_batch 64" in refused(
        PretrainConfig, "train.batch_warmup_steps=1", "train.batch_start=65"
    )
    assert "train.batch_start is None" in refused(PretrainConfig, "train.batch_warmup_steps=1")
    load(PretrainConfig, None, ["train.batch_start=65"])


@pytest.mark.parametrize(
    "betas", ["[0.9]", "[0.9, 0.9, 0.9]", "[0.9, 1]", "[-0.1, 0.9]", "[1.0, 0.9]"]
)
def test_betas_that_are_refused(betas: str):
    assert "give two numbers in [0, 1)" in refused(PretrainConfig, f"optim.betas={betas}")


def test_betas_at_their_bounds():
    assert load(PretrainConfig, None, ["optim.betas=[0, 0.999999]"]).optim.betas == [0.0, 0.999999]


@pytest.mark.parametrize("name", ["''", ".hidden", "a/b", "..", "/a"])
def test_names_of_runs_that_are_refused(name: str):
    assert "give a plain folder name" in refused(PretrainConfig, f"run.name={name}")


def test_the_folder_of_a_run():
    assert run_folder(load(PretrainConfig, None, ["run.dir=/x", "run.name=a.b"])) == Path("/x/a.b")


def test_width_is_a_multiple_of_the_heads():
    load(PretrainConfig, None, ["model.n_embd=770", "model.n_head=7"])
    assert "model.n_embd 770 is not a multiple of model.n_head 12" in refused(
        PretrainConfig, "model.n_embd=770"
    )


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("model.preset", ["gpt1", "gpt1-tiny", "350m", "1.3b", "6.7b", "13b"]),
        ("model.kind", ["transformer", "lstm"]),
        ("tokenizer.kind", ["sentencepiece", "openai", "null"]),
        ("tokenizer.openai_pipeline", ["transformers", "original", "null"]),
        ("optim.kind", ["adamw", "openai_adam"]),
        ("schedule.kind", ["cosine", "linear", "constant", "wsd"]),
        ("task.pool", ["last", "first"]),
    ],
)
def test_choices(name: str, choices: list[str]):
    for choice in choices:
        load(FinetuneConfig, None, [f"{name}={choice}"])
    assert f"{name} is 'zzz'; choose from: " in refused(FinetuneConfig, f"{name}=zzz")


def test_types_of_values():
    config = load(
        FinetuneConfig,
        None,
        ["optim.lr=1e-4", "train.epochs=3", "run.name=7", "task.labels=[1, x]"],
    )
    assert (config.optim.lr, config.train.epochs, config.run.name) == (1e-4, 3.0, "7")
    assert load(PretrainConfig, None, ["run.name=true"]).run.name == "true"
    assert config.task.labels == ["1", "x"] and isinstance(config.train.epochs, float)
    assert load(FinetuneConfig, None, ["task.files={dev: a.tsv}"]).task.files == {"dev": "a.tsv"}
    for override, kind in (
        ("train.global_batch=true", "int"),
        ("train.epochs=true", "float"),
        ("run.name=null", "str"),
        ("data.verify=1", "bool"),
        ("optim.betas=0.9", "list"),
        ("optim.lr=fast", "float"),
        ("data.weights.books=much", "float"),
        ("data.weights=3", "dict"),
        ("run.name.x=3", "str"),
    ):
        assert f"; expected {kind}" in refused(FinetuneConfig, override)


def test_no_checkpoint():
    assert load(FinetuneConfig, None, ["init.checkpoint=none"]).init.checkpoint is None
    assert load(FinetuneConfig, None, ["init.checkpoint=a"]).init.checkpoint == "a"


@pytest.mark.parametrize("option", ["optim.lr", "lr=1", "optim.=1", "=1"])
def test_options_that_are_no_assignments(option: str):
    assert f"option '{option}': expected section.key=value" in refused(PretrainConfig, option)


def test_yaml_files(tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text("")
    assert load(PretrainConfig, path, []) == load(PretrainConfig, None, [])
    path.write_text("optim:\nrun: {seed: 7}\n")
    assert load(PretrainConfig, path, []).run.seed == 7
    for text, words in (
        ("optim: 0\n", "section 'optim' holds 0"),
        ("[]\n", "expected sections such as 'model:'"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=words):
            load(PretrainConfig, path, [])
    with pytest.raises(ConfigError, match="--config .*nowhere.yaml: No such file"):
        load(PretrainConfig, tmp_path / "nowhere.yaml", [])
