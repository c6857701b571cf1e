"""The batch scripts: clean under shellcheck, and run by a real two-node Slurm on this machine."""

import json
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests import slurm_cluster
from tests.conftest import ROOT, need
from tests.slurm_cluster import SlurmCluster

SCRIPTS = sorted((ROOT / "slurm").glob("*.sh"))
ONE_CPU_RANK_A_NODE = ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", "--gpus-per-node=0")


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    if reason := slurm_cluster.missing():
        need("slurm", reason)
    with SlurmCluster(nodes=2) as cluster:
        yield cluster


@pytest.mark.parametrize("script", [*SCRIPTS, ROOT / ".ci" / "run"], ids=lambda path: path.name)
def test_scripts_are_shellcheck_clean(script):
    if not shutil.which("shellcheck"):
        need("slurm", "shellcheck not found: apt-get install shellcheck")
    words = ["shellcheck", "--external-sources", script.relative_to(ROOT)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_short(script):
    assert len(script.read_text(encoding="utf-8").splitlines()) < 60


@pytest.mark.parametrize("name", ["prepare_data", "pretrain", "finetune"])
def test_the_defaults_are_two_nodes_of_eight(name):
    text = (ROOT / "slurm" / f"{name}.sh").read_text(encoding="utf-8")
    assert "#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=8\n" in text


def test_nodes_have_names_of_their_own(cluster):
    assert sorted(cluster.command("srun", "-N2", "--ntasks-per-node=1", "hostname").split()) == cluster.nodes


def test_pretraining_on_two_nodes_commits_a_checkpoint(cluster, tiny_shards, tmp_path):
    overrides = (
        f"data.shards={tiny_shards}", f"run.dir={tmp_path}", "run.name=slurm", "model.preset=gpt1-tiny",
        "train.max_steps=4", "train.global_batch=4", "eval.batches=1", "checkpoint.every=2", "log.every=1",
    )  # fmt: skip
    job = cluster.sbatch(
        *ONE_CPU_RANK_A_NODE, f"--output={tmp_path}/log", "slurm/pretrain.sh", "--deepspeed_config",
        "ds_configs/cpu.json", *overrides, cwd=ROOT,
    )  # fmt: skip
    ended = cluster.wait(job, timeout_seconds=200)
    log = (tmp_path / "log").read_text(encoding="utf-8")
    assert ended["JobState"] == "COMPLETED", f"{ended['JobState']} {ended['ExitCode']}\n{log}\n{cluster.logs()}"
    assert ended["NumNodes"] == "2" and "on 2 ranks" in log

    run = tmp_path / "slurm"
    assert json.loads((run / "status.json").read_text())["state"] == "done"
    newest = run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip()
    assert newest.name == "step-00000004"
    manifest = json.loads((newest / "MANIFEST.json").read_text())
    assert manifest["world_size"] == 2
