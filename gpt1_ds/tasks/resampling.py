"""The bootstrap of a task's metric over seeds and examples.

A resample draws the examples with replacement (Efron 1979), the same ones for every run, and of S
seeds S - 1 with replacement: the variance of the mean of so many draws is that of the mean of S
(Rao and Wu 1988), which S draws would understate, by a third for three seeds. One seed is always
drawn: then the interval is that of the examples alone. `scores.py` has the metrics of scikit-learn,
SciPy and seqeval; the formulas here are the same ones for examples that count several times.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import numpy as np

from gpt1_ds.tasks.examples import Label

RESAMPLES = 2000
SEED = 20180611
"""Of the draws: equal predictions give equal intervals."""
CHUNK_CELLS = 4_000_000
"""Largest number of counts of examples in memory, 32 MB of int64."""
CONFIDENCE = 0.95

Column = TypeVar("Column", bound=Hashable)
"""What names a column of a table."""


class Answers(NamedTuple):
    """The labels of a run's examples, and its predictions."""

    gold: Sequence[Label]
    predicted: Sequence[Label]


OfSeeds = Mapping[int, Answers]
"""The runs of one column, by seed."""


@dataclass(frozen=True)
class Measured:
    """A metric, and the labels of the examples that it is of."""

    metric: str
    n_classes: int
    gold: Sequence[Label] = ()


def resampled_scores(
    measured: Measured, columns: Mapping[Column, OfSeeds], resamples: int = RESAMPLES
) -> dict[Column, np.ndarray]:
    """For each column its scores in `resamples` resamples: the means over the seeds drawn.

    Columns of the same seeds draw the same seeds, and runs with the same labels the same examples,
    so that differences of columns are paired by both.
    """
    random = np.random.default_rng(SEED)
    seeds_of = {name: tuple(sorted(column)) for name, column in columns.items()}
    drawn = {
        seeds: random.integers(len(seeds), size=(resamples, max(1, len(seeds) - 1)))
        for seeds in sorted(set(seeds_of.values()))
    }
    together: dict[tuple[Label, ...], dict[tuple[Column, int], Sequence[Label]]] = {}
    for name, column in columns.items():
        for seed, answers in column.items():
            together.setdefault(tuple(answers.gold), {})[name, seed] = answers.predicted
    by_run: dict[tuple[Column, int], np.ndarray] = {}
    for gold, runs in together.items():
        of_gold = replace(measured, gold=gold)
        found = _of_examples(of_gold, list(runs.values()), resamples, random)
        by_run |= zip(runs, found, strict=True)
    scores = {}
    for name, seeds in seeds_of.items():
        of_seeds = np.stack([by_run[name, seed] for seed in seeds], axis=1)
        scores[name] = np.take_along_axis(of_seeds, drawn[seeds], axis=1).mean(axis=1)
    return scores


def _of_examples(
    measured: Measured,
    runs: Sequence[Sequence[Label]],
    resamples: int,
    random: np.random.Generator,
) -> list[np.ndarray]:
    """The scores of each of the `runs`, predictions of the same examples, in all resamples.

    Examples that no label and no prediction tells apart are drawn together: of 40,000 examples of
    two classes few differ.
    """
    times = Counter(zip(measured.gold, *runs, strict=True))
    gold, *predictions = zip(*times, strict=True)
    shares = np.array(list(times.values())) / times.total()
    of_cases = replace(measured, gold=gold)
    parts: list[list[np.ndarray]] = [[] for _ in runs]
    step = max(1, CHUNK_CELLS // len(times))
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        counts = random.multinomial(times.total(), shares, size=size)
        for part, predicted in zip(parts, predictions, strict=True):
            part.append(weighted_metric(of_cases, predicted, counts))
    return [np.concatenate(part) for part in parts]


def interval(scores: np.ndarray) -> tuple[float, float]:
    """The percentile interval of `CONFIDENCE`."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(scores, (tail, 1 - tail))
    return float(low), float(high)


def p_value(differences: np.ndarray) -> float:
    """Two-sided, of the hypothesis that there is no difference; at least 2 / (resamples + 1)."""
    beyond = min((differences <= 0).sum(), (differences >= 0).sum())
    return float(min(1.0, 2 * (1 + beyond) / (len(differences) + 1)))


def weighted_metric(
    measured: Measured, predicted: Sequence[Label], counts: np.ndarray
) -> np.ndarray:
    """The metric (B) of P examples that count as often as each row of `counts` (B, P) says.

    Where a metric is undefined it is 0, as in `scores.task_metrics`.
    """
    return FORMULAS[measured.metric](measured, predicted, counts)


def _accuracy(measured: Measured, predicted: Sequence[Label], counts: np.ndarray) -> np.ndarray:
    right = np.array([a == b for a, b in zip(measured.gold, predicted, strict=True)])
    return counts @ right / counts.sum(axis=1)


def _classes(measured: Measured, predicted: Sequence[Label]) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predictions one-hot, (P, classes)."""
    eye = np.eye(measured.n_classes, dtype=np.int64)
    return eye[np.array(measured.gold)], eye[np.array(predicted)]


def _f1(measured: Measured, predicted: Sequence[Label], counts: np.ndarray) -> np.ndarray:
    gold, found = _classes(measured, predicted)
    both, either = counts @ (gold * found), counts @ (gold + found)
    of_classes = _ratio(2 * both, either)
    return of_classes[:, 1] if measured.n_classes <= 2 else of_classes.mean(axis=1)


def _matthews(measured: Measured, predicted: Sequence[Label], counts: np.ndarray) -> np.ndarray:
    """For several classes by Gorodkin 2004, as scikit-learn."""
    gold, found = _classes(measured, predicted)
    total, right = counts.sum(axis=1), counts @ (gold * found).sum(axis=1)
    of_gold, of_found = counts @ gold, counts @ found
    over = right * total - (of_gold * of_found).sum(axis=1)
    spread = [total**2 - (part**2).sum(axis=1) for part in (of_gold, of_found)]
    return _ratio(over, np.sqrt(spread[0].astype(float)) * np.sqrt(spread[1].astype(float)))


def _pearson(measured: Measured, predicted: Sequence[Label], counts: np.ndarray) -> np.ndarray:
    shape = counts.shape
    gold, found = (np.array(values, dtype=float) for values in (measured.gold, predicted))
    return _correlation(np.broadcast_to(gold, shape), np.broadcast_to(found, shape), counts)


def _spearman(measured: Measured, predicted: Sequence[Label], counts: np.ndarray) -> np.ndarray:
    return _correlation(_ranks(measured.gold, counts), _ranks(predicted, counts), counts)


def _ranks(values: Sequence[Label], counts: np.ndarray) -> np.ndarray:
    """Ranks (B, P) of values that occur so often; equal ones share their mean rank."""
    different, group = np.unique(np.array(values, dtype=float), return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(len(different)))
    of_group = np.add.reduceat(counts[:, order], starts, axis=1)
    return (np.cumsum(of_group, axis=1) - (of_group - 1) / 2)[:, group]


def _correlation(first: np.ndarray, second: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Pearson's correlation of each row; (B, P) each."""
    total = counts.sum(axis=1, keepdims=True)
    centred = [
        part - (counts * part).sum(axis=1, keepdims=True) / total for part in (first, second)
    ]
    squares = [(counts * part**2).sum(axis=1) for part in centred]
    return _ratio((counts * centred[0] * centred[1]).sum(axis=1), np.sqrt(squares[0] * squares[1]))


def _entity_f1(measured: Measured, predicted: Sequence[Label], counts: np.ndarray) -> np.ndarray:
    from seqeval.metrics.sequence_labeling import get_entities

    rows = []
    for gold, found in zip(measured.gold, predicted, strict=True):
        in_gold, in_found = set(get_entities(list(gold))), set(get_entities(list(found)))
        rows.append((2 * len(in_gold & in_found), len(in_gold) + len(in_found)))
    both, either = (counts @ np.array(rows)).T
    return _ratio(both, either)


def _ratio(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    return np.divide(over, under, out=np.zeros(under.shape), where=under > 0)


Formula = Callable[[Measured, Sequence[Label], np.ndarray], np.ndarray]
FORMULAS: dict[str, Formula] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
    "entity_f1": _entity_f1,
}
