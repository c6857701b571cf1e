"""The final numbers of a run, with their names, formatted for a report."""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from statistics import median
from typing import NamedTuple

from gpt1_ds.base.formatting import duration
from gpt1_ds.base.records import WALL_TIME_PARTS
from gpt1_ds.model.gpt import GPTConfig
from gpt1_ds.reports.checking import is_lost, is_number
from gpt1_ds.reports.run_files import RunFiles, with_number

Facts = dict[str, str]
LARGEST_NATS = 100
"""A larger loss is shown as the perplexity of this loss."""


class Last(NamedTuple):
    """A number that is taken from the last training record."""

    name: str
    key: str
    text: str


class Summary(NamedTuple):
    """A number that is computed from all training records."""

    name: str
    key: str
    combine: Callable[[Iterable[float]], float]
    unit: float
    text: str


LAST = (
    Last("steps", "step", "{:,}"),
    Last("tokens", "tokens", "{:,}"),
    Last("words seen", "words", "{:,}"),
    Last("epoch", "epoch", "{:.2f}"),
    Last("training loss", "loss", "{:.4f}"),
)
SUMMARIES = (
    Summary("tokens a second, median", "tokens_per_second", median, 1, "{:,.0f}"),
    Summary("FLOPs utilization, median", "mfu", median, 1, "{:.1%}"),
    Summary("host memory, most", "host_bytes", max, 1e9, "{:.2f} GB"),
    Summary("GPU memory, most", "device_bytes", max, 1e9, "{:.2f} GB"),
)


def facts_of(run: RunFiles) -> Facts:
    """All numbers of the run that its files contain."""
    return {
        **_state(run),
        **_training(run),
        **_validation(run),
        **_zero_shot(run),
        **_summaries(run),
        **_slowest(run),
        **_course(run),
        **_goodput(run),
        **_task(run),
        "seed": str(run.config.get("run", {}).get("seed", "unknown")),
    }


def _state(run: RunFiles) -> Facts:
    code = run.status.get("exit_code")
    state = str(run.status.get("state", "unknown"))
    facts = {"state": f"{state}, exit code {code}" if code else state}
    model = run.state.get("model")
    if model:
        try:
            shape = GPTConfig(**model)
            facts["parameters"] = f"{shape.parameters:,}"
            for record in with_number(run.train[-1:], "tokens"):
                facts["FLOPs spent"] = f"{shape.flops_per_token * record['tokens']:.3g}"
        except (TypeError, ArithmeticError) as error:
            run.lost.append(f"state.json: model is not one that this version knows ({error})")
    return facts


def _training(run: RunFiles) -> Facts:
    facts = {}
    for name, key, text in LAST:
        if with_number(run.train[-1:], key):
            facts[name] = text.format(run.train[-1][key])
    lost = [record for record in run.train if is_lost(record.get("loss"))]
    if lost:
        steps = f"{lost[0]['step']:,} to {lost[-1]['step']:,}"
        facts["losses that are no number"] = f"{len(lost):,} of {len(run.train):,}, steps {steps}"
    return facts


def _validation(run: RunFiles) -> Facts:
    facts = {}
    for corpus in run.corpora:
        losses = [record["loss"] for record in with_number(run.valid_of(corpus), "loss")]
        if losses:
            last, lowest = losses[-1], min(losses)
            perplexity = math.exp(min(last, LARGEST_NATS))
            better_before = f"; lowest {lowest:.4f}" if lowest < last else ""
            shown = f"{last:.4f} (perplexity {perplexity:,.1f}{better_before})"
            facts[f"validation loss, {corpus}"] = shown
    return facts


def _zero_shot(run: RunFiles) -> Facts:
    """The last score on each benchmark."""
    facts = {}
    for name, records in run.benchmarks().items():
        known = with_number(records, "accuracy")
        if not known:
            continue
        last = known[-1]
        shown = f"{100 * last['accuracy']:.1f}"
        if with_number([last], "standard_error"):
            shown += f" ± {100 * last['standard_error']:.1f}"
        if with_number([last], "perplexity"):
            shown += f" x 100, perplexity {last['perplexity']:,.1f}"
        else:
            shown += " x 100"
        facts[f"zero-shot {name}"] = f"{shown} at step {last['step']:,}"
    return facts


def _summaries(run: RunFiles) -> Facts:
    facts = {}
    for name, key, combine, unit, text in SUMMARIES:
        logged = with_number(run.train, key)
        if logged:
            facts[name] = text.format(combine(record[key] for record in logged) / unit)
    return facts


def _slowest(run: RunFiles) -> Facts:
    """The rank that is the slowest one in most lines, and by how much it is slower."""
    lines = with_number(with_number(run.train, "slowest_rank"), "slowest_ratio")
    if not lines:
        return {}
    places = [(int(line["slowest_rank"]), line.get("slowest_host")) for line in lines]
    rank, host = place = Counter(places).most_common(1)[0][0]
    ratios = [
        line["slowest_ratio"] for line, own in zip(lines, places, strict=True) if own == place
    ]
    share = len(ratios) / len(lines)
    text = f"{rank} ({host}), in {share:.0%} of all lines; {median(ratios):.2f} times the others"
    return {"slowest rank": text}


def _course(run: RunFiles) -> Facts:
    """The course of the run: time, starts, skipped steps and checkpoints."""
    skipped = with_number(run.train[-1:], "skipped_steps")
    skipped_steps = skipped[0]["skipped_steps"] if skipped else 0
    rolled_back = f"; {len(run.skipped)} rolled back" if run.skipped else ""
    facts = {
        "wall time": duration(run.seconds),
        "starts": str(len(run.starts)),
        "skipped steps": f"{skipped_steps}{rolled_back}",
    }
    if run.saves:
        megabytes = _median(run, "bytes") / 1e6
        stall_seconds = _median(run, "seconds")
        facts["checkpoints"] = (
            f"{len(run.saves)}; {megabytes:,.1f} MB, training stood {stall_seconds:.1f} s (medians)"
        )
    return facts


def wall_time_of(run: RunFiles) -> dict[str, float]:
    """Seconds of each part of the wall time, by status.json; empty if it has none."""
    found = run.status.get("wall_time")
    known = found if isinstance(found, dict) else {}
    return {
        part: float(known[part])
        for part in WALL_TIME_PARTS
        if is_number(known.get(part)) and known[part] >= 0
    }


def _goodput(run: RunFiles) -> Facts:
    """The share of the wall time that went into steps which no start had made before."""
    seconds = wall_time_of(run)
    total = sum(seconds.values())
    if not total or "new_steps" not in seconds:
        return {}
    share = seconds["new_steps"] / total
    return {"goodput": f"{share:.1%} new steps of {duration(total)} since the first start"}


def _median(run: RunFiles, key: str) -> float:
    """Of the checkpoints' records."""
    return median([save[key] for save in with_number(run.saves, key)] or [0])


def _task(run: RunFiles) -> Facts:
    """The result of fine-tuning."""
    result = run.result
    if "score" not in result:
        return {}
    examples = [f"{count:,} {split}" for split, count in result.get("examples", {}).items()]
    facts = {
        "task": result.get("task", "unknown"),
        "examples": ", ".join(examples),
    }
    if "majority" in result:
        facts["majority"] = f"{result['majority']:.4f}"
    facts["initial weights"] = result.get("init", "unknown")
    metrics = result.get("metrics") or {str(result.get("metric", "score")): result["score"]}
    splits = {"dev": metrics, **result.get("splits", {})}
    for split, scores in splits.items():
        facts |= {f"{split} {name}": f"{value:.4f}" for name, value in scores.items()}
    return facts
