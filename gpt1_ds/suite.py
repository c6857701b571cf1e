"""Fine-tune tasks x seeds x ablations from one pre-training run, and set the scores beside the paper's Tables 2 to 5.

    python -m gpt1_ds.suite --init runs/gpt1 --tasks sst2 rte cola --seeds 1 2 3 --data tasks
    python -m gpt1_ds.suite --init runs/gpt1 --tasks sst2 --ablations none no_lm scratch --layers 0 3 6 9 12
    python -m gpt1_ds.suite --init runs/gpt1 --zero-shot --data tasks
    python -m gpt1_ds.suite --table-only --out runs            (those of slurm/suite.sh)

Each is a run TASK-seed-SEED[-ABLATION] of gpt1_ds/finetune.py in --out, one after the other; its result.json says that
it is done. The same command again goes on where it was stopped and tries once more what failed. --out also gets
table.md, table.html, their pictures, runs.json (what failed, and why) and logs/. Behind the options, section.key=value
goes to every run. Exit codes: 0 done, 2 usage, 75 stopped, else the highest of the runs'.
"""

import argparse
import contextlib
import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import yaml

from gpt1_ds.base.errors import ConfigError, DataError, PeerError, StopRequested, command, near
from gpt1_ds.base.files import write_atomically
from gpt1_ds.checkpoints.folder import find_checkpoint, read_state
from gpt1_ds.distributed import collectives, environment
from gpt1_ds.distributed.console import say
from gpt1_ds.distributed.preemption import GRACE_SECONDS, SIGNALS
from gpt1_ds.reports.suite_table import VARIANTS, read_json, run_name, sections, write
from gpt1_ds.runs.trained import load_gpt, run_tokenizer
from gpt1_ds.settings.loading import load, to_dict
from gpt1_ds.settings.sections import FinetuneConfig
from gpt1_ds.tasks.scores import majority_score, task_metrics
from gpt1_ds.tasks.zero_shot import ZERO_SHOT_METRICS, zero_shot

CONFIGS = Path(__file__).parent / "configs"
OWN_KEYS = ("run.name", "run.dir", "run.seed", "init.checkpoint", "task.name", "task.data")
FOLDERS = {"cola": "CoLA", "sst2": "SST-2", "race": "RACE", "dpr": "DPR"}
POLL_SECONDS = 0.2
LINGER_SECONDS = (
    2 * GRACE_SECONDS
)  # of ranks whose launcher is gone; a dead one that nobody reaps counts as there
TRAIN_KEYS = ("epochs", "max_steps", "global_batch")


@dataclass
class Job:
    name: str
    config: Path
    overrides: list[str]


def main(argv: list[str]) -> int | None:
    overrides = [
        word for word in argv if re.match(r"\w+\.[\w.]+=", word)
    ]  # wherever: some options take many words
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--init", metavar="RUN", help="pre-training run (or checkpoint) that all start from"
    )
    parser.add_argument(
        "--tasks", nargs="+", default=[], metavar="TASK", help="each has its finetune_TASK.yaml"
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[1, 2, 3], metavar="N", help="(default: 1 2 3)"
    )
    parser.add_argument(
        "--data",
        type=Path,
        default="tasks",
        metavar="DIR",
        help="folder of the tasks' own folders: "
        "SST-2, RTE and so on, as their YAML names them (default: %(default)s)",
    )
    parser.add_argument(
        "--ablations",
        nargs="+",
        default=["none"],
        choices=[*VARIANTS],
        help="no_lm: "
        "without the auxiliary objective; scratch: without pre-training; lstm: from --lstm; none: as "
        "it is (default)",
    )
    parser.add_argument("--lstm", metavar="RUN", help="pre-training run with model.kind=lstm")
    parser.add_argument(
        "--layers",
        nargs="+",
        type=int,
        default=[],
        metavar="K",
        help="also with the first K blocks alone transferred: Figure 2, left",
    )
    parser.add_argument(
        "--zero-shot",
        nargs="*",
        metavar="TASK",
        help="also score each checkpoint of --init: Figure "
        f"2, right; {', '.join(ZERO_SHOT_METRICS)} (default: those below --data)",
    )
    parser.add_argument(
        "--deepspeed_config",
        default="ds_configs/zero2_bf16.json",
        metavar="JSON",
        help="mechanics of every run (default: %(default)s)",
    )
    parser.add_argument(
        "--ranks",
        type=int,
        default=torch.cuda.device_count() or 1,
        metavar="N",
        help="processes a run (default: the GPUs, or 1)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of the runs (default: suites/NAME of --init)",
    )
    parser.add_argument(
        "--table-only", action="store_true", help="no run: collect what is in --out"
    )
    parser.add_argument(
        "--traceback", action="store_true", help="show the Python traceback of an error"
    )
    args = parser.parse_args([word for word in argv if word not in overrides])
    if args.init is None and not (args.table_only and args.out):
        raise ConfigError("--init is not set; give a pre-training run, or --table-only with --out")
    out = args.out or Path("suites") / Path(args.init).name
    jobs = [] if args.table_only else plan(args, out, overrides)
    out.mkdir(parents=True, exist_ok=True)

    stop = Stop()
    failures = run_all(jobs, out, args, stop)
    if args.zero_shot is not None and not args.table_only:
        score_checkpoints(args, out)
    found = sections(out, failures, read_json(out / "zero_shot.json"))
    if not found:
        raise DataError(
            f"--out {out}: no run named TASK-seed-SEED there; give the folder of a suite's runs"
        )
    print(write(out, found), end="")
    say(f"\n{out}/table.md, table.html")
    return max((failures[job.name]["exit_code"] for job in jobs if job.name in failures), default=0)


def plan(args: argparse.Namespace, out: Path, overrides: list[str]) -> list[Job]:
    """Every run asked for, its settings checked; ConfigError where `out` holds one of other settings by its name."""
    if taken := next((word for word in overrides if word.partition("=")[0] in OWN_KEYS), None):
        raise ConfigError(
            f"option '{taken}': each run gets its own; use --init, --tasks, --seeds, --data and --out"
        )
    if "lstm" in args.ablations and args.lstm is None:
        raise ConfigError("--ablations lstm needs --lstm RUN, pre-trained with model.kind=lstm")
    folder = find_checkpoint(args.init)
    n_layer = read_state(folder)["model"]["n_layer"]
    if bad := next((k for k in args.layers if not 0 <= k <= n_layer), None):
        raise ConfigError(f"--layers {bad}: {folder} has {n_layer} blocks")
    variants: dict[str, list[str]] = {
        "none": [],
        "no_lm": ["task.lm_coef=0"],
        "scratch": ["task.n_transfer=-1"],
        "lstm": [f"init.checkpoint={args.lstm}"],
    }
    variants = {name: variants[name] for name in args.ablations}
    for k in args.layers:  # all of them is what "none" does
        variants |= {"none": []} if k == n_layer else {f"layers-{k}": [f"task.n_transfer={k}"]}
    known = {path.stem.removeprefix("finetune_"): path for path in CONFIGS.glob("finetune_*.yaml")}
    jobs = []
    for task in args.tasks:
        if task not in known:
            raise ConfigError(f"--tasks {task}: {near(task, known)}")
        data = args.data / Path(load(FinetuneConfig, known[task], []).task.data).name
        for seed in args.seeds:
            for variant, words in variants.items():
                name = run_name(task, seed, variant)
                own = [
                    f"init.checkpoint={args.init}",
                    f"run.dir={out}",
                    f"run.name={name}",
                    f"run.seed={seed}",
                    f"task.data={data}",
                    *words,
                ]
                jobs.append(Job(name, known[task], [*overrides, *own]))
                refuse_others(out / name, load(FinetuneConfig, known[task], jobs[-1].overrides))
    return jobs


def refuse_others(folder: Path, planned: FinetuneConfig) -> None:
    """A finished run of other settings would otherwise stand in the table as one of these."""
    if not (folder / "result.json").exists():
        return
    before, now = (
        yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")),
        to_dict(planned),
    )
    for section in ("init", "task", "optim", "schedule", "train"):
        for key, value in now[section].items():
            was = before[section].get(key, value)
            if was != value and (section != "train" or key in TRAIN_KEYS):
                raise ConfigError(
                    f"{folder}: made with {section}.{key} {was}, now {value}; choose another --out"
                )


class Stop:
    """A signal to the suite goes to the run in progress, which commits a checkpoint; between runs it ends the suite."""

    def __init__(self):
        self.asked, self.process = False, None
        for number in SIGNALS:
            signal.signal(number, self)

    def __call__(self, *_: Any) -> None:
        self.asked = True
        if self.process is None:
            raise StopRequested("between two runs; the same command continues")
        # Whatever came: the launcher would die of SIGUSR1 and leave its ranks behind.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)


def run_all(
    jobs: list[Job], out: Path, args: argparse.Namespace, stop: Stop
) -> dict[str, dict[str, Any]]:
    """Run what has no result yet; what failed, now or earlier, by name. StopRequested where a run was stopped."""
    record = out / "runs.json"
    failures = read_json(record)
    for number, job in enumerate(jobs, 1):
        if not (out / job.name / "result.json").exists():
            say(f"[{number}/{len(jobs)}] {job.name}")
            code, error = run(job, out, args, stop)
            if code == StopRequested.exit_code or stop.asked:
                raise StopRequested(
                    f"{job.name}, {number} of {len(jobs)}, is not done; the same command continues"
                )
            # The launcher says 0 of ranks that a signal killed.
            failures[job.name] = {"exit_code": code or PeerError.exit_code, "error": error}
        if (out / job.name / "result.json").exists():
            failures.pop(job.name, None)
        write_atomically(record, json.dumps(failures, indent=1) + "\n")
    return failures


def run(job: Job, out: Path, args: argparse.Namespace, stop: Stop) -> tuple[int, str]:
    """Exit code and last error line of one run, in a process group of its own; its output is kept and shown."""
    launcher = [
        sys.executable,
        "-m",
        "deepspeed.launcher.runner",
        "--quiet",
        "--num_accelerators",
        str(args.ranks),
        "--master_port",
        str(environment.free_port()),
        str(CONFIGS.with_name("finetune.py")),
    ]
    command = [
        *launcher,
        "--deepspeed_config",
        args.deepspeed_config,
        "--config",
        str(job.config),
        *job.overrides,
    ]
    env = os.environ | ({} if torch.cuda.is_available() else {"DS_ACCELERATOR": "cpu"})
    (out / "logs").mkdir(exist_ok=True)
    path, started = out / "logs" / f"{job.name}.log", time.time()
    # Into the file, not through us: were we killed, a broken pipe would keep the ranks from committing. The launcher is
    # killed with us; they notice, commit and end.
    with (
        open(path, "a", encoding="utf-8") as sink,
        open(path, encoding="utf-8", errors="replace") as log,
    ):
        start = log.seek(0, os.SEEK_END)
        stop.process = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        lingered = 0.0
        while stop.process.poll() is None or (
            group_lives(stop.process.pid) and lingered < LINGER_SECONDS
        ):
            time.sleep(POLL_SECONDS)
            lingered += 0 if stop.process.returncode is None else POLL_SECONDS
            print(log.read(), end="", file=sys.stderr, flush=True)
        print(log.read(), end="", file=sys.stderr, flush=True)
        code, stop.process = stop.process.returncode, None
        log.seek(start)
        lines = [line for line in log.read().splitlines() if line.strip()] or ["no output"]
    status = out / job.name / "status.json"
    if (
        status.exists() and status.stat().st_mtime >= started
    ):  # the launcher may hide the code of its ranks
        code = read_json(status)["exit_code"] or code
    said = [line for line in lines if line.startswith("error: ")] or lines
    return (code if code >= 0 else 128 - code), said[-1].removeprefix("error: ")


def group_lives(pid: int) -> bool:
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    return True


def die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def score_checkpoints(args: argparse.Namespace, out: Path) -> None:
    """Zero-shot scores of each checkpoint of --init, in zero_shot.json: {init, scores: {STEP: {TASK: {..}}}}.

    What is there already is not scored again.
    """
    folders = {task: args.data / folder for task, folder in FOLDERS.items()}
    if unknown := next((task for task in args.zero_shot if task not in folders), None):
        raise ConfigError(f"--zero-shot {unknown}: {near(unknown, folders)}")
    tasks = args.zero_shot or [task for task, folder in folders.items() if folder.is_dir()]
    record = out / "zero_shot.json"
    known = read_json(record)
    known = known if known.get("init") == args.init else {"init": args.init, "scores": {}}
    for folder in sorted(find_checkpoint(args.init).parent.glob("step-*")):
        scores = known["scores"].setdefault(str(int(folder.name.removeprefix("step-"))), {})
        wanted = [task for task in tasks if task not in scores]
        if not wanted:
            continue
        model, state, _ = load_gpt(folder)
        model.to(collectives.device())
        for task in wanted:
            answers = zero_shot(model, run_tokenizer(folder, state), task, folders[task])
            [(metric, score)] = task_metrics(ZERO_SHOT_METRICS[task][:1], *answers).items()
            scores[task] = {
                "score": score,
                "majority": majority_score(metric, answers[0], answers[0]),
            }
            write_atomically(record, json.dumps(known, indent=1) + "\n")
            say(f"{folder.name}: zero-shot {task}, {metric} {score:.4f}")


cli = command(main, __name__)
