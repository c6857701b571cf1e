"""Fine-tune tasks x seeds x ablations from one run.

    python -m gpt1_ds.suite --init runs/gpt1 --tasks sst2 rte --seeds 1 2 3
    python -m gpt1_ds.suite --init runs/gpt1 --tasks sst2 \\
        --ablations none no_lm scratch --layers 0 3 6 9 12
    python -m gpt1_ds.suite --init runs/gpt1 --tasks sst2 \\
        --grid optim.lr=3e-5,6e-5,1e-4 train.global_batch=16,32
    python -m gpt1_ds.suite --init runs/gpt1 --zero-shot --data tasks
    python -m gpt1_ds.suite --table-only --out runs

The last one is for the runs of slurm/suite.sh. Each run is a run of gpt1_ds.finetune, named
TASK[-POINT]-seed-SEED[-ABLATION], in --out; they run one after the other, and a result.json says
that a run is done. The same command again goes on where it was stopped, and tries once more what
failed. --out also gets table.md and table.html (beside the paper's Tables 2 to 5), their pictures,
runs.json (what failed, and why) and logs/. section.key=value after the options goes to every run;
behind --grid it is a list of values, and each combination (POINT) gets runs. Exit codes: 0 done,
2 usage, 75 stopped, else the highest one of the runs.
"""

import argparse
import contextlib
import ctypes
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path
from typing import NamedTuple, TextIO

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    importlib.import_module("gpt1_ds")  # before torch, so that Ctrl-C ends with one line

import torch

from gpt1_ds.base.errors import ConfigError, DataError, PeerError, StopRequested, command, near
from gpt1_ds.base.files import sha256_of, write_atomically
from gpt1_ds.base.protocols import Json
from gpt1_ds.checkpoints.folder import checkpoint_sha256, find_checkpoint, read_state
from gpt1_ds.distributed import collectives, environment
from gpt1_ds.distributed.console import say
from gpt1_ds.distributed.preemption import GRACE_SECONDS, SIGNALS
from gpt1_ds.engine.mechanics import default_mechanics
from gpt1_ds.reports.suite_files import LAYERS_PREFIX, read_json, run_name
from gpt1_ds.reports.suite_sections import write
from gpt1_ds.reports.suite_table import sections
from gpt1_ds.runs.planned import refuse_other_facts
from gpt1_ds.runs.suite_grid import grid_points
from gpt1_ds.runs.suite_options import sorted_words, suite_parser
from gpt1_ds.runs.suite_resampling import resample_suite
from gpt1_ds.runs.trained import load_gpt, run_tokenizer
from gpt1_ds.runs.zero_shot_scoring import zero_shot_score
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import FinetuneConfig
from gpt1_ds.settings.shipped import CONFIGS, ds_config_path
from gpt1_ds.tasks.benchmarks import PLACES, first_there

OWN_KEYS = ("run.name", "run.dir", "run.seed", "init.checkpoint", "task.name", "task.data")
"""Keys that the suite sets for each run."""
POLL_SECONDS = 0.2
LINGER_SECONDS = 2 * GRACE_SECONDS
"""Time limit of the wait for ranks after their launcher ended. A zombie counts as a rank."""
SIGNAL_EXIT = 128  # plus the signal's number, as in a shell
PR_SET_PDEATHSIG = 1


@dataclass
class Job:
    """One run of fine-tuning."""

    name: str
    config: Path
    overrides: list[str]


class Outcome(NamedTuple):
    """The exit code and the error of a run."""

    exit_code: int
    error: str
    """The last error line of its output."""


def main(argv: list[str]) -> int:
    options, overrides, lists = sorted_words(argv)
    args = suite_parser(__doc__).parse_args(options)
    if args.grid is not None:
        args.grid += lists
        if not args.grid:
            raise ConfigError("--grid is empty; give lists of values, such as optim.lr=3e-5,6e-5")
    if args.init is None and not (args.table_only and args.out):
        raise ConfigError("--init is not set; give a pre-training run, or --table-only with --out")
    if args.deepspeed_config is None and not args.table_only:
        args.deepspeed_config = ds_config_path(default_mechanics().name)
    out = args.out or Path("suites") / Path(args.init).name
    jobs = [] if args.table_only else plan(args, out, overrides)
    out.mkdir(parents=True, exist_ok=True)

    failures = run_all(jobs, out, args, Stop())
    if args.zero_shot is not None and not args.table_only:
        score_checkpoints(args, out)
    zero_shot = read_json(out / "zero_shot.json")
    found = sections(out, failures, zero_shot, resample_suite(out, failures))
    if not found:
        raise DataError(
            f"--out {out}: no run named TASK-seed-SEED there; give the folder of a suite's runs"
        )
    print(write(out, found), end="")
    say(f"\n{out}/table.md, table.html")
    codes = [failures[job.name]["exit_code"] for job in jobs if job.name in failures]
    return max(codes, default=0)


def plan(args: argparse.Namespace, out: Path, overrides: list[str]) -> list[Job]:
    """All requested runs, with checked settings.

    Raises ConfigError if `out` has a finished run of the same name with other settings.
    """
    grid = args.grid or []
    for word in [*overrides, *grid]:
        if "=" not in word:
            raise ConfigError(f"option '{word}': expected section.key=V1,V2")
        if word.partition("=")[0] in OWN_KEYS:
            raise ConfigError(
                f"option '{word}': each run gets its own; use --init, --tasks, --seeds, --data "
                "and --out"
            )
    overrides_of = _variants(args)
    points = grid_points(grid, [*overrides, *chain.from_iterable(overrides_of.values())])
    kinds = list(product(overrides_of, points))
    known = {path.stem.removeprefix("finetune_"): path for path in CONFIGS.glob("finetune_*.yaml")}
    jobs = []
    for task in args.tasks:
        if task not in known:
            raise ConfigError(f"--tasks {task}: {near(task, known)}")
        data = args.data / Path(load(FinetuneConfig, known[task], []).task.data).name
        for seed in args.seeds:
            for variant, point in kinds:
                name = run_name(task, seed, variant, point)
                own = [
                    f"init.checkpoint={args.init}",
                    f"run.dir={out}",
                    f"run.name={name}",
                    f"run.seed={seed}",
                    f"task.data={data}",
                ]
                words = [*overrides, *own, *overrides_of[variant], *points[point]]
                job = Job(name, known[task], words)
                refuse_other_facts(out / name, load(FinetuneConfig, job.config, job.overrides))
                jobs.append(job)
    return jobs


def _variants(args: argparse.Namespace) -> dict[str, list[str]]:
    """The overrides of each requested variant."""
    if "lstm" in args.ablations and args.lstm is None:
        raise ConfigError("--ablations lstm needs --lstm RUN, pre-trained with model.kind=lstm")
    folder = find_checkpoint(args.init)
    n_layer = read_state(folder).model["n_layer"]
    for count in args.layers:
        if not 0 <= count <= n_layer:
            raise ConfigError(f"--layers {count}: {folder} has {n_layer} blocks")
    overrides_of: dict[str, list[str]] = {
        "none": [],
        "no_lm": ["task.lm_coef=0"],
        "scratch": ["task.n_transfer=-1"],
        "lstm": [f"init.checkpoint={args.lstm}"],
    }
    wanted = {name: overrides_of[name] for name in args.ablations}
    for count in args.layers:
        if count == n_layer:  # all blocks: the same as "none"
            wanted["none"] = []
        else:
            wanted[f"{LAYERS_PREFIX}{count}"] = [f"task.n_transfer={count}"]
    return wanted


class Stop:
    """Forwards a signal to the current run, which then commits a checkpoint."""

    def __init__(self) -> None:
        self.asked = False
        self.process: subprocess.Popen[bytes] | None = None
        for number in SIGNALS:
            signal.signal(number, self)

    def __call__(self, *_: object) -> None:
        self.asked = True
        if self.process is None:
            raise StopRequested("between two runs; the same command continues")
        # Always SIGTERM: SIGUSR1 would kill the launcher but not its ranks.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)


def run_all(jobs: list[Job], out: Path, args: argparse.Namespace, stop: Stop) -> dict[str, Json]:
    """Run the jobs that have no result yet; returns all failures, new and old, by run name.

    Raises StopRequested if a run was stopped.
    """
    record = out / "runs.json"
    failures = read_json(record)
    for number, job in enumerate(jobs, 1):
        result = out / job.name / "result.json"
        if not result.exists():
            say(f"[{number}/{len(jobs)}] {job.name}")
            code, error = run(job, out, args, stop)
            if code == StopRequested.exit_code or stop.asked:
                raise StopRequested(
                    f"{job.name}, {number} of {len(jobs)}, is not done; the same command continues"
                )
            # The launcher exits with 0 if a signal killed its ranks.
            failures[job.name] = {"exit_code": code or PeerError.exit_code, "error": error}
        if result.exists():
            failures.pop(job.name, None)
        write_atomically(record, json.dumps(failures, indent=1) + "\n")
    return failures


def run(job: Job, out: Path, args: argparse.Namespace, stop: Stop) -> Outcome:
    """Run one job in its own process group; its output goes to logs/ and to stderr."""
    (out / "logs").mkdir(exist_ok=True)
    path = out / "logs" / f"{job.name}.log"
    started = time.time()
    # The output goes directly to the file. A pipe to this process would break if this process were
    # killed, and then the ranks could not commit. When this process ends, the kernel stops the
    # launcher. The ranks notice this, commit and end.
    with (
        open(path, "a", encoding="utf-8") as sink,
        open(path, encoding="utf-8", errors="replace") as log,
    ):
        start = log.seek(0, os.SEEK_END)
        code = _run_process(_command(job, args), sink, log, stop)
        log.seek(start)
        lines = [line for line in log.read().splitlines() if line.strip()] or ["no output"]
    status = out / job.name / "status.json"
    if status.exists() and status.stat().st_mtime >= started:
        # The launcher may hide the exit code of its ranks.
        code = read_json(status).get("exit_code") or code
    errors = [line for line in lines if line.startswith("error: ")] or lines
    return Outcome(code if code >= 0 else SIGNAL_EXIT - code, errors[-1].removeprefix("error: "))


def _command(job: Job, args: argparse.Namespace) -> list[str]:
    """The command line of a job, under DeepSpeed's launcher."""
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--quiet"]
    launcher += ["--num_accelerators", str(args.ranks)]
    launcher += ["--master_port", str(environment.free_port())]
    words = [
        str(Path(__file__).with_name("finetune.py")),
        "--deepspeed_config",
        args.deepspeed_config,
    ]
    return [*launcher, *words, "--config", str(job.config), *job.overrides]


def _run_process(words: Sequence[str], sink: TextIO, log: TextIO, stop: Stop) -> int:
    """Run a command to its end and print the `log` that it writes; returns its exit code."""
    cpu = {} if torch.cuda.is_available() else {"DS_ACCELERATOR": "cpu"}
    stop.process = process = subprocess.Popen(
        words,
        env=os.environ | cpu,
        stdin=subprocess.DEVNULL,
        stdout=sink,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=die_with_parent,
    )
    lingered = 0.0
    while process.poll() is None or (group_lives(process.pid) and lingered < LINGER_SECONDS):
        time.sleep(POLL_SECONDS)
        if process.returncode is not None:
            lingered += POLL_SECONDS
        print(log.read(), end="", file=sys.stderr, flush=True)
    print(log.read(), end="", file=sys.stderr, flush=True)
    stop.process = None
    return int(process.returncode)


def group_lives(pid: int) -> bool:
    """Whether the process group still has a process."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, 0)
        return True
    return False


def die_with_parent() -> None:
    """Ask the kernel to send SIGTERM to this process when its parent ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def score_checkpoints(args: argparse.Namespace, out: Path) -> None:
    """Write the zero-shot scores of each checkpoint of --init to zero_shot.json.

    The file holds {init, scores: {STEP: {TASK: {score, majority, checkpoint, data}}}}, the last two
    as hashes. Scores of the same checkpoint and data are not computed again.
    """
    sources = {task: first_there(args.data, names) for task, names in PLACES.items()}
    unknown = [task for task in args.zero_shot if task not in sources]
    if unknown:
        raise ConfigError(f"--zero-shot {unknown[0]}: {near(unknown[0], sources)}")
    tasks = args.zero_shot or [task for task, source in sources.items() if source.exists()]
    record = out / "zero_shot.json"
    known = read_json(record)
    if known.get("init") != args.init:
        known = {"init": args.init, "scores": {}}
    data = {task: sha256_of(sources[task]) for task in tasks}
    for folder in sorted(find_checkpoint(args.init).parent.glob("step-*")):
        step = int(folder.name.removeprefix("step-"))
        scores = known["scores"].setdefault(str(step), {})
        sha256 = checkpoint_sha256(folder)
        made_from = {task: {"checkpoint": sha256, "data": data[task]} for task in tasks}
        wanted = [task for task in tasks if not is_of(scores.get(task), made_from[task])]
        if not wanted:
            continue
        model, state, _ = load_gpt(folder)
        model.to(collectives.device())
        for task in wanted:
            found = zero_shot_score(model, run_tokenizer(folder, state), task, sources[task])
            of_task = {"score": found.score, "majority": found.majority}
            scores[task] = {**of_task, **made_from[task]}
            write_atomically(record, json.dumps(known, indent=1) + "\n")
            say(f"{folder.name}: zero-shot {task}, {found.metric} {found.score:.4f}")


def is_of(score: Json | None, facts: Json) -> bool:
    """Whether a score of zero_shot.json was made from these facts."""
    return score is not None and facts.items() <= score.items()


cli = command(main, __name__)
