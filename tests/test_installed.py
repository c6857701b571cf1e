"""The package as a wheel in an environment of its own, used from another folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.conftest import ROOT

BUILT_FROM = ("gpt1_ds", "data_prep", "ds_configs")
FILES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE")
TINY = """--config pretrain_small model.preset=gpt1-tiny model.n_ctx=32 train.global_batch=4
    train.max_steps=1 eval.batches=1 --out runs/one""".split()


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """A virtual environment with the wheel. The other packages are those of the test's."""
    folder = tmp_path_factory.mktemp("installed")
    source, home = folder / "source", folder / "venv"
    for name in BUILT_FROM:
        unwanted = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=unwanted)
    for name in FILES:
        shutil.copy(ROOT / name, source / name)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    paths = {"base": str(home), "platbase": str(home)}
    # A path in a .pth file is not searched for further .pth files: the checkout, which the test's
    # environment may have installed as editable, is not found this way.
    pth = Path(sysconfig.get_path("purelib", vars=paths)) / "others.pth"
    pth.write_text(f"{sysconfig.get_path('purelib')}\n")
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    own = ["--no-index", "--no-deps"]
    wheels = folder / "wheels"
    wheel = [*pip, "wheel", *own, "--no-build-isolation", "--wheel-dir", wheels, source]
    subprocess.run(wheel, check=True)
    (built,) = wheels.glob("*.whl")
    python = home / "bin" / "python"
    subprocess.run([*pip, "--python", python, "install", *own, built], check=True)
    return home / "bin"


@pytest.fixture
def use(environment: Path, tmp_path: Path):
    """Run a command of the environment in an empty folder; its standard output."""

    def use(name: str, *words: object) -> str:
        env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(
            [environment / name, *map(str, words)],
            cwd=tmp_path,
            env=env | {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    return use


def test_the_modules_and_their_files_are_those_of_the_wheel(use, environment: Path):
    shown = use(
        "python",
        "-c",
        "import data_prep, gpt1_ds; from gpt1_ds.settings import shipped;"
        "print(data_prep.__file__, gpt1_ds.__file__, shipped.ds_config_path('cpu'), sep='\\n')",
    )
    home = str(environment.parent)
    assert all(line.startswith(home) for line in shown.splitlines()), shown
    assert "gpt1_ds.train " in use("python", "-m", "gpt1_ds")


def test_commands_find_the_shipped_files(use):
    plan = use("gpt1-plan", "--config", "pretrain_small", "--nodes", 1, "train.max_steps=7")
    assert "7 updates" in plan and plan.count("yes") == 6
    assert "zero3_offload" in use("gpt1-suite", "--help")
    config = use("gpt1-train", "--print-config", "--config", "pretrain_small")
    assert "max_steps: 1800" in config


def test_the_sample_and_a_tokenizer(use, tmp_path: Path):
    use("gpt1-sample", "--out", "sample", "--megabytes", 0.05)
    corpus = ("--corpus", "books=sample/books/train")
    use("gpt1-train-tokenizer", *corpus, "--vocab-size", 500, "--out", "tok")
    assert (tmp_path / "tok" / "tokenizer.model").exists()


def test_deepspeed_trains_by_the_name_of_the_module(use, tmp_path: Path, tiny_shards: Path):
    launcher = shutil.which("deepspeed")
    launch = ("--num_accelerators", 1, "--module", "gpt1_ds.train", *TINY)
    said = use("python", launcher, *launch, f"data.shards={tiny_shards}")
    assert "--deepspeed_config cpu" in said and "because there is no GPU" in said
    assert (tmp_path / "runs" / "one" / "checkpoints" / "step-00000001").is_dir()
