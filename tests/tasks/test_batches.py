"""Batches of encoded examples: their order, the shares of ranks, their tensors."""

import numpy as np
import pytest

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


@pytest.mark.parametrize("n_examples,global_batch", [(1, 4), (4, 4), (103, 8), (1000, 32)])
def test_an_epoch_holds_every_example_once(n_examples: int, global_batch: int):
    lengths = np.random.default_rng(0).integers(5, 60, n_examples).tolist()
    batches = epoch_batches(lengths, global_batch, seed=3, epoch=1)
    assert sorted(index for batch in batches for index in batch) == list(range(n_examples))
    assert [len(batch) for batch in batches[:-1]] == [global_batch] * (len(batches) - 1)
    assert batches == epoch_batches(lengths, global_batch, seed=3, epoch=1)
    if n_examples > global_batch:
        assert batches != epoch_batches(lengths, global_batch, seed=3, epoch=2)
        assert batches != epoch_batches(lengths, global_batch, seed=4, epoch=1)


def test_batches_hold_like_lengths():
    lengths = np.random.default_rng(0).integers(5, 60, 2000).tolist()
    padded = sum(
        max(lengths[i] for i in batch) * len(batch)
        for batch in epoch_batches(lengths, 32, seed=0, epoch=0)
    )
    assert padded < 1.1 * sum(lengths)


@pytest.mark.parametrize(
    "n,micro_batch,n_micro,world_size",
    [(32, 4, 4, 2), (32, 16, 1, 2), (5, 4, 2, 2), (1, 2, 4, 4), (17, 8, None, 2), (3, 8, None, 4)],
)
def test_ranks_share_a_batch_without_loss_or_repetition(
    n: int, micro_batch: int, n_micro: int | None, world_size: int
):
    lengths = np.random.default_rng(n).integers(5, 60, n).tolist()
    shares = [
        micro_batches(lengths, micro_batch, n_micro, rank, world_size) for rank in range(world_size)
    ]
    assert len({len(share) for share in shares}) == 1
    assert all(len(micro) <= micro_batch for share in shares for micro in share)
    assert sorted(index for share in shares for micro in share for index in micro) == list(range(n))


def test_collate_pads_and_shifts():
    examples = [Encoded([[1, 7, 8, 2]], [0.0, 1.0]), Encoded([[1, 9, 2]], [1.0, 0.0])]
    batch = collate(examples, SPECIAL, like=examples[0])
    assert batch.ids_BST.tolist() == [[[1, 7, 8, 2]], [[1, 9, 2, 0]]]
    assert batch.lm_targets_BST.tolist() == [[[7, 8, 2, IGNORE]], [[9, 2, IGNORE, IGNORE]]]
    assert batch.end_BS.tolist() == [[3], [2]] and batch.targets.tolist() == [
        [0.0, 1.0],
        [1.0, 0.0],
    ]


@pytest.mark.parametrize(
    "like", [Encoded([[1, 7, 2]] * 2, [0.0, 1.0]), Encoded([[1, 7, 2]], [IGNORE, 3, IGNORE])]
)
def test_a_share_without_examples_counts_nowhere(like: Encoded):
    blank = collate([], SPECIAL, like)
    assert blank.ids_BST.shape == (1, len(like.sequences), 1)
    assert (blank.lm_targets_BST == IGNORE).all()
    assert (
        blank.targets == (IGNORE if n_targets(like) == 1 and like.target[0] == IGNORE else 0.0)
    ).all()


def test_targets_are_counted():
    assert n_targets(Encoded([[1, 2]], [0.5, 0.5])) == 1
    assert n_targets(Encoded([[1, 7, 8, 2]], [IGNORE, 3, 0, IGNORE])) == 2
    assert n_lm_targets(Encoded([[1, 7, 2], [1, 7, 8, 2]], [1.0, 0.0])) == 5


def test_subset_is_a_seeded_draw_that_grows_with_its_size():
    assert subset(5, None, seed=0) == subset(5, 9, seed=0) == [0, 1, 2, 3, 4]
    assert subset(1000, 50, seed=0) == subset(1000, 50, seed=0) != subset(1000, 50, seed=1)
    assert set(subset(1000, 50, seed=0)) < set(subset(1000, 200, seed=0))
