"""The files of the batch scripts: they pass shellcheck, are short, and default to two nodes."""

import shutil
import subprocess

import pytest

from tests.conftest import ROOT, need

SCRIPTS = sorted((ROOT / "slurm").glob("*.sh"))


@pytest.mark.parametrize("script", [*SCRIPTS, ROOT / ".ci" / "run"], ids=lambda path: path.name)
def test_scripts_are_shellcheck_clean(script):
    if not shutil.which("shellcheck"):
        need("slurm", "shellcheck not found: apt-get install shellcheck")
    words = ["shellcheck", "--external-sources", script.relative_to(ROOT)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_short(script):
    lines = script.read_text(encoding="utf-8").splitlines()
    assert len(lines) < 60 and max(map(len, lines)) <= 120


@pytest.mark.parametrize("name", ["prepare_data", "pretrain", "finetune", "suite"])
def test_the_defaults_are_two_nodes_of_eight(name):
    text = (ROOT / "slurm" / f"{name}.sh").read_text(encoding="utf-8")
    ranks = "ntasks-per-node" if name == "prepare_data" else "gpus-per-node"  # one rank a GPU
    assert f"#SBATCH --nodes=2\n#SBATCH --{ranks}=8\n" in text
