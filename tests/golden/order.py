"""The global order: hashes, permutations, windows of mixtures and epochs, batches, steps."""

from collections.abc import Iterable
from functools import cache, partial
from typing import Any

import numpy as np

from gpt1_ds.data.batches import Batches, BatchSizes, Share, total_steps
from gpt1_ds.data.opening import fingerprint, open_streams
from gpt1_ds.data.order import GLOBAL, GROUPED, GROUPED_1, Cursor, WindowOrder, mix, permute
from gpt1_ds.settings.sections import DataConfig, TrainConfig
from tests.golden.store import Group, array, scratch
from tests.support.shards_built import Built, build

ORDER = Group("order")

N_CTX = 32
SEED = 42
SEVERAL = {"books": 70_001, "news": 12_345, "web": 230_017}
LARGE = {"all": 512 * 150_000 + 17, "few": 512 * 30_000}
"""More windows than one group of the early order and one block of the mixture."""
VERY_LARGE = {"all": 10**9 + 17, "few": 10**7}
early = partial(WindowOrder, kind=GROUPED_1)
NEW = (GLOBAL, GROUPED)


def located(order: WindowOrder, index: Iterable[int] | np.ndarray) -> dict[str, Any]:
    corpus, start = order.locate(np.asarray(index))
    return array(np.stack([corpus, start], axis=1))


@ORDER.value
def hash_of_words() -> list[str]:
    words = [(0,), (1,), (42, 1, 0, 0), (2**63,), (42, 4, 123_456_789), (7, 5, 3, 2, 1)]
    return [f"{int(mix(*word)):016x}" for word in words]


@ORDER.value
def hash_of_arrays() -> dict[str, Any]:
    return array(mix(SEED, np.arange(1000), 3, np.arange(1000)[::-1]).view(np.int64))


@ORDER.value
def permutations() -> dict[str, Any]:
    """By size: an odd and an even number of bits, powers of two and their neighbours."""
    sizes = (1, 2, 3, 4, 5, 63, 64, 65, 1000, 8192, 65_536, 100_003)
    return {str(size): array(permute(np.arange(size), size, SEED)) for size in sizes}


@ORDER.value
def tight_permutations() -> dict[str, Any]:
    sizes = (1, 2, 3, 5, 8, 65, 1000, 8192, 100_003)
    return {str(size): array(permute(np.arange(size), size, SEED, True)) for size in sizes}


@ORDER.value
def permutation_with_a_key_for_each_element() -> dict[str, Any]:
    return array(permute(np.arange(500), 500, mix(SEED, np.arange(500) // 100)))


@ORDER.value
def windows_of_one_corpus() -> dict[str, Any]:
    """Three epochs."""
    order = early({"books": 70_001}, N_CTX, SEED, {})
    return located(order, range(3 * order.epoch_windows))


@ORDER.value
def windows_of_several_corpora_by_size() -> dict[str, Any]:
    order = early(SEVERAL, N_CTX, SEED, {})
    return located(order, range(3 * order.epoch_windows))


@ORDER.value
def windows_of_a_mixture() -> dict[str, Any]:
    """The small corpus repeats within an epoch, the large one takes several."""
    order = early(SEVERAL, N_CTX, SEED, {"books": 1.0, "news": 2.0, "web": 0.5})
    return located(order, range(3 * order.epoch_windows))


@ORDER.value
def windows_of_a_mixture_without_one_corpus() -> dict[str, Any]:
    order = early(SEVERAL, N_CTX, SEED, {"books": 0.7, "web": 0.3})
    return located(order, range(2 * order.epoch_windows))


@ORDER.value
def windows_of_a_small_share() -> dict[str, Any]:
    """The block of the mixture grows until the small share has two windows in it."""
    order = early(LARGE, 512, SEED, {"all": 10_000.0, "few": 1.0})
    return {"block": order.block, **located(order, range(0, order.epoch_windows, 7))}


@ORDER.value
def windows_of_large_corpora() -> dict[str, Any]:
    """Whole groups of the shuffle and a last, smaller one, over two epochs."""
    order = early(LARGE, 512, SEED, {})
    return located(order, range(0, 2 * order.epoch_windows, 13))


@ORDER.value
def windows_under_other_seeds() -> dict[str, Any]:
    orders = {seed: early(SEVERAL, N_CTX, seed, {}) for seed in (0, 1, 2**31)}
    return {str(seed): located(order, range(2000)) for seed, order in orders.items()}


@ORDER.value
def windows_of_one_corpus_in_the_new_orders() -> dict[str, Any]:
    """Two epochs."""
    orders = {kind: WindowOrder({"books": 70_001}, N_CTX, SEED, {}, kind) for kind in NEW}
    return {kind: located(order, range(2 * order.epoch_windows)) for kind, order in orders.items()}


@ORDER.value
def windows_of_a_mixture_in_the_new_orders() -> dict[str, Any]:
    weights = {"books": 1.0, "news": 2.0, "web": 0.5}
    orders = {kind: WindowOrder(SEVERAL, N_CTX, SEED, weights, kind) for kind in NEW}
    return {kind: located(order, range(2 * order.epoch_windows)) for kind, order in orders.items()}


@ORDER.value
def windows_of_large_corpora_in_the_new_orders() -> dict[str, Any]:
    """Several groups in each lane of the large one, and the rest of the division."""
    orders = {kind: WindowOrder(VERY_LARGE, 512, SEED, {}, kind) for kind in NEW}
    found = {}
    for kind, order in orders.items():
        ends = np.arange(100) + np.array([[0], [order.epoch_windows - 50]])
        spread = np.arange(0, 2 * order.epoch_windows, 997)
        found[kind] = located(order, np.concatenate([spread, ends.ravel()]))
    return found


@ORDER.value
def windows_in_an_epoch() -> dict[str, int]:
    lengths = (1, 31, 32, 33, 70_001)
    orders = {n: WindowOrder({"a": n, "b": 2 * n}, N_CTX, SEED, {}) for n in lengths}
    return {str(n): order.epoch_windows for n, order in orders.items()}


@cache
def shards() -> Built:
    """Two corpora of random tokens in several shards and samples."""
    sizes = {"a": [[300, 200], [500]], "b": [[900, 41]]}
    return build(scratch() / "order-shards", sizes)


def batches(rank: int, world_size: int, sizes: BatchSizes, weights: dict[str, float]) -> Batches:
    data = DataConfig(shards=str(shards().root), weights=weights)
    streams = open_streams(data, shards().manifest, "train")
    tokens = {name: stream.tokens for name, stream in streams.items()}
    order = early(tokens, N_CTX, SEED, weights)
    return Batches(streams, order, Cursor(), sizes, 2, Share(rank, world_size))


def first_steps(rank: int, world_size: int, sizes: BatchSizes, steps: int) -> dict[str, Any]:
    """Ids of all micro-batches of the first steps, and the cursors after them."""
    ids, cursors = [], []
    for batch in batches(rank, world_size, sizes, {"a": 1.0, "b": 2.0}):
        ids += [micro_batch.numpy() for micro_batch in batch.micro_batches]
        cursors.append([batch.after.epoch, batch.after.index])
        if len(cursors) == steps:
            break
    return {"ids": array(np.concatenate(ids)), "cursors": cursors}


@ORDER.value
def batches_of_one_rank() -> dict[str, Any]:
    return first_steps(0, 1, BatchSizes(8), 20)


@ORDER.value
def batches_of_two_ranks() -> list[dict[str, Any]]:
    return [first_steps(rank, 2, BatchSizes(8), 20) for rank in range(2)]


@ORDER.value
def batches_of_a_ramp() -> dict[str, Any]:
    return first_steps(0, 1, BatchSizes(16, 4, 10), 20)


@ORDER.value
def dropout_keys_of_batches() -> dict[str, Any]:
    """Of two ranks; at steps of the ramp and after it, in the first epoch and in the second."""
    sizes = BatchSizes(16, 4, 10)
    keys = {}
    for rank in range(2):
        mine = batches(rank, 2, sizes, {})
        for step, after in ((3, Cursor(0, 24)), (12, Cursor(0, 60)), (50, Cursor(1, 7))):
            size = sizes.at(step)
            first = mine.order.index_of(after) - size
            keys[f"rank {rank}, step {step}"] = array(mine._dropout_keys(first, size))
    return keys


@ORDER.value
def prints_of_shards() -> dict[str, str]:
    """What a resume compares with the shards it finds."""
    return fingerprint(shards().manifest)


@ORDER.value
def batch_sizes_of_ramps() -> dict[str, Any]:
    """By (full batch, first batch, steps)."""
    values = {}
    for ramp in ((64, 8, 20), (96, 32, 7), (10, 3, 4)):
        sizes = BatchSizes(*ramp)
        values[str(ramp)] = {
            "at": [sizes.at(step) for step in range(ramp[2] + 2)],
            "before": [sizes.before(step) for step in range(ramp[2] + 3)],
            "steps_in": [sizes.steps_in(windows) for windows in range(0, 500, 25)],
        }
    return values


@ORDER.value
def steps_of_runs() -> dict[str, int]:
    order = early(SEVERAL, N_CTX, SEED, {})
    runs = {
        "max_steps": TrainConfig(max_steps=77, epochs=None),
        "epochs": TrainConfig(epochs=2.5, global_batch=64),
        "tokens": TrainConfig(epochs=None, tokens=1e6, global_batch=48),
        "fewest": TrainConfig(max_steps=1000, epochs=3.0, tokens=5e5, global_batch=16),
        "ramp": TrainConfig(epochs=1.0, global_batch=64, batch_start=8, batch_warmup_steps=100),
    }
    return {name: total_steps(order, train, 1) for name, train in runs.items()}
