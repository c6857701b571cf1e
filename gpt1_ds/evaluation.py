"""Scores: validation loss of the language model, and the metrics of the tasks by scikit-learn, SciPy and seqeval.

Those are imported where they are used: together they take seconds, which pre-training need not wait for.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from gpt1_ds import distributed
from gpt1_ds.kernels import IGNORE
from gpt1_ds.shards import TokenStream

Score = Callable[[Sequence[Any], Sequence[Any]], float]  # (gold, predicted)


def _accuracy(gold: Sequence[int], predicted: Sequence[int]) -> float:
    from sklearn.metrics import accuracy_score

    return accuracy_score(gold, predicted)


def _f1(gold: Sequence[int], predicted: Sequence[int]) -> float:
    """Of class 1; 0 where it is neither there nor predicted."""
    from sklearn.metrics import f1_score

    return f1_score(gold, predicted, average="binary", pos_label=1, zero_division=0.0)


def _matthews(gold: Sequence[int], predicted: Sequence[int]) -> float:
    """0 where one side holds a single class (scikit-learn's convention)."""
    from sklearn.metrics import matthews_corrcoef

    return matthews_corrcoef(gold, predicted)


def _pearson(gold: Sequence[float], predicted: Sequence[float]) -> float:
    return _correlation("pearsonr", gold, predicted)


def _spearman(gold: Sequence[float], predicted: Sequence[float]) -> float:
    return _correlation("spearmanr", gold, predicted)


def _correlation(name: str, gold: Sequence[float], predicted: Sequence[float]) -> float:
    """0 where one side is constant: no correlation is defined, and none was found."""
    from scipy import stats

    if np.ptp(gold) == 0 or np.ptp(predicted) == 0:
        return 0.0
    return getattr(stats, name)(gold, predicted).statistic


def _entity_f1(gold: Sequence[list[str]], predicted: Sequence[list[str]]) -> float:
    """Micro F1 of whole entities (kind and both ends), as conlleval counts them."""
    from seqeval.metrics import f1_score

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no entity at all: 0, said in a warning
        return f1_score(gold, predicted, zero_division=0)


METRICS: dict[str, Score] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
    "entity_f1": _entity_f1,
}


def task_metrics(names: Sequence[str], gold: Sequence[Any], predicted: Sequence[Any]) -> dict[str, float]:
    """Each named metric of `predicted` against `gold`: class indices, scores, or lists of tags."""
    return {name: float(METRICS[name](gold, predicted)) for name in names}


def majority_score(metric: str, train_gold: Sequence[Any], dev_gold: Sequence[Any]) -> float:
    """`metric` of the one answer that needs no text: the commonest label of the training set (scores: their mean)."""
    if isinstance(train_gold[0], list):
        commonest = Counter(tag for tags in train_gold for tag in tags).most_common(1)[0][0]
        constant: list[Any] = [[commonest] * len(tags) for tags in dev_gold]
    elif isinstance(train_gold[0], float):
        constant = [float(np.mean(train_gold))] * len(dev_gold)
    else:
        constant = [Counter(train_gold).most_common(1)[0][0]] * len(dev_gold)
    return task_metrics([metric], dev_gold, constant)[metric]


@torch.no_grad()
def validation_loss(engine, stream: TokenStream, n_ctx: int, global_batch: int, batches: int | None) -> float:
    """Mean negative log-likelihood, nats a token, over `batches` global batches of the stream (None: all of it).

    Windows of `n_ctx` targets lie end to end, evenly spread where not all are taken; a target sees the tokens before it
    in its own window. Every rank runs as many forwards, as ZeRO-3 needs; what is past the end is not counted.
    """
    micro_batch = engine.train_micro_batch_size_per_gpu()
    share = global_batch // distributed.world_size()
    windows = -(-(stream.tokens - 1) // n_ctx)
    taken = windows if batches is None else min(windows, batches * global_batch)
    total = torch.zeros(2, dtype=torch.float64)
    engine.eval()
    for first in range(distributed.rank() * share, -(-taken // global_batch) * global_batch, global_batch):
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
