"""Batches of encoded examples: which examples, in which order, and as which tensors.

The order is a pure function of (lengths, seed, epoch), free of ranks and micro-batches, and resumes at any batch.
B examples, S sequences an example, T tokens, K classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from gpt1_ds.tasks.base import IGNORE, Encoded

POOL_BATCHES = 32
"""Batches sorted by length together: more saves padding, fewer mixes lengths better within a batch."""
ORDER, SUBSET = 0, 1  # two independent random streams from one seed


@dataclass
class Batch:
    """One micro-batch of one rank."""

    ids_BST: Tensor
    """Token ids, padded on the right."""
    end_BS: Tensor
    """Position of `<e>`."""
    targets: Tensor
    """(B, K) float, a distribution over classes (answers), or (B, 1) a score, NaN where there is none; token
    classification: (B, T) long, a class or IGNORE."""
    lm_targets_BST: Tensor
    """The next token, IGNORE at `<e>` and on padding."""

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))


def subset(n_examples: int, n_wanted: int | None, seed: int) -> list[int]:
    """Indices of the first `n_wanted` examples of a seeded shuffle, in file order; None: all."""
    if n_wanted is None or n_wanted >= n_examples:
        return list(range(n_examples))
    return sorted(np.random.default_rng((seed, SUBSET)).permutation(n_examples)[:n_wanted].tolist())


def epoch_batches(
    lengths: Sequence[int], global_batch: int, seed: int, epoch: int
) -> list[list[int]]:
    """Every example once, in batches of similar length, shuffled; only the last batch may be smaller.

    Drawn anew each epoch: a shuffle, sorted by length within pools of POOL_BATCHES batches.
    """
    random = np.random.default_rng((seed, ORDER, epoch))
    order = random.permutation(len(lengths))
    lengths = np.asarray(lengths)
    whole = len(order) // global_batch * global_batch
    pool_size = POOL_BATCHES * global_batch
    batches = []
    for first in range(0, whole, pool_size):
        pool = order[first : min(first + pool_size, whole)]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += pool.reshape(-1, global_batch).tolist()
    batches = [batches[index] for index in random.permutation(len(batches))]
    return batches + ([order[whole:].tolist()] if whole < len(order) else [])


def micro_batches(
    lengths: Sequence[int], micro_batch: int, n_micro: int | None, rank: int, world_size: int
) -> list[list[int]]:
    """This rank's share of the examples with `lengths`, longest first: at each step all ranks work on like lengths.

    Every rank gets the same number of micro-steps, `n_micro` or as many as needed; some may be empty.
    """
    by_length = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    stride = micro_batch * world_size
    if n_micro is None:
        n_micro = -(-len(lengths) // stride)
    return [
        by_length[step * stride : (step + 1) * stride][rank::world_size] for step in range(n_micro)
    ]


def collate(
    examples: Sequence[Encoded], special: dict[str, int], like: Encoded, width: int | None = None
) -> Batch:
    """Tensors of `examples`, padded to `width` or the longest. Of none: one blank example with the shape of `like`,
    which has no target of any kind."""
    per_token = isinstance(like.target[0], int)
    if not examples:
        # A distribution over nothing, or no score at all; neither adds to a loss.
        blank = (
            [IGNORE]
            if per_token
            else [0.0 if len(like.target) > 1 else math.nan] * len(like.target)
        )
        examples = [Encoded([[special["e"]] for _ in like.sequences], blank)]
    B, S, T = (
        len(examples),
        len(examples[0].sequences),
        width or max(example.length for example in examples),
    )
    ids_BST = torch.full((B, S, T), special["pad"], dtype=torch.long)
    lm_targets_BST = torch.full((B, S, T), IGNORE, dtype=torch.long)
    end_BS = torch.zeros((B, S), dtype=torch.long)
    targets = torch.full((B, T), IGNORE) if per_token else torch.zeros((B, len(like.target)))
    for b, example in enumerate(examples):
        targets[b, : len(example.target)] = torch.tensor(example.target)
        for s, sequence in enumerate(example.sequences):
            ids = torch.tensor(sequence)
            ids_BST[b, s, : len(ids)] = ids
            lm_targets_BST[b, s, : len(ids) - 1] = ids[1:]
            end_BS[b, s] = len(ids) - 1
    return Batch(ids_BST, end_BS, targets, lm_targets_BST)


def n_targets(example: Encoded) -> int:
    """Terms of the task's loss: 1, or the labelled tokens."""
    return (
        sum(label != IGNORE for label in example.target)
        if isinstance(example.target[0], int)
        else 1
    )


def n_lm_targets(example: Encoded) -> int:
    return sum(len(sequence) - 1 for sequence in example.sequences)
