"""Scores: validation loss of the language model, and the metrics of the tasks by scikit-learn, SciPy and seqeval.

Those are imported where they are used: together they take seconds, which pre-training need not wait for.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from gpt1_ds.data.token_stream import TokenStream
from gpt1_ds.distributed import collectives
from gpt1_ds.distributed.console import progress_bar
from gpt1_ds.model.gpt import GPT
from gpt1_ds.model.kernels import IGNORE


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
    share = global_batch // collectives.world_size()
    windows = -(-(stream.tokens - 1) // n_ctx)
    taken = windows if batches is None else min(windows, batches * global_batch)
    total = torch.zeros(2, dtype=torch.float64)
    engine.eval()
    for first in range(
        collectives.rank() * share, -(-taken // global_batch) * global_batch, global_batch
    ):
        if stopping():
            engine.train()
            return None
        for micro in range(first, first + share, micro_batch):
            number_B = np.arange(micro, micro + micro_batch)
            ids_BT, targets_BT = validation_windows(stream, n_ctx, number_B * windows // taken)
            targets_BT[torch.from_numpy(number_B) >= taken] = IGNORE
            _, nll_BT = engine(ids_BT.to(engine.device), targets_BT.to(engine.device))
            total += torch.stack(
                [nll_BT.double().sum().cpu(), (targets_BT != IGNORE).double().sum()]
            )
    engine.train()
    nll, tokens = collectives.all_sum(total).tolist()
    return nll / tokens


def validation_windows(
    stream: TokenStream, n_ctx: int, windows_B: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets (B, n_ctx) of the given windows; targets past the end of the stream are `IGNORE`."""
    starts_B = windows_B * n_ctx
    ids_BT = torch.from_numpy(stream.read(starts_B, n_ctx + 1))
    targets_BT = ids_BT[:, 1:].clone()
    targets_BT[
        torch.from_numpy(starts_B)[:, None] + torch.arange(1, n_ctx + 1) >= stream.tokens
    ] = IGNORE
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
                targets_BT[row, len(ids) - 1 - scored : len(ids) - 1] = torch.from_numpy(
                    ids[-scored:]
                )
            nll_BT = model(ids_BT.to(device), targets_BT.to(device))[1].cpu().numpy()
            for row_T, (ids, scored, place) in zip(nll_BT, batch, strict=True):
                nll_T[place : place + scored] = row_T[len(ids) - 1 - scored : len(ids) - 1]
            first += len(batch)
            bar.update(sum(scored for _, scored, _ in batch))
    return nll_T


def sum_and_error(
    nll_T: np.ndarray, documents: Sequence[np.ndarray], n_ctx: int
) -> tuple[float, float]:
    """The sum of `token_nll`, and its standard error (NaN of one run alone), the number of tokens taken as given: the
    independent draws are runs of n_ctx tokens of one document, whatever windows have scored them."""
    ends_D = np.cumsum([len(ids_T) - 1 for ids_T in documents])
    starts_R = np.concatenate(
        [np.arange(a, b, n_ctx) for a, b in zip([0, *ends_D[:-1]], ends_D, strict=True)]
    )
    sums_R = np.add.reduceat(nll_T.astype(np.float64), starts_R)
    tokens_R = np.diff(starts_R, append=len(nll_T))
    total, runs = float(sums_R.sum()), len(starts_R)
    residual = float(((sums_R - tokens_R * total / len(nll_T)) ** 2).sum())
    return total, math.sqrt(residual * runs / (runs - 1)) if runs > 1 else math.nan
