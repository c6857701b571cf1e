"""Metrics of a task."""

import importlib
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

from gpt1_ds.base.errors import ConfigError, near
from gpt1_ds.distributed.console import say


def task_metrics(
    names: Sequence[str], gold: Sequence[Any], predicted: Sequence[Any]
) -> dict[str, float]:
    """Each named metric of `predicted` against `gold`: class indices, scores, or tags of words."""
    if unknown := next((name for name in names if name not in METRICS), None):
        raise ConfigError(f"task.metrics names '{unknown}'; {near(unknown, METRICS)}")
    return {name: _metric(name, gold, predicted) for name in names}


METRICS = {
    "accuracy": "sklearn.metrics.accuracy_score",
    "f1": "sklearn.metrics.f1_score",  # of class 1; of more than two classes the mean of their F1s
    "matthews": "sklearn.metrics.matthews_corrcoef",
    "pearson": "scipy.stats.pearsonr",
    "spearman": "scipy.stats.spearmanr",
    "entity_f1": "seqeval.metrics.f1_score",  # micro, of whole entities (kind and both ends), as conlleval counts them
}
CORRELATIONS = ("matthews", "pearson", "spearman")


def _metric(name: str, gold: Sequence[Any], predicted: Sequence[Any]) -> float:
    options: dict[str, Any] = {"zero_division": 0} if "f1" in name else {}
    if name == "f1":
        options["average"] = "binary" if max(*gold, *predicted) < 2 else "macro"
    if name == "entity_f1":
        gold, predicted = list(map(list, gold)), list(map(list, predicted))
    sides = {"labels": gold, "predictions": predicted} if name in CORRELATIONS else {}
    if constant := next((side for side, values in sides.items() if len(set(values)) < 2), None):
        say(f"warning: {name} is undefined where all {constant} are alike; it counts as 0")
        return 0.0
    module, _, function = METRICS[name].rpartition(".")
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # no entity at all, or one class alone: what is said of it here is enough
        value = getattr(importlib.import_module(module), function)(gold, predicted, **options)
    return float(getattr(value, "statistic", value))


def scores_by_part(
    names: Sequence[str],
    split: str,
    parts: Sequence[str],
    gold: Sequence[Any],
    predicted: Sequence[Any],
) -> dict[str, dict[str, float]]:
    """The metrics of each named part of a split alone, by SPLIT_PART."""
    scores = {}
    for part in sorted({part for part in parts if part}):
        mine, theirs = (
            [value for value, of in zip(side, parts, strict=True) if of == part]
            for side in (gold, predicted)
        )
        scores[f"{split}_{part}"] = task_metrics(names, mine, theirs)
    return scores


def majority_score(metric: str, train_gold: Sequence[Any], dev_gold: Sequence[Any]) -> float:
    """`metric` of the one answer that needs no text: the commonest label of the training set."""
    if metric in CORRELATIONS:
        return 0.0  # of a constant
    if isinstance(train_gold[0], tuple):
        commonest = Counter(tag for tags in train_gold for tag in tags).most_common(1)[0][0]
        constant: list[Any] = [[commonest] * len(tags) for tags in dev_gold]
    else:
        constant = [Counter(train_gold).most_common(1)[0][0]] * len(dev_gold)
    return task_metrics([metric], dev_gold, constant)[metric]


def confusion_matrix(
    classes: Sequence[str], gold: Sequence[Any], predicted: Sequence[Any]
) -> list[list[int]] | None:
    """Counts by label (rows) and prediction (columns) in the order of `classes`, of words for tags; None for scores."""
    from sklearn.metrics import confusion_matrix

    if isinstance(gold[0], float):
        return None
    if isinstance(gold[0], tuple):
        gold, predicted = (
            [classes.index(tag) for tags in side for tag in tags] for side in (gold, predicted)
        )
    return confusion_matrix(gold, predicted, labels=range(len(classes))).tolist()
