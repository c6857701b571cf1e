"""The runs that a suite asks for, and how one of them ended."""

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path
from typing import NamedTuple

from gpt1_ds.base.errors import ConfigError, near
from gpt1_ds.checkpoints.folder import find_checkpoint, read_state
from gpt1_ds.reports.suite_files import LAYERS_PREFIX, run_name
from gpt1_ds.runs.planned import refuse_other_facts
from gpt1_ds.runs.suite_grid import grid_points
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import FinetuneConfig
from gpt1_ds.settings.shipped import CONFIGS, FINETUNE

OWN_KEYS = ("run.name", "run.dir", "run.seed", "init.checkpoint", "task.name", "task.data")
"""Keys that the suite sets for each run."""


@dataclass
class Job:
    """One run of fine-tuning."""

    name: str
    config: Path
    overrides: list[str]

    def words(self, deepspeed_config: str | None) -> list[str]:
        """The arguments of `gpt1_ds.finetune`; without a JSON it chooses one by its device."""
        mechanics = ["--deepspeed_config", deepspeed_config] if deepspeed_config else []
        return [*mechanics, "--config", str(self.config), *self.overrides]


class Outcome(NamedTuple):
    """The exit code and the error of a run."""

    exit_code: int
    error: str
    """The last error line of its output."""


def last_error(lines: Iterable[str]) -> str:
    """The last error line of a run's output, or else its last line."""
    told = [line for line in lines if line.strip()] or ["no output"]
    errors = [line for line in told if line.startswith("error: ")] or told
    return errors[-1].removeprefix("error: ")


def plan(args: argparse.Namespace, out: Path, overrides: list[str]) -> list[Job]:
    """All requested runs, with checked settings.

    Raises ConfigError if `out` has a finished run of the same name with other settings.
    """
    grid = args.grid or []
    for word in [*overrides, *grid]:
        if "=" not in word:
            raise ConfigError(f"option '{word}': expected section.key=V1,V2")
    refuse_own_keys([*overrides, *grid], "--init, --tasks, --seeds, --data and --out")
    overrides_of = _variants(args)
    points = grid_points(grid, [*overrides, *chain.from_iterable(overrides_of.values())])
    kinds = list(product(overrides_of, points))
    jobs = []
    for task in args.tasks:
        config = config_of_task(task)
        data = data_of_task(args.data, task)
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
                job = Job(name, config, words)
                refuse_other_facts(out / name, load(FinetuneConfig, job.config, job.overrides))
                jobs.append(job)
    return jobs


def config_of_task(task: str, option: str = "--tasks") -> Path:
    """The shipped YAML of a task. ConfigError, which names the `option`, for an unknown one."""
    known = {path.stem.removeprefix(FINETUNE): path for path in CONFIGS.glob(f"{FINETUNE}*.yaml")}
    if task not in known:
        raise ConfigError(f"{option} {task}: {near(task, known)}")
    return known[task]


def data_of_task(folder: Path, task: str) -> Path:
    """The task's own folder below `folder`, as its YAML names it."""
    return folder / Path(load(FinetuneConfig, config_of_task(task), []).task.data).name


def refuse_own_keys(words: Iterable[str], options: str) -> None:
    """ConfigError for a setting that each run gets from `options`."""
    for word in words:
        if word.partition("=")[0] in OWN_KEYS:
            raise ConfigError(f"option '{word}': each run gets its own; use {options}")


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
