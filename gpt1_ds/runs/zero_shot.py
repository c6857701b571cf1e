"""The benchmarks that a pre-training run scores as it goes on (`eval.zero_shot`).

They change nothing in the training: no random number is drawn, and no weight is written. The model
scores in its own precision, as it validates; `gpt1_ds.eval --zero-shot` scores in float32.
"""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

from gpt1_ds.base.errors import ConfigError, DataError, UserError, as_user_error
from gpt1_ds.data.tokenizer import Tokenizer
from gpt1_ds.distributed import collectives
from gpt1_ds.distributed.console import say
from gpt1_ds.model.likelihood import log_likelihoods
from gpt1_ds.runs.setup import Run
from gpt1_ds.runs.wall_time import VALIDATION
from gpt1_ds.settings.sections import EvalConfig, PretrainConfig
from gpt1_ds.tasks.benchmarks import Benchmark, open_benchmark

SPLIT = "zero_shot"
"""Of the records in metrics.jsonl; their `corpus` is the benchmark."""
PASSAGES_A_PAIR = 10
"""LAMBADA has one group, and BLiMP 67."""


def open_benchmarks(settings: EvalConfig, tokenizer: Tokenizer, n_ctx: int) -> list[Benchmark]:
    """The benchmarks of `eval.zero_shot`. All ranks call, and get the same or the same error."""
    if not settings.zero_shot:
        return []
    opened: list[Benchmark] = []
    fault = None
    try:
        for name in dict.fromkeys(settings.zero_shot):
            opened.append(_open(name, settings, tokenizer, n_ctx))
    except (UserError, OSError) as error:
        told_error = as_user_error(error)
        assert told_error is not None
        fault = [told_error.exit_code, f"eval.zero_shot_data: {told_error}"]
    told = [fault, _digest(opened)]
    faults = collectives.gather_json(told)
    for exit_code, text in (fault for fault, _ in faults if fault):
        raise (DataError if exit_code == DataError.exit_code else ConfigError)(text)
    if any(of_rank != faults[0] for of_rank in faults):
        raise DataError(
            f"eval.zero_shot_data {settings.zero_shot_data}: ranks see different files; give all "
            "nodes the same"
        )
    for benchmark in opened:
        for note in benchmark.notes:
            say(f"zero-shot {benchmark.name}: {note}")
    return opened


def _open(name: str, settings: EvalConfig, tokenizer: Tokenizer, n_ctx: int) -> Benchmark:
    wanted = settings.zero_shot_sample
    if wanted is not None and name == "lambada":
        wanted *= PASSAGES_A_PAIR
    return open_benchmark(name, Path(settings.zero_shot_data), tokenizer, n_ctx, wanted)


def _digest(benchmarks: Sequence[Benchmark]) -> str:
    digest = hashlib.sha256()
    for benchmark in benchmarks:
        for ids_T, scored in benchmark.queries:
            digest.update(ids_T.tobytes() + b"%d" % scored)
    return digest.hexdigest()


def zero_shot_due(config: PretrainConfig, step: int, total_steps: int) -> bool:
    every = config.eval.zero_shot_every or config.eval.every or total_steps
    return bool(config.eval.zero_shot) and (step % every == 0 or step >= total_steps)


def score_benchmarks(run: Run[PretrainConfig], benchmarks: Sequence[Benchmark], step: int) -> bool:
    """Log the scores of all benchmarks. All ranks call and share the work.

    False, and no record, if a stop request cut it short: the next start scores them.
    """
    engine = run.engine
    found = []
    with run.aside(VALIDATION):
        engine.eval()
        try:
            for benchmark in benchmarks:
                likelihoods = log_likelihoods(
                    engine,
                    benchmark.queries,
                    f"zero-shot {benchmark.name}",
                    benchmark.greedy,
                    # What a validation batch holds, so that memory suffices.
                    engine.train_micro_batch_size_per_gpu() * run.shape.n_ctx,
                    run.stop.agreed,
                )
                if likelihoods is None:
                    return False
                found.append(benchmark.metrics(likelihoods))
        finally:
            engine.train()
    for benchmark, values in zip(benchmarks, found, strict=True):
        rounded = {name: round(value, 6) for name, value in values.items()}
        finite = {name: value for name, value in rounded.items() if math.isfinite(value)}
        run.log.log(step, SPLIT, benchmark.name, **finite)
        say(f"step {step}: zero-shot {benchmark.name}, accuracy {shown(values)}")
    return True


def shown(values: dict[str, float]) -> str:
    """Accuracy with its error, and perplexity if there is one."""
    text = f"{100 * values['accuracy']:.1f} ± {100 * values['standard_error']:.1f} x 100"
    return f"{text}, perplexity {values['perplexity']:,.1f}" if "perplexity" in values else text
