"""Soak test: does a run with random faults end with the same weights as an undisturbed run?

    python benchmarks/soak.py OUT -- --deepspeed_config ds_configs/cpu.json \\
        --config gpt1_ds/configs/pretrain_small.yaml data.shards=shards checkpoint.every=50
    python benchmarks/soak.py OUT --launcher torchrun --mirror s3://bucket/soak -- ..
    python benchmarks/soak.py OUT --launcher slurm --mirror file:///other/disk/soak -- ..

Both runs train at the same time with two ranks each, so they take about twice the time of one run.
At random moments the script causes one of the faults below in OUT/disturbed. If the fault ends the
run, the script starts it again with the same command; torchrun and the job of slurm/pretrain.sh
(on this machine) start its ranks again themselves. A rank is slowed for a while, too, and with
--mirror the whole run folder is lost. The file OUT/killer.jsonl records the faults. If OUT exists,
the test continues. Exit code 0 means that all weights and moments of the last checkpoints are the
same, bit for bit, and that the mirror holds that checkpoint.

The fault of a full disk needs root, which can mount a small file system for the disturbed run
(with Slurm, have one at OUT/disturbed before its nodes start).
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from gpt1_ds.checkpoints.deepspeed_files import allow_known_classes
from gpt1_ds.checkpoints.folder import MANIFEST, find_checkpoint, read_checkpoint_manifest
from gpt1_ds.checkpoints.mirror import Store, attempted
from gpt1_ds.checkpoints.saved_parameters import SavedParameters
from gpt1_ds.distributed.environment import free_port

ROOT = Path(__file__).resolve().parents[1]
SIGNALS = {
    "SIGKILL a rank": ("rank", signal.SIGKILL),
    "SIGTERM a rank": ("rank", signal.SIGTERM),
    "SIGSTOP a rank": ("rank", signal.SIGSTOP),
    "SIGTERM the launcher": ("launcher", signal.SIGTERM),
    "SIGKILL the launcher": ("launcher", signal.SIGKILL),
}
SLOW = "a slow rank"
DISK_FULL = "disk full"
FOLDER_LOST = "run folder lost"
NAMED_SLOW = "is slow: 5 lines in a row"
SLOW_SECONDS = 60.0
GONE_SECONDS = 180.0
"""The test fails if the ranks of before a fault are there this long after it."""
LAUNCHERS = {
    "deepspeed": ["deepspeed", "--num_accelerators={ranks}", "--master_port={port}"],
    "torchrun": [
        "torchrun",
        "--nproc_per_node={ranks}",
        "--master_port={port}",
        "--max_restarts=99",
    ],
    "slurm": [
        "sbatch",
        "--wait",
        "--job-name={job}",
        "--nodes=1",
        "--ntasks-per-node={ranks}",
        "--gpus-per-node=0",
        "--cpus-per-task=1",
        "--mincpus=1",
        "--output={log}",
    ],
}
"""What is put before the script; of Slurm, that is slurm/pretrain.sh."""
NO_LAUNCHER = ("sbatch", "bash")
"""What only waits for Slurm's steps; its job is then not started again by itself."""


class Job:
    """One pre-training run under a launcher; its ranks are processes of this machine."""

    def __init__(self, folder: Path, arguments: list[str], ranks: int, launcher: str):
        self.folder, self.log = folder, folder.parent / f"{folder.name}.log"
        self.launcher, self.ranks, self.starts = launcher, ranks, 0
        self.name = f"soak-{folder.name}"
        script = "slurm/pretrain.sh" if launcher == "slurm" else "gpt1_ds/train.py"
        self.words = [
            str(ROOT / script),
            *arguments,
            f"run.dir={folder}",
            "run.name=soak",
            "distributed.timeout_seconds=60",
        ]

    def start(self) -> None:
        names = {"ranks": self.ranks, "port": free_port(), "log": self.log, "job": self.name}
        before = [word.format(**names) for word in LAUNCHERS[self.launcher]]
        self.starts += 1
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [*before, *self.words],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
                start_new_session=True,
            )

    def processes(self) -> tuple[list[psutil.Process], list[psutil.Process]]:
        """Its ranks, and the processes that launch them."""
        ranks, launchers = [], []
        for process in psutil.process_iter():
            words = command(process)
            if f"run.dir={self.folder}" not in words or Path(words[0]).name in NO_LAUNCHER:
                continue
            is_rank = any(word.endswith("train.py") for word in words[1:3])
            is_helper = Path(words[0]).name == "srun" and command(process.parent())[:1] == words[:1]
            if not is_helper:
                (ranks if is_rank else launchers).append(process)
        return ranks, launchers

    def step(self) -> int:
        try:
            lines = (self.folder / "soak" / "metrics.jsonl").read_text().splitlines()
            return max(
                (json.loads(line)["step"] for line in lines if line.endswith("}")), default=0
            )
        except (OSError, ValueError):
            return 0

    def starts_of_ranks(self) -> int:
        lines = (self.folder / "soak" / "metrics.jsonl").read_text().splitlines()
        return sum(json.loads(line)["split"] == "start" for line in lines)

    def times_slow(self) -> int:
        return self.log.read_text().count(NAMED_SLOW)

    def done(self) -> bool:
        status = self.folder / "soak" / "status.json"
        return status.exists() and json.loads(status.read_text())["state"] == "done"

    def end(self) -> None:
        """Kill all of it at once, like a power failure."""
        if self.launcher == "slurm":
            words = ["squeue", "--noheader", f"--name={self.name}", "--format=%i"]
            for job in subprocess.run(words, capture_output=True, text=True).stdout.split():
                # Else the script, whose ranks have ended, has its job queued again.
                subprocess.run(["scontrol", "update", f"JobId={job}", "Requeue=0"], check=True)
                subprocess.run(["scancel", job], check=True)
        ranks, launchers = self.processes()
        for process in [*launchers, *ranks]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        wait_until_gone([*launchers, *ranks], self.log)
        self.process.wait()


def command(process: psutil.Process) -> list[str]:
    """Empty if it has ended."""
    try:
        return [] if process.status() == psutil.STATUS_ZOMBIE else process.cmdline()
    except psutil.NoSuchProcess:
        return []


def wait_until_gone(processes: list[psutil.Process], log: Path) -> float:
    """Seconds until all have ended."""
    began = time.monotonic()
    while left := [process for process in processes if process.is_running() and command(process)]:
        if time.monotonic() - began > GONE_SECONDS:
            raise SystemExit(f"error: {list(map(command, left))} live on; see {log}")
        time.sleep(0.5)
    return round(time.monotonic() - began, 1)


def mount(folder: Path, make: bool) -> None:
    """Mount a file system of 1 GB at `folder`, where this user may."""
    folder.mkdir(parents=True, exist_ok=True)
    if make and not folder.is_mount():
        words = ["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", str(folder)]
        subprocess.run(words, capture_output=True)


def fill_disk(job: Job, chance: random.Random) -> dict:
    seconds = chance.uniform(30, 90)
    ballast = job.folder / "ballast"
    with suppress(OSError), ballast.open("wb") as file:  # the run writes at the same time
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(job.folder).free)
    time.sleep(seconds)
    ballast.unlink()
    return {"seconds": round(seconds, 1)}


def slow_a_rank(job: Job, chance: random.Random) -> dict:
    """Stop a rank most of the time until the run has named it, or for `SLOW_SECONDS`."""
    ranks, _ = job.processes()
    rank = chance.choice(sorted(ranks, key=lambda process: process.pid))
    before, began = job.times_slow(), time.monotonic()
    with suppress(psutil.NoSuchProcess):
        while job.times_slow() == before and time.monotonic() - began < SLOW_SECONDS:
            rank.suspend()
            time.sleep(0.4)
            rank.resume()
            time.sleep(0.1)
    return {
        "seconds": round(time.monotonic() - began, 1),
        "named": job.times_slow() > before,
    }


def lose_folder(job: Job, chance: random.Random) -> dict:
    job.end()
    shutil.rmtree(job.folder / "soak")
    return {}


def send_signal(job: Job, fault: str, chance: random.Random) -> dict:
    whom, number = SIGNALS[fault]
    ranks, launchers = job.processes()
    pool = ranks if whom == "rank" else launchers
    if not pool:
        return {"seconds": None}
    with suppress(psutil.NoSuchProcess):
        chance.choice(sorted(pool, key=lambda process: process.pid)).send_signal(number)
    return {"seconds": wait_until_gone(ranks, job.log)}


def cause_fault(job: Job, fault: str, chance: random.Random) -> dict:
    """Cause `fault` in the run and wait for the effect; returns the record of the fault."""
    step = job.step()
    causes = {DISK_FULL: fill_disk, SLOW: slow_a_rank, FOLDER_LOST: lose_folder}
    if fault in causes:
        told = causes[fault](job, chance)
    else:
        told = send_signal(job, fault, chance)
    return {"fault": fault, "step": step, **told}


def saved_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every parameter's float32 weight and moments in the newest checkpoint, by name."""
    newest = find_checkpoint(folder)
    allow_known_classes()
    shards, found = SavedParameters(newest, read_checkpoint_manifest(newest)), {}
    for name, weight in shards.weights():
        found[f"{newest.name}: {name}"] = weight
        found |= {
            f"{newest.name}: {name} {key}": torch.as_tensor(v)
            for key, v in shards.state(name).items()
        }
    return found


def mirrored(url: str, folder: Path) -> bool:
    """Whether the newest checkpoint in `folder` is at `url`, whole."""
    newest, store = find_checkpoint(folder), Store(url)
    copied = attempted(lambda: store.read(f"checkpoints/{newest.name}/{MANIFEST}"), store)
    return copied == (newest / MANIFEST).read_bytes()


def disturb(job: Job, other: Job, faults: list[str], args: argparse.Namespace) -> Counter:
    """Run both to their end, and cause faults in `job`; how often each one."""
    record = args.out / "killer.jsonl"
    past = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    chance, done = random.Random(args.seed + len(past)), Counter(entry["fault"] for entry in past)
    began = time.monotonic() - 60 * (past[-1]["minute"] if past else 0)
    other.start()
    job.start()
    due = time.monotonic() + chance.expovariate(1 / args.every)
    order: list[str] = []
    while True:
        time.sleep(1.0)
        if job.process.poll() is not None:
            ranks, launchers = job.processes()
            wait_until_gone([*ranks, *launchers], job.log)
            if job.done():  # DeepSpeed's runner also exits with 0 if its child was killed
                break
            job.start()
        if time.monotonic() > due and job.processes()[0]:
            # Every fault occurs once before any is repeated.
            order = order or chance.sample(faults, len(faults))
            entry = cause_fault(job, order.pop(), chance)
            entry["minute"] = round((time.monotonic() - began) / 60, 2)
            done[entry["fault"]] += 1
            with record.open("a") as file:
                print(json.dumps(entry), file=file)
            print(json.dumps(entry), flush=True)
            due = time.monotonic() + chance.expovariate(1 / args.every)
    other.process.wait()
    if not other.done():
        raise SystemExit(f"error: the undisturbed run failed; see {other.log}")
    print(
        f"{sum(done.values())} faults in {(time.monotonic() - began) / 60:.1f} minutes: "
        + ", ".join(f"{fault} {count}" for fault, count in sorted(done.items()))
    )
    return done


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder of both runs")
    parser.add_argument("--launcher", choices=LAUNCHERS, default="deepspeed")
    parser.add_argument("--mirror", help="checkpoint.mirror of the disturbed run")
    parser.add_argument(
        "--every", type=float, default=240.0, help="seconds from fault to fault, on average"
    )
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the killer")
    parser.add_argument("arguments", nargs="+", help="of gpt1_ds/train.py, after --")
    args = parser.parse_args()
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    # Slurm restarts what it runs; the undisturbed run needs none of that.
    other_launcher = "deepspeed" if args.launcher == "slurm" else args.launcher
    undisturbed = Job(args.out / "undisturbed", args.arguments, args.ranks, other_launcher)
    disturbed = Job(args.out / "disturbed", args.arguments, args.ranks, args.launcher)
    faults = [*SIGNALS, SLOW]
    if args.mirror:
        disturbed.words.append(f"checkpoint.mirror={args.mirror}")
        faults.append(FOLDER_LOST)
    # A node of Slurm may not see what is mounted now.
    mount(disturbed.folder, make=args.launcher != "slurm")
    if mounted := disturbed.folder.is_mount():
        faults.append(DISK_FULL)
    disturb(disturbed, undisturbed, faults, args)
    folder = disturbed.folder / "soak"
    ours, theirs = saved_tensors(folder), saved_tensors(undisturbed.folder / "soak")
    differing = [
        name
        for name in ours.keys() | theirs.keys()
        if name not in ours or name not in theirs or not torch.equal(ours[name], theirs[name])
    ]
    print(
        f"starts of the ranks since the folder was made: {disturbed.starts_of_ranks()}; of the "
        f"launcher: {disturbed.starts}; a slow rank was named {disturbed.times_slow()} times"
    )
    is_mirrored = mirrored(args.mirror, folder) if args.mirror else True
    if args.mirror:
        print(f"the last checkpoint is {'' if is_mirrored else 'NOT '}in the mirror")
    if mounted:
        shutil.copytree(disturbed.folder, args.out / "kept")
        subprocess.run(["umount", "-l", str(disturbed.folder)], check=True)
        disturbed.folder.rmdir()
        (args.out / "kept").rename(disturbed.folder)
    tensors = f"all {len(ours)} tensors (weights and both moments) of the last checkpoints"
    same = f"{tensors} are the same, bit for bit"
    print(f"{len(differing)} of {len(ours)} tensors differ: {differing[:5]}" if differing else same)
    return 1 if differing or not is_mirrored else 0


if __name__ == "__main__":
    sys.exit(main())
