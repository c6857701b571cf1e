"""Evaluates the language model: the validation loss in training, the likelihood of documents.

Both are negative log-likelihoods in nats. Perplexity is exp of the mean over tokens.
Names of arrays end with their shape: B windows, T tokens, D documents, R runs of tokens.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from gpt1_ds.base.protocols import Engine
from gpt1_ds.data.token_stream import TokenStream
from gpt1_ds.distributed import collectives
from gpt1_ds.distributed.console import progress
from gpt1_ds.model.gpt import GPT
from gpt1_ds.model.loss import IGNORE


@torch.no_grad()
def validation_loss(
    engine: Engine,
    stream: TokenStream,
    n_ctx: int,
    global_batch: int,
    batches: int | None,
    stopping: Callable[[], bool] = lambda: False,
) -> float | None:
    """Mean negative log-likelihood in nats a token, over `batches` global batches (None: all).

    The stream is cut into windows of `n_ctx` targets. If only some windows are used, they are
    evenly spaced. A target sees the tokens before it in its own window. Every rank runs the same
    number of forward passes, as ZeRO-3 requires; windows past the end do not count.

    All ranks call `stopping` before each global batch and get the same answer. If it is True, the
    result is None.
    """
    micro_batch = engine.train_micro_batch_size_per_gpu()
    share = global_batch // collectives.world_size()
    windows = -(-(stream.tokens - 1) // n_ctx)
    taken = windows if batches is None else min(windows, batches * global_batch)
    total = torch.zeros(2, dtype=torch.float64)  # nats, targets
    engine.eval()
    for first in range(0, taken, global_batch):
        if stopping():
            engine.train()
            return None
        own = first + collectives.rank() * share
        for micro in range(own, own + share, micro_batch):
            number_B = np.arange(micro, micro + micro_batch)
            ids_BT, targets_BT = validation_windows(stream, n_ctx, number_B * windows // taken)
            targets_BT[torch.from_numpy(number_B) >= taken] = IGNORE
            _, nll_BT = engine(ids_BT.to(engine.device), targets_BT.to(engine.device))
            targets = (targets_BT != IGNORE).double().sum()
            total += torch.stack([nll_BT.double().sum().cpu(), targets])
    engine.train()
    nll, tokens = collectives.all_sum(total).tolist()
    return nll / tokens


def validation_windows(
    stream: TokenStream, n_ctx: int, windows_B: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets (B, n_ctx) of the windows with the numbers `windows_B`.

    Targets past the end of the stream are `IGNORE`.
    """
    starts_B = windows_B * n_ctx
    ids_BT = torch.from_numpy(stream.read(starts_B, n_ctx + 1))
    targets_BT = ids_BT[:, 1:].clone()
    position_BT = torch.from_numpy(starts_B)[:, None] + torch.arange(1, n_ctx + 1)
    targets_BT[position_BT >= stream.tokens] = IGNORE
    return ids_BT[:, :-1], targets_BT


class Window(NamedTuple):
    """Tokens of a document; only the last ones are scored."""

    ids_T: np.ndarray
    scored: int
    """Number of tokens that are scored."""
    place: int
    """Index of its result: in `token_nll` of the first scored token, in `log_likelihoods` of the
    sequence."""


@torch.inference_mode()
def token_nll(
    model: GPT, documents: Sequence[np.ndarray], stride: int, name: str, batch_tokens: int = 8192
) -> np.ndarray:
    """Negative log-likelihood of each token in nats, float32, document after document.

    The first token of a document has no score. A window has `n_ctx` tokens and their targets, or
    fewer if the document is shorter. The first window scores all its targets. Each later window
    scores the next `stride` (1 to n_ctx) targets. The last window starts early enough to be full.
    With a stride of n_ctx these are the rolling windows of lm-evaluation-harness. The progress
    shows `name`.
    """
    device = model.wte.device
    windows = _sliding_windows(documents, model.config.n_ctx, stride)
    tokens = sum(window.scored for window in windows)
    # Windows of similar lengths in one batch need little padding.
    windows.sort(key=lambda window: -len(window.ids_T))
    nll_T = np.empty(tokens, np.float32)
    first = 0
    with progress(name, tokens, "token") as bar:
        while first < len(windows):
            T = len(windows[first].ids_T) - 1
            batch = windows[first : first + max(1, batch_tokens // T)]
            ids_BT, targets_BT = padded(batch, T)
            nll_BT = model(ids_BT.to(device), targets_BT.to(device))[1].cpu().numpy()
            for row_T, (ids_T, scored, place) in zip(nll_BT, batch, strict=True):
                length = len(ids_T) - 1
                nll_T[place : place + scored] = row_T[length - scored : length]
            first += len(batch)
            bar.update(sum(window.scored for window in batch))
    return nll_T


def _sliding_windows(documents: Sequence[np.ndarray], n_ctx: int, stride: int) -> list[Window]:
    windows: list[Window] = []
    place = 0
    for ids_T in documents:
        done, targets = 0, len(ids_T) - 1
        while done < targets:
            end = min(done + (stride if done else n_ctx), targets)
            windows.append(Window(ids_T[max(0, end - n_ctx) : end + 1], end - done, place))
            place += end - done
            done = end
    return windows


def padded(batch: list[Window], T: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets (B, T); targets that are not scored are `IGNORE`."""
    ids_BT = torch.zeros(len(batch), T, dtype=torch.int64)
    targets_BT = torch.full_like(ids_BT, IGNORE)
    for row, (ids_T, scored, _) in enumerate(batch):
        length = len(ids_T) - 1
        ids_BT[row, :length] = torch.from_numpy(ids_T[:-1])
        targets_BT[row, length - scored : length] = torch.from_numpy(ids_T[-scored:])
    return ids_BT, targets_BT


def sum_and_error(
    nll_T: np.ndarray, documents: Sequence[np.ndarray], n_ctx: int
) -> tuple[float, float]:
    """The sum of `token_nll`, and its standard error for the given number of tokens.

    The independent samples are runs of n_ctx tokens of one document; they do not depend on the
    windows. The error is the standard error of a ratio estimate, nats over tokens of the runs
    (Cochran 1977, chapter 6). It is NaN if there is only one run.
    """
    starts: list[int] = []
    end = 0
    for ids_T in documents:
        begin, end = end, end + len(ids_T) - 1
        starts += range(begin, end, n_ctx)
    sums_R = np.add.reduceat(nll_T.astype(np.float64), starts)
    tokens_R = np.diff(starts, append=len(nll_T))
    total, runs = float(sums_R.sum()), len(starts)
    residual = float(((sums_R - tokens_R * total / len(nll_T)) ** 2).sum())
    return total, math.sqrt(residual * runs / (runs - 1)) if runs > 1 else math.nan
