"""Probabilities of classes, answers and tags from logits, and one temperature that calibrates them.

A temperature T divides the logits before the softmax (Guo et al. 2017). It changes no prediction
of a single run. The expected calibration error (ECE) is the mean distance between the probability
of a prediction and the share of right ones, over `BINS` bins of that probability. K classes.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gpt1_ds.base.errors import ConfigError
from gpt1_ds.tasks.base import Task
from gpt1_ds.tasks.examples import Encoded, Label
from gpt1_ds.tasks.similarity import ScoredSimilarity
from gpt1_ds.tasks.token_classification import OUTSIDE, TokenClassification

BINS = 15
TEMPERATURES = (0.05, 20.0)
"""The range in which a temperature is looked for."""


class Calibration(NamedTuple):
    """A temperature that was fitted, and the errors before and after, on the same labels."""

    temperature: float
    nll: tuple[float, float]
    """Mean negative log-likelihood of the labels."""
    ece: tuple[float, float]
    labels: int
    """Number of labels: of examples, or of words."""


def outcome(task: Task, logits: Sequence[Any], encoded: Encoded, temperature: float) -> np.ndarray:
    """The float64 probabilities of an example's classes or answers (K).

    For tags it has a row for each word (words, K). The row is NaN if the word has no sub-token. For
    a similarity score it is the score itself (1), without temperature.
    """
    if isinstance(task, ScoredSimilarity):
        return np.array([task.predict(list(logits), encoded)])
    if not isinstance(task, TokenClassification):
        return _softmax(np.array(logits, dtype=float), temperature)
    rows = np.full((len(logits), len(task.classes)), np.nan)
    for row, logits_of_word in zip(rows, logits, strict=True):
        if logits_of_word:
            row[:] = _softmax(np.array(logits_of_word), temperature)
    return rows


def label_of(task: Task, outcome: np.ndarray) -> Label:
    """The prediction: the most probable class or answer, the tag of each word, or the score."""
    if isinstance(task, ScoredSimilarity):
        return float(outcome[0])
    if isinstance(task, TokenClassification):
        known = ~np.isnan(outcome[:, 0])
        best = np.where(known[:, None], outcome, 0.0).argmax(1)
        return [
            task.classes[index] if is_known else OUTSIDE
            for index, is_known in zip(best, known, strict=True)
        ]
    return int(outcome.argmax())


def probability_columns(task: Task) -> list[str]:
    """Names of the columns that `probability_cells` fills."""
    if isinstance(task, ScoredSimilarity):
        return ["score"]
    return ["probability"] if isinstance(task, TokenClassification) else list(task.classes)


def probability_cells(task: Task, outcome: np.ndarray) -> list[str]:
    """The float32 probability of each class; the score; or that of the tag of each word."""
    if isinstance(task, TokenClassification):
        return [" ".join(str(np.float32(row.max())) for row in outcome)]
    return [str(value) for value in outcome.astype(np.float32)]


def calibrate(
    task: Task, logits: Sequence[Any], examples: Sequence[Encoded], gold: Sequence[Label]
) -> Calibration:
    """The temperature with the least negative log-likelihood of the `gold` labels.

    ConfigError for similarity scores, which have no classes.
    """
    from scipy.optimize import minimize_scalar

    if isinstance(task, ScoredSimilarity):
        raise ConfigError("--calibrate: similarity scores have no probabilities; leave it out")
    rows, labels = [], []
    for of_example, label in zip(logits, gold, strict=True):
        if isinstance(task, TokenClassification):
            for of_word, tag in zip(of_example, label, strict=True):
                if of_word:
                    rows.append(of_word)
                    labels.append(task.classes.index(tag))
        else:
            rows.append(of_example)
            labels.append(label)
    logits_NK, labels_N = np.array(rows, dtype=float), np.array(labels)

    def nll(log_temperature: float) -> float:
        return _nll(_softmax(logits_NK, np.exp(log_temperature)), labels_N)

    found = minimize_scalar(
        nll, bounds=tuple(np.log(TEMPERATURES)), method="bounded", options={"xatol": 1e-6}
    )
    temperature = float(np.exp(found.x))
    before, after = _softmax(logits_NK, 1.0), _softmax(logits_NK, temperature)
    return Calibration(
        temperature,
        (_nll(before, labels_N), _nll(after, labels_N)),
        (calibration_error(before, labels_N), calibration_error(after, labels_N)),
        len(labels_N),
    )


def calibration_error(probabilities_NK: np.ndarray, labels_N: np.ndarray) -> float:
    """The expected calibration error of the most probable classes."""
    confidence_N = probabilities_NK.max(1)
    is_right_N = probabilities_NK.argmax(1) == labels_N
    bin_N = np.minimum((confidence_N * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bin_N, weights=confidence_N - is_right_N, minlength=BINS)
    return float(np.abs(gaps).sum() / len(labels_N))


def _softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    scaled = logits / temperature
    powers = np.exp(scaled - scaled.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def _nll(probabilities_NK: np.ndarray, labels_N: np.ndarray) -> float:
    likelihoods_N = probabilities_NK[np.arange(len(labels_N)), labels_N]
    with np.errstate(divide="ignore"):
        return float(-np.log(likelihoods_N).mean())
