"""The order of windows: a pure function, every window once an epoch, the same for every division into ranks."""

import itertools
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gpt1_ds.base.errors import ConfigError, DataError
from gpt1_ds.data.batches import BATCHES_AHEAD, Batches, BatchSizes, total_steps
from gpt1_ds.data.manifest import CorpusEntry, Manifest, Shard, read_manifest
from gpt1_ds.data.opening import local_shards, open_streams, sound_manifest
from gpt1_ds.data.order import Cursor, WindowOrder, mix, permute
from gpt1_ds.data.token_stream import TokenStream
from gpt1_ds.distributed import collectives
from gpt1_ds.settings.sections import DataConfig, TrainConfig
from tests.support.shards_built import Built, build

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
            assert (
                np.isin(seen, left).all() and (times <= counts[np.searchsorted(left, seen)]).all()
            )


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
    other_seed = WindowOrder({"a": 1_000_000, "b": 200_000}, 10, 1, {"a": 1, "b": 3}).locate(
        np.arange(1000)
    )[1]
    next_epoch = order.locate(order.epoch_windows + np.arange(1000))[1]
    assert (start[:1000] != other_seed).mean() > 0.9 and (start[:1000] != next_epoch).mean() > 0.9


@pytest.mark.parametrize("weights", [{}, {"a": 7, "b": 2, "c": 1}, {"a": 1, "b": 1, "c": 1}])
def test_each_corpus_has_its_share_of_every_epoch_and_of_every_stretch_of_it(weights):
    tokens = {"a": 3_000_017, "b": 400_009, "c": 70_001}
    order = WindowOrder(tokens, 10, 3, weights)
    wanted = np.array(list(weights.values()) or order.windows, float)
    wanted /= wanted.sum()
    for epoch in range(2):
        corpus, start = order.locate(epoch * order.epoch_windows + np.arange(order.epoch_windows))
        assert np.abs(np.bincount(corpus) / len(corpus) - wanted).max() < 1e-3
        for stretch in np.array_split(corpus, 10):  # 35,000 windows of blocks that are exact each
            assert np.abs(np.bincount(stretch, minlength=3) / len(stretch) - wanted).max() < 0.02
        # A corpus whose share is above its size repeats, every window as often as the others or once more.
        for number, windows in enumerate(order.windows):
            share = int(np.diff(order.bounds)[number])
            if share % windows == 0 or epoch == 0:
                counts = np.unique(np.unique(start[corpus == number], return_counts=True)[1])
                assert weights or counts.tolist() == [1]
                assert counts.max() <= -(-share // windows) + 1


def test_windows_are_well_shuffled():
    """Place in the stream and place in the epoch have no rank correlation; neighbours rarely share a document."""
    tokens, n_ctx = 400_000_000, 512
    order = WindowOrder({"a": tokens}, n_ctx, 9, {})
    _, start = order.locate(np.arange(order.epoch_windows))
    group = start[: 65_536 * 8].reshape(8, -1)
    within = [np.corrcoef(np.argsort(np.argsort(row)), np.arange(len(row)))[0, 1] for row in group]
    assert np.abs(within).max() < 0.02  # 5 sigma of 65,536 independent ranks
    many = WindowOrder({"a": 10**10}, n_ctx, 9, {})
    time_index = np.arange(0, many.epoch_windows, 97)
    assert (
        abs(np.corrcoef(many.locate(time_index)[1], time_index)[0, 1]) < 0.2
    )  # 298 groups, in some order
    documents = start // 100_000  # of a novel's length
    batches = np.sort(documents[: len(documents) // 64 * 64].reshape(-1, 64), axis=1)
    assert (np.diff(batches, axis=1) == 0).sum(axis=1).mean() < 64**2 / 2 * 100_000 / (
        65_536 * 512
    ) * 1.2


def test_ten_trillion_tokens_in_a_hundred_thousand_shards_cost_no_memory_and_no_overflow():
    """index -> (shard, sample, offset) at full size; a shard's table of samples is looked at only when it is met."""
    n_shards, sample = 100_000, 50_000
    per_shard = np.array([sample] * 2000)
    shared = Shard("", 0, "", 2000, 2000, 10**8, 1024 + np.arange(2000) * 101_376, per_shard)
    tokens = n_shards * 10**8
    manifest = Manifest(
        {"vocab_size": 40_000}, {}, {"train": {"a": CorpusEntry(0, tokens, [shared] * n_shards)}}
    )
    order = WindowOrder({"a": tokens, "b": 10**9}, 512, 1, {})
    stream = TokenStream("", manifest, "train", "a")
    table = SimpleNamespace(ends_S=per_shard.cumsum())
    stream._mapped = lambda number: table
    index = np.concatenate(
        [np.arange(64) + place for place in (0, order.epoch_windows - 64, 10 * order.epoch_windows)]
    )
    tracemalloc.start()
    corpus, start = order.locate(index)
    spans = [next(stream.spans(int(first), 513)) for first in start[corpus == 0]]
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    for first, (number, at, offset, count) in zip(start[corpus == 0].tolist(), spans, strict=True):
        assert (
            (number * 2000 + at) * sample + offset == first and 0 < count <= 513 and offset < sample
        )
    assert len({number for number, *_ in spans}) > 3


GRID = list(
    itertools.product(
        [
            {"a": [[700]]},
            {"a": [[100, 30], [1], [300, 2], []], "b": [[60], [61]]},
            {"a": [[40]] * 9, "b": [[5000]]},
        ],
        [1, 2, 3, 4],
        [1, 3],
        [1, 2],
        [(0, 0), (7, 0), (7, 3)],
    )
)


def test_no_division_of_the_work_changes_the_order(tmp_path: Path):
    """Tokens, shards (fewer than ranks, empty ones), ranks, loaders, micro-batch, seed, epoch: the same batches."""
    built = {
        id(sizes): build(tmp_path / str(number), sizes)
        for number, sizes in enumerate(s for s, *_ in GRID[::48])
    }
    for sizes, world_size, workers, micro_batch, (seed, epoch) in GRID:
        files = built[id(sizes)]
        streams = streams_of(files)
        order = WindowOrder({name: s.tokens for name, s in streams.items()}, 9, seed, {})
        firsts = epoch * order.epoch_windows + np.arange(4) * 12
        rows = []
        for rank in range(world_size):
            batches = Batches(streams, order, Cursor(), 12, micro_batch, rank, world_size)
            with ThreadPoolExecutor(workers) as pool:
                rows.append(
                    [
                        np.concatenate([ids.numpy() for ids in step])
                        for step in pool.map(batches.read, firsts)
                    ]
                )
                assert all(len(step) == 12 // world_size for step in rows[-1])
        corpus, start = order.locate(epoch * order.epoch_windows + np.arange(48))
        windows = [
            np.take(files.streams[order.corpora[c]], np.arange(first, first + 10), mode="wrap")
            for c, first in zip(corpus, start, strict=True)
        ]
        assert (
            np.concatenate([np.concatenate(step) for step in zip(*rows, strict=True)]) == windows
        ).all()


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


def test_the_next_batches_are_ready_before_they_are_asked_for(files):
    """A slow reader delays the first batch alone; the order is that of reading without a thread."""
    streams = streams_of(files)
    order = order_of(streams)
    batches, read = Batches(streams, order, Cursor(), 8, 8, 0, 1), []

    class Slow:
        cache = None

        def __init__(self, stream):
            self.stream, self.dtype = stream, stream.dtype

        def read_packed(self, starts, length):
            time.sleep(0.002 * (len(read) % 3))
            read.append(len(starts))
            return self.stream.read_packed(starts, length)

    batches.streams = [Slow(stream) for stream in batches.streams]
    direct = Batches(streams, order, Cursor(), 8, 8, 0, 1)
    for step, ((ids,), cursor) in zip(range(40), batches, strict=False):
        assert (ids == direct.read(8 * step)[0]).all() and cursor == Cursor(
            *divmod(8 * step + 8, order.epoch_windows)
        )
        deadline = time.monotonic() + 30
        while sum(read) < 8 * (step + 1 + BATCHES_AHEAD):
            assert time.monotonic() < deadline, "nobody reads ahead"
            time.sleep(0.001)


def test_an_error_in_the_reader_reaches_the_loop(files):
    streams = streams_of(files)
    for path in files.root.glob("train/*/*.tar"):
        path.unlink()
    with pytest.raises(DataError, match=r"\.tar: shard is in the manifest but cannot be read"):
        next(iter(Batches(streams, order_of(streams), Cursor(), 4, 4, 0, 1)))


def test_every_damage_is_found_before_training(tmp_path: Path):
    files = build(tmp_path, [[300, 20], [40]])
    data, size = DataConfig(shards=str(tmp_path)), DataConfig(shards=str(tmp_path), verify=False)
    path, whole = files.path(), files.path().read_bytes()
    assert sound_manifest(data, files.manifest).shards() == files.manifest.shards()
    for cut in range(0, len(whole), 256):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=rf"a-000000.tar: shard has {cut} bytes"):
            sound_manifest(size, files.manifest)
    for place in range(0, len(whole), 61):  # headers, tokens, padding
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(DataError, match="a-000000.tar: sha256 differs .*data.quarantine=true"):
            sound_manifest(data, files.manifest)
    path.write_bytes(bytes(len(whole)))
    with pytest.raises(DataError, match="a-000000.tar: sha256 differs"):
        sound_manifest(data, files.manifest)


def test_swapped_shards_are_found(tmp_path: Path):
    files = build(tmp_path, [[300], [300]])
    first, second = files.path(0), files.path(1)
    first.rename(tmp_path / "x")
    second.rename(first)
    (tmp_path / "x").rename(second)
    with pytest.raises(DataError, match=r"a-000000.tar: .*\(2 damaged shards"):
        sound_manifest(DataConfig(shards=str(tmp_path)), files.manifest)


def test_quarantine_leaves_damaged_shards_out_and_tells_the_loss(tmp_path: Path, capsys):
    files = build(tmp_path, {"a": [[300, 20], [40], [77]], "b": [[50]]})
    files.path(1).unlink()
    rest = sound_manifest(DataConfig(shards=str(tmp_path), quarantine=True), files.manifest)
    said = capsys.readouterr().out
    assert "quarantine train/a: 1 of 3 shards left out, 40 of 437 tokens" in said
    assert "quarantine train/a/a-000001.tar: shard is in the manifest but cannot be read" in said
    streams = open_streams(DataConfig(shards=str(tmp_path)), rest, "train")
    kept = np.concatenate([files.tokens[:320], files.tokens[360:]])
    assert (streams["a"].read(np.array([0]), 397)[0] == kept).all()
    for path in tmp_path.glob("train/a/*"):
        path.unlink()
    rest = sound_manifest(DataConfig(shards=str(tmp_path), quarantine=True), files.manifest)
    assert list(open_streams(DataConfig(shards=str(tmp_path)), rest, "train")) == ["b"]


@pytest.mark.parametrize(
    "shards", ["pipe:touch {}", "::pipe:touch {}", "pipe://touch {}", "file://x::pipe:touch {}"]
)
def test_no_name_of_shards_is_executed(tmp_path: Path, monkeypatch, shards: str):
    """What WebDataset's own opener would run or rewrite."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GOPEN_REWRITE", "shards=pipe:touch rewritten")
    for name in (shards.format("canary"), "shards/x"):
        with pytest.raises((ConfigError, DataError)):
            read_manifest(local_shards(DataConfig(shards=name)))
    assert not list(tmp_path.iterdir())


def check(folder: str) -> None:
    """On each rank: its own folder where `folder` names one for it."""
    root = folder.format(collectives.rank())
    sound_manifest(DataConfig(shards=root), read_manifest(root))


def test_ranks_with_different_shards_are_refused(ranks, tmp_path: Path):
    for rank in range(2):
        build(tmp_path / str(rank), [[100, rank + 1]])
    with pytest.raises(DataError, match="ranks see different manifests"):
        ranks(2).run("tests.data.test_batches:check", f"{tmp_path}/{{}}")


def test_ranks_share_the_check_and_all_refuse(ranks, tmp_path: Path):
    build(tmp_path, [[100], [100], [100]]).path(1).write_bytes(b"")
    with pytest.raises(DataError, match="a-000001.tar: shard has 0 bytes"):
        ranks(2).run("tests.data.test_batches:check", str(tmp_path))


def test_total_steps():
    order = WindowOrder({"a": 1000}, 10, 0, {})

    def steps(epochs, max_steps, tokens=None, batch=8, **ramp):
        train = TrainConfig(
            max_steps=max_steps, epochs=epochs, tokens=tokens, global_batch=batch, **ramp
        )
        return total_steps(order, train)

    assert (steps(2, None), steps(2, 7), steps(None, 99)) == (25, 7, 99)
    assert (
        steps(2, None, 800),
        steps(2, 7, 800),
        steps(None, None, 879.0),
        steps(1, None, 1e9),
    ) == (10, 7, 10, 12)
    # 2 + 2 + 4 + 4 + 6 + 6 windows in the ramp, then 8 a step.
    ramp = {"batch_start": 2, "batch_warmup_steps": 6}
    assert [
        steps(None, None, 10 * windows, **ramp) for windows in (2, 3, 4, 8, 23, 24, 31, 32)
    ] == [1, 1, 2, 3, 5, 6, 6, 7]
    with pytest.raises(ConfigError, match="global_batch"):
        steps(1, None, batch=300)


def test_the_batch_grows_in_multiples_of_its_start():
    sizes = BatchSizes(full=8, start=2, ramp=6)
    assert [sizes.at(step) for step in range(8)] == [2, 2, 4, 4, 6, 6, 8, 8]
    assert [sizes.before(step) for step in range(9)] == [0, 2, 4, 8, 12, 18, 24, 32, 40]
    assert [sizes.steps_in(sizes.before(step) + part) for step in range(9) for part in (0, 1)] == [
        step for step in range(9) for _ in (0, 1)
    ]
    assert BatchSizes(full=5).before(3) == 15 and BatchSizes(full=5).steps_in(14) == 2


def test_batches_of_a_growing_size_are_the_same_for_every_world_size(files):
    streams = streams_of(files)
    order, sizes = order_of(streams), BatchSizes(full=8, start=4, ramp=5)

    def windows(ranks: int, first: int) -> list[list[int]]:
        """Tokens of each step from `first` on, over all ranks."""
        cursor = Cursor(*divmod(sizes.before(first), order.epoch_windows))
        loaders = [
            Batches(streams, order, cursor, sizes, 2, rank, ranks, first) for rank in range(ranks)
        ]
        steps = zip(range(first, 9), *loaders, strict=False)
        return [torch.cat([torch.cat(micro) for micro, _ in parts]).tolist() for _, *parts in steps]

    whole = windows(1, 0)
    assert [len(step) for step in whole] == [sizes.at(step) for step in range(9)]
    assert windows(2, 0) == whole and windows(2, 3) == whole[3:] and windows(1, 6) == whole[6:]


def test_an_unknown_corpus_in_the_weights_is_named(files):
    with pytest.raises(ConfigError, match="did you mean 'a'"):
        open_streams(
            DataConfig(shards=str(files.root), weights={"aa": 1.0}),
            read_manifest(files.root),
            "train",
        )
