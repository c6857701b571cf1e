"""Configuration: the paper's defaults, precedence, and errors that name file, key and fix."""

import dataclasses
from pathlib import Path

import pytest

from gpt1_ds.base.bounds import Bounds
from gpt1_ds.base.errors import ConfigError
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import PRESETS, FinetuneConfig, PretrainConfig

CONFIGS = Path(__file__).resolve().parents[2] / "gpt1_ds" / "configs"


def test_defaults_are_the_papers():
    run = load(PretrainConfig, None, [])
    model = run.model
    assert (model.n_layer, model.n_head, model.n_embd, model.n_ctx) == (12, 12, 768, 512)
    assert (run.optim.lr, run.optim.weight_decay, run.schedule.warmup_steps) == (2.5e-4, 0.01, 2000)
    assert (run.train.global_batch, run.train.epochs, run.schedule.kind) == (64, 100, "cosine")
    fine = load(FinetuneConfig, None, [])
    assert (fine.optim.lr, fine.train.global_batch, fine.train.epochs) == (6.25e-5, 32, 3)
    assert (fine.schedule.kind, fine.schedule.warmup_fraction) == ("linear", 0.002)
    assert fine.task.lm_coef == 0.5


def test_the_default_yaml_says_what_the_defaults_say():
    shipped = load(PretrainConfig, CONFIGS / "pretrain_gpt1.yaml", [])
    default = load(PretrainConfig, None, [])
    assert shipped.model == default.model
    assert shipped.optim == default.optim and shipped.schedule == default.schedule


def test_every_shipped_yaml_loads():
    paths = list(CONFIGS.glob("*.yaml"))
    assert len(paths) > 5
    for path in paths:
        load(FinetuneConfig if path.name.startswith("finetune") else PretrainConfig, path, [])
        first = path.read_text().splitlines()[:8]
        assert any("deepspeed" in line and line.startswith("#") for line in first), (
            f"{path.name} opens with its command"
        )


def test_overrides_win_over_yaml_and_yaml_over_defaults(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("optim: {lr: 1e-4, eps: 1.0e-6}\nmodel:\n  preset: gpt1-tiny\n")
    run = load(
        PretrainConfig, path, ["optim.lr=3e-4", "data.weights.books=2", "data.weights.news=1"]
    )
    assert run.optim.lr == 3e-4 and run.optim.eps == 1e-6 and run.optim.weight_decay == 0.01
    assert run.model.n_layer == 2 and run.data.weights == {"books": 2.0, "news": 1.0}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optim.lrr=1", ["optim.lrr", "write optim.lr=1"]),
        ("optm.lr=1", ["optm", "write optim.lr=1"]),
        ("optim.lr=fast", ["optim.lr", "fast", "float"]),
        ("train.global_batch=1.5", ["train.global_batch", "1.5", "int"]),
        ("train.epochs=0", ["train.epochs", "above 0"]),
        ("model.embd_pdrop=1.5", ["model.embd_pdrop", "[0, 1)"]),
        ("model.n_head=7", ["n_embd 768", "n_head 7"]),
        ("schedule.kind=cosin", ["schedule.kind", "did you mean 'cosine'"]),
        ("run.name=../x", ["run.name", "../x"]),
        ("train.batch_warmup_steps=5", ["train.batch_start is None", "train.global_batch 64"]),
        ("train.epochs=null", ["train.max_steps, train.epochs, train.tokens and train.flops"]),
        ("nonsense", ["nonsense", "section.key=value"]),
    ],
)
def test_errors_name_option_value_and_fix(override, words):
    with pytest.raises(ConfigError) as error:
        load(PretrainConfig, None, [override])
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["optim: {lr: [}", "optim: 3", "- a\n- b", "optim: {lrr: 1}", "optimm: {lr: 1}"]
)
def test_a_bad_yaml_is_named(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="bad.yaml"):
        load(PretrainConfig, path, [])


def bounded() -> dict[str, Bounds]:
    """Every `section.key` that has bounds."""
    found = {}
    config = FinetuneConfig()
    for section in dataclasses.fields(config):
        for field in dataclasses.fields(getattr(config, section.name)):
            if field.metadata.get("bounds"):
                found[f"{section.name}.{field.name}"] = field.metadata["bounds"]
    return found


@pytest.mark.parametrize("name", [name for name, bounds in bounded().items() if bounds.choices])
def test_every_choice_is_taken(name):
    section, key = name.split(".")
    for choice in bounded()[name].choices:
        if name == "eval.zero_shot":  # a list, and only of pre-training
            config = load(PretrainConfig, None, [f"{name}=[{choice}]"])
            assert config.eval.zero_shot == [choice]
            continue
        config = load(FinetuneConfig, None, [f"{name}={choice}"])
        value = getattr(getattr(config, section), key)
        # YAML's true and false are truth values, also beside other words (`train.compile`).
        assert (str(value).lower() if isinstance(value, bool) else value) == choice


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_gives_the_numbers_that_are_null(preset):
    model = load(PretrainConfig, None, [f"model.preset={preset}", "model.n_ctx=64"]).model
    assert vars(model).items() >= (PRESETS[preset] | {"n_ctx": 64}).items()
