"""The order of windows, as numbers: a resumed run must find the order that it began with."""

from functools import partial

import numpy as np
import pytest

from gpt1_ds.base.errors import ConfigError
from gpt1_ds.data.batches import BatchSizes, total_steps
from gpt1_ds.data.order import (
    BLOCK_WINDOWS,
    GLOBAL,
    GROUP_TOKENS,
    GROUPED,
    GROUPED_1,
    GROUPED_1_WINDOWS,
    LANES,
    WindowOrder,
    mix,
    permute,
)
from gpt1_ds.settings.sections import TrainConfig

early = partial(WindowOrder, kind=GROUPED_1)


def test_the_hash_is_splitmix64():
    # The first output of the published generator for the seed 0.
    assert int(mix(0)) == 0xE220A8397B1DCDAF
    assert int(mix(42, 1)) == 0xF34FE9248C9342E5
    assert int(mix(7, 3, 1)) == 0x10490351134C1271
    assert mix(3, np.array([0, 1])).tolist() == [0xBCCDFD9C96A18897, 0xEC4C5BEE627011B3]


@pytest.mark.parametrize(
    ("size", "key", "places"),
    [
        (1, 5, [0]),
        (2, 1, [0, 1]),
        (3, 1, [2, 1, 0]),
        (10, 1, [8, 2, 1, 3, 0, 9, 7, 5, 4, 6]),
        (16, 2, [1, 5, 3, 12, 10, 11, 9, 4, 6, 7, 0, 14, 15, 8, 13, 2]),
        (17, 2, [0, 13, 3, 6, 2, 15, 11, 4, 8, 5, 7, 12, 14, 16, 10, 9, 1]),
    ],
)
def test_permutations_of_small_sizes(size, key, places):
    assert permute(np.arange(size), size, key).tolist() == places


def test_permutations_of_large_sizes():
    assert permute(np.array([0, 1, 999, 1000, 65535]), 65536, 3).tolist() == [
        24234,
        3059,
        53896,
        48178,
        41250,
    ]
    large = [907868389426, 21278804514, 809699158041]
    assert permute(np.array([0, 1, 2**40 - 1]), 2**40, 3).tolist() == large
    # A key for each index.
    assert permute(np.array([0, 500, 999]), 1000, np.array([1, 2, 3])).tolist() == [530, 90, 944]


def located(order: WindowOrder, index: list[int]) -> list[tuple[int, int]]:
    corpus, start = order.locate(np.array(index))
    return list(zip(corpus.tolist(), start.tolist(), strict=True))


def test_two_epochs_of_one_corpus():
    starts = [35, 27, 14, 2, 23, 6, 22, 10, 31, 18, 34, 17, 22, 13, 21, 5, 9, 26, 1, 30]
    order = early({"a": 37}, 4, 1, {})
    assert order.windows == [10] and order.epoch_windows == 10
    assert located(order, list(range(20))) == [(0, start) for start in starts]


def test_an_epoch_of_a_weighted_mixture():
    order = early({"a": 37, "b": 11}, 4, 1, {"a": 1, "b": 3})
    assert order.windows == [10, 3] and order.bounds.tolist() == [0, 3, 13]
    assert located(order, list(range(13))) == [
        (1, 2),
        (1, 3),
        (1, 2),
        (1, 4),
        (1, 9),
        (1, 5),
        (0, 22),
        (1, 10),
        (1, 7),
        (0, 18),
        (0, 31),
        (1, 6),
        (1, 10),
    ]


def test_several_blocks():
    order = early({"a": 100_000, "b": 3_001}, 4, 5, {})
    assert (order.windows, order.block) == ([25_000, 751], BLOCK_WINDOWS)
    starts = [68853, 84081, 93681, 42621, 26489, 7457, 32928, 87600, 75486]
    index = [0, 1, 8191, 8192, 25_749, 25_750, 25_751, 25_752, 60_000]
    assert located(order, index) == [(0, start) for start in starts]
    # The last block is a short one: 25,751 windows are 3 blocks of 8,192 and 1,175.
    corpus, _ = order.locate(np.arange(24_576, 25_751))
    assert np.bincount(corpus).tolist() == [1141, 34]


def test_a_corpus_without_weight_has_no_windows():
    order = early({"a": 100_000, "b": 40, "c": 900}, 4, 5, {"a": 2, "c": 1})
    assert order.bounds.tolist() == [0, 16_823, 16_823, 25_235] and order.block == BLOCK_WINDOWS
    index = [0, 1, 8191, 8192, 8193, 25_000, 25_226, 25_227, 99_999]
    assert located(order, index) == [
        (2, 466),
        (2, 405),
        (2, 347),
        (0, 84165),
        (0, 19209),
        (0, 69597),
        (0, 81517),
        (0, 61969),
        (0, 68126),
    ]


def test_several_groups():
    order = early({"a": 700_001, "b": 90_000}, 4, 9, {})
    assert GROUPED_1_WINDOWS == 65_536 and order.windows == [175_001, 22_500]
    index = [
        0,
        1,
        65_535,
        65_536,
        131_071,
        131_072,
        160_000,
        174_999,
        175_001,
        197_500,
        197_501,
        300_000,
    ]
    starts = [
        110512,
        194556,
        117836,
        78388,
        575665,
        697397,
        338944,
        344328,
        408420,
        293928,
        162112,
        444584,
    ]
    assert located(order, index) == [(0, start) for start in starts]


def test_a_trillion_tokens():
    order = early({"a": 10**13, "b": 10**9}, 512, 1, {})
    # Two windows of the small corpus in each block: 2 * 19,533,203,125 / 1,953,125, rounded up.
    assert order.block == 20_002
    starts = [6992726869118, 4199840640126, 6782544275582, 4464799556942]
    index = [0, 10**9, 19_533_203_124, 58_599_609_382]
    assert located(order, index) == [(0, start) for start in starts]


def test_tight_permutations():
    places = [5, 13, 2, 1, 0, 11, 8, 3, 4, 9, 15, 12, 10, 16, 7, 6, 14]
    assert permute(np.arange(17), 17, 2, tight=True).tolist() == places
    large = [415556570188, 21278804514, 269325869840]
    assert permute(np.array([0, 1, 2**39 - 1]), 2**39, 3, tight=True).tolist() == large


@pytest.mark.parametrize(
    ("kind", "starts"),
    [
        (
            GLOBAL,
            [
                6434570375,
                889852544,
                2098046599,
                4714673799,
                581103744,
                1657028231,
                7297918599,
                3093279879,
                1051986560,
                6060022376,
                7557880290,
            ],
        ),
        (
            GROUPED,
            [
                7865415303,
                7859360903,
                4729256583,
                7881328263,
                804905600,
                6488636551,
                9705854087,
                5710207111,
                7391736967,
                1199509089,
                4627780578,
            ],
        ),
    ],
)
def test_the_global_and_the_grouped_order(kind, starts):
    """Both ends of an epoch, where the windows come that the lanes leave, and later epochs."""
    order = WindowOrder({"a": 10**10 + 7}, 512, 5, {}, kind)
    assert (GROUP_TOKENS, LANES, order.epoch_windows) == (1 << 25, 12, 19_531_251)
    index = [0, 1, 12, 13, 65_536, 10**7, 19_531_211, 19_531_249, 19_531_250]
    later = [19_531_251, 5 * 19_531_251 + 3]
    assert located(order, [*index, *later]) == [(0, start) for start in starts]


def test_a_block_is_at_most_an_epoch():
    assert early({"a": 40, "b": 4}, 4, 1, {}).block == 11
    assert early({"a": 400_000, "b": 8}, 4, 1, {}).block == 100_002


def test_the_fewest_steps_count():
    order = early({"a": 1000}, 10, 0, {})
    assert (
        total_steps(
            order, TrainConfig(max_steps=None, epochs=1.0, tokens=None, global_batch=100), 1
        )
        == 1
    )
    with pytest.raises(ConfigError, match="holds fewer windows of model.n_ctx 10 than one batch"):
        total_steps(
            order, TrainConfig(max_steps=None, epochs=1.0, tokens=None, global_batch=101), 1
        )
    # 100 windows an epoch: 50 steps of 2. 400 tokens are 40 windows.
    assert (
        total_steps(order, TrainConfig(max_steps=49, epochs=1.0, tokens=None, global_batch=2), 1)
        == 49
    )
    assert (
        total_steps(order, TrainConfig(max_steps=51, epochs=1.0, tokens=400.0, global_batch=2), 1)
        == 20
    )


def test_a_batch_that_grows():
    sizes = BatchSizes(full=64, start=16, ramp=4)
    assert [sizes.at(step) for step in range(6)] == [16, 16, 32, 48, 64, 64]
    assert [sizes.before(step) for step in range(7)] == [0, 16, 32, 64, 112, 176, 240]
    assert [sizes.steps_in(windows) for windows in (15, 16, 111, 112, 175, 176, 240)] == [
        0,
        1,
        3,
        4,
        4,
        5,
        6,
    ]
    assert BatchSizes.of(TrainConfig(global_batch=8)) == BatchSizes(full=8, start=0, ramp=0)
    growing = TrainConfig(global_batch=8, batch_start=2, batch_warmup_steps=3)
    assert BatchSizes.of(growing) == BatchSizes(full=8, start=2, ramp=3)
