"""The options of benchmarks/paper.py, and what is known of a run."""

import argparse
from collections.abc import Iterable
from pathlib import Path

import torch

from gpt1_ds.base.arguments import SEED, numeric
from gpt1_ds.base.bounds import COUNT, COUNT_OR_ZERO, POSITIVE
from gpt1_ds.base.errors import ConfigError
from gpt1_ds.base.options import Parser, path
from gpt1_ds.base.protocols import Json
from gpt1_ds.reports.suite_files import read_json
from gpt1_ds.runs.suite_jobs import config_of_task, data_of_task, refuse_own_keys
from gpt1_ds.runs.suite_options import sorted_words
from gpt1_ds.settings.command_line import add_deepspeed_config
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import FinetuneConfig, PretrainConfig
from gpt1_ds.settings.shipped import config_path
from gpt1_ds.tasks.benchmarks import PLACES, PUBLISHED, first_there

TASKS = ("cola", "sst2", "mrpc", "stsb", "qnli", "rte")
"""Those of Table 5 that fit a CPU; QQP and MNLI are left to those who ask for them."""


def parse(argv: list[str], about: str | None) -> tuple[argparse.Namespace, list[str]]:
    """The options, and the settings of fine-tuning. `about` is the description in `--help`."""
    words = sorted_words(argv)
    parser = Parser(description=about)
    model = parser.add_argument_group("the model").add_argument
    model(
        "--run", default="runs/10m-words", metavar="RUN", help="pre-training run, made if missing"
    )
    model("--lstm", metavar="RUN", help="the LSTM's (default: --run with -lstm behind it)")
    model(
        "--config",
        default="pretrain_10m_words",
        type=config_path(False),
        metavar="YAML",
        help="of both pre-trainings",
    )
    model(
        "--steps",
        type=numeric("--steps", int, COUNT),
        metavar="N",
        help="of both pre-trainings (default: as --config says)",
    )
    tune = parser.add_argument_group("the tasks").add_argument
    tune("--data", type=path, default="tasks", metavar="DIR", help="folder of the tasks' folders")
    tune(
        "--zero-shot-data",
        type=path,
        default="zero_shot",
        metavar="DIR",
        help="folder of BLiMP and LAMBADA",
    )
    tune(
        "--sample",
        type=numeric("--sample", int, COUNT),
        metavar="N",
        help="pairs of each paradigm of BLiMP, and passages of LAMBADA (default: all)",
    )
    tune(
        "--tasks",
        nargs="+",
        metavar="TASK",
        help=f"default: those of {' '.join(TASKS)} that are below --data",
    )
    tune(
        "--layer-tasks",
        nargs="+",
        metavar="TASK",
        help="those of Figure 2, left (default: the first two of --tasks)",
    )
    tune(
        "--layers",
        nargs="+",
        type=numeric("--layers", int, COUNT_OR_ZERO),
        metavar="K",
        help="numbers of blocks transferred there (default: each)",
    )
    tune(
        "--seeds",
        nargs="+",
        type=numeric("--seeds", int, SEED),
        default=[1, 2, 3],
        metavar="N",
        help="default: 1 2 3",
    )
    tune(
        "--examples",
        type=numeric("--examples", int, COUNT),
        default=2000,
        metavar="N",
        help="training examples a task at most; more take longer",
    )
    how = parser.add_argument_group("how it runs").add_argument
    add_deepspeed_config(how, "by device, as for gpt1_ds.train")
    how(
        "--hours",
        type=numeric("--hours", float, POSITIVE),
        metavar="H",
        help="stop after so many (default: none)",
    )
    how(
        "--ranks",
        type=numeric("--ranks", int, COUNT),
        metavar="N",
        default=torch.cuda.device_count() or 2,
        help="processes a run (default: the GPUs, or 2)",
    )
    how("--out", type=path, default=Path("suites/paper"), metavar="DIR", help="folder of the suite")
    how(
        "--results",
        type=path,
        default=Path("benchmarks/suite"),
        metavar="DIR",
        help="where the table and the pictures go",
    )
    args = parser.parse_args(words.options)
    args.lstm = args.lstm or f"{args.run}-lstm"
    args.tasks = args.tasks or [task for task in TASKS if data_of_task(args.data, task).exists()]
    if not args.tasks:
        raise ConfigError(f"--data {args.data}: none of the folders of {', '.join(TASKS)} is there")
    args.layer_tasks = args.layer_tasks or list(args.tasks[:2])
    if args.sample and not there(args.zero_shot_data, PUBLISHED):
        raise ConfigError(
            f"--sample {args.sample} is for BLiMP and LAMBADA, which are not in "
            f"{args.zero_shot_data}; give --zero-shot-data"
        )
    _check_steps(args)
    _check_tasks(args, words.overrides)
    return args, words.overrides


def _check_steps(args: argparse.Namespace) -> None:
    for run in (args.run, args.lstm):
        step = status_of(run).get("step")
        if args.steps and is_done(run) and step != args.steps:
            raise ConfigError(
                f"--steps {args.steps}: {run} is done with {step}; give {step}, or another --run "
                "and --out"
            )


def _check_tasks(args: argparse.Namespace, settings: list[str]) -> None:
    """The suite would refuse these too, but only after some steps of everything."""
    refuse_own_keys(settings, "--run, --tasks, --seeds, --data and --out")
    for option, tasks in (("--tasks", args.tasks), ("--layer-tasks", args.layer_tasks)):
        for task in tasks:
            load(FinetuneConfig, config_of_task(task, option), settings)
            if not (data := data_of_task(args.data, task)).exists():
                raise ConfigError(
                    f"{data}: not there; give --data, the folder of the tasks' folders"
                )
    blocks = load(PretrainConfig, args.config, []).model.n_layer
    for count in args.layers or ():
        if count > blocks:
            raise ConfigError(f"--layers {count}: {args.config} has {blocks} blocks")


def there(folder: Path, names: Iterable[str]) -> list[str]:
    """Those of the zero-shot tasks and benchmarks that are below `folder`."""
    return [name for name in names if first_there(folder, PLACES[name]).exists()]


def status_of(run: str | Path) -> Json:
    return read_json(Path(run) / "status.json")


def is_done(run: str) -> bool:
    return status_of(run).get("state") == "done"
