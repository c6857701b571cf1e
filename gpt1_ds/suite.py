"""Fine-tune tasks x seeds x ablations from one run.

    python -m gpt1_ds.suite --init runs/gpt1 --tasks sst2 rte --seeds 1 2 3
    python -m gpt1_ds.suite --init runs/gpt1 --tasks sst2 \\
        --ablations none no_lm scratch --layers 0 3 6 9 12
    python -m gpt1_ds.suite --init runs/gpt1 --tasks sst2 \\
        --grid optim.lr=3e-5,6e-5,1e-4 train.global_batch=16,32
    python -m gpt1_ds.suite --init runs/gpt1 --zero-shot --data tasks
    python -m gpt1_ds.suite --init runs/gpt1 --tasks sst2 \\
        --slurm -- --nodes=1 --partition=gpu
    python -m gpt1_ds.suite --table-only --out suites/gpt1

Each run is a run of gpt1_ds.finetune, named TASK[-POINT]-seed-SEED[-ABLATION], in --out; they run
one after the other, and a result.json says that a run is done. With --slurm they are the elements
of a job array, and a job behind it collects; options behind -- go to sbatch. The same command again
goes on where it was stopped, and tries once more what failed. --out also gets table.md and
table.html (beside the paper's Tables 2 to 5), their pictures, runs.json (what failed, and why) and
logs/. section.key=value after the options goes to every run; behind --grid it is a list of values,
and each combination (POINT) gets runs. Exit codes: 0 done or submitted, 2 usage, 75 stopped, else
the highest one of the runs.
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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    importlib.import_module("gpt1_ds")  # before torch, so that Ctrl-C ends with one line

import torch

from gpt1_ds.base.errors import ConfigError, DataError, PeerError, StopRequested, command, near
from gpt1_ds.base.files import sha256_of, write_atomically
from gpt1_ds.base.protocols import Json
from gpt1_ds.checkpoints.folder import checkpoint_sha256, find_checkpoint
from gpt1_ds.distributed import collectives, environment
from gpt1_ds.distributed.console import say
from gpt1_ds.distributed.preemption import GRACE_SECONDS, SIGNALS
from gpt1_ds.engine.mechanics import default_mechanics
from gpt1_ds.reports.suite_files import read_json
from gpt1_ds.reports.suite_sections import write
from gpt1_ds.reports.suite_table import IS_SCORES, sections
from gpt1_ds.runs.suite_jobs import Job, Outcome, last_error, plan
from gpt1_ds.runs.suite_options import sorted_words, suite_parser
from gpt1_ds.runs.suite_resampling import resample_suite
from gpt1_ds.runs.suite_slurm import check_slurm, failures_of_elements, submit
from gpt1_ds.runs.trained import load_gpt, run_tokenizer
from gpt1_ds.runs.zero_shot_scoring import zero_shot_score
from gpt1_ds.settings.shipped import ds_config_path
from gpt1_ds.tasks.benchmarks import PLACES, PUBLISHED, first_there

ZERO_SHOT = "zero_shot.json"
SCORES_OF = {"init": "scores", "lstm": "lstm_scores"}
"""Where zero_shot.json has the scores of --init's checkpoints, and of --lstm's."""
POLL_SECONDS = 0.2
LINGER_SECONDS = 2 * GRACE_SECONDS
"""Time limit of the wait for ranks after their launcher ended. A zombie counts as a rank."""
SIGNAL_EXIT = 128  # plus the signal's number, as in a shell
PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> int:
    words = sorted_words(argv)
    args = suite_parser(__doc__).parse_args(words.options)
    if args.grid is not None:
        args.grid += words.grid
        if not args.grid:
            raise ConfigError("--grid is empty; give lists of values, such as optim.lr=3e-5,6e-5")
    if args.init is None and not (args.table_only and args.out):
        raise ConfigError("--init is not set; give a pre-training run, or --table-only with --out")
    check_slurm(args, words.sbatch)
    if args.deepspeed_config is None and not args.table_only and args.slurm is None:
        args.deepspeed_config = ds_config_path(default_mechanics().name)
    out = args.out or Path("suites") / Path(args.init).name
    jobs = [] if args.table_only else plan(args, out, words.overrides)
    scores = args.zero_shot is not None and not args.table_only
    scored = _zero_shot_sources(args) if scores else {}
    if args.sample and not set(PUBLISHED).intersection(scored):
        raise ConfigError(f"--sample {args.sample} needs --zero-shot {' or '.join(PUBLISHED)}")
    out.mkdir(parents=True, exist_ok=True)
    if args.slurm is not None:
        has_unscored = scores and any(True for _ in unscored(args, _known_scores(args, out)))
        if submit(jobs, out, args, words.sbatch, has_unscored):
            return 0

    failures = run_all(jobs, out, args, Stop())
    if scores:
        score_checkpoints(args, out)
    zero_shot = read_json(out / ZERO_SHOT)
    found = sections(out, failures, zero_shot, resample_suite(out, failures))
    if not found:
        raise DataError(
            f"--out {out}: no run named TASK-seed-SEED there; give the folder of a suite's runs"
        )
    print(write(out, found), end="")
    say(f"\n{out}/table.md, table.html")
    codes = [failures[job.name]["exit_code"] for job in jobs if job.name in failures]
    return max(codes, default=0)


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
    known = read_json(record)
    told = known | {name: end._asdict() for name, end in failures_of_elements(out).items()}
    failures = {
        name: failure for name, failure in told.items() if not (out / name / "result.json").exists()
    }
    if failures != known:
        write_atomically(record, json.dumps(failures, indent=1) + "\n")
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
        error = last_error(log.read().splitlines())
    status = out / job.name / "status.json"
    if status.exists() and status.stat().st_mtime >= started:
        # The launcher may hide the exit code of its ranks.
        code = read_json(status).get("exit_code") or code
    return Outcome(code if code >= 0 else SIGNAL_EXIT - code, error)


def _command(job: Job, args: argparse.Namespace) -> list[str]:
    """The command line of a job, under DeepSpeed's launcher."""
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--quiet"]
    launcher += ["--num_accelerators", str(args.ranks or torch.cuda.device_count() or 1)]
    launcher += ["--master_port", str(environment.free_port())]
    return [
        *launcher,
        str(Path(__file__).with_name("finetune.py")),
        *job.words(args.deepspeed_config),
    ]


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


class Unscored(NamedTuple):
    """Tasks that a checkpoint has no zero-shot score of, and what each score will be made from."""

    folder: Path
    scores: str
    """A value of SCORES_OF."""
    step: str
    made_from: dict[str, Json]


def unscored(args: argparse.Namespace, known: Json) -> Iterator[Unscored]:
    """The checkpoints of --init and --lstm that lack scores.

    Raises ConfigError for an unknown task.
    """
    sources = _zero_shot_sources(args)
    data = {task: sha256_of(source) for task, source in sources.items()}
    for option, place in SCORES_OF.items():
        run = vars(args)[option]
        for folder in sorted(find_checkpoint(run).parent.glob("step-*")) if run else ():
            step = str(int(folder.name.removeprefix("step-")))
            scores = known[place].get(step, {})
            sha256 = checkpoint_sha256(folder)
            made_from = {
                task: {"checkpoint": sha256, "data": data[task], **_sample_of(task, args)}
                for task in sources
            }
            wanted = {
                task: made_from[task]
                for task in sources
                if not is_of(scores.get(task), made_from[task])
            }
            if wanted:
                yield Unscored(folder, place, step, wanted)


def _sample_of(task: str, args: argparse.Namespace) -> Json:
    return {"sample": args.sample} if task in PUBLISHED else {}


def score_checkpoints(args: argparse.Namespace, out: Path) -> None:
    """Write the zero-shot scores of each checkpoint of --init and --lstm to zero_shot.json.

    The file holds {init, scores: {STEP: {TASK: {score, majority, checkpoint, data}}}}, the last two
    as hashes, for benchmarks also {sample}, and for --lstm {lstm, lstm_scores} in the same way.
    Scores of the same checkpoint, data and sample are not computed again.
    """
    known = _known_scores(args, out)
    sources = _zero_shot_sources(args)
    for folder, place, step, made_from in unscored(args, known):
        scores = known[place].setdefault(step, {})
        model, state, _ = load_gpt(folder)
        model.to(collectives.device())
        tokenizer = run_tokenizer(folder, state)
        for task, facts in made_from.items():
            found = zero_shot_score(model, tokenizer, task, sources[task], facts.get("sample"))
            scores[task] = {"score": found.score, "majority": found.majority, **facts}
            write_atomically(out / ZERO_SHOT, json.dumps(known, indent=1) + "\n")
            name = f"{folder.parents[1].name} {folder.name}"
            say(f"{name}: zero-shot {task}, {found.metric} {found.score:.4f}")


def _known_scores(args: argparse.Namespace, out: Path) -> Json:
    """The content of zero_shot.json, as far as it is about --init and --lstm."""
    known = read_json(out / ZERO_SHOT)
    kept: Json = {}
    for option, place in SCORES_OF.items():
        run = vars(args)[option] or known.get(option)
        is_known = known.get(option) == run and IS_SCORES(known.get(place))
        kept |= {option: run, place: known[place] if is_known else {}}
    return kept


def _zero_shot_sources(args: argparse.Namespace) -> dict[str, Path]:
    """The files of each task of --zero-shot, or of all tasks that are below --data."""
    sources = {task: first_there(args.data, names) for task, names in PLACES.items()}
    unknown = [task for task in args.zero_shot if task not in sources]
    if unknown:
        raise ConfigError(f"--zero-shot {unknown[0]}: {near(unknown[0], sources)}")
    tasks = args.zero_shot or [task for task, source in sources.items() if source.exists()]
    return {task: sources[task] for task in tasks}


def is_of(score: Json | None, facts: Json) -> bool:
    """Whether a score of zero_shot.json was made from these facts."""
    return score is not None and all(score.get(name) == fact for name, fact in facts.items())


cli = command(main, __name__)
