"""Configuration: the paper's defaults, precedence, and errors that name file, key and fix."""

from pathlib import Path

import pytest

from gpt1_ds.base.errors import ConfigError
from gpt1_ds.settings import sections
from gpt1_ds.settings.command_line import describe
from gpt1_ds.settings.loading import load, to_dict
from gpt1_ds.settings.sections import FinetuneConfig, PretrainConfig

CONFIGS = Path(sections.__file__).parent / "configs"


def test_defaults_are_the_papers():
    run = load(PretrainConfig, None, [])
    assert (run.model.n_layer, run.model.n_head, run.model.n_embd, run.model.n_ctx) == (
        12,
        12,
        768,
        512,
    )
    assert (run.optim.lr, run.optim.weight_decay, run.schedule.warmup_steps) == (2.5e-4, 0.01, 2000)
    assert (run.train.global_batch, run.train.epochs, run.schedule.kind) == (64, 100, "cosine")
    fine = load(FinetuneConfig, None, [])
    assert (fine.optim.lr, fine.train.global_batch, fine.train.epochs) == (6.25e-5, 32, 3)
    assert (fine.schedule.kind, fine.schedule.warmup_fraction, fine.task.lm_coef) == (
        "linear",
        0.002,
        0.5,
    )


def test_the_default_yaml_says_what_the_defaults_say():
    shipped = load(PretrainConfig, CONFIGS / "pretrain_gpt1.yaml", [])
    assert (
        shipped.model == PretrainConfig().model
        or shipped.model == load(PretrainConfig, None, []).model
    )
    assert shipped.optim == PretrainConfig().optim and shipped.schedule == PretrainConfig().schedule


def test_every_shipped_yaml_loads():
    for path in CONFIGS.glob("*.yaml"):
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
        ("optim.lrr=1", ["optim.lrr", "did you mean 'lr'"]),
        ("optm.lr=1", ["optm", "did you mean 'optim'"]),
        ("optim.lr=fast", ["optim.lr", "fast", "float"]),
        ("train.global_batch=1.5", ["train.global_batch", "1.5", "int"]),
        ("train.epochs=0", ["train.epochs", "above 0"]),
        ("model.embd_pdrop=1.5", ["model.embd_pdrop", "[0, 1]"]),
        ("model.n_head=7", ["n_embd 768", "n_head 7"]),
        ("schedule.kind=cosin", ["schedule.kind", "did you mean 'cosine'"]),
        ("run.name=../x", ["run.name", "../x"]),
        ("train.batch_warmup_steps=5", ["train.batch_start is None", "train.global_batch 64"]),
        ("train.epochs=null", ["train.max_steps, train.epochs and train.tokens"]),
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


def test_help_describes_every_key():
    text = describe(FinetuneConfig)
    for section, keys in to_dict(FinetuneConfig()).items():
        for key in keys:
            line = next(
                line for line in text.splitlines() if line.startswith(f"  {section}.{key}=")
            )
            assert len(line.split(maxsplit=1)[1]) > 5, f"{section}.{key} has no description"
