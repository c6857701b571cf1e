"""Batches in the global order: the same for any number of ranks, and read in advance."""

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from gpt1_ds.base.errors import ConfigError, DataError
from gpt1_ds.data.batches import BATCHES_AHEAD, Batches, BatchSizes, Share, total_steps
from gpt1_ds.data.manifest import read_manifest
from gpt1_ds.data.opening import open_streams
from gpt1_ds.data.order import Cursor, WindowOrder
from gpt1_ds.data.token_stream import TokenStream
from gpt1_ds.settings.sections import DataConfig, TrainConfig
from tests.support.shards_built import Built, build

SIZES = [
    {"a": [[700]]},
    {"a": [[100, 30], [1], [300, 2], []], "b": [[60], [61]]},  # an empty shard
    {"a": [[40]] * 9, "b": [[5000]]},
]
WORLD_SIZES, WORKERS, MICRO_BATCHES = [1, 2, 3, 4], [1, 3], [1, 2]
SEEDS_AND_EPOCHS = [(0, 0), (7, 0), (7, 3)]


@pytest.mark.parametrize("sizes", SIZES)
def test_no_division_of_the_work_changes_the_order(tmp_path: Path, sizes):
    """For any number of ranks and reading threads, micro-batch, seed and epoch: the same batches.

    There may be fewer shards than ranks, and empty ones.
    """
    files = build(tmp_path, sizes)
    grid = itertools.product(WORLD_SIZES, WORKERS, MICRO_BATCHES, SEEDS_AND_EPOCHS)
    for world_size, workers, micro_batch, (seed, epoch) in grid:
        streams = streams_of(files)
        order = WindowOrder({name: s.tokens for name, s in streams.items()}, 9, seed, {})
        firsts = epoch * order.epoch_windows + np.arange(4) * 12
        rows = []
        for rank in range(world_size):
            share = Share(rank, world_size)
            batches = Batches(streams, order, Cursor(), 12, micro_batch, share)
            with ThreadPoolExecutor(workers) as pool:
                steps = [torch.cat(step).numpy() for step in pool.map(batches.read, firsts)]
            assert all(len(step) == 12 // world_size for step in steps)
            rows.append(steps)
        read = np.concatenate([np.concatenate(step) for step in zip(*rows, strict=True)])
        corpus, start = order.locate(epoch * order.epoch_windows + np.arange(48))
        windows = []
        for c, first in zip(corpus, start, strict=True):
            tokens = files.streams[order.corpora[c]]
            windows.append(np.take(tokens, np.arange(first, first + 10), mode="wrap"))
        assert (read == windows).all()


@pytest.fixture
def files(tmp_path: Path) -> Built:
    return build(tmp_path, {"a": [[3000, 500], [2000], [1]], "b": [[400], [300, 7]]})


def streams_of(files: Built) -> dict[str, TokenStream]:
    return open_streams(DataConfig(shards=str(files.root)), read_manifest(files.root), "train")


def order_of(streams: dict[str, TokenStream]) -> WindowOrder:
    return WindowOrder({name: stream.tokens for name, stream in streams.items()}, 32, 3, {})


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("micro_batch", [1, 2])
def test_batches_are_the_same_for_every_world_size(files, world_size, micro_batch):
    streams = streams_of(files)
    order = order_of(streams)
    begin = Cursor(0, order.epoch_windows - 12)  # the second batch crosses into the next epoch

    def steps(ranks: int, micro: int, start: Cursor, count: int):
        """Ids and dropout keys of all ranks, and the cursor after, of each step."""
        rows = [[] for _ in range(count)]
        for rank in range(ranks):
            batches = Batches(streams, order, start, 8, micro, Share(rank, ranks))
            for row, batch in zip(rows, batches, strict=False):
                assert all(len(ids) == micro for ids in batch.micro_batches)
                row.append(batch)
        done = []
        for row in rows:
            ids = torch.cat([torch.cat(batch.micro_batches) for batch in row])
            keys = torch.cat([batch.dropout_keys for batch in row])
            done.append((ids, keys, row[0].after))
        return done

    reference = steps(1, 8, begin, 3)
    for (ids, keys, after), expected in zip(
        steps(world_size, micro_batch, begin, 3), reference, strict=True
    ):
        assert torch.equal(ids, expected[0]) and torch.equal(keys, expected[1])
        assert after == expected[2]
    assert reference[1][2] == Cursor(1, 4)
    all_keys = torch.cat([keys for _, keys, _ in reference])
    assert len(all_keys.unique(dim=0)) == 24
    resumed = steps(world_size, micro_batch, reference[0][2], 2)
    for again, expected in zip(resumed, reference[1:], strict=True):
        assert torch.equal(again[0], expected[0]) and torch.equal(again[1], expected[1])


def test_the_next_batches_are_ready_before_they_are_asked_for(files):
    """A slow reader delays the first batch alone; the order is that of reading without a thread."""
    streams = streams_of(files)
    order = order_of(streams)
    batches, read = Batches(streams, order, Cursor(), 8, 8, Share(0, 1)), []

    class Slow:
        cache = None

        def __init__(self, stream):
            self.stream, self.dtype = stream, stream.dtype

        def read_packed(self, starts, length):
            time.sleep(0.002 * (len(read) % 3))
            read.append(len(starts))
            return self.stream.read_packed(starts, length)

    batches.streams = [Slow(stream) for stream in batches.streams]
    direct = Batches(streams, order, Cursor(), 8, 8, Share(0, 1))
    for step, batch in zip(range(40), batches, strict=False):
        (ids,) = batch.micro_batches
        assert (ids == direct.read(8 * step)[0]).all()
        assert batch.after == Cursor(*divmod(8 * step + 8, order.epoch_windows))
        deadline = time.monotonic() + 30
        while sum(read) < 8 * (step + 1 + BATCHES_AHEAD):
            assert time.monotonic() < deadline, "nobody reads ahead"
            time.sleep(0.001)


def test_an_error_in_the_reader_reaches_the_loop(files):
    streams = streams_of(files)
    for path in files.root.glob("train/*/*.tar"):
        path.unlink()
    with pytest.raises(DataError, match=r"\.tar: shard is in the manifest but cannot be read"):
        next(iter(Batches(streams, order_of(streams), Cursor(), 4, 4, Share(0, 1))))


def test_total_steps():
    order = WindowOrder({"a": 1000}, 10, 0, {})

    def steps(epochs, max_steps, tokens=None, batch=8, **more):
        train = TrainConfig(
            max_steps=max_steps, epochs=epochs, tokens=tokens, global_batch=batch, **more
        )
        return total_steps(order, train, 7)

    assert (steps(2, None), steps(2, 7), steps(None, 99)) == (25, 7, 99)
    assert (steps(2, None, 800), steps(2, 7, 800)) == (10, 7)
    assert (steps(None, None, 879.0), steps(1, None, 1e9)) == (10, 12)
    # A step of 8 windows of 10 tokens takes 560 FLOPs where a token takes 7.
    work = (5600.0, 5599.0, 560.0, 1e30)
    assert [steps(9, 99, flops=flops) for flops in work] == [10, 9, 1, 99]
    assert steps(None, None, 800, flops=5040.0) == 9 and steps(None, None, 800, flops=1e9) == 10
    # 2 + 2 + 4 + 4 + 6 + 6 windows in the ramp, then 8 a step.
    ramp = {"batch_start": 2, "batch_warmup_steps": 6}
    windows = (2, 3, 4, 8, 23, 24, 31, 32)
    counts = [steps(None, None, 10 * count, **ramp) for count in windows]
    assert counts == [1, 1, 2, 3, 5, 6, 6, 7]
    with pytest.raises(
        ConfigError, match="train.epochs 1 holds fewer .* than one batch of train.global"
    ):
        steps(1, None, batch=300)
    with pytest.raises(ConfigError, match="train.flops 559 holds fewer windows"):
        steps(1, None, flops=559)


def test_the_batch_grows_in_multiples_of_its_start():
    sizes = BatchSizes(full=8, start=2, ramp=6)
    assert [sizes.at(step) for step in range(8)] == [2, 2, 4, 4, 6, 6, 8, 8]
    assert [sizes.before(step) for step in range(9)] == [0, 2, 4, 8, 12, 18, 24, 32, 40]
    for step in range(9):
        assert sizes.steps_in(sizes.before(step)) == step == sizes.steps_in(sizes.before(step) + 1)
    assert BatchSizes(full=5).before(3) == 15 and BatchSizes(full=5).steps_in(14) == 2


def test_batches_of_a_growing_size_are_the_same_for_every_world_size(files):
    streams = streams_of(files)
    order, sizes = order_of(streams), BatchSizes(full=8, start=4, ramp=5)

    def windows(ranks: int, first: int) -> list[list[int]]:
        """Tokens of each step from `first` on, over all ranks."""
        cursor = Cursor(*divmod(sizes.before(first), order.epoch_windows))
        shares = [Share(rank, ranks) for rank in range(ranks)]
        loaders = [Batches(streams, order, cursor, sizes, 2, share, first) for share in shares]
        steps = []
        for _, *parts in zip(range(first, 9), *loaders, strict=False):
            micro_batches = [torch.cat(batch.micro_batches) for batch in parts]
            steps.append(torch.cat(micro_batches).tolist())
        return steps

    whole = windows(1, 0)
    assert [len(step) for step in whole] == [sizes.at(step) for step in range(9)]
    assert windows(2, 0) == whole and windows(2, 3) == whole[3:] and windows(1, 6) == whole[6:]
