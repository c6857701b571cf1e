"""Submits, watches and compares batch jobs on the Slurm cluster of the tests."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gpt1_ds.checkpoints.loading import load_weights
from tests.support import slurm_cluster
from tests.support.slurm_cluster import SlurmCluster

STEPS, SAVED = 60, 10
SMALL = (
    "--deepspeed_config",
    "ds_configs/cpu.json",
    "model.preset=gpt1-tiny",
    "model.n_embd=32",
    "model.n_ctx=32",
    f"train.max_steps={STEPS}",
    "train.global_batch=4",
    "eval.every=30",
    "eval.batches=1",
    "log.every=1",
    f"checkpoint.every={SAVED}",
    "optim.lr=1e-3",
    "schedule.warmup_steps=4",
)
CPUS = ("--gpus-per-node=0", "--cpus-per-task=1", "--mincpus=2")
END_SECONDS = 150.0  # time limit for a job that hangs


class Job:
    """A submitted batch script; `name` is the name of the job and of its run."""

    def __init__(
        self,
        cluster: SlurmCluster,
        project: Path,
        script: str,
        *words: str,
        name: str,
        options=(),
        **env,
    ):
        self.cluster, self.project, self.name = cluster, project, name
        words = (*CPUS, f"--job-name={name}", *options, f"slurm/{script}.sh", *words)
        self.id = cluster.sbatch(*words, cwd=project, **env)
        self.run = project / "runs" / name

    @property
    def log(self) -> str:
        path = self.project / f"{self.name}-{self.id}.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def steps(self) -> list[int]:
        return [record["step"] for record in records(self.run) if record["split"] == "train"]

    def field(self, name: str) -> str:
        return self.cluster.job(self.id).get(name, "")

    def until(
        self, condition: Callable[[], object], what: str, timeout_seconds: float = END_SECONDS
    ) -> None:
        try:
            self.cluster.until(condition, what, timeout_seconds)
        except TimeoutError as error:
            pytest.fail(
                f"{error}\n{self.cluster.command('scontrol', 'show', 'job', self.id)}\n{self.log}"
            )

    def until_step(self, step: int) -> None:
        self.until(lambda: (self.steps() or [-1])[-1] >= step, f"{self.name} to train {step} steps")

    def until_requeued(self) -> None:
        self.until(
            lambda: self.field("Restarts") not in ("", "0"), f"{self.name} to be requeued", 60
        )

    def ended(self, state: str = "COMPLETED", code: str = "0:0") -> str:
        """Wait for the end of the job, check its state and exit code, and return its log."""
        self.until(
            lambda: self.field("JobState") in slurm_cluster.FINAL_STATES, f"{self.name} to end"
        )
        found = (self.field("JobState"), self.field("ExitCode"))
        assert found == (state, code), f"{found}\n{self.log}\n{self.cluster.logs()}"
        return self.log


def records(run: Path) -> list[dict]:
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def status(run: Path) -> dict:
    return json.loads((run / "status.json").read_text())


def rank_processes(name: str) -> list[int]:
    """The process ids of the ranks of run `name` on all nodes, by rank."""
    return [process for _, process, _ in _ranks(name)]


def port_of(name: str) -> str | None:
    """The MASTER_PORT of the ranks of run `name`; None if there are none."""
    return next((port for _, _, port in _ranks(name)), None)


def _ranks(name: str) -> list[tuple[int, int, str]]:
    """Rank, process id and MASTER_PORT of each rank of run `name`, by rank."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            pairs = (entry / "environ").read_bytes().split(b"\0")
            environ = dict(pair.split(b"=", 1) for pair in pairs if b"=" in pair)
        except (OSError, ValueError):
            continue
        if (
            f"run.name={name}".encode() in words
            and words[1].endswith(b"train.py")
            and b"SLURM_PROCID" in environ
        ):
            place = int(environ[b"SLURM_PROCID"]), int(entry.name)
            found.append((*place, environ[b"MASTER_PORT"].decode()))
    return sorted(found)


def usr1_pending(name: str) -> int:
    """The number of ranks with a pending SIGUSR1."""
    bit, count = 1 << (signal.SIGUSR1 - 1), 0
    for pid in rank_processes(name):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        count += any(int(line.split()[1], 16) & bit for line in lines if line.startswith("ShdPnd"))
    return count


def assert_same_run(run: Path, other: Path) -> None:
    """Check that two runs have the same final weights, bit for bit, and the same losses."""
    ours, theirs = (load_weights(folder)[0] for folder in (run, other))
    assert ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) for name in ours
    )
    assert losses(run) == losses(other)


def losses(run: Path) -> list[tuple[str, int, float]]:
    logged = [record for record in records(run) if "loss" in record]
    return [(record["split"], record["step"], record["loss"]) for record in logged]
