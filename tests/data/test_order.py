"""The order of windows is a pure function, and has every window once an epoch."""

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

from gpt1_ds.base.errors import ConfigError
from gpt1_ds.data import order as order_module
from gpt1_ds.data.manifest import CorpusEntry, Manifest, Shard
from gpt1_ds.data.order import (
    GLOBAL,
    GROUPED,
    GROUPED_1,
    LANES,
    SHUFFLES,
    WindowOrder,
    mix,
    permute,
)
from gpt1_ds.data.token_stream import TokenStream

MIXTURES = [
    ({"a": 1000, "b": 37}, {}),
    ({"a": 7}, {}),
    ({"a": 500_003, "b": 50_007, "c": 3_001}, {}),
    ({"a": 100_003, "b": 50_007}, {"a": 1, "b": 3}),
    ({"a": 1000, "b": 10}, {"a": 1, "b": 1}),
]


EPOCHS = 3
BOOK_TOKENS = 100_000
"""Of a novel's length."""


@pytest.fixture(params=SHUFFLES)
def kind(request, monkeypatch) -> str:
    """Each order, with groups so small that a corpus of a test has several in each lane."""
    monkeypatch.setattr(order_module, "GROUP_TOKENS", 1000)
    monkeypatch.setattr(order_module, "GROUPED_1_WINDOWS", 256)
    return request.param


@pytest.mark.parametrize("tight", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 10, 64, 1000, 4097])
def test_permute_is_a_permutation_that_its_key_names(size, tight):
    first, second = (permute(np.arange(size), size, key, tight) for key in (1, 2))
    assert sorted(first) == list(range(size)) == sorted(second)
    assert size < 10 or (first != second).any()


def test_permute_handles_2_to_the_40():
    index = np.array([0, 1, 2**40 - 1])
    assert len(set(permute(index, 2**40, 3))) == 3 and permute(index, 2**40, 3).max() < 2**40


@pytest.mark.parametrize(("tokens", "weights"), MIXTURES)
@pytest.mark.parametrize("seed", [0, 42])
def test_every_window_once_an_epoch_of_its_corpus(tokens, weights, seed, kind):
    n_ctx = 7
    order = WindowOrder(tokens, n_ctx, seed, weights, kind)
    corpus, start = order.locate(np.arange(EPOCHS * order.epoch_windows))
    for number, size in enumerate(tokens.values()):
        windows = -(-size // n_ctx)
        starts = start[corpus == number]
        share = int(np.diff(order.bounds)[number])
        assert len(starts) == EPOCHS * share
        # The windows of a corpus's epoch follow each other; over whole epochs
        # each start comes once.
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
            assert np.isin(seen, left).all()
            assert (times <= counts[np.searchsorted(left, seen)]).all()


@pytest.mark.parametrize("tokens", [11, 119, 1003, 30_011])
def test_every_token_is_a_target_once_an_epoch(tokens, kind):
    n_ctx = 10
    order = WindowOrder({"a": tokens}, n_ctx, 1, {}, kind)
    _, start = order.locate(np.arange(order.epoch_windows))
    targets = (start[:, None] + np.arange(1, n_ctx + 1)) % tokens
    counts = np.bincount(targets.ravel(), minlength=tokens)
    assert counts.min() == 1 and counts.sum() - tokens == (-tokens) % n_ctx


def test_a_window_depends_on_its_index_alone(kind):
    order = WindowOrder({"a": 300_000, "b": 20_000}, 16, 5, {}, kind)
    index = np.arange(2 * order.epoch_windows)
    whole = np.stack(order.locate(index))
    picked = np.random.default_rng(0).permutation(len(index))
    assert (np.stack(order.locate(index[picked])) == whole[:, picked]).all()


def test_weights_set_the_share_within_a_thousandth_and_seeds_and_epochs_differ():
    order = WindowOrder({"a": 1_000_000, "b": 200_000}, 10, 0, {"a": 1, "b": 3})
    corpus, start = order.locate(np.arange(order.epoch_windows))
    assert abs((corpus == 1).mean() - 0.75) < 1e-3
    other = WindowOrder({"a": 1_000_000, "b": 200_000}, 10, 1, {"a": 1, "b": 3})
    other_seed = other.locate(np.arange(1000))[1]
    next_epoch = order.locate(order.epoch_windows + np.arange(1000))[1]
    assert (start[:1000] != other_seed).mean() > 0.9 and (start[:1000] != next_epoch).mean() > 0.9


def test_a_share_of_less_than_a_window_is_refused():
    tokens = {"a": 1000, "b": 1000}
    with pytest.raises(ConfigError, match=r"data\.weights\.b is 1e-07: .* 200 windows .*; raise"):
        WindowOrder(tokens, 10, 1, {"a": 1.0, "b": 1e-7})
    assert WindowOrder(tokens, 10, 1, {"a": 1.0, "b": 0.01}).bounds.tolist() == [0, 198, 200]
    assert WindowOrder(tokens, 10, 1, {"a": 1.0}).bounds.tolist() == [0, 200, 200]


@pytest.mark.parametrize("weights", [{}, {"a": 7, "b": 2, "c": 1}, {"a": 1, "b": 1, "c": 1}])
def test_each_corpus_has_its_share_of_every_epoch_and_of_every_stretch_of_it(weights):
    tokens = {"a": 3_000_017, "b": 400_009, "c": 70_001}
    order = WindowOrder(tokens, 10, 3, weights)
    wanted = np.array(list(weights.values()) or order.windows, float)
    wanted /= wanted.sum()
    for epoch in range(2):
        corpus, start = order.locate(epoch * order.epoch_windows + np.arange(order.epoch_windows))
        assert np.abs(np.bincount(corpus) / len(corpus) - wanted).max() < 1e-3
        for stretch in np.array_split(corpus, 10):  # 35,000 windows, in blocks that are exact
            assert np.abs(np.bincount(stretch, minlength=3) / len(stretch) - wanted).max() < 0.02
        # A corpus with a share above its size repeats. The counts of its windows differ by one at
        # most.
        for number, windows in enumerate(order.windows):
            share = int(np.diff(order.bounds)[number])
            if share % windows == 0 or epoch == 0:
                counts = np.unique(np.unique(start[corpus == number], return_counts=True)[1])
                assert weights or counts.tolist() == [1]
                assert counts.max() <= -(-share // windows) + 1


def sharing(start_SB: np.ndarray) -> float:
    """Windows of a batch whose book another one before it in the batch has too; mean of S."""
    books_SB = np.sort(start_SB // BOOK_TOKENS, axis=1)
    return float((np.diff(books_SB, axis=1) == 0).sum(axis=1).mean())


@pytest.mark.parametrize("epoch", [0, 3])
def test_windows_of_a_batch_share_a_book_nearly_as_rarely_as_in_a_perfect_shuffle(epoch):
    """BooksCorpus has some 10^9 tokens. Measured: 27.8, 1.0 and 2.9 times as often."""
    tokens, n_ctx, batch = 10**9, 512, 64
    rng = np.random.default_rng(0)
    ratios = {}
    for kind in SHUFFLES:
        order = WindowOrder({"a": tokens}, n_ctx, 9, {}, kind)
        first_S = epoch * order.epoch_windows + rng.integers(0, order.epoch_windows, 4000)
        _, start_W = order.locate((first_S[:, None] + np.arange(batch)).ravel())
        uniform = sharing(rng.integers(0, order.epoch_windows, (4000, batch)) * n_ctx)
        ratios[kind] = sharing(start_W.reshape(-1, batch)) / uniform
    assert ratios[GLOBAL] < 1.5 and ratios[GROUPED] < 4 and ratios[GROUPED_1] > 20, ratios


@pytest.mark.parametrize("tokens", [10**9, 10**12])
def test_lanes_change_their_groups_one_at_a_time(tokens):
    """So a few shards are needed at a time, and over an epoch each shard a few times."""
    shard_tokens, n_ctx = 1 << 24, 512
    order = WindowOrder({"a": tokens}, n_ctx, 9, {}, GROUPED)
    seen = []
    for place in range(0, 3 * order.windows_ahead, order.windows_ahead // 64):
        _, start = order.locate(order.epoch_windows // 2 + place + np.arange(2048))
        seen.append(frozenset((start // shard_tokens).tolist()))
    assert max(map(len, seen)) <= 3 * LANES + 3
    new = [len(now - before) for before, now in zip(seen, seen[1:], strict=False)]
    assert max(new) <= 6 and 0 < sum(new) < 60, new  # six groups, and rarely seen edges of others


def test_windows_of_early_runs_are_well_shuffled():
    """Place in the stream and place in the epoch have no rank correlation.

    Neighbours rarely come from the same document.
    """
    tokens, n_ctx = 400_000_000, 512
    order = WindowOrder({"a": tokens}, n_ctx, 9, {}, GROUPED_1)
    _, start = order.locate(np.arange(order.epoch_windows))
    group = start[: 65_536 * 8].reshape(8, -1)
    within = [np.corrcoef(np.argsort(np.argsort(row)), np.arange(len(row)))[0, 1] for row in group]
    assert np.abs(within).max() < 0.02  # 5 sigma of 65,536 independent ranks
    many = WindowOrder({"a": 10**10}, n_ctx, 9, {}, GROUPED_1)
    time_index = np.arange(0, many.epoch_windows, 97)
    places = many.locate(time_index)[1]
    assert abs(np.corrcoef(places, time_index)[0, 1]) < 0.2  # 298 groups, in some order
    by_chance = 64**2 / 2 * BOOK_TOKENS / (65_536 * 512)
    assert sharing(start[: len(start) // 64 * 64].reshape(-1, 64)) < by_chance * 1.2


@pytest.mark.parametrize("kind", [GLOBAL, GROUPED])
def test_place_and_time_have_no_rank_correlation(kind):
    order = WindowOrder({"a": 10**9}, 512, 9, {}, kind)
    index = np.arange(0, order.epoch_windows, 20)
    places = order.locate(index)[1]
    assert abs(np.corrcoef(places, index)[0, 1]) < {GLOBAL: 0.02, GROUPED: 0.15}[kind]


@pytest.mark.parametrize("kind", SHUFFLES)
def test_ten_trillion_tokens_in_a_hundred_thousand_shards_cost_no_memory_and_no_overflow(kind):
    """index -> (shard, sample, offset) at full size; only tables of the shards read are used."""
    n_shards, sample = 100_000, 50_000
    per_shard = np.array([sample] * 2000)
    shared = Shard("", 0, "", 2000, 2000, 10**8, 1024 + np.arange(2000) * 101_376, per_shard)
    tokens = n_shards * 10**8
    entry = CorpusEntry(0, tokens, [shared] * n_shards)
    manifest = Manifest({"vocab_size": 40_000}, {}, {"train": {"a": entry}})
    order = WindowOrder({"a": tokens, "b": 10**9}, 512, 1, {}, kind)
    stream = TokenStream("", manifest, "train", "a")
    table = SimpleNamespace(ends_S=per_shard.cumsum())
    stream._mapped = lambda number: table
    places = (0, order.epoch_windows - 64, 10 * order.epoch_windows)
    index = np.concatenate([np.arange(64) + place for place in places])
    tracemalloc.start()
    corpus, start = order.locate(index)
    spans = [next(stream.spans(int(first), 513)) for first in start[corpus == 0]]
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    for first, (number, at, offset, count) in zip(start[corpus == 0].tolist(), spans, strict=True):
        assert (number * 2000 + at) * sample + offset == first
        assert 0 < count <= 513 and offset < sample
    assert len({number for number, *_ in spans}) > 3
