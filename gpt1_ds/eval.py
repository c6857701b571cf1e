"""Score a run: perplexity on texts, metrics of tasks.

    python -m gpt1_ds.eval runs/gpt1 --data shards --corpus books
    python -m gpt1_ds.eval runs/gpt1 --data novel.txt --stride 128
    python -m gpt1_ds.eval runs/gpt1 --data novel.txt --average 3
    python -m gpt1_ds.eval runs/gpt1 --data news.en.heldout --lines
    python -m gpt1_ds.eval runs/sst2 --task sst2 --data SST-2/dev.tsv
    python -m gpt1_ds.eval runs/sst2 --task sst2 --data SST-2 --out dev.tsv
    python -m gpt1_ds.eval runs/sst2 --predict --probabilities < sentences.txt
    python -m gpt1_ds.eval runs/sst2 --calibrate
    python -m gpt1_ds.eval --ensemble runs/suite --task sst2 --data SST-2
    python -m gpt1_ds.eval runs/gpt1 --zero-shot race --data RACE
    python -m gpt1_ds.eval runs/gpt1 --zero-shot blimp --data BLiMP.zip
    python -m gpt1_ds.eval runs/gpt1 --zero-shot pairs --data own.jsonl \\
        --columns good bad
    python -m gpt1_ds.eval --overlap shards --data tasks
    python -m gpt1_ds.eval runs/gpt1 --data novel.txt --surprisal novel.tsv

Three figures come from the same sum of nats: perplexity a token; perplexity a word, where the
predicted ends of documents count as words, as in the 1 Billion Word Benchmark; and bits a byte. The
last two do not depend on how a tokenizer divides the text, so that they compare models with
different tokenizers on the same text, if both fold case or neither does.

A shard directory: each corpus is one stream, as in training, and all ends in it are predicted; the
words are those of its decoded tokens, the bytes those of the tokenised text. A file or a folder of
.txt: each file follows an <eot>, and no end is predicted. With --lines: each line follows an <eot>,
and its end is predicted. Words and bytes are then those of the files, as they are.

Words are separated by white space. A file without --lines is scored as by lm-evaluation-harness.
Behind ± is the standard error: that of the mean over runs of the model's context in tokens, or
over documents where they are shorter.
"""

import argparse
import importlib
import sys
from itertools import chain
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    importlib.import_module("gpt1_ds")  # before torch, so that Ctrl-C ends with one line

from gpt1_ds.base.arguments import numeric
from gpt1_ds.base.bounds import COUNT, COUNT_OR_ZERO
from gpt1_ds.base.errors import ConfigError, command
from gpt1_ds.base.options import AVERAGE_HELP, NEAR_OR_FAR_RUN_HELP, Parser, path
from gpt1_ds.runs.overlap import measure_overlap
from gpt1_ds.runs.remote_run import local_run
from gpt1_ds.runs.task_scoring import Asked, calibrate_run, predict_lines, score_task
from gpt1_ds.runs.text_scoring import AskedText, score_text
from gpt1_ds.runs.zero_shot_scoring import (
    OF_BENCHMARKS,
    ZERO_SHOT,
    AskedBenchmark,
    score_benchmark,
    score_zero_shot,
)
from gpt1_ds.tasks import TASKS
from gpt1_ds.tasks.benchmarks import BENCHMARKS

MODES = ("overlap", "predict", "calibrate", "task", "ensemble", "zero_shot")
OF_PREDICTIONS = ("task", "ensemble", "probabilities", "uncalibrated")
TAKES = {
    "overlap": ("overlap", "data", "out"),
    "predict": ("predict", "average", *OF_PREDICTIONS),
    "calibrate": ("calibrate", "task", "data"),
    "task": ("data", "average", "with_text", "out", *OF_PREDICTIONS),
    "ensemble": ("data", "with_text", "out", *OF_PREDICTIONS),
    "zero_shot": ("zero_shot", "data", "average", *OF_BENCHMARKS),
    "text": ("data", "average", "corpus", "lines", "stride", "surprisal"),
}
"""The options that go with each mode of the command."""


def main(argv: list[str]) -> None:
    args = _parser().parse_args(argv)
    mode = next((name for name in MODES if getattr(args, name)), "text")
    for name in sorted(set(chain.from_iterable(TAKES.values()))):
        if getattr(args, name) and name not in TAKES[mode]:
            raise ConfigError(f"{_option(name)} does not go with {_option(mode)}; leave it out")
    if mode == "overlap":
        if args.run is not None:
            raise ConfigError(f"RUN is {args.run}, but --overlap needs no run; leave it out")
        measure_overlap(args.overlap, args.data or Path("tasks"), args.out)
        return
    if args.run is None and not args.ensemble:
        raise ConfigError("RUN is not set; give a run folder, or several with --ensemble")
    named = [args.run] * (args.run is not None) + (args.ensemble or [])
    runs = [str(local_run(run, args.average)) for run in named]
    asked = Asked(
        runs=runs,
        is_ensemble=bool(args.ensemble),
        task=args.task,
        data=args.data,
        probabilities=args.probabilities,
        with_text=args.with_text,
        out=args.out,
        uncalibrated=args.uncalibrated,
        average=args.average,
    )
    if mode == "predict":
        predict_lines(asked)
        return
    if mode == "calibrate":
        calibrate_run(asked)
        return
    if args.data is None and mode != "text":
        raise ConfigError(f"--data is not set; give the file or folder for {_option(mode)}")
    args.data = args.data or Path("shards")
    if mode in ("task", "ensemble"):
        score_task(asked)
    elif mode == "zero_shot":
        asked_zero_shot = AskedBenchmark(
            runs[0], args.zero_shot, args.data, args.columns, args.sample, args.out, args.average
        )
        asked_zero_shot.check()
        if args.zero_shot in BENCHMARKS:
            score_benchmark(asked_zero_shot)
        else:
            score_zero_shot(runs[0], args.zero_shot, args.data, args.average)
    else:
        asked_text = AskedText(
            runs[0], args.data, args.corpus, args.lines, args.stride, args.surprisal, args.average
        )
        score_text(asked_text)


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__)
    parser.add_argument("run", nargs="?", metavar="RUN", help=NEAR_OR_FAR_RUN_HELP)
    text = parser.add_argument_group("what is scored").add_argument
    text(
        "--average",
        type=numeric("--average", int, COUNT),
        metavar="K",
        help=AVERAGE_HELP,
    )
    text(
        "--data",
        type=Path,
        metavar="PATH",
        help="shard directory, text file (UTF-8) or folder of .txt files (default: shards)",
    )
    text(
        "--corpus",
        metavar="NAME",
        help="shards: one corpus of the validation split (default: each)",
    )
    text(
        "--lines", action="store_true", help="text: each line is a document, whose end is predicted"
    )
    text(
        "--stride",
        type=numeric("--stride", int, COUNT_OR_ZERO),
        metavar="TOKENS",
        help="step of the window; a smaller one gives each "
        "token more context and takes longer (default: the context, windows end to end)",
    )
    text(
        "--surprisal",
        type=path,
        metavar="FILE",
        help="text: write a table of document, word, place and nats of the word (default: none)",
    )
    task = parser.add_argument_group("tasks").add_argument
    task(
        "--task",
        metavar="NAME",
        help="score a fine-tuned run on --data: a labelled file of the task, or a folder with its "
        f"dev file; {', '.join(sorted(TASKS))}, or the run's own (default: perplexity)",
    )
    task(
        "--predict",
        action="store_true",
        help="label each line of stdin (fields between tabs) with a "
        "fine-tuned run; prints label, tab, line",
    )
    task(
        "--zero-shot",
        metavar="NAME",
        help="score a pre-trained run, as it is, on the task's folder or file --data: "
        f"{', '.join(ZERO_SHOT)} (default: perplexity)",
    )
    task(
        "--overlap",
        metavar="SHARDS",
        help="no run: how many examples of the sets below --data (default: tasks) have 13 words in "
        "a row with the training text of a shard directory; also kept as SHARDS/overlap.json, for "
        "reports (default: none)",
    )
    task(
        "--columns",
        nargs="+",
        default=[],
        metavar="NAME",
        help="with --zero-shot pairs: the columns of the acceptable and of the other sentence, and "
        "if there is one that of the group; with cloze: those of the context and of the last word "
        "(not used by others)",
    )
    task(
        "--sample",
        type=numeric("--sample", int, COUNT),
        metavar="N",
        help="with --zero-shot blimp or pairs: N pairs of each group, with lambada or cloze: N "
        "passages, the same ones each time (default: all)",
    )
    _add_fine_tuned(parser)
    return parser


def _add_fine_tuned(parser: argparse.ArgumentParser) -> None:
    """The options of fine-tuned runs."""
    option = parser.add_argument_group("fine-tuned runs").add_argument
    option(
        "--probabilities",
        action="store_true",
        help="with --task, --ensemble or --predict: a column for the probability of each class; of "
        "similarity scores the score, of words that of their tag",
    )
    option(
        "--with-text",
        action="store_true",
        help="with --task or --ensemble: a column for each text",
    )
    option(
        "--out",
        type=path,
        metavar="FILE",
        help="with --task or --ensemble: the table of predictions (default: "
        "RUN/evaluation-DATA.tsv with --probabilities or --with-text, else none); with a benchmark "
        "of --zero-shot: the log-probabilities of each example; with --overlap: the examples found",
    )
    option(
        "--ensemble",
        nargs="+",
        metavar="RUN",
        help="several runs of a task as one: the mean of their probabilities or scores; a suite's "
        "folder stands for its runs of --task (default: RUN alone)",
    )
    option(
        "--calibrate",
        action="store_true",
        help="fit one temperature for the probabilities on --data (default: the dev file of the "
        "run's task.data), and keep it in RUN/calibration.json",
    )
    option(
        "--uncalibrated",
        action="store_true",
        help="probabilities without the run's calibration.json",
    )


cli = command(main, __name__)
