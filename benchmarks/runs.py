"""Times complete training runs: start-up, ranks against threads, weak scaling, checkpoints.

    python benchmarks/runs.py SHARDS [--startup] [--threads] [--scaling] [--checkpoint]
        [--ranks 1 2 4] [--steps 20]

Each run starts `gpt1_ds/train.py` in a temporary folder. The figures are from its metrics.jsonl.
Without options, all four benchmarks run. They take about 15 minutes on 2 CPU cores; SHARDS needs
20,000 tokens.

startup      seconds from the command to the record of a tiny model's first step: one process, two
             ranks by deepspeed, two ranks by torchrun
threads      GPT-1's blocks (12 x 768, 4 windows of 512 tokens a step): one process on all cores
             against 2 ranks, in turns
scaling      tokens a second and the share of communication, with 8 windows a rank (4 layers x 256,
             256 tokens); and the estimate of `gpt1_ds.plan` for GPT-1 on 8 to 4,096 GPUs with 64
             windows each
checkpoint   for a checkpoint of 117 M parameters: the seconds that training waits, and the extra
             seconds of the step that runs while the files are written
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from gpt1_ds.data.manifest import read_manifest  # noqa: E402
from gpt1_ds.distributed.environment import free_port  # noqa: E402
from gpt1_ds.model.gpt import GPTConfig  # noqa: E402
from gpt1_ds.plan import Cluster, estimate  # noqa: E402

TINY = [
    "model.n_layer=1",
    "model.n_head=2",
    "model.n_embd=32",
    "model.n_ctx=32",
    "train.global_batch=2",
]
SMALL = ["model.n_layer=4", "model.n_head=4", "model.n_embd=256", "model.n_ctx=256"]
NEVER = 1_000_000
PARTS = ("startup", "threads", "scaling", "checkpoint")
QUIET = [f"eval.every={NEVER}", "eval.batches=1", "log.every=1", f"checkpoint.every={NEVER}"]
TIMEOUT_SECONDS = 900


def run(
    launcher: list[str], shards: Path, folder: Path, config: str, *options: str
) -> tuple[list[dict], float]:
    """Run a training; returns its metrics.jsonl, and the seconds to the first step's record."""
    script = [
        str(ROOT / "gpt1_ds" / "train.py"),
        "--deepspeed_config",
        str(ROOT / "ds_configs" / config),
    ]
    command = [
        *launcher,
        *script,
        f"data.shards={shards}",
        f"run.dir={folder}",
        "run.name=run",
        *QUIET,
        *options,
    ]
    metrics, first, began = folder / "run" / "metrics.jsonl", None, time.perf_counter()
    with (folder / "log").open("w+") as log:
        environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
        process = subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment
        )
        while process.poll() is None:
            if first is None and metrics.exists() and '"split": "train"' in metrics.read_text():
                first = time.perf_counter() - began
            if time.perf_counter() - began > TIMEOUT_SECONDS:
                process.terminate()
            time.sleep(0.02)
        if process.returncode:
            log.seek(0)
            raise SystemExit(
                f"error: {' '.join(command)} ended with {process.returncode}:\n{log.read()[-2000:]}"
            )
    return [json.loads(line) for line in metrics.read_text().splitlines()], first or float("nan")


def deepspeed(ranks: int) -> list[str]:
    return ["deepspeed", "--num_accelerators", str(ranks), "--master_port", str(free_port())]


def torchrun(ranks: int) -> list[str]:
    return ["torchrun", "--nproc_per_node", str(ranks), "--master_port", str(free_port())]


def in_a_folder(
    launcher: list[str], shards: Path, config: str, *options: str
) -> tuple[list[dict], float]:
    with tempfile.TemporaryDirectory() as folder:
        return run(launcher, shards, Path(folder), config, *options)


def startup(shards: Path, rounds: int) -> None:
    ways = {
        "one process": lambda: [sys.executable],
        "2 ranks, deepspeed": lambda: deepspeed(2),
        "2 ranks, torchrun": lambda: torchrun(2),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, launcher in ways.items():
            options = [*TINY, "train.max_steps=1"]
            seconds[name].append(in_a_folder(launcher(), shards, "zero1_bf16.json", *options)[1])
    for name, times in seconds.items():
        print(
            f"first step, {name:20}{statistics.median(times):6.1f} s  ({min(times):.1f} to "
            f"{max(times):.1f})"
        )


def steps_of(found: list[dict]) -> list[dict]:
    return [line for line in found if line["split"] == "train"]


def step_seconds(line: dict) -> float:
    return sum(line[f"{part}_seconds"] for part in ("data", "forward", "backward", "optimizer"))


def threads(shards: Path, rounds: int) -> None:
    options = ["train.global_batch=4", "train.max_steps=8"]
    ways = {"1 process": lambda: [sys.executable], "2 ranks": lambda: deepspeed(2)}
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, launcher in ways.items():
            found, _ = in_a_folder(launcher(), shards, "zero1_bf16.json", *options)
            speeds[name].append(
                statistics.median(line["tokens_per_second"] for line in steps_of(found)[3:])
            )
    one, two = map(statistics.median, speeds.values())
    print(f"1 process, all cores, {one:.0f} tokens/s; 2 ranks {two:.0f}: {two / one:.2f}x")


def scaling(shards: Path, ranks: list[int], steps: int) -> None:
    print(
        f"{'weak scaling':14}{'ranks':>6}{'tokens/s':>10}{'per core in use':>17}"
        f"{'communication':>15}"
    )
    cores = len(os.sched_getaffinity(0))
    for stage, config in enumerate(
        ("zero1_bf16.json", "zero2_bf16.json", "zero3_bf16.json"), start=1
    ):
        for count in ranks:
            options = [*SMALL, f"train.global_batch={8 * count}", f"train.max_steps={steps}"]
            found, _ = in_a_folder(deepspeed(count), shards, config, *options)
            steady = steps_of(found)[steps // 2 :]
            speed = statistics.median(line["tokens_per_second"] for line in steady)
            share = statistics.median(
                line["communication_seconds"] / step_seconds(line) for line in steady
            )
            print(
                f"ZeRO-{stage:<9}{count:6}{speed:10.0f}{speed / min(count, cores):17.0f}"
                f"{share:15.0%}",
                flush=True,
            )
    print(f"{'expected':14}{'GPUs':>6}{'tokens/s':>14}{'per GPU':>10}{'exposed':>9}")
    shape, windows = GPTConfig(40_005), 64
    for way in "123":
        for gpus in (8, 64, 512, 4096):
            e = estimate(
                shape,
                Cluster(nodes=gpus // 8),
                way,
                "bf16",
                windows * gpus,
                windows,
                checkpointing=False,
            )
            speed = windows * gpus * shape.n_ctx / e.step_seconds
            share = e.exposed_seconds / e.step_seconds
            print(f"ZeRO-{way:<9}{gpus:6}{speed:14,.0f}{speed / gpus:10,.0f}{share:9.0%}")


def checkpoint(shards: Path) -> None:
    # With a small vocabulary, more layers give about the same number of parameters.
    layers = 12 if read_manifest(shards).tokenizer["vocab_size"] > 30_000 else 16
    options = [
        f"model.n_layer={layers}",
        "train.global_batch=4",
        "train.micro_batch=4",
        "train.max_steps=8",
        "checkpoint.every=3",
    ]
    found, _ = in_a_folder([sys.executable], shards, "zero1_bf16.json", *options)
    steps = {line["step"]: step_seconds(line) for line in steps_of(found)}
    usual = statistics.median(steps.values())
    for line in found:
        if line["split"] == "checkpoint" and line["step"] + 1 in steps:
            print(
                f"checkpoint of step {line['step']}, {line['bytes'] / 1e9:.2f} GB: training stands "
                f"{line['seconds']:.2f} s, the next step takes "
                f"{steps[line['step'] + 1] - usual:.2f} s more "
                f"than the usual {usual:.2f}, while writing takes {line['write_seconds']:.2f} s"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards", type=Path)
    for part in PARTS:
        parser.add_argument(
            f"--{part}", action="store_true", help=f"only this, or with the others named: {part}"
        )
    parser.add_argument(
        "--ranks", type=int, nargs="+", default=[1, 2, 4], help="of the weak scaling"
    )
    parser.add_argument("--steps", type=int, default=20, help="of each run of the weak scaling")
    parser.add_argument(
        "--rounds", type=int, default=3, help="of startup and threads, each way in turn"
    )
    args = parser.parse_args()
    shards, chosen = args.shards.resolve(), [part for part in PARTS if getattr(args, part)]
    for part in chosen or PARTS:
        if part == "startup":
            startup(shards, args.rounds)
        elif part == "threads":
            threads(shards, args.rounds)
        elif part == "scaling":
            scaling(shards, args.ranks, args.steps)
        else:
            checkpoint(shards)


if __name__ == "__main__":
    main()
