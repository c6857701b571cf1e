"""Scores: validation loss of the language model, and the metrics of the tasks by scikit-learn, SciPy and seqeval.

Those are imported where they are used: together they take seconds, which pre-training need not wait for.
"""

import importlib
import math
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from gpt1_ds import distributed
from gpt1_ds.errors import ConfigError, near
from gpt1_ds.kernels import IGNORE
from gpt1_ds.metrics import progress_bar
from gpt1_ds.model import GPT
from gpt1_ds.shards import TokenStream


def task_metrics(names: Sequence[str], gold: Sequence[Any], predicted: Sequence[Any]) -> dict[str, float]:
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
        distributed.say(f"warning: {name} is undefined where all {constant} are alike; it counts as 0")
        return 0.0
    module, _, function = METRICS[name].rpartition(".")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no entity at all, or one class alone: what is said of it here is enough
        value = getattr(importlib.import_module(module), function)(gold, predicted, **options)
    return float(getattr(value, "statistic", value))


def scores_by_part(
    names: Sequence[str], split: str, parts: Sequence[str], gold: Sequence[Any], predicted: Sequence[Any]
) -> dict[str, dict[str, float]]:
    """The metrics of each named part of a split alone, by SPLIT_PART."""
    scores = {}
    for part in sorted({part for part in parts if part}):
        mine, theirs = ([value for value, of in zip(side, parts, strict=True) if of == part]
                        for side in (gold, predicted))  # fmt: skip
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


def confusion(classes: Sequence[str], gold: Sequence[Any], predicted: Sequence[Any]) -> list[list[int]] | None:
    """Counts by label (rows) and prediction (columns) in the order of `classes`, of words for tags; None for scores."""
    from sklearn.metrics import confusion_matrix

    if isinstance(gold[0], float):
        return None
    if isinstance(gold[0], tuple):
        gold, predicted = ([classes.index(tag) for tags in side for tag in tags] for side in (gold, predicted))
    return confusion_matrix(gold, predicted, labels=range(len(classes))).tolist()


def confusion_figure(classes: Sequence[str], counts: Sequence[Sequence[int]]):
    """A matplotlib figure of a confusion matrix; the color is the share of the row's label."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2 + 0.5 * len(classes), 1.5 + 0.5 * len(classes)), layout="constrained")
    axes, counts = figure.subplots(), np.asarray(counts)
    axes.imshow(counts / np.maximum(counts.sum(1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="label")
    axes.set_xticks(range(len(classes)), classes, rotation=90)
    axes.set_yticks(range(len(classes)), classes)
    for (row, column), count in np.ndenumerate(counts):
        dark = count > 0.5 * counts[row].sum()
        axes.text(column, row, count, ha="center", va="center", color="white" if dark else "black")
    return figure


@torch.no_grad()
def validation_loss(
    engine,
    stream: TokenStream,
    n_ctx: int,
    global_batch: int,
    batches: int | None,
    stopping: Callable[[], bool] = lambda: False,
) -> float | None:
    """Mean negative log-likelihood, nats a token, over `batches` global batches of the stream (None: all of it).

    Windows of `n_ctx` targets lie end to end, evenly spread where not all are taken; a target sees the tokens before it
    in its own window. Every rank runs as many forwards, as ZeRO-3 needs; what is past the end is not counted. None
    where `stopping`, which all ranks ask before each global batch and get one answer, cut it short.
    """
    micro_batch = engine.train_micro_batch_size_per_gpu()
    share = global_batch // distributed.world_size()
    windows = -(-(stream.tokens - 1) // n_ctx)
    taken = windows if batches is None else min(windows, batches * global_batch)
    total = torch.zeros(2, dtype=torch.float64)
    engine.eval()
    for first in range(distributed.rank() * share, -(-taken // global_batch) * global_batch, global_batch):
        if stopping():
            engine.train()
            return None
        for micro in range(first, first + share, micro_batch):
            number_B = np.arange(micro, micro + micro_batch)
            ids_BT, targets_BT = validation_windows(stream, n_ctx, number_B * windows // taken)
            targets_BT[torch.from_numpy(number_B) >= taken] = IGNORE
            _, nll_BT = engine(ids_BT.to(engine.device), targets_BT.to(engine.device))
            total += torch.stack([nll_BT.double().sum().cpu(), (targets_BT != IGNORE).double().sum()])
    engine.train()
    nll, tokens = distributed.all_sum(total).tolist()
    return nll / tokens


def validation_windows(stream: TokenStream, n_ctx: int, windows_B: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets (B, n_ctx) of the given windows; targets past the end of the stream are `IGNORE`."""
    starts_B = windows_B * n_ctx
    ids_BT = torch.from_numpy(stream.read(starts_B, n_ctx + 1))
    targets_BT = ids_BT[:, 1:].clone()
    targets_BT[torch.from_numpy(starts_B)[:, None] + torch.arange(1, n_ctx + 1) >= stream.tokens] = IGNORE
    return ids_BT[:, :-1], targets_BT


@torch.inference_mode()
def token_nll(
    model: GPT, documents: Sequence[np.ndarray], stride: int, name: str, batch_tokens: int = 8192
) -> np.ndarray:
    """Nats of each token, float32, document after document; a document's first token is context only.

    A window is `n_ctx` tokens and their targets, or fewer where the document is shorter. The first scores all of its
    targets, each later one the `stride` (1 to n_ctx) after those scored; the last reaches back to be full: the rolling
    windows of lm-evaluation-harness, where the stride is n_ctx.
    """
    n_ctx, device = model.config.n_ctx, model.wte.device
    windows, place = [], 0
    for ids_T in documents:
        done = 0
        while done < len(ids_T) - 1:
            end = min(done + (stride if done else n_ctx), len(ids_T) - 1)
            windows.append((ids_T[max(0, end - n_ctx) : end + 1], end - done, place))
            done, place = end, place + end - done
    windows.sort(key=lambda window: -len(window[0]))  # of like length in a batch: little padding
    nll_T = np.empty(place, np.float32)
    first = 0
    with progress_bar(place, 0, "token", name) as bar:
        while first < len(windows):
            T = len(windows[first][0]) - 1
            batch = windows[first : first + max(1, batch_tokens // T)]
            ids_BT = torch.zeros(len(batch), T, dtype=torch.int64)
            targets_BT = torch.full_like(ids_BT, IGNORE)
            for row, (ids, scored, _) in enumerate(batch):
                ids_BT[row, : len(ids) - 1] = torch.from_numpy(ids[:-1])
                targets_BT[row, len(ids) - 1 - scored : len(ids) - 1] = torch.from_numpy(ids[-scored:])
            nll_BT = model(ids_BT.to(device), targets_BT.to(device))[1].cpu().numpy()
            for row_T, (ids, scored, place) in zip(nll_BT, batch, strict=True):
                nll_T[place : place + scored] = row_T[len(ids) - 1 - scored : len(ids) - 1]
            first += len(batch)
            bar.update(sum(scored for _, scored, _ in batch))
    return nll_T


def sum_and_error(nll_T: np.ndarray, documents: Sequence[np.ndarray], n_ctx: int) -> tuple[float, float]:
    """The sum of `token_nll`, and its standard error (NaN of one run alone), the number of tokens taken as given: the
    independent draws are runs of n_ctx tokens of one document, whatever windows have scored them."""
    ends_D = np.cumsum([len(ids_T) - 1 for ids_T in documents])
    starts_R = np.concatenate([np.arange(a, b, n_ctx) for a, b in zip([0, *ends_D[:-1]], ends_D, strict=True)])
    sums_R = np.add.reduceat(nll_T.astype(np.float64), starts_R)
    tokens_R = np.diff(starts_R, append=len(nll_T))
    total, runs = float(sums_R.sum()), len(starts_R)
    residual = float(((sums_R - tokens_R * total / len(nll_T)) ** 2).sum())
    return total, math.sqrt(residual * runs / (runs - 1)) if runs > 1 else math.nan
