"""Metrics of a task, computed by scikit-learn, scipy and seqeval.

The definition of a metric depends on the task and not on the labels that occur in the data.
"""

import importlib
import math
import warnings
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import Any

from gpt1_ds.base.errors import ConfigError, near
from gpt1_ds.distributed.console import say
from gpt1_ds.tasks.examples import Label

METRICS = {
    "accuracy": "sklearn.metrics.accuracy_score",
    # For two classes the F1 of class 1; for more classes the mean of the F1 of all of them.
    "f1": "sklearn.metrics.f1_score",
    "matthews": "sklearn.metrics.matthews_corrcoef",
    "pearson": "scipy.stats.pearsonr",
    "spearman": "scipy.stats.spearmanr",
    # Micro-averaged over whole entities (type and both ends), as in conlleval.
    "entity_f1": "seqeval.metrics.f1_score",
}
CORRELATIONS = ("matthews", "pearson", "spearman")


def refuse_unknown_metric(names: Sequence[str]) -> None:
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise ConfigError(f"task.metrics names '{unknown[0]}'; {near(unknown[0], METRICS)}")


def task_metrics(
    names: Sequence[str],
    gold: Sequence[Label],
    predicted: Sequence[Label],
    n_classes: int | None = None,
) -> dict[str, float]:
    """The named metrics of `predicted` against `gold`: class indices, scores, or word tags.

    `n_classes` is the task's number of classes, for f1; None: those that occur.
    """
    refuse_unknown_metric(names)
    return {name: _metric(name, gold, predicted, n_classes) for name in names}


def _metric(
    name: str, gold: Sequence[Label], predicted: Sequence[Label], n_classes: int | None
) -> float:
    if name in CORRELATIONS:
        for side, values in (("labels", gold), ("predictions", predicted)):
            if len(set(values)) < 2:
                say(f"warning: {name} is undefined where all {side} are alike; it counts as 0")
                return 0.0
    options: dict[str, Any] = {}
    if name in ("f1", "entity_f1"):
        options["zero_division"] = 0
    if name == "f1":
        is_binary = (n_classes or max(*gold, *predicted) + 1) <= 2
        options["average"] = "binary" if is_binary else "macro"
        options["labels"] = None if is_binary or n_classes is None else range(n_classes)
    if name == "entity_f1":
        gold, predicted = list(map(list, gold)), list(map(list, predicted))
    module, _, function = METRICS[name].rpartition(".")
    with warnings.catch_warnings():
        # The libraries warn if there is no entity at all or only one class. The score shows it.
        warnings.simplefilter("ignore")
        value = getattr(importlib.import_module(module), function)(gold, predicted, **options)
    value = float(getattr(value, "statistic", value))
    if not math.isfinite(value):
        say(f"warning: {name} is undefined for these predictions; it counts as 0")
        return 0.0
    return value


def scores_by_part(
    names: Sequence[str],
    split: str,
    parts: Sequence[str],
    gold: Sequence[Label],
    predicted: Sequence[Label],
    n_classes: int | None = None,
) -> dict[str, dict[str, float]]:
    """The metrics of each named part of a split, under the name SPLIT_PART."""
    scores = {}
    for part in sorted(set(parts) - {""}):
        indices = [index for index, of_example in enumerate(parts) if of_example == part]
        gold_of_part = [gold[index] for index in indices]
        predicted_of_part = [predicted[index] for index in indices]
        scores[f"{split}_{part}"] = task_metrics(names, gold_of_part, predicted_of_part, n_classes)
    return scores


def majority_score(
    metric: str,
    train_gold: Sequence[Label],
    dev_gold: Sequence[Label],
    n_classes: int | None = None,
) -> float:
    """`metric` if every example gets the most common label of the training set."""
    if metric in CORRELATIONS:
        return 0.0  # a constant has no correlation
    constant: list[Label]
    if isinstance(train_gold[0], tuple):
        commonest = _most_common(list(chain.from_iterable(train_gold)))
        constant = [[commonest] * len(tags) for tags in dev_gold]
    else:
        constant = [_most_common(train_gold)] * len(dev_gold)
    return task_metrics([metric], dev_gold, constant, n_classes)[metric]


def _most_common(labels: Sequence[Label]) -> Label:
    return Counter(labels).most_common(1)[0][0]


def confusion_matrix(
    classes: Sequence[str], gold: Sequence[Label], predicted: Sequence[Label]
) -> list[list[int]] | None:
    """Counts by label (rows) and prediction (columns), in the order of `classes`.

    For tags, it counts words. For scores, the result is None.
    """
    from sklearn import metrics

    if isinstance(gold[0], float):
        return None
    if isinstance(gold[0], tuple):
        gold = [classes.index(tag) for tag in chain.from_iterable(gold)]
        predicted = [classes.index(tag) for tag in chain.from_iterable(predicted)]
    return metrics.confusion_matrix(gold, predicted, labels=range(len(classes))).tolist()
