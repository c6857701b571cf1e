"""The options of the suite."""

import re
from typing import NamedTuple

from gpt1_ds.base.arguments import SEED, numeric
from gpt1_ds.base.bounds import COUNT, COUNT_OR_ZERO, Bounds
from gpt1_ds.base.options import Parser, path
from gpt1_ds.reports.suite_files import VARIANTS
from gpt1_ds.settings.command_line import add_deepspeed_config
from gpt1_ds.settings.sections import FinetuneConfig
from gpt1_ds.settings.shipped import FINETUNE, configs
from gpt1_ds.settings.spelling import spelling_for
from gpt1_ds.tasks.benchmarks import PUBLISHED
from gpt1_ds.tasks.zero_shot import ZERO_SHOT_METRICS

OVERRIDE = re.compile(r"\w+\.[\w.]+=")
RANKS = Bounds(high=1024, open_low=True)
"""Processes of one host."""
TASK_NAMES = ", ".join(name.removeprefix(FINETUNE) for name in configs(True))


class Words(NamedTuple):
    """The words of the command line."""

    options: list[str]
    overrides: list[str]
    grid: list[str]
    sbatch: list[str]


def sorted_words(argv: list[str]) -> Words:
    """Overrides may be anywhere, and those behind --grid, up to the next option, are its lists.

    argparse would treat overrides as values of options like --tasks. Those behind `--` are
    sbatch's.
    """
    end = argv.index("--") if "--" in argv else len(argv)
    words = Words([], [], [], argv[end + 1 :])
    in_grid = False
    for word in argv[:end]:
        if OVERRIDE.match(word):
            (words.grid if in_grid else words.overrides).append(word)
            continue
        if word.startswith("-"):
            in_grid = word == "--grid"
        words.options.append(word)
    return words


def suite_parser(about: str | None) -> Parser:
    """`about` is the description in `--help`."""
    parser = Parser(description=about)
    parser.spelling = spelling_for(FinetuneConfig)
    runs = parser.add_argument_group("runs").add_argument
    runs(
        "--init",
        metavar="RUN",
        help="pre-training run or checkpoint that all start from (no default)",
    )
    runs("--tasks", nargs="+", default=[], metavar="TASK", help=f"{TASK_NAMES} (no default)")
    runs(
        "--seeds",
        nargs="+",
        type=numeric("--seeds", int, SEED),
        default=[1, 2, 3],
        metavar="N",
        help="seeds of each task (default: 1 2 3)",
    )
    runs(
        "--data",
        type=path,
        default="tasks",
        metavar="DIR",
        help="folder of the tasks' own folders: SST-2, RTE and so on, as their YAML names them "
        "(default: %(default)s)",
    )
    runs(
        "--ablations",
        nargs="+",
        default=["none"],
        choices=[*VARIANTS],
        help="no_lm: without the auxiliary objective; scratch: without pre-training; "
        "lstm: from --lstm; none: as it is (default)",
    )
    runs("--lstm", metavar="RUN", help="pre-training run with model.kind=lstm (no default)")
    runs(
        "--layers",
        nargs="+",
        type=numeric("--layers", int, COUNT_OR_ZERO),
        default=[],
        metavar="K",
        help="also with the first K blocks alone transferred: Figure 2, left (default: all blocks)",
    )
    runs(
        "--grid",
        nargs="*",
        metavar="KEY=V1,V2",
        help="lists of values of settings, up to the next option: a run of each combination, for "
        "each task, seed and ablation; the best one by dev is chosen (default: none)",
    )
    runs(
        "--zero-shot",
        nargs="*",
        metavar="TASK",
        help="also score each checkpoint of --init, and of --lstm: Figure 2, right; "
        f"{', '.join((*ZERO_SHOT_METRICS, *PUBLISHED))} (default: those below --data)",
    )
    runs(
        "--sample",
        type=numeric("--sample", int, COUNT),
        metavar="N",
        help=f"with --zero-shot {' or '.join(PUBLISHED)}: N pairs of each paradigm or N passages, "
        "the same ones each time (default: all)",
    )
    start = parser.add_argument_group("how they run").add_argument
    add_deepspeed_config(start, "by device, as for gpt1_ds.finetune")
    start(
        "--ranks",
        type=numeric("--ranks", int, RANKS),
        metavar="N",
        help="processes a run (default: the GPUs, or 1)",
    )
    start(
        "--slurm",
        nargs="?",
        type=numeric("--slurm", int, COUNT_OR_ZERO),
        const=0,
        metavar="N",
        help="submit a job array, N runs at once at most, 0 for all (default of N: 0), and a job "
        "that collects; options behind -- go to sbatch (default: run here)",
    )
    start(
        "--out",
        type=path,
        metavar="DIR",
        help="folder of the runs (default: suites/NAME of --init)",
    )
    start("--table-only", action="store_true", help="no run: collect what is in --out")
    return parser
