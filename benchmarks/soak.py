"""Soak test: does a run with random faults end with the same weights as an undisturbed run?

    python benchmarks/soak.py OUT -- --deepspeed_config ds_configs/cpu.json \\
        --config gpt1_ds/configs/pretrain_small.yaml data.shards=shards checkpoint.every=50

Both runs train at the same time with two ranks each, so they take about twice the time of one run.
At random moments the script causes one of the faults below in OUT/disturbed. If the fault ends the
run, the script starts it again with the same command. The file OUT/killer.jsonl records the faults.
If OUT exists, the test continues. Exit code 0 means that all weights and moments of the last
checkpoints are the same, bit for bit.

The fault of a full disk needs root, which can mount a small file system for the disturbed run.
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
from pathlib import Path

import psutil
import torch

from gpt1_ds.checkpoints.deepspeed_files import allow_known_classes
from gpt1_ds.checkpoints.folder import find_checkpoint, read_checkpoint_manifest
from gpt1_ds.checkpoints.saved_parameters import SavedParameters

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SIGNALS = {
    "SIGKILL a rank": ("rank", signal.SIGKILL),
    "SIGTERM a rank": ("rank", signal.SIGTERM),
    "SIGSTOP a rank": ("rank", signal.SIGSTOP),
    "SIGTERM the launcher": ("launcher", signal.SIGTERM),
    "SIGKILL the launcher": ("launcher", signal.SIGKILL),
}
DISK_FULL = "disk full"
GONE_SECONDS = 180.0
"""The test fails if a run still has a process this long after its launcher ended."""


class Job:
    """One pre-training run under the deepspeed launcher, with a record of all its processes."""

    def __init__(self, folder: Path, arguments: list[str], ranks: int):
        self.folder, self.log = folder, folder.parent / f"{folder.name}.log"
        self.command = [
            "deepspeed",
            "--num_accelerators",
            str(ranks),
            "--master_port",
            "{port}",
            str(ROOT / "gpt1_ds" / "train.py"),
            *arguments,
            f"run.dir={folder}",
            "run.name=soak",
            "distributed.timeout_seconds=60",
        ]
        self.seen: dict[int, psutil.Process] = {}

    def start(self) -> None:
        command = [
            word.format(port=free_port()) if word == "{port}" else word for word in self.command
        ]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
                start_new_session=True,
            )
        self.seen = {self.process.pid: psutil.Process(self.process.pid)}

    def find_ranks(self) -> list[psutil.Process]:
        """The live ranks. It also adds new processes of this start to `seen`."""
        for known in list(self.seen.values()):
            try:
                self.seen |= {child.pid: child for child in known.children(recursive=True)}
            except psutil.NoSuchProcess:
                pass
        return [
            process
            for process in self.alive()
            if any("--local_rank" in word for word in command(process))
        ]

    def alive(self) -> list[psutil.Process]:
        return [p for p in self.seen.values() if p.is_running() and command(p)]

    def step(self) -> int:
        try:
            lines = (self.folder / "soak" / "metrics.jsonl").read_text().splitlines()
            return max(
                (json.loads(line)["step"] for line in lines if line.endswith("}")), default=0
            )
        except (OSError, ValueError):
            return 0

    def done(self) -> bool:
        status = self.folder / "soak" / "status.json"
        return status.exists() and json.loads(status.read_text())["state"] == "done"

    def wait_until_gone(self) -> float:
        began = time.monotonic()
        while self.process.poll() is None or self.alive():
            self.find_ranks()
            if time.monotonic() - began > GONE_SECONDS:
                raise SystemExit(
                    f"error: {self.folder}: {[command(p) for p in self.alive()]} live on; see "
                    f"{self.log}"
                )
            time.sleep(0.5)
        return round(time.monotonic() - began, 1)


def command(process: psutil.Process) -> list[str]:
    try:
        return [] if process.status() == psutil.STATUS_ZOMBIE else process.cmdline()
    except psutil.NoSuchProcess:
        return []


def free_port() -> int:
    from gpt1_ds.distributed.environment import free_port

    return free_port()


def mount(folder: Path) -> bool:
    """Mount a file system of 1 GB at `folder`; False if this user has no permission."""
    folder.mkdir(exist_ok=True)
    if folder.is_mount():
        return True
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", str(folder)], capture_output=True
    )
    return done.returncode == 0


def fill_disk(job: Job, seconds: float) -> None:
    ballast = job.folder / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(job.folder).free)
    time.sleep(seconds)
    ballast.unlink()


def cause_fault(job: Job, fault: str, chance: random.Random) -> dict:
    """Cause `fault` in the run and wait for the effect; returns the record of the fault."""
    ranks = job.find_ranks()
    step = job.step()
    if fault == DISK_FULL:
        fill_disk(job, seconds := chance.uniform(30, 90))
        return {
            "fault": fault,
            "step": step,
            "seconds": round(seconds, 1),
            "ended": job.process.poll(),
        }
    whom, number = SIGNALS[fault]
    pool = ranks if whom == "rank" else [p for p in job.alive() if p not in ranks]
    if not pool:
        return {"fault": fault, "step": step, "ended": None}
    chance.choice(sorted(pool, key=lambda p: p.pid)).send_signal(number)
    seconds = job.wait_until_gone()
    return {"fault": fault, "step": step, "seconds": seconds, "ended": job.process.returncode}


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


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder of both runs")
    parser.add_argument(
        "--every", type=float, default=240.0, help="seconds from fault to fault, on average"
    )
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the killer")
    parser.add_argument("arguments", nargs="+", help="of gpt1_ds/train.py, after --")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    record = args.out / "killer.jsonl"
    past = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    chance, faults = random.Random(args.seed + len(past)), [*SIGNALS]
    undisturbed = Job(args.out / "undisturbed", args.arguments, args.ranks)
    disturbed = Job(args.out / "disturbed", args.arguments, args.ranks)
    if mounted := mount(disturbed.folder):
        faults.append(DISK_FULL)
    began = time.monotonic() - 60 * (past[-1]["minute"] if past else 0)
    done = Counter(entry["fault"] for entry in past)
    undisturbed.start()
    disturbed.start()
    due = time.monotonic() + chance.expovariate(1 / args.every)
    order: list[str] = []
    while True:
        time.sleep(1.0)
        disturbed.find_ranks()
        undisturbed.find_ranks()
        if disturbed.process.poll() is not None:
            disturbed.wait_until_gone()
            if disturbed.done():  # DeepSpeed's runner also exits with 0 if its child was killed
                break
            disturbed.start()
        if time.monotonic() > due:
            # Every fault occurs once before any is repeated.
            order = order or chance.sample(faults, len(faults))
            entry = {
                "minute": round((time.monotonic() - began) / 60, 2),
                **cause_fault(disturbed, order.pop(), chance),
            }
            done[entry["fault"]] += 1
            with record.open("a") as file:
                print(json.dumps(entry), file=file)
            print(
                f"{entry['minute']:7.2f} min  step {entry['step']:>6}  {entry['fault']:22} "
                f"{entry.get('seconds')} s, "
                f"launcher's exit code {entry['ended']}",
                flush=True,
            )
            due = time.monotonic() + chance.expovariate(1 / args.every)
    undisturbed.process.wait()
    if not undisturbed.done():
        raise SystemExit(f"error: the undisturbed run failed; see {undisturbed.log}")
    ours = saved_tensors(disturbed.folder / "soak")
    theirs = saved_tensors(undisturbed.folder / "soak")
    differing = [
        name
        for name in ours.keys() | theirs.keys()
        if name not in ours or name not in theirs or not torch.equal(ours[name], theirs[name])
    ]
    if mounted:
        shutil.copytree(disturbed.folder, args.out / "kept")
        subprocess.run(["umount", "-l", str(disturbed.folder)], check=True)
        disturbed.folder.rmdir()
        (args.out / "kept").rename(disturbed.folder)
    print(
        f"{sum(done.values())} faults in {(time.monotonic() - began) / 60:.1f} minutes: "
        + ", ".join(f"{fault} {count}" for fault, count in sorted(done.items()))
    )
    tensors = f"all {len(ours)} tensors (weights and both moments) of the last checkpoints"
    same = f"{tensors} are the same, bit for bit"
    print(f"{len(differing)} of {len(ours)} tensors differ: {differing[:5]}" if differing else same)
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
