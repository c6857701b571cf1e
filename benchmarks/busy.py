"""Times training on an idle machine, and beside programs that begin after its start.

    python benchmarks/busy.py SHARDS [--rounds 2] [--seconds 15] [--models quickstart gpt1]
        [--others 0 1 2]

Each run of `gpt1_ds/train.py` trains alone, then beside one and beside two programs that compute in
a loop, for the given seconds each. Two ways take turns: `spinning`, as OpenMP does by itself, and
`watched`, which is what the commands do (`gpt1_ds/base/spinning.py`). A program's fair share is
what it would have if all threads got equal parts of the cores. About 2 minutes a round and model.
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
MODELS = {
    "quickstart": ["model.preset=gpt1-tiny", "train.global_batch=32"],
    "gpt1": ["train.global_batch=1"],
}
WAYS = {"spinning": {"GOMP_SPINCOUNT": "300000"}, "watched": {}}
"""What libgomp does by itself, said aloud, so that the commands leave it so; and nothing said."""
NEVER = 1_000_000
START_SECONDS = 300
LOOP = [sys.executable, "-c", "while True: pass"]


def records(metrics: Path) -> list[dict]:
    lines = metrics.read_text(encoding="utf-8").split("\n")[:-1] if metrics.exists() else []
    return [line for line in map(json.loads, lines) if line["split"] == "train"]


def start(model: str, way: str, shards: Path, folder: Path) -> subprocess.Popen:
    command = [
        *(sys.executable, "gpt1_ds/train.py", "--deepspeed_config", "ds_configs/cpu_fp32.json"),
        *MODELS[model],
        *(f"data.shards={shards}", f"run.dir={folder}", "run.name=run", "optim.lr=1e-4"),
        *(f"train.max_steps={NEVER}", "log.every=1", f"eval.every={NEVER}", "eval.batches=1"),
        f"checkpoint.every={NEVER}",
    ]
    given = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    given |= {"DS_ACCELERATOR": "cpu"} | WAYS[way]
    with (folder / "log").open("w") as log:
        return subprocess.Popen(
            command, cwd=ROOT, env=given, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )


def steps_a_second(metrics: Path, others: int, seconds: float) -> float:
    """From the first to the last step that ends in this time; of less than two steps, their number.

    Beside programs, steps may take longer than the measurement.
    """
    programs = [subprocess.Popen(LOOP) for _ in range(others)]
    try:
        before, began = len(records(metrics)), time.monotonic()
        time.sleep(seconds)
        times = [record["elapsed_seconds"] for record in records(metrics)[before:]]
        if len(times) < 2:
            return len(times) / (time.monotonic() - began)
        return (len(times) - 1) / (times[-1] - times[0])
    finally:
        for program in programs:
            program.kill()
            program.wait()


def run(model: str, way: str, shards: Path, seconds: float, others: list[int]) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        training = start(model, way, shards, Path(folder))
        try:
            metrics, deadline = Path(folder) / "run" / "metrics.jsonl", time.monotonic()
            while len(records(metrics)) < 3:
                if training.poll() is not None or time.monotonic() > deadline + START_SECONDS:
                    raise SystemExit(f"error: no training:\n{(Path(folder) / 'log').read_text()}")
                time.sleep(0.1)
            return [steps_a_second(metrics, count, seconds) for count in others]
        finally:
            training.kill()
            training.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each measurement")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument(
        "--others",
        type=int,
        nargs="+",
        default=[0, 1, 2],
        help="programs beside the training; 0 comes first",
    )
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    for model in args.models:
        found: dict[str, list[list[float]]] = {way: [] for way in WAYS}
        for _ in range(args.rounds):
            for way in WAYS:
                found[way].append(run(model, way, args.shards.resolve(), args.seconds, args.others))
        medians = {
            way: [statistics.median(rates) for rates in zip(*runs, strict=True)]
            for way, runs in found.items()
        }
        alone = medians["spinning"][0]
        for position, others in enumerate(args.others):
            before, now = (medians[way][position] for way in WAYS)
            print(
                f"{model:11} beside {others} programs: spinning {before:7.3f} steps/s, watched "
                f"{now:7.3f}; of {alone:.3f} alone {now / alone:.0%}, fair share "
                f"{cores / (cores + others):.0%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
