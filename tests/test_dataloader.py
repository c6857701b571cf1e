"""The order of windows: a pure function, every window once an epoch, the same for every division into ranks."""

import numpy as np
import pytest

from gpt1_ds.config import DataConfig
from gpt1_ds.dataloader import Batches, Cursor, WindowOrder, mix, open_streams, permute, total_steps
from gpt1_ds.errors import ConfigError
from gpt1_ds.shards import read_manifest

MIXTURES = [
    ({"a": 1000, "b": 37}, {}),
    ({"a": 7}, {}),
    ({"a": 500_003, "b": 50_007, "c": 3_001}, {}),
    ({"a": 100_003, "b": 50_007}, {"a": 1, "b": 3}),
    ({"a": 1000, "b": 10}, {"a": 1, "b": 1}),
]
EPOCHS = 3


@pytest.mark.parametrize("size", [1, 2, 3, 10, 64, 1000, 4097])
def test_permute_is_a_permutation_that_its_key_names(size):
    first, second = permute(np.arange(size), size, 1), permute(np.arange(size), size, 2)
    assert sorted(first) == list(range(size)) == sorted(second)
    assert size < 10 or (first != second).any()


def test_permute_handles_2_to_the_40():
    index = np.array([0, 1, 2**40 - 1])
    assert len(set(permute(index, 2**40, 3))) == 3 and permute(index, 2**40, 3).max() < 2**40


@pytest.mark.parametrize(("tokens", "weights"), MIXTURES)
@pytest.mark.parametrize("seed", [0, 42])
def test_every_window_once_an_epoch_of_its_corpus(tokens, weights, seed):
    n_ctx = 7
    order = WindowOrder(tokens, n_ctx, seed, weights)
    corpus, start = order.locate(np.arange(EPOCHS * order.epoch_windows))
    for number, size in enumerate(tokens.values()):
        windows = -(-size // n_ctx)
        starts = start[corpus == number]
        share = int(np.diff(order.bounds)[number])
        assert len(starts) == EPOCHS * share
        # The windows of a corpus's epoch are one stretch of its ordinals; over whole epochs each start comes once.
        expected = []
        for epoch in range(-(-len(starts) // windows)):
            phase = int(mix(seed, 3, number, epoch) % np.uint64(size))
            expected.append((phase + np.arange(windows) * n_ctx) % size)
        whole = np.sort(np.concatenate(expected))
        if len(starts) == len(whole):
            assert (np.sort(starts) == whole).all()
        else:
            # A last epoch under way: none of its windows twice, none from outside.
            left, counts = np.unique(whole, return_counts=True)
            seen, times = np.unique(starts, return_counts=True)
            assert np.isin(seen, left).all() and (times <= counts[np.searchsorted(left, seen)]).all()


def test_every_token_is_a_target_once_an_epoch():
    tokens, n_ctx = 1003, 10
    order = WindowOrder({"a": tokens}, n_ctx, 1, {})
    _, start = order.locate(np.arange(order.epoch_windows))
    targets = (start[:, None] + np.arange(1, n_ctx + 1)) % tokens
    counts = np.bincount(targets.ravel(), minlength=tokens)
    assert counts.min() == 1 and counts.sum() - tokens == (-tokens) % n_ctx


def test_a_window_depends_on_its_index_alone():
    order = WindowOrder({"a": 300_000, "b": 20_000}, 16, 5, {})
    index = np.arange(2 * order.epoch_windows)
    whole = np.stack(order.locate(index))
    picked = np.random.default_rng(0).permutation(len(index))
    assert (np.stack(order.locate(index[picked])) == whole[:, picked]).all()


def test_weights_set_the_share_within_a_thousandth_and_seeds_and_epochs_differ():
    order = WindowOrder({"a": 1_000_000, "b": 200_000}, 10, 0, {"a": 1, "b": 3})
    corpus, start = order.locate(np.arange(order.epoch_windows))
    assert abs((corpus == 1).mean() - 0.75) < 1e-3
    other_seed = WindowOrder({"a": 1_000_000, "b": 200_000}, 10, 1, {"a": 1, "b": 3}).locate(np.arange(1000))[1]
    next_epoch = order.locate(order.epoch_windows + np.arange(1000))[1]
    assert (start[:1000] != other_seed).mean() > 0.9 and (start[:1000] != next_epoch).mean() > 0.9


def test_ten_trillion_tokens_cost_no_memory_and_no_overflow():
    order = WindowOrder({"a": 10**13, "b": 10**9}, 512, 1, {})
    _, start = order.locate(np.array([0, order.epoch_windows - 1, 10 * order.epoch_windows + 5]))
    assert (start >= 0).all() and (start < 10**13).all()


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("micro_batch", [1, 2])
def test_batches_are_the_same_for_every_world_size(tiny_shards, world_size, micro_batch):
    streams = _streams(tiny_shards)
    order = WindowOrder({name: s.tokens for name, s in streams.items()}, 32, 3, {})
    begin = Cursor(0, order.epoch_windows - 12)  # the second batch crosses into the next epoch

    def steps(ranks: int, micro: int, start: Cursor, count: int):
        rows = [[] for _ in range(count)]
        for rank in range(ranks):
            batches = iter(Batches(streams, order, start, 8, micro, rank, ranks))
            for row, (micro_batches, cursor) in zip(rows, batches, strict=False):
                assert all(len(ids) == micro for ids in micro_batches)
                row.append((np.concatenate([ids.numpy() for ids in micro_batches]), cursor))
        return [(np.concatenate([ids for ids, _ in row]), row[0][1]) for row in rows]

    reference = steps(1, 8, begin, 3)
    for (ids, cursor), (expected, expected_cursor) in zip(
        steps(world_size, micro_batch, begin, 3), reference, strict=True
    ):
        assert (ids == expected).all() and cursor == expected_cursor
    assert reference[1][1] == Cursor(1, 4)
    resumed = steps(world_size, micro_batch, reference[0][1], 2)
    assert (resumed[0][0] == reference[1][0]).all() and (resumed[1][0] == reference[2][0]).all()


def _streams(shards):
    return open_streams(DataConfig(shards=str(shards)), read_manifest(shards), "train")


def test_windows_hold_the_streams_tokens(tiny_shards):
    streams = _streams(tiny_shards)
    order = WindowOrder({name: s.tokens for name, s in streams.items()}, 32, 3, {})
    (stream,) = streams.values()
    whole = stream.read(np.array([0]), stream.tokens)[0]
    ids = Batches(streams, order, Cursor(), 4, 4, 0, 1).read(0)[0].numpy()
    _, start = order.locate(np.arange(4))
    for row, first in zip(ids, start, strict=True):
        assert (row == np.take(whole, np.arange(first, first + 33), mode="wrap")).all()


def test_an_error_in_the_reader_reaches_the_loop(tiny_shards):
    streams = _streams(tiny_shards)
    order = WindowOrder({name: s.tokens for name, s in streams.items()}, 32, 3, {})
    batches = Batches(streams, order, Cursor(), 4, 4, 0, 1)
    batches.streams = []  # what a vanished shard does: an exception inside the thread
    with pytest.raises(IndexError):
        next(iter(batches))


def test_total_steps():
    order = WindowOrder({"a": 1000}, 10, 0, {})
    assert (
        total_steps(order, 8, 2, None) == 25
        and total_steps(order, 8, 2, 7) == 7
        and total_steps(order, 8, None, 99) == 99
    )
    with pytest.raises(ConfigError, match="global_batch"):
        total_steps(order, 300, 1, None)


def test_an_unknown_corpus_in_the_weights_is_named(tiny_shards):
    with pytest.raises(ConfigError, match="did you mean 'books'"):
        open_streams(DataConfig(shards=str(tiny_shards), weights={"book": 1.0}), read_manifest(tiny_shards), "train")
