"""Batches of encoded examples: their order, and their tensors.

The order is a pure function of (lengths, seed, epoch). It does not depend on ranks or
micro-batches, and a run can resume at any batch. Shapes: B examples, S sequences an example,
T tokens, K classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from gpt1_ds.distributed import collectives
from gpt1_ds.tasks.examples import IGNORE, Encoded

POOL_BATCHES = 32
"""Number of batches that are sorted by length together.

A larger number saves padding; a smaller number mixes lengths better within a batch.
"""
SCORED_EXAMPLES = 32
SCORED_TOKENS = 16_384
# Two independent random streams from one seed.
ORDER_STREAM = 0
SUBSET_STREAM = 1


@dataclass
class Batch:
    """One micro-batch of one rank."""

    ids_BST: Tensor
    """Token ids, padded on the right."""
    end_BS: Tensor
    """Position of `<e>`."""
    targets: Tensor
    """Classes or answers: (B, K) float, their probabilities. Scores: (B, 1) float, NaN without a
    label. Token classification: (B, T) long, a class or IGNORE for each token."""
    lm_targets_BST: Tensor
    """The next token; IGNORE at `<e>` and at padding."""

    def to(self, device: torch.device) -> "Batch":
        tensors = (getattr(self, field.name) for field in fields(self))
        return Batch(*(collectives.upload(tensor, device) for tensor in tensors))


def subset(n_examples: int, n_wanted: int | None, seed: int) -> list[int]:
    """Indices, in file order, of `n_wanted` random examples chosen by `seed`; None: all."""
    if n_wanted is None or n_wanted >= n_examples:
        return list(range(n_examples))
    shuffled = np.random.default_rng((seed, SUBSET_STREAM)).permutation(n_examples)
    return sorted(shuffled[:n_wanted].tolist())


def epoch_batches(
    lengths: Sequence[int],
    global_batch: int,
    seed: int,
    epoch: int,
    classes: Sequence[int] | None = None,
    plain: bool = False,
) -> list[list[int]]:
    """The batches of an epoch as lists of indices. Every example occurs once.

    With the `classes` of the examples, each class occurs equally often instead, see
    `balanced_order`. Each epoch is shuffled anew. Then examples are sorted by length within pools
    of `POOL_BATCHES` batches, and the batches are put in random order. With `plain` the shuffled
    order is cut into batches as it is. Only the last batch may be smaller.
    """
    random = np.random.default_rng((seed, ORDER_STREAM, epoch))
    if classes is None:
        order = random.permutation(len(lengths))
    else:
        order = balanced_order(classes, random)
    if plain:
        return [order[i : i + global_batch].tolist() for i in range(0, len(order), global_batch)]
    length_of = np.asarray(lengths)
    whole = len(order) // global_batch * global_batch
    pool_size = POOL_BATCHES * global_batch
    batches: list[list[int]] = []
    for first in range(0, whole, pool_size):
        pool = order[first : min(first + pool_size, whole)]
        pool = pool[np.argsort(length_of[pool], kind="stable")]
        batches += pool.reshape(-1, global_batch).tolist()
    batches = [batches[index] for index in random.permutation(len(batches))]
    if whole < len(order):
        batches.append(order[whole:].tolist())
    return batches


def balanced_order(classes: Sequence[int], random: np.random.Generator) -> np.ndarray:
    """As many indices as there are examples, in which each class occurs equally often.

    The numbers of two classes differ by 1 at most. Within a class the examples take turns: none
    comes more than once oftener than another.
    """
    class_of = np.asarray(classes)
    present = random.permutation(np.unique(class_of))
    share, rest = divmod(len(class_of), len(present))
    parts = []
    for place, number in enumerate(present):
        members = random.permutation(np.flatnonzero(class_of == number))
        parts.append(np.resize(members, share + (place < rest)))
    return random.permutation(np.concatenate(parts))


def micro_batches(
    lengths: Sequence[int], micro_batch: int, n_micro: int | None, rank: int, world_size: int
) -> list[list[int]]:
    """This rank's share of the examples with these `lengths`, longest first.

    At each micro-step all ranks get examples of similar lengths. Every rank gets the same number
    of micro-steps: `n_micro`, or as many as needed (None). Some micro-steps may be empty.
    """
    by_length = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    stride = micro_batch * world_size
    if n_micro is None:
        n_micro = -(-len(lengths) // stride)
    shares = []
    for step in range(n_micro):
        of_all_ranks = by_length[step * stride : (step + 1) * stride]
        shares.append(of_all_ranks[rank::world_size])
    return shares


def scoring_batches(examples: Sequence[Encoded]) -> list[list[int]]:
    """The batches in which examples are scored, as lists of indices: longest examples first.

    A batch has at most `SCORED_EXAMPLES` examples and, unless it is a single one, at most
    `SCORED_TOKENS` tokens with padding.
    """
    batches: list[list[int]] = []
    room = 0
    for index in sorted(range(len(examples)), key=lambda index: -examples[index].length):
        if room == 0:
            size = examples[index].length * len(examples[index].sequences)
            room = max(1, min(SCORED_EXAMPLES, SCORED_TOKENS // size))
            batches.append([])
        batches[-1].append(index)
        room -= 1
    return batches


def collate(
    examples: Sequence[Encoded], special: dict[str, int], like: Encoded, width: int | None = None
) -> Batch:
    """Tensors of `examples`, padded to `width` or to the longest example.

    If there are no examples, the batch has one blank example with the shape of `like` and without
    any target.
    """
    examples = examples or [_blank(special, like)]
    B = len(examples)
    S = len(examples[0].sequences)
    T = width or max(example.length for example in examples)
    ids_BST = torch.full((B, S, T), special["pad"], dtype=torch.long)
    lm_targets_BST = torch.full((B, S, T), IGNORE, dtype=torch.long)
    end_BS = torch.zeros((B, S), dtype=torch.long)
    if like.is_per_token:
        targets = torch.full((B, T), IGNORE)
    else:
        targets = torch.zeros((B, len(like.target)))
    for b, example in enumerate(examples):
        targets[b, : len(example.target)] = torch.tensor(example.target)
        for s, sequence in enumerate(example.sequences):
            ids = torch.tensor(sequence)
            ids_BST[b, s, : len(ids)] = ids
            lm_targets_BST[b, s, : len(ids) - 1] = ids[1:]
            end_BS[b, s] = len(ids) - 1
    return Batch(ids_BST, end_BS, targets, lm_targets_BST)


def _blank(special: dict[str, int], like: Encoded) -> Encoded:
    """An example that adds nothing to a loss: a distribution over no class, or no score."""
    sequences = [[special["e"]] for _ in like.sequences]
    if like.is_per_token:
        return Encoded(sequences, [IGNORE])
    nothing = 0.0 if len(like.target) > 1 else math.nan
    return Encoded(sequences, [nothing] * len(like.target))


def n_targets(example: Encoded, class_weights: Sequence[float] | None = None) -> float:
    """Number of terms in the task loss: 1, or the number of labelled tokens.

    With `class_weights` it is the sum of their weights.
    """
    classes = classes_of(example) if class_weights or example.is_per_token else [0]
    return sum(class_weights[number] for number in classes) if class_weights else len(classes)


def classes_of(example: Encoded) -> list[int]:
    """The class of the example, or of each of its labelled tokens."""
    if example.is_per_token:
        return [int(label) for label in example.target if label != IGNORE]
    return [int(np.argmax(example.target))]


def n_lm_targets(example: Encoded, mean: str = "token") -> int:
    """Number of terms in the language-modelling loss: all tokens but the first of a sequence.

    With the `mean` `sequence` it is the number of sequences.
    """
    if mean == "sequence":
        return len(example.sequences)
    return sum(len(sequence) - 1 for sequence in example.sequences)
