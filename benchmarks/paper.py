"""`make paper`: Table 5 and both halves of Figure 2, for a model of your own size.

    make paper PAPER_HOURS=1.5 PAPER_STEPS=1800
    python benchmarks/paper.py --run runs/small --lstm runs/small-lstm --config pretrain_small \\
        --data tasks --zero-shot-data zero_shot --hours 1.5 optim.lr=3e-4

It pre-trains --run, and --lstm with model.kind=lstm; scores their checkpoints zero-shot (Figure 2,
right); fine-tunes each task with each seed four ways (Table 5), and with some blocks alone
transferred (Figure 2, left); and puts table.md and the pictures into --results. Before the hours of
work come a few steps of everything, which say how many hours. Each command is printed; it ends in
--out, or in the folder of a run. section.key=value goes to all fine-tuning.

The same command goes on where it was stopped, and tries once more what failed. Exit codes: 0 done,
75 stopped after --hours or by a signal, else that of a command that failed.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
import torch

from benchmarks.paper_options import is_done, parse, status_of, there
from gpt1_ds.base.errors import ConfigError, StopRequested, UserError, guard
from gpt1_ds.base.files import write_atomically
from gpt1_ds.base.protocols import Json
from gpt1_ds.base.records import WALL_TIME_PARTS
from gpt1_ds.checkpoints.folder import find_checkpoint, read_state
from gpt1_ds.distributed.environment import free_port
from gpt1_ds.distributed.preemption import SIGNALS
from gpt1_ds.reports.suite_files import LAYERS_PREFIX, VARIANTS, read_json, run_name
from gpt1_ds.runs.suite_jobs import config_of_task, data_of_task
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import FinetuneConfig, PretrainConfig
from gpt1_ds.suite import LINGER_SECONDS, POLL_SECONDS, die_with_parent, group_lives
from gpt1_ds.tasks import build_task
from gpt1_ds.tasks.benchmarks import PLACES, PUBLISHED
from gpt1_ds.tasks.splits import read_splits

TRAIN, SUITE = (
    str(Path(__file__).parents[1] / "gpt1_ds" / name) for name in ("train.py", "suite.py")
)
FIRST_STEPS = 20
"""Steps of pre-training after which its speed is known."""
TIMED_EXAMPLES = 64
"""Training examples of the short runs that say how long whole ones take."""
BRIEF = (f"task.max_examples={TIMED_EXAMPLES}", "train.epochs=1")
TIMING_SEED = 1
RUNNING = tuple(part for part in WALL_TIME_PARTS if part != "waiting")


class Work:
    """Runs commands, one after the other, until the time is over or a signal comes."""

    def __init__(self, hours: float | None):
        self.end = time.monotonic() + 3600 * hours if hours else float("inf")
        self.said = f"after {hours} hours"
        for number in SIGNALS:
            signal.signal(number, self)

    def __call__(self, number: int, _: object) -> None:
        self.end, self.said = 0.0, f"by {signal.Signals(number).name}"

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self.end

    def check(self) -> None:
        if self.is_over:
            raise StopRequested(f"{self.said}; the same command goes on")

    def run(self, words: list[str], is_enough: Callable[[], bool] = lambda: False) -> int:
        """The exit code of a command, which is stopped with a checkpoint once `is_enough`."""
        self.check()
        print(f"\n$ {shlex.join(words)}", flush=True)
        cpu = {} if torch.cuda.is_available() else {"DS_ACCELERATOR": "cpu"}
        process = subprocess.Popen(
            [sys.executable, *words],
            env=os.environ | cpu,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        asked, lingered = False, 0.0
        while process.poll() is None or (group_lives(process.pid) and lingered < LINGER_SECONDS):
            time.sleep(POLL_SECONDS)
            lingered += POLL_SECONDS if process.returncode is not None else 0.0
            if not asked and (self.is_over or is_enough()) and process.returncode is None:
                asked = True
                os.killpg(process.pid, signal.SIGTERM)
        self.check()
        return int(process.returncode)


def main(argv: list[str]) -> int:
    args, settings = parse(argv, __doc__)
    work = Work(args.hours)
    for run in (args.run, args.lstm):
        _take_first_steps(work, args, run)
    for words in _timing(args):
        _succeed(work, _suite(args, args.out / "timing", [*settings, *BRIEF], words))
    print(expected(args, settings), flush=True)
    for run in (args.run, args.lstm):
        if not is_done(run):
            _succeed(work, _training(args, run))
    commands = [*_zero_shot(args), *_ablations(args), *_layers(args)]
    whole = [*settings, f"task.max_examples={args.examples}"]
    code = max(_succeed(work, _suite(args, args.out, whole, words)) for words in commands)
    args.results.mkdir(parents=True, exist_ok=True)
    for path in (args.out / "table.md", *args.out.glob("*.png")):
        shutil.copy(path, args.results)
    print(f"\n{args.results}/table.md; all runs took {_hours(_spent(args))}", flush=True)
    return code


def _succeed(work: Work, words: list[str]) -> int:
    """Run a command. Runs of a suite that failed stand in its table, and its code is returned."""
    code = work.run(words)
    if code and (SUITE not in words or code == ConfigError.exit_code):
        error = UserError(f"exit code {code} of: {shlex.join(words)}")
        error.exit_code = code
        raise error
    return code


def _training(args: argparse.Namespace, run: str) -> list[str]:
    """Pre-training under DeepSpeed's launcher; checkpoints are kept for Figure 2, right."""
    words = ["-m", "deepspeed.launcher.runner", "--quiet", "--num_accelerators", str(args.ranks)]
    words += ["--master_port", str(free_port()), TRAIN, "--config", str(args.config), "--out", run]
    kept = load(PretrainConfig, args.config, []).checkpoint
    if kept.keep_every is None and not kept.at_words:
        words.append(f"checkpoint.keep_every={kept.every}")
    words += [f"train.max_steps={args.steps}"] if args.steps else []
    words += _mechanics(args)
    return [*words, "model.kind=lstm"] if run == args.lstm else words


def _suite(args: argparse.Namespace, out: Path, settings: list[str], words: list[str]) -> list[str]:
    common = ["--init", args.run, "--lstm", args.lstm, "--out", str(out), "--ranks"]
    return [SUITE, *common, str(args.ranks), *words, *_mechanics(args), *settings]


def _mechanics(args: argparse.Namespace) -> list[str]:
    return ["--deepspeed_config", str(args.deepspeed_config)] if args.deepspeed_config else []


def _fine_tuning(args: argparse.Namespace, tasks: Sequence[str], *words: str) -> list[str]:
    return ["--data", str(args.data), "--tasks", *tasks, *words]


def _ablations(args: argparse.Namespace) -> Iterator[list[str]]:
    """Table 5; one seed after the other, so that each row has something to show early."""
    for seed in args.seeds:
        words = ["--seeds", str(seed), "--ablations", *VARIANTS]
        yield _fine_tuning(args, args.tasks, *words)


def _layers(args: argparse.Namespace) -> Iterator[list[str]]:
    """Figure 2, left."""
    seeds = ["--seeds", *map(str, args.seeds)]
    yield _fine_tuning(args, args.layer_tasks, *seeds, "--layers", *map(str, _blocks(args)))


def _zero_shot(args: argparse.Namespace) -> Iterator[list[str]]:
    """Figure 2, right."""
    own = there(args.data, sorted(set(PLACES) - set(PUBLISHED)))
    if own:
        yield ["--data", str(args.data), "--zero-shot", *own]
    benchmarks = there(args.zero_shot_data, PUBLISHED)
    if benchmarks:
        sample = ["--sample", str(args.sample)] if args.sample else []
        yield ["--data", str(args.zero_shot_data), *sample, "--zero-shot", *benchmarks]
    else:
        print(f"{args.zero_shot_data}: no BLiMP and no LAMBADA there; Figure 2, right, lacks them")


def _blocks(args: argparse.Namespace) -> list[int]:
    return args.layers or [*range(read_state(find_checkpoint(args.run)).model["n_layer"])]


def _timing(args: argparse.Namespace) -> Iterator[list[str]]:
    """Short runs of each task, and of one with the LSTM, that say how long whole ones take."""
    missing = [task for task in args.tasks if not _timed(args, task, "none").exists()]
    seed = ["--seeds", str(TIMING_SEED)]
    if missing:
        yield _fine_tuning(args, missing, *seed)
    if not _timed(args, args.tasks[0], "lstm").exists():
        yield _fine_tuning(args, args.tasks[:1], *seed, "--ablations", "lstm")


def _timed(args: argparse.Namespace, task: str, variant: str) -> Path:
    return args.out / "timing" / run_name(task, TIMING_SEED, variant) / "result.json"


def _take_first_steps(work: Work, args: argparse.Namespace, run: str) -> None:
    """Pre-train until the speed is known, and note it; the steps count."""
    noted = args.out / "speed.json"
    speeds = read_json(noted)
    if is_done(run) or run in speeds:
        return
    work.run(_training(args, run), lambda: _is_known(run, speeds))
    if run in speeds:
        args.out.mkdir(parents=True, exist_ok=True)
        write_atomically(noted, json.dumps(speeds, indent=1) + "\n")
    elif not is_done(run):
        raise ConfigError(f"{run}: pre-training ended early; see above")


def _is_known(run: str, speeds: dict[str, Json]) -> bool:
    status = status_of(run)
    if status.get("step", 0) >= FIRST_STEPS and "total_steps" in status:
        seconds = status["wall_time"]["new_steps"] / status["step"]
        speeds[run] = {"total_steps": status["total_steps"], "seconds_a_step": seconds}
    return run in speeds


def expected(args: argparse.Namespace, settings: list[str]) -> str:
    """The hours of all that is not done yet, as a table."""
    speeds, rows = read_json(args.out / "speed.json"), []
    for run in (args.run, args.lstm):
        if not is_done(run):
            left = speeds[run]["total_steps"] - status_of(run).get("step", 0)
            rows.append(
                (f"pre-training {run}, {left:,} steps", left * speeds[run]["seconds_a_step"])
            )
    seconds = {task: _whole_run(args, settings, task) for task in args.tasks}
    first = args.tasks[0]
    slowness = _steps_seconds(_timed(args, first, "lstm")) / _steps_seconds(
        _timed(args, first, "none")
    )
    layers = [f"{LAYERS_PREFIX}{count}" for count in _blocks(args)]
    for title, tasks, variants in (
        ("Table 5", args.tasks, list(VARIANTS)),
        ("Figure 2, left", args.layer_tasks, layers),
    ):
        runs = [
            (task, variant)
            for task in tasks
            for variant in variants
            for seed in args.seeds
            if not _result(args, task, seed, variant).exists()
        ]
        cost = sum(seconds[task] * (slowness if variant == "lstm" else 1) for task, variant in runs)
        rows.append((f"{title}, {len(runs)} runs", cost))
    rows.append(("in all, zero-shot scores aside", sum(cost for _, cost in rows)))
    lines = [f"  {title:44s} {_hours(cost)}" for title, cost in rows]
    return "\n".join(["\nto come, at the speed of the first steps here:", *lines])


def _whole_run(args: argparse.Namespace, settings: list[str], task: str) -> float:
    """Expected seconds of a run of fine-tuning, from the short one."""
    result = _timed(args, task, "none")
    config = load(FinetuneConfig, config_of_task(task), settings)
    splits = read_splits(build_task(config.task, strict=False), data_of_task(args.data, task))
    share = min(len(splits["train"]), args.examples) / read_json(result)["examples"]["train"]
    wall = status_of(result.parent)["wall_time"]
    epoch = share * _steps_seconds(result) + wall["validation"]
    return float(wall["start_up"] + config.train.epochs * epoch)


def _steps_seconds(result: Path) -> float:
    wall = status_of(result.parent)["wall_time"]
    return float(wall["new_steps"] + wall["data"])


def _spent(args: argparse.Namespace) -> float:
    """Seconds that the runs have taken so far, without their pauses."""
    folders = [args.run, args.lstm, *args.out.glob("*-seed-*")]
    walls = [status_of(folder).get("wall_time", {}) for folder in folders]
    return sum(sum(wall.get(part, 0.0) for part in RUNNING) for wall in walls)


def _result(args: argparse.Namespace, task: str, seed: int, variant: str) -> Path:
    return Path(args.out / run_name(task, seed, variant) / "result.json")


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.2f} hours"


if __name__ == "__main__":
    guard(main)
