"""A pre-trained run as it is, on benchmarks and on tasks: for `eval` and for `suite`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from gpt1_ds.base.errors import ConfigError, near
from gpt1_ds.base.files import write_atomically
from gpt1_ds.data.tokenizer import Tokenizer
from gpt1_ds.distributed import collectives
from gpt1_ds.distributed.console import say
from gpt1_ds.model.gpt import GPT
from gpt1_ds.model.likelihood import Likelihoods, log_likelihoods
from gpt1_ds.runs.task_scoring import print_scores
from gpt1_ds.runs.trained import load_gpt, run_tokenizer, title_of
from gpt1_ds.tasks.benchmarks import BENCHMARKS, OWN, Benchmark, open_benchmark
from gpt1_ds.tasks.scores import majority_score, scores_by_part, task_metrics
from gpt1_ds.tasks.zero_shot import ZERO_SHOT_METRICS, zero_shot

ZERO_SHOT = (*ZERO_SHOT_METRICS, *BENCHMARKS)
"""The names of `eval --zero-shot`."""
OF_BENCHMARKS = ("columns", "sample", "out")
"""The options of eval that only benchmarks take."""


def score_zero_shot(run: str, name: str, data: Path, average: int | None = None) -> None:
    """Print the metrics of a pre-trained run on a task, without fine-tuning."""
    model, state, folder = load_gpt(run, average)
    model.to(collectives.device())
    answers = zero_shot(model, run_tokenizer(folder, state), name, data)
    gold, metrics = answers.gold, ZERO_SHOT_METRICS[name]
    scores = task_metrics(metrics, gold, answers.predicted)
    scores["majority"] = majority_score(metrics[0], gold, gold)
    print_scores(f"{title_of(folder, average)} on {data}, zero-shot", scores, len(gold))
    by_part = scores_by_part(metrics, "", answers.parts, gold, answers.predicted)
    for part, of_part in by_part.items():
        part = part.removeprefix("_")
        print_scores(f"  {part}", of_part, answers.parts.count(part))
    if answers.note:
        print(f"  {answers.note}")


class Score(NamedTuple):
    metric: str
    score: float
    majority: float
    """The score without a model."""


@dataclass(frozen=True)
class AskedBenchmark:
    """What a user asks of a benchmark."""

    run: str
    name: str
    data: Path
    columns: Sequence[str] = ()
    sample: int | None = None
    out: Path | None = None
    average: int | None = None

    def check(self) -> None:
        """ConfigError for an unknown name, and for options that do not go with it."""
        if self.name not in ZERO_SHOT:
            raise ConfigError(f"--zero-shot {self.name}: {near(self.name, ZERO_SHOT)}")
        for option in OF_BENCHMARKS:
            of_own = option == "columns" and self.name not in OWN
            if getattr(self, option) and (of_own or self.name not in BENCHMARKS):
                takers = ", ".join(OWN if option == "columns" else BENCHMARKS)
                raise ConfigError(
                    f"--{option} does not go with --zero-shot {self.name}; it is for {takers}"
                )


def score_benchmark(asked: AskedBenchmark) -> None:
    """Print the scores of a pre-trained run on a benchmark; `asked.out` gets each example's."""
    model, state, folder = load_gpt(asked.run, asked.average)
    model.to(collectives.device())
    benchmark = open_benchmark(
        asked.name,
        asked.data,
        run_tokenizer(folder, state),
        model.config.n_ctx,
        asked.sample,
        asked.columns,
    )
    found = _likelihoods(model, benchmark)
    counted = {name: f"{value:,}" for name, value in benchmark.counts(found).items()}
    listed = ", ".join(f"{value} {name}" for name, value in counted.items())
    name = title_of(folder.name, asked.average)
    print(f"{name} on {asked.data}, zero-shot {asked.name}: {listed}")
    for line in [*benchmark.report(found), *benchmark.notes]:
        print(f"  {line}")
    if asked.out:
        write_atomically(asked.out, benchmark.table(found))
        print(f"{asked.out}: the log-probabilities of each example")


def zero_shot_score(
    model: GPT, tokenizer: Tokenizer, task: str, data: Path, sample: int | None = None
) -> Score:
    """The score of a checkpoint on a task or benchmark; what is left out is printed.

    `sample`: pairs of each group or passages of a benchmark; None: all.
    """
    if task in BENCHMARKS:
        benchmark = open_benchmark(task, data, tokenizer, model.config.n_ctx, sample)
        for note in benchmark.notes:
            say(f"zero-shot {task}: {note}")
        accuracy = benchmark.metrics(_likelihoods(model, benchmark))["accuracy"]
        return Score("accuracy", accuracy, benchmark.majority)
    answers = zero_shot(model, tokenizer, task, data)
    metric = ZERO_SHOT_METRICS[task][0]
    score = task_metrics([metric], answers.gold, answers.predicted)[metric]
    return Score(metric, score, majority_score(metric, answers.gold, answers.gold))


def _likelihoods(model: GPT, benchmark: Benchmark) -> Likelihoods:
    found = log_likelihoods(model, benchmark.queries, benchmark.name, benchmark.greedy)
    assert found is not None, "nobody asks it to stop"
    return found
