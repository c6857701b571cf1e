"""Finds a run that predicts no more than how often each token occurs.

Such a run has the loss of the unigram distribution of its data. Post-LN models may stay there, if
the rate is too high for the warm-up. It is told once in a start.
"""

import numpy as np
from torch import Tensor

from gpt1_ds.settings.sections import PretrainConfig

NEAR = 0.02
"""A loss is at the plateau if it differs from the entropy by at most this share of it."""
LINES = 3
"""Logged losses in a row at the plateau, after the warm-up, that make a run a stuck one."""
MOST_TOKENS = 2_000_000
"""The tokens of a rank's first batches that are counted; more change the entropy little."""


class Plateau:
    """Compares the losses of a run with the unigram entropy of the data that it trains on."""

    def __init__(self, config: PretrainConfig, vocab_size: int, warmup_steps: int):
        self._config = config
        self._warmup_steps = warmup_steps
        self._counts_V = np.zeros(vocab_size, np.int64)
        self._lines = 0
        self._told = False

    def count(self, micro_batches: list[Tensor]) -> None:
        """Count the tokens of this rank's part of a batch."""
        if self._told or self._counts_V.sum() >= MOST_TOKENS:
            return
        for ids_bT in micro_batches:
            ids_N = ids_bT[:, 1:].flatten().numpy()
            self._counts_V += np.bincount(ids_N, minlength=len(self._counts_V))

    def entropy(self) -> float:
        """Of the counted tokens, in nats, with the correction of Miller (1955) for few tokens."""
        seen = self._counts_V[self._counts_V > 0]
        total = seen.sum()
        return float(-(seen / total * np.log(seen / total)).sum() + (len(seen) - 1) / (2 * total))

    def check(self, step: int, loss: float) -> str | None:
        """A line for the user, once, if the logged `loss` (nats) of `step` shows a stuck run."""
        if self._told or step <= self._warmup_steps or not self._counts_V.any():
            return None
        entropy = self.entropy()
        self._lines = self._lines + 1 if abs(loss - entropy) <= NEAR * entropy else 0
        if self._lines < LINES:
            return None
        self._told = True
        optim = self._config.optim
        return (
            f"step {step}: loss {loss:.3f} is the unigram entropy of the data ({entropy:.3f}): the "
            "model knows only how often each token occurs. If it stays there, lower optim.lr (now "
            f"{optim.lr:g}) or lengthen schedule.warmup_steps (now {self._warmup_steps})"
        )
