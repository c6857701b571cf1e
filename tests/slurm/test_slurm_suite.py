"""`suite --slurm` through a real two-node Slurm, and the chain of jobs that ends with it."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, succeed
from tests.support.slurm_jobs import CPUS, END_SECONDS, SMALL, STEPS, records

SHORT = (
    "task.max_examples=160",
    "train.global_batch=4",
    "train.epochs=1",
    "eval.batches=4",
    "log.every=1",
)
TWO_RANKS = ("--nodes=1", "--ntasks-per-node=2", *CPUS)


@pytest.fixture
def folder(sample, tmp_path) -> Path:
    """A project's folder with the data of SST-2, but not those of RTE."""
    for name in ("slurm", "gpt1_ds", "ds_configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "SST-2").symlink_to(sample / "tasks" / "SST-2")
    return tmp_path


@pytest.fixture
def suite(cluster, folder, tiny_run):
    def suite(*words: object, out: str = "out", **env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "gpt1_ds.suite", "--init", str(tiny_run), "--out", out]
        command += ["--deepspeed_config", "ds_configs/cpu_fp32.json", *SHORT, *map(str, words)]
        return subprocess.run(
            command, cwd=folder, env=cluster.env | env, capture_output=True, text=True, timeout=400
        )

    return suite


@pytest.mark.timeout(900)
def test_a_suite_as_a_job_array_ends_like_a_plain_one(cluster, suite, folder, sample, tiny_run):
    asked = ("--tasks", "sst2", "rte", "--seeds", "1", "--zero-shot", "sst2")
    on_cluster = (*asked, "--slurm", "1", "--", *TWO_RANKS)
    held = suite(*on_cluster, "--hold")
    assert held.returncode == 0, held.stderr
    entry = json.loads((folder / "out" / "slurm.json").read_text())["submissions"][0]
    job, collecting = int(entry["job"]), int(entry["collecting"])
    assert f"2 runs as the elements 0 to 1 of job {job}" in held.stdout
    assert entry["runs"] == ["sst2-seed-1", "rte-seed-1"]
    waiting = cluster.job(job)
    assert waiting["ArrayTaskId"] == "0-1%1"
    assert f"afterany:{job}_*" in cluster.job(collecting)["Dependency"]
    again = suite(*on_cluster)
    assert "in the queue: 2 runs" in again.stdout and "nothing to submit" in again.stdout
    cluster.command("scontrol", "release", job)
    cluster.command("scontrol", "release", collecting)
    # An element that is stopped is queued again, and the collecting job waits for it.
    metrics = folder / "out" / "sst2-seed-1"
    cluster.until(lambda: len(records(metrics)) > 3, "some steps", END_SECONDS)
    cluster.command("scancel", "--signal=USR1", f"{job}_0")
    ended = cluster.wait(collecting, 2 * END_SECONDS)
    logs = "\n".join(path.read_text() for path in (folder / "out" / "logs").iterdir())
    assert ended["JobState"] == "COMPLETED", logs
    log = (folder / "out" / "logs" / "sst2-seed-1.log").read_text()
    assert log.count(f"element  {job}_0 on node") == 2 and "stopped: step" in log
    assert [r["step"] for r in records(metrics) if r["split"] == "train"] == list(range(1, 41))
    failure = json.loads((folder / "out" / "runs.json").read_text())["rte-seed-1"]
    assert failure["exit_code"] == 3 and "no train file" in failure["error"]

    plain = suite(*asked, "--ranks", 2, out="plain")
    assert plain.returncode == 3, plain.stderr
    tables = [(folder / name / "table.md").read_text() for name in ("out", "plain")]
    assert tables[0] == tables[1] and "| rte-seed-1 | 3 |" in tables[0]

    (folder / "tasks" / "RTE").symlink_to(sample / "tasks" / "RTE")
    second = suite(*on_cluster)
    assert "1 runs as the elements 0 to 0" in second.stdout, second.stderr
    entry = json.loads((folder / "out" / "slurm.json").read_text())["submissions"][1]
    assert entry["runs"] == ["rte-seed-1"]
    assert cluster.wait(int(entry["collecting"]), END_SECONDS)["JobState"] == "COMPLETED"
    done = suite(*on_cluster)
    assert done.returncode == 0 and "| rte | accuracy |" in done.stdout, done.stderr
    assert json.loads((folder / "out" / "runs.json").read_text()) == {}
    assert len(json.loads((folder / "out" / "slurm.json").read_text())["submissions"]) == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--slurm", "optim.ir=1"), "option 'optim.ir=1': no such setting"),
        (("--slurm", "--ranks", "2"), "-- --nodes=1 --ntasks-per-node=2"),
        (("--slurm", "--layers", "9"), "--layers 9: "),
        (("--slurm", "--zero-shot", "rte"), "--zero-shot rte: "),
        (("--slurm", "--", "--partition=none"), "sbatch said: .*invalid partition"),
        (("--", "--partition=main"), "-- --partition=main: these go to sbatch"),
    ],
)
def test_what_cannot_run_is_refused_in_a_line_before_anything_is_submitted(
    cluster, suite, folder, words, says
):
    refused = suite("--tasks", "sst2", "--seeds", "1", *words)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert re.search(says, refused.stderr), refused.stderr
    assert str(folder) not in cluster.command("squeue", "-h", "-o", "%Z")
    assert not (folder / "out" / "slurm.json").exists()


def test_without_sbatch_or_scripts_a_line_says_so(suite, folder):
    words = ("--tasks", "sst2", "--slurm")
    refused = suite(*words, PATH="/nowhere")
    assert refused.returncode == 2 and "--slurm: sbatch not found" in refused.stderr
    (folder / "slurm").unlink()
    refused = suite(*words)
    assert refused.returncode == 2 and "there is no slurm/suite.sh here" in refused.stderr


def test_the_chain_ends_with_the_suite(cluster, sample, chain, tmp_path):
    (tmp_path / "tasks").symlink_to(sample / "tasks")
    limits = "train.epochs=1 train.global_batch=4 task.max_examples=8 eval.batches=1"
    small = " ".join(SMALL).replace(f"={STEPS}", "=20")
    chained = chain(
        f"books={sample}/books/train",
        GPT1_PRETRAIN=small,
        GPT1_SUITE=f"{' '.join(SMALL[:2])} {limits} --tasks sst2 --seeds 3 "
        "--ablations none scratch",
        GPT1_LOCAL_CACHE="1",
        SLURM_TMPDIR=str(tmp_path / "disk"),
    )
    ended = []
    for job in chained:
        ended.append(cluster.wait(job, END_SECONDS))
        logs = "\n".join(path.read_text() for path in sorted(tmp_path.glob("*.log")))
        assert ended[-1]["JobState"] == "COMPLETED", logs
    assert [fields["JobName"] for fields in ended] == ["gpt1-data", "gpt1-pretrain", "gpt1-collect"]
    assert list((tmp_path / "disk").glob("gpt1-shards-*/**/*.tar")), (
        "pre-training read no shard through its cache"
    )
    assert (
        ended[0]["EndTime"] <= ended[1]["StartTime"]
        and ended[1]["EndTime"] <= ended[2]["StartTime"]
    )
    out = tmp_path / "suites" / "gpt1"
    (entry,) = json.loads((out / "slurm.json").read_text())["submissions"]
    assert cluster.wait(int(entry["collecting"]), END_SECONDS)["JobState"] == "COMPLETED"
    for name, init in (
        ("sst2-seed-3", "runs/gpt1/checkpoints/step-00000020"),
        ("sst2-seed-3-scratch", "none"),
    ):
        result = json.loads((out / name / "result.json").read_text())
        assert (result["task"], result["seed"]) == ("sst2", 3) and init in result["init"]
    assert "| sst2 | accuracy |" in (out / "table.md").read_text()


def test_what_depends_on_a_failed_job_is_cancelled(cluster, chain, tmp_path):
    data, *rest = chain("books=nowhere")
    assert cluster.wait(data, END_SECONDS)["ExitCode"] in ("2:0", "3:0")
    assert [cluster.wait(job, END_SECONDS)["JobState"] for job in rest] == ["CANCELLED"] * 2


@pytest.fixture
def chain(cluster, tmp_path):
    """Call `slurm/submit_all.sh` for `tmp_path`; the three job ids."""
    shutil.copytree(ROOT / "slurm", tmp_path / "slurm")  # it works in the folder above its own
    for name in ("gpt1_ds", "data_prep", "ds_configs"):
        (tmp_path / name).symlink_to(ROOT / name)

    def chain(corpus: str, **env: str) -> list[int]:
        options = ("--nodes=1", "--ntasks-per-node=1", *CPUS)
        done = succeed(
            tmp_path / "slurm" / "submit_all.sh",
            *options,
            "--",
            corpus,
            **cluster.env | {"GPT1_VOCAB_SIZE": "512"} | env,
        )
        return [int(word) for word in done.stdout.split()]

    return chain
