"""Which examples in which batches of a fine-tuning, as numbers: a resumed run draws the same."""

import math

import numpy as np
import pytest
import torch

from gpt1_ds.tasks import IGNORE, Encoded
from gpt1_ds.tasks.batches import (
    collate,
    epoch_batches,
    micro_batches,
    n_lm_targets,
    n_targets,
    subset,
)

SPECIAL = {"pad": 0, "s": 1, "e": 2, "delim": 3, "eot": 4}


def test_subsets():
    assert subset(10, 4, 0) == [1, 3, 8, 9]
    assert subset(10, 4, 7) == [0, 6, 8, 9]
    assert subset(3, 2, 1) == [0, 2]
    assert subset(3, 3, 1) == subset(3, 4, 1) == subset(3, None, 1) == [0, 1, 2]


def test_batches_of_an_epoch():
    lengths = [5, 3, 9, 1, 7, 2, 8, 6, 4, 10]
    assert epoch_batches(lengths, 3, 0, 0) == [[3, 5, 8], [6, 2, 9], [0, 7, 4], [1]]
    assert epoch_batches(lengths, 3, 0, 1) == [[6, 2, 9], [3, 5, 1], [8, 7, 4], [0]]
    assert epoch_batches(lengths, 2, 5, 0) == [[4, 6], [3, 5], [1, 8], [2, 9], [0, 7]]
    assert sorted(epoch_batches(lengths[:2], 3, 0, 0)[0]) == [0, 1]


def test_lengths_are_sorted_within_32_batches():
    """300 examples by 4 are three pools: of 32, 32 and 11 batches."""
    lengths = [(i * 37) % 101 for i in range(300)]
    batches = epoch_batches(lengths, 4, 3, 0)
    assert len(batches) == 75
    assert batches[:3] == [[291, 190, 130, 201], [298, 148, 282, 263], [8, 281, 79, 292]]
    assert batches[-2:] == [[70, 40, 193, 294], [274, 184, 255, 157]]
    within = np.array([[lengths[index] for index in batch] for batch in batches])
    assert (np.diff(within, axis=1) >= 0).all()


def test_shares_of_ranks():
    lengths = [5, 3, 9, 1, 7, 2, 8, 6, 4, 10]
    # Longest first: 10 9 8 7 6 5 4 3 2 1, in steps of 2 ranks x 2 examples.
    assert micro_batches(lengths, 2, None, 0, 2) == [[9, 6], [7, 8], [5]]
    assert micro_batches(lengths, 2, None, 1, 2) == [[2, 4], [0, 1], [3]]
    assert micro_batches(lengths, 2, 4, 1, 2) == [[2, 4], [0, 1], [3], []]
    assert micro_batches(lengths[:4], 2, None, 0, 2) == [[2, 1]]
    assert micro_batches(lengths[:5], 4, None, 0, 1) == [[2, 4, 0, 1], [3]]


def test_tensors_of_two_sequences_an_example():
    examples = [
        Encoded([[1, 7, 2], [1, 8, 8, 2]], [1.0, 0.0]),
        Encoded([[1, 2], [1, 9, 2]], [0.25, 0.75]),
    ]
    batch = collate(examples, SPECIAL, like=examples[0], width=5)
    assert batch.ids_BST.tolist() == [
        [[1, 7, 2, 0, 0], [1, 8, 8, 2, 0]],
        [[1, 2, 0, 0, 0], [1, 9, 2, 0, 0]],
    ]
    assert batch.lm_targets_BST.tolist() == [
        [[7, 2, IGNORE, IGNORE, IGNORE], [8, 8, 2, IGNORE, IGNORE]],
        [[2, IGNORE, IGNORE, IGNORE, IGNORE], [9, 2, IGNORE, IGNORE, IGNORE]],
    ]
    assert batch.end_BS.tolist() == [[2, 3], [1, 2]]
    assert batch.targets.tolist() == [[1.0, 0.0], [0.25, 0.75]]
    assert collate(examples, SPECIAL, like=examples[0]).ids_BST.shape == (2, 2, 4)


def test_tensors_of_tokens_with_labels():
    examples = [
        Encoded([[1, 7, 8, 2]], [IGNORE, 3, 0, IGNORE]),
        Encoded([[1, 7, 2]], [IGNORE, 5, IGNORE]),
    ]
    targets = collate(examples, SPECIAL, like=examples[0]).targets
    assert targets.dtype == torch.long
    assert targets.tolist() == [[IGNORE, 3, 0, IGNORE], [IGNORE, 5, IGNORE, IGNORE]]


@pytest.mark.parametrize(
    ("target", "blank"), [([1.0, 0.0], [0.0, 0.0]), ([IGNORE, 3], [IGNORE]), ([2.4], [math.nan])]
)
def test_a_blank_example_has_no_target(target: list, blank: list):
    batch = collate([], SPECIAL, like=Encoded([[1, 2], [1, 7, 2]], target))
    assert batch.ids_BST.tolist() == [[[2], [2]]] and batch.end_BS.tolist() == [[0, 0]]
    assert batch.lm_targets_BST.tolist() == [[[IGNORE], [IGNORE]]]
    torch.testing.assert_close(batch.targets, torch.tensor([blank]), equal_nan=True)


def test_targets_are_counted():
    assert n_targets(Encoded([[1, 2]], [1.0, 0.0])) == 1
    assert n_targets(Encoded([[1, 2]], [2.4])) == 1
    assert n_targets(Encoded([[1, 7, 8, 2]], [IGNORE, 3, 0, IGNORE])) == 2
    assert n_lm_targets(Encoded([[1, 7, 2], [1, 2]], [1.0, 0.0])) == 3
