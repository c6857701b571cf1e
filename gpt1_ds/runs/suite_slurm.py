"""A suite on a Slurm cluster: a job array with an element for each run, and a job that collects.

An element is `slurm/suite.sh`, the other job `slurm/collect.sh`. In OUT lie slurm.json, which names
the jobs and the run of each element, and logs/RUN.exit with the exit code of an element that ended.
"""

import argparse
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from gpt1_ds.base.errors import ConfigError, DataError, DivergedError, PeerError, StopRequested
from gpt1_ds.base.files import write_atomically
from gpt1_ds.base.protocols import Json
from gpt1_ds.distributed.console import say
from gpt1_ds.reports.suite_files import read_json
from gpt1_ds.runs.suite_jobs import Job, Outcome, last_error

ELEMENT, COLLECTING = (Path("slurm") / name for name in ("suite.sh", "collect.sh"))
RECORD = "slurm.json"
START_OF_ELEMENT = "element "
"""How the line begins that an element writes to the log of its run before all others."""
FOR_GOOD = (ConfigError.exit_code, DataError.exit_code, DivergedError.exit_code)
"""Exit codes that end a job at once, as slurm/starts.sh has them."""
ONE_PROCESS = ["--nodes=1", "--ntasks-per-node=1"]


def check_slurm(args: argparse.Namespace, options: Sequence[str]) -> None:
    """ConfigError if this machine cannot submit, or if options do not go together."""
    if args.slurm is None:
        if options:
            raise ConfigError(f"-- {options[0]}: these go to sbatch; give --slurm too")
        return
    if args.table_only:
        raise ConfigError("--slurm with --table-only: leave one of them out")
    if args.ranks is not None:
        raise ConfigError(
            f"--ranks {args.ranks} with --slurm: sbatch gives the ranks; write "
            f"-- --nodes=1 --ntasks-per-node={args.ranks}"
        )
    if not ELEMENT.exists():
        raise ConfigError(f"--slurm: there is no {ELEMENT} here; start it in the project's folder")
    if not shutil.which("sbatch"):
        raise ConfigError(
            "--slurm: sbatch not found; log in to a node that submits jobs, or leave --slurm out"
        )


def submit(
    jobs: Sequence[Job],
    out: Path,
    args: argparse.Namespace,
    options: Sequence[str],
    has_unscored: bool,
) -> bool:
    """Submit the runs that have no result and are not in the queue; False if all is done.

    `options` go to sbatch. `has_unscored`: the collecting job has checkpoints to score.
    """
    record = read_json(out / RECORD) or {"submissions": []}
    in_queue = _in_queue()
    queued = _queued_runs(record, in_queue)
    missing = [job for job in jobs if not _is_done(out, job.name) and job.name not in queued]
    collects = any(f"{entry['collecting']}_N/A" in in_queue for entry in record["submissions"])
    if not missing and not queued and not has_unscored:
        return False
    if queued:
        say(f"in the queue: {len(queued)} runs; see squeue -j {','.join(_jobs_of(queued))}")
    if not missing and collects:
        say("nothing to submit")
        return True
    entry: Json = {"job": None, "collecting": None, "runs": [job.name for job in missing]}
    (out / "logs").mkdir(parents=True, exist_ok=True)
    if missing:
        runs = _write_runs(missing, out / f"slurm-{len(record['submissions']) + 1}.tsv", args)
        array = f"--array=0-{len(missing) - 1}" + (f"%{args.slurm}" if args.slurm else "")
        log = f"--output={out / 'logs' / 'slurm-%A.log'}"
        entry["job"] = _sbatch([array, log, *options, str(ELEMENT), str(runs), str(out)])
        record["submissions"].append(entry)
        write_atomically(out / RECORD, json.dumps(record, indent=1) + "\n")
    else:
        record["submissions"].append(entry)
    awaited = [*_jobs_of(queued), *([entry["job"]] if missing else [])]
    entry["collecting"] = _sbatch(_collecting(out, args, options, awaited))
    write_atomically(out / RECORD, json.dumps(record, indent=1) + "\n")
    _tell(entry, out)
    return True


def _write_runs(jobs: Sequence[Job], path: Path, args: argparse.Namespace) -> Path:
    """A line for each element: the name of the run, and what finetune takes, with tabs between."""
    lines = []
    for job in jobs:
        words = [job.name, *job.words(args.deepspeed_config)]
        for word in words:
            if "\t" in word or "\n" in word:
                raise ConfigError(f"option {word!r}: under --slurm without tabs and line ends")
        lines.append("\t".join(words) + "\n")
    write_atomically(path, "".join(lines))
    return path


def _collecting(
    out: Path, args: argparse.Namespace, options: Sequence[str], awaited: Sequence[str]
) -> list[str]:
    """What sbatch takes for the collecting job; it also scores the checkpoints."""
    words = ["--out", str(out), "--table-only"]
    device = []
    if args.zero_shot is not None:
        words = ["--init", args.init, "--out", str(out), "--data", str(args.data)]
        words += ["--lstm", args.lstm] if args.lstm else []
        words += ["--sample", str(args.sample)] if args.sample else []
        words += ["--zero-shot", *args.zero_shot]
        device = ["--gpus-per-node=1"]  # unless `options` say something else
    dependency = [f"--dependency=afterany:{':'.join(awaited)}"] if awaited else []
    log = f"--output={out / 'logs' / 'slurm-%j.log'}"
    return [log, *device, *options, *ONE_PROCESS, *dependency, str(COLLECTING), *words]


def _tell(entry: Json, out: Path) -> None:
    job, collecting, runs = entry["job"], entry["collecting"], entry["runs"]
    ids = [job, collecting] if runs else [collecting]
    if runs:
        say(f"submitted: {len(runs)} runs as the elements 0 to {len(runs) - 1} of job {job}")
    say(f"submitted: job {collecting}, which writes {out}/table.md when all have ended")
    say(f"watch:     squeue -j {','.join(ids)}; python -m gpt1_ds.watch {out}; {out}/logs")
    say(f"end:       scancel {' '.join(ids)}; the same command goes on")


def failures_of_elements(out: Path) -> dict[str, Outcome]:
    """The runs whose last element ended without a result, apart from those that were stopped.

    An element that left no exit code counts if Slurm says that it is not in the queue.
    """
    record = read_json(out / RECORD)
    if not record:
        return {}
    queued = _queued_runs(record, _in_queue()) if shutil.which("squeue") else None
    failures: dict[str, Outcome] = {}
    for number, entry in enumerate(record["submissions"], 1):
        for name in entry["runs"]:
            failures.pop(name, None)
            if _is_done(out, name) or name in (queued or ()):
                continue
            submitted = (out / f"slurm-{number}.tsv").stat().st_mtime
            code = _exit_code(out, name, submitted, is_over=queued is not None)
            if code not in (0, None, StopRequested.exit_code):
                failures[name] = Outcome(code, _error_of_element(out / "logs" / f"{name}.log"))
    return failures


def _is_done(out: Path, name: str) -> bool:
    return (out / name / "result.json").exists()


def _exit_code(out: Path, name: str, submitted: float, is_over: bool) -> int | None:
    """The exit code of a run since the time `submitted`; None if it has not begun or goes on."""

    def is_new(path: Path) -> bool:
        return path.exists() and path.stat().st_mtime >= submitted

    log, ended = out / "logs" / f"{name}.log", out / "logs" / f"{name}.exit"
    if not is_new(log):
        return None
    if not is_new(ended) and not is_over:
        return None
    code = int(ended.read_text()) if is_new(ended) else PeerError.exit_code
    status = out / name / "status.json"
    if code in FOR_GOOD or not is_new(status):
        return code
    return read_json(status).get("exit_code") or code  # srun's is that of the rank that died last


def _error_of_element(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    starts = [place for place, line in enumerate(lines) if line.startswith(START_OF_ELEMENT)]
    return last_error(lines[starts[-1] + 1 :] if starts else lines)


def _queued_runs(record: Json, in_queue: set[str]) -> dict[str, str]:
    """The runs that wait or go on, with the number of their job."""
    queued = {}
    for entry in record.get("submissions", []):
        for place, name in enumerate(entry["runs"]):
            if f"{entry['job']}_{place}" in in_queue:
                queued[name] = entry["job"]
    return queued


def _jobs_of(queued: dict[str, str]) -> list[str]:
    return list(dict.fromkeys(queued.values()))


def _in_queue() -> set[str]:
    """JOB_ELEMENT of all elements that wait or run, and JOB_N/A of other jobs."""
    return set(_slurm(["squeue", "--noheader", "--array", "--format=%F_%K"]).split())


def _sbatch(words: Sequence[str]) -> str:
    """Submit; returns the number of the job."""
    return _slurm(["sbatch", "--parsable", *words]).strip().partition(";")[0]


def _slurm(words: Sequence[str]) -> str:
    """The output of a Slurm command. Raises ConfigError with what it said if it fails."""
    # Inside a job, sbatch would take that job's shape, and its ranks that job's rank.
    own = ("SLURM_", "PMI_", "PMIX_", "OMPI_COMM_")
    env = {key: value for key, value in os.environ.items() if not key.startswith(own)}
    if "SLURM_CONF" in os.environ:
        env["SLURM_CONF"] = os.environ["SLURM_CONF"]
    done = subprocess.run(words, env=env, capture_output=True, text=True)
    if done.returncode:
        raise ConfigError(
            f"--slurm: {words[0]} said: {' '.join(done.stderr.split()) or done.returncode}; its "
            "options stand behind --"
        )
    return done.stdout
