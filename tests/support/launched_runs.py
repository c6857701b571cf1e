"""Runs small pre-trainings with the deepspeed launcher on two ranks, and sends them signals."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from gpt1_ds.distributed.environment import free_port
from tests.conftest import ROOT
from tests.support.ranks import die_with_parent

STEPS = 40
SMALL = (
    "model.preset=gpt1-tiny",
    "model.n_embd=32",
    "model.n_ctx=32",
    f"train.max_steps={STEPS}",
    "train.global_batch=4",
    "eval.every=20",
    "eval.batches=1",
    "checkpoint.every=8",
    "log.every=1",
    "optim.lr=1e-3",
    "schedule.warmup_steps=4",
    "run.name=run",
)


def command(shards: Path, runs: Path, *overrides: str) -> list[str]:
    return [
        "deepspeed",
        "--num_accelerators",
        "2",
        "--master_port",
        str(free_port()),
        "gpt1_ds/train.py",
        "--deepspeed_config",
        "ds_configs/cpu.json",
        *SMALL,
        f"data.shards={shards}",
        f"run.dir={runs}",
        *overrides,
    ]


def status(runs: Path) -> dict:
    return json.loads((runs / "run" / "status.json").read_text())


def outcome(runs: Path) -> tuple[str, int | None]:
    return status(runs)["state"], status(runs)["exit_code"]


def lines(runs: Path) -> list[dict]:
    path = runs / "run" / "metrics.jsonl"
    return list(map(json.loads, path.read_text().split("\n")[:-1] if path.exists() else []))


def losses(runs: Path) -> list[float]:
    return [line["loss"] for line in lines(runs) if "loss" in line]


def steps_logged(runs: Path, split: str = "train") -> list[int]:
    return [line["step"] for line in lines(runs) if line["split"] == split]


def committed(runs: Path) -> int:
    root = runs / "run" / "checkpoints"
    return max((int(path.name[5:]) for path in root.glob("step-????????")), default=0)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def ranks_of(launcher: int) -> list[int]:
    """The process ids of the launcher's ranks, by rank."""
    found: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().decode().split("\0")
            parent = parent_of(int(entry.name))
            grandparent = parent_of(parent)
        except (OSError, ValueError):
            continue
        rank = next((word for word in words if word.startswith("--local_rank=")), None)
        if rank and launcher in (parent, grandparent):
            found[int(rank.partition("=")[2])] = int(entry.name)
    return [found[rank] for rank in sorted(found)]


def wait_until_gone(pids: Iterable[int], deadline: float) -> None:
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, "a rank outlived the run"
        time.sleep(0.1)


def start(shards: Path, runs: Path, *overrides: str, **env: str) -> subprocess.Popen:
    """Start the run; its output goes to the file `log` in `runs`."""
    with (runs / "log").open("w") as log:
        return subprocess.Popen(
            command(shards, runs, *overrides),
            cwd=ROOT,
            env=os.environ | env,
            stdout=log,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent,
        )


def disturb(
    shards: Path, runs: Path, at_step: int, number: int, whom, *overrides: str, **env: str
) -> tuple[int, float]:
    """Start the run, send signal `number` to `whom(launcher, ranks)`, and wait for its end.

    The signal is sent once the run has logged `at_step` and committed the checkpoint before it.
    Returns the launcher's exit code, and the seconds until all processes were gone.
    """
    starts = len(steps_logged(runs, "start"))
    process = start(shards, runs, *overrides, **env)
    deadline, due = time.monotonic() + 120, at_step // 8 * 8

    def waiting() -> bool:
        started = len(steps_logged(runs, "start")) > starts
        logged = max(steps_logged(runs), default=-1) >= at_step
        return not (started and logged and max(steps_logged(runs, "checkpoint"), default=0) >= due)

    while waiting():
        assert process.poll() is None and time.monotonic() < deadline, (runs / "log").read_text()
        time.sleep(0.02)
    ranks = ranks_of(process.pid)
    assert len(ranks) == 2
    disturbed = whom(process.pid, ranks)
    for pid in disturbed:
        os.kill(pid, number)
    sent = time.monotonic()
    if number == signal.SIGSTOP:
        # The launcher would wait half a minute and more for processes that only SIGKILL ends.
        wait_until_gone(set(ranks) - set(disturbed), sent + 60)
        for pid in disturbed:
            os.kill(pid, signal.SIGKILL)
    process.wait(timeout=150)
    wait_until_gone(ranks, sent + 150)
    return process.returncode, time.monotonic() - sent
