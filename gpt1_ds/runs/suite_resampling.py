"""The bootstrap of a suite's scores, from the predictions that its runs wrote."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from statistics import mean, stdev

import numpy as np

from gpt1_ds.base.errors import DataError
from gpt1_ds.base.protocols import Json
from gpt1_ds.reports.suite_files import RUN_NAME, VARIANTS, RunKind, best_points, collect
from gpt1_ds.reports.suite_noise import ColumnScore, Difference, Resampled
from gpt1_ds.runs.predictions import read_predictions
from gpt1_ds.tasks.examples import Label
from gpt1_ds.tasks.resampling import (
    Answers,
    Measured,
    interval,
    p_value,
    resampled_scores,
    weighted_metric,
)

SCORES = ("pearson", "spearman")
"""Metrics of labels that are numbers."""
ROUNDING = {"pearson": 2e-3, "spearman": 2e-3}
"""Predicted numbers are written with three digits; other predictions as they are."""


Scores = Mapping[RunKind, np.ndarray]
"""The scores of each column in all resamples."""


@dataclass
class Row:
    """The runs of one task and split."""

    measured: Measured
    columns: dict[RunKind, dict[int, Answers]] = field(default_factory=dict)
    scores: dict[RunKind, list[float]] = field(default_factory=dict)


def resample_suite(out: Path, failures: Iterable[str]) -> Resampled:
    """Means with their intervals, and differences of the columns, of the suite in `out`."""
    lost: list[str] = []
    rows: dict[str, Row] = {}
    collected = collect(out, failures, [])
    best = best_points(collected)
    for kind, runs in collected.items():
        for name, result in zip(runs.names, runs.results, strict=True):
            for split in ("dev", *result.get("splits", ())):
                title = kind.task if split == "dev" else f"{kind.task} {split}"
                _add(rows, title, (kind, out / name, split, result), lost)
    scores: list[ColumnScore] = []
    differences: list[Difference] = []
    for name, row in rows.items():
        resampled = resampled_scores(row.measured, row.columns)
        scores += _scores(name, row, resampled, best)
        differences += _differences(name, row, resampled, best)
    return Resampled(scores, differences, lost)


def _add(
    rows: dict[str, Row], name: str, of_run: tuple[RunKind, Path, str, Json], lost: list[str]
) -> None:
    """Add a run's predictions to the row `name`; a run that cannot be is told in `lost`."""
    kind, folder, split, result = of_run
    path = folder / f"predictions-{split}.tsv"
    if split != "dev" and not path.exists():
        return  # a part of dev, or a split without a table
    try:
        measured, answers, score = _answers(path, split, result)
    except (DataError, OSError, ValueError, IndexError, KeyError, TypeError) as error:
        lost.append(f"{folder.name}/{path.name}: no interval ({_reason(error)})")
        return
    row = rows.setdefault(name, Row(measured))
    if row.measured != measured:
        lost.append(f"{folder.name}/{path.name}: has another metric or other classes; left out")
        return
    seed = RUN_NAME.fullmatch(folder.name)
    assert seed is not None, "collect takes no other names"
    row.columns.setdefault(kind, {})[int(seed["seed"])] = answers
    row.scores.setdefault(kind, []).append(score)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or "cannot be read"
    return str(error) if isinstance(error, DataError) else f"cannot be read: {error!r}"


def _answers(path: Path, split: str, result: Json) -> tuple[Measured, Answers, float]:
    """The metric, the predictions of a file and their score by result.json.

    Raises DataError if the file does not have the predictions of the result.
    """
    metric = result["metric"]
    score = result["score"] if split == "dev" else result["splits"][split][metric]
    confusion = result.get("confusion")
    if confusion is None and metric not in SCORES:
        raise DataError("result.json has no confusion, and so no classes")
    classes: Sequence[str] = confusion["classes"] if confusion else ()
    columns = []
    for texts in read_predictions(path):
        columns.append([_label(text, metric, classes) for text in texts])
    answers = Answers(*columns)
    measured = Measured(metric, len(classes))
    once = np.ones((1, len(answers.gold)), dtype=int)
    of_file = replace(measured, gold=answers.gold)
    (found,) = weighted_metric(of_file, answers.predicted, once).tolist()
    if not abs(found - score) <= ROUNDING.get(metric, 1e-6):
        raise DataError(f"{metric} of the file is {found:.4f}, but of result.json {score:.4f}")
    return measured, answers, score


def _label(text: str, metric: str, classes: Sequence[str]) -> Label:
    """The label that `Task.show` wrote, in a form that can be a key."""
    if metric in SCORES:
        return float(text)
    return tuple(text.split(" ")) if metric == "entity_f1" else classes.index(text)


def _title(kind: RunKind) -> str:
    title = VARIANTS.get(kind.variant, kind.variant)
    return f"{title}, {kind.point}" if kind.point else title


def _in_order(row: Row) -> list[RunKind]:
    """The columns, those of the paper first."""
    variants = list(dict.fromkeys((*VARIANTS, *(kind.variant for kind in row.columns))))
    return sorted(row.columns, key=lambda kind: variants.index(kind.variant))


def _scores(name: str, row: Row, resampled: Scores, best: list[RunKind]) -> Iterator[ColumnScore]:
    for kind in _in_order(row):
        values = row.scores[kind]
        yield ColumnScore(
            name,
            _title(kind),
            len(values),
            mean(values),
            stdev(values) if len(values) > 1 else None,
            interval(resampled[kind]),
            bool(kind.point) and kind in best,
        )


def _differences(
    name: str, row: Row, resampled: Scores, best: list[RunKind]
) -> Iterator[Difference]:
    """Of the best points each pair of the paper's variants, and each other one with the first.

    Besides each best point with the others of its grid.
    """
    columns = _in_order(row)
    chosen = [kind for kind in columns if kind in best]
    pairs = []
    for first, second in combinations(chosen, 2):
        if first == chosen[0] or second.variant in VARIANTS:
            pairs.append((first, second))
    for kind in chosen:
        grid = [other for other in columns if other.variant == kind.variant and other != kind]
        pairs += [(kind, other) for other in grid]
    for first, second in pairs:
        values = resampled[first] - resampled[second]
        yield Difference(
            name,
            _title(first),
            _title(second),
            (len(row.scores[first]), len(row.scores[second])),
            mean(row.scores[first]) - mean(row.scores[second]),
            interval(values),
            p_value(values),
        )
