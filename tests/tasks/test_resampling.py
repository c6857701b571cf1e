"""The bootstrap of a task's metric, beside scikit-learn, SciPy and seqeval."""

import numpy as np
import pytest
from scipy import stats

from gpt1_ds.tasks.resampling import (
    FORMULAS,
    Answers,
    Measured,
    interval,
    p_value,
    resampled_scores,
    weighted_metric,
)
from gpt1_ds.tasks.scores import METRICS, task_metrics

TAGS = ("O", "B-PER", "I-PER", "B-LOC")


def labels_of(metric: str, random: np.random.Generator, size: int, n_classes: int) -> list:
    """Labels of the form that `metric` takes, many of them equal."""
    if metric in ("pearson", "spearman"):
        return random.integers(0, 11, size).astype(float).tolist()
    if metric == "entity_f1":
        return [tuple(random.choice(TAGS, 4).tolist()) for _ in range(size)]
    return random.integers(0, n_classes, size).tolist()


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("metric", FORMULAS)
def test_a_metric_of_counts_is_the_metric_of_the_examples_written_out(metric: str, n_classes: int):
    random = np.random.default_rng(7)
    gold, predicted = (labels_of(metric, random, 30, n_classes) for _ in range(2))
    counts = random.multinomial(30, np.full(30, 1 / 30), size=8)
    found = weighted_metric(Measured(metric, n_classes, gold), predicted, counts)
    for row, value in zip(counts, found, strict=True):
        drawn = np.repeat(np.arange(30), row)
        of_drawn = ([labels[place] for place in drawn] for labels in (gold, predicted))
        assert value == pytest.approx(task_metrics([metric], *of_drawn, n_classes)[metric])
    constant = [predicted[0]] * 30
    assert np.isfinite(weighted_metric(Measured(metric, n_classes, gold), constant, counts)).all()


def test_every_metric_has_a_formula():
    assert set(FORMULAS) == set(METRICS)


def test_one_seed_has_the_interval_of_scipys_bootstrap():
    random = np.random.default_rng(3)
    gold = random.integers(0, 2, 400)
    first = np.where(random.random(400) < 0.2, 1 - gold, gold)
    second = np.where(random.random(400) < 0.3, 1 - gold, gold)
    both = (("a", first), ("b", second))
    columns = {name: {1: Answers(gold.tolist(), found.tolist())} for name, found in both}
    scores = resampled_scores(Measured("accuracy", 2), columns, 8000)

    def oracle(statistic, *data):
        found = stats.bootstrap(
            data, statistic, paired=True, n_resamples=8000, method="percentile", rng=random
        )
        return tuple(found.confidence_interval)

    def accuracy(x, y, axis=-1):
        return (x == y).mean(axis=axis)

    def gain(x, y, z, axis=-1):
        return accuracy(x, z, axis) - accuracy(x, y, axis)

    assert interval(scores["a"]) == pytest.approx(oracle(accuracy, gold, first), abs=0.005)
    differences = scores["b"] - scores["a"]
    assert interval(differences) == pytest.approx(oracle(gain, gold, first, second), abs=0.005)
    # The exact test of the examples that only one of them has right, McNemar's.
    of_first = (first == gold)[first != second]
    exact = stats.binomtest(int(of_first.sum()), len(of_first)).pvalue
    assert p_value(differences) == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize("n_seeds", [2, 3, 5])
def test_the_spread_of_seeds_has_its_unbiased_variance(n_seeds: int):
    """All examples of a seed are alike here, so that the seeds alone vary."""
    gold = [0] * 50
    of_seeds = [Answers(gold, [0 if seed < n_seeds / 2 else 1] * 50) for seed in range(n_seeds)]
    columns = {"a": dict(enumerate(of_seeds))}
    scores = resampled_scores(Measured("accuracy", 2), columns, 20_000)["a"]
    rights = [float(seed < n_seeds / 2) for seed in range(n_seeds)]
    assert scores.mean() == pytest.approx(np.mean(rights), abs=0.02)
    assert scores.var() == pytest.approx(np.var(rights, ddof=1) / n_seeds, rel=0.05)


def test_intervals_hold_what_they_promise():
    """Of 200 experiments of five seeds each, some 95 % have the true score in their interval."""
    random = np.random.default_rng(11)
    held = noise = 0
    for _ in range(200):
        columns = {}
        for name in "ab":  # a hard and an easy half, and seeds that differ: the true score is .7
            right = np.clip(random.normal(0, 0.02, (5, 1)) + np.repeat([0.5, 0.9], 100), 0, 1)
            answers = random.random((5, 200)) < right
            of_seeds = [Answers([1] * 200, of_seed) for of_seed in answers.astype(int).tolist()]
            columns[name] = dict(enumerate(of_seeds))
        scores = resampled_scores(Measured("accuracy", 2), columns, 400)
        low, high = interval(scores["a"])
        held += low <= 0.7 <= high
        low, high = interval(scores["a"] - scores["b"])
        noise += low <= 0 <= high
    assert held >= 180 and noise >= 180
    assert interval(scores["a"] - scores["a"]) == (0, 0) and p_value(scores["a"] * 0) == 1.0


def test_draws_in_parts_are_those_of_one_draw(monkeypatch):
    random = np.random.default_rng(5)
    gold, predicted = (random.normal(size=40).tolist() for _ in range(2))
    measured = Measured("spearman", 1)
    columns = {"a": {1: Answers(gold, predicted), 2: Answers(gold, gold)}}
    whole = resampled_scores(measured, columns, 300)["a"]
    monkeypatch.setattr("gpt1_ds.tasks.resampling.CHUNK_CELLS", 1000)
    assert np.array_equal(whole, resampled_scores(measured, columns, 300)["a"])


def test_seeds_with_examples_of_their_own_are_paired_all_the_same():
    """Seed 1 is of hard examples, seed 2 of easy ones; b has three more right than a in each."""
    random = np.random.default_rng(9)
    columns: dict[str, dict[int, Answers]] = {"a": {}, "b": {}}
    for seed, right in ((1, 0.3), (2, 0.95)):
        gold = random.integers(0, 2, 300).tolist()
        first = np.where(random.random(300) < right, gold, 1 - np.array(gold))
        second = first.copy()
        wrong = np.flatnonzero(first != gold)[:3]
        second[wrong] = np.array(gold)[wrong]
        for name, found in (("a", first), ("b", second)):
            columns[name][seed] = Answers(gold, found.tolist())
    scores = resampled_scores(Measured("accuracy", 2), columns)
    low, high = interval(scores["b"] - scores["a"])
    assert 0 <= low < 0.01 < high < 0.03, "the seeds differ by 65 points, the columns by one"
    low, high = interval(scores["a"])
    assert low < 0.35 and high > 0.9
