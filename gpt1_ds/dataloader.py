"""The global order of windows, and the batches read along it.

    Cursor(epoch, index) -> WindowOrder: (corpus, start) of each window -> TokenStream.read -> micro-batches of a rank

The order is a pure function of (manifest, seed, epoch, index). No rank, worker or micro-batch is in it, so any world
size continues the same order, and a resume seeks. Shards behind a URL are fetched ahead of it into a node's cache.
"""

import functools
import hashlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from gpt1_ds import distributed
from gpt1_ds.config import DataConfig, TrainConfig
from gpt1_ds.errors import ConfigError, DataError, near
from gpt1_ds.remote import ShardCache, shard_cache
from gpt1_ds.shards import MANIFEST, Manifest, TokenStream, damage, read_manifest

TABLE_WINDOWS = 2_048  # read at a time: NumPy's overhead is that of a single step
GROUP_WINDOWS = 65_536  # shuffled together: neighbours in the stream, so that shards far ahead need not be at hand
BLOCK_WINDOWS = 8_192  # stretch of the mixture in which each corpus has its exact share
JOIN_SECONDS = 5.0
BATCHES_AHEAD = 2


@dataclass(frozen=True)
class Cursor:
    """Place in the global order: `index` windows of pass `epoch` over the weighted mixture are behind us."""

    epoch: int = 0
    index: int = 0

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


@dataclass(frozen=True)
class BatchSizes:
    """Windows of each optimizer step: `full`, or over the first `ramp` steps from `start` up to it, in multiples of
    `start`; of the step alone, whatever the number of ranks."""

    full: int
    start: int = 0
    ramp: int = 0

    @classmethod
    def of(cls, train: TrainConfig) -> "BatchSizes":
        return cls(train.global_batch, train.batch_start or 0, train.batch_warmup_steps)

    def at(self, step: int) -> int:
        if step >= self.ramp:
            return self.full
        return (self.start * self.ramp + (self.full - self.start) * step) // (self.start * self.ramp) * self.start

    @functools.cached_property
    def _ramp_ends(self) -> np.ndarray:
        """Windows up to each step of the ramp."""
        return np.cumsum([0, *map(self.at, range(self.ramp))])

    def before(self, step: int) -> int:
        """Windows of all steps before `step`."""
        return int(self._ramp_ends[min(step, self.ramp)]) + self.full * max(0, step - self.ramp)

    def steps_in(self, windows: float) -> int:
        """Whole steps that so many windows make."""
        rest = windows - self._ramp_ends[-1]
        if rest < 0:
            return int(np.searchsorted(self._ramp_ends, windows, side="right")) - 1
        return self.ramp + int(rest // self.full)


def mix(*words: np.ndarray | int) -> np.ndarray:
    """A 64-bit hash of the words, elementwise: splitmix64's finaliser (Steele, Lea, Flood 2014) over their chain."""
    with np.errstate(over="ignore"):
        return functools.reduce(_absorb, words, np.uint64(0))


def _absorb(state: np.ndarray, word: np.ndarray | int) -> np.ndarray:
    state = (state ^ np.asarray(word).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
    state ^= state >> np.uint64(30)
    state *= np.uint64(0xBF58476D1CE4E5B9)
    state ^= state >> np.uint64(27)
    state *= np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    return state


def permute(index: np.ndarray, size: int, key: np.ndarray | int) -> np.ndarray:
    """Where `index` (below `size`) goes in the permutation that `key` names: O(1) an element, nothing materialised.

    A four-round Feistel network over the next even number of bits, walked until it lands below `size` again.
    """
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    mask, shift = np.uint64((1 << half) - 1), np.uint64(half)
    value = np.asarray(index).astype(np.uint64)
    states = [_absorb(np.broadcast_to(mix(key), value.shape), turn) for turn in range(4)]  # mix(key, turn)
    outside = np.arange(len(value))
    while len(outside):
        left, right = value[outside] >> shift, value[outside] & mask
        for state in states:
            left, right = right, left ^ (_absorb(state[outside], right) & mask)
        value[outside] = (left << shift) | right
        outside = outside[value[outside] >= np.uint64(size)]
    return value.astype(np.int64)


class WindowOrder:
    """index of a window in the training order -> (corpus, first token), vectorised.

    `tokens` maps corpus names to the length of their streams. A pass over the mixture has as many windows as the
    corpora together; `weights` divides them, and a corpus whose share is above its size repeats, epoch by epoch.
    """

    def __init__(self, tokens: dict[str, int], n_ctx: int, seed: int, weights: dict[str, float]):
        self.corpora, self.n_ctx, self.seed = list(tokens), n_ctx, seed
        self.tokens = [tokens[name] for name in self.corpora]
        self.windows = [-(-count // n_ctx) for count in self.tokens]
        self.epoch_windows = sum(self.windows)
        shares = np.array([weights.get(name, 0.0) for name in self.corpora] if weights else self.windows)
        # bounds[c]: windows of a mixture epoch that belong to corpora before c
        bounds = np.concatenate([[0.0], shares.cumsum() / shares.sum()]) * self.epoch_windows
        self.bounds = np.rint(bounds).astype(np.int64)
        smallest = min((n for n in np.diff(self.bounds) if n), default=1)
        # Every corpus has at least two windows in each block, so that no rounding can take one back.
        self.block = int(min(self.epoch_windows, max(BLOCK_WINDOWS, -(-2 * self.epoch_windows // smallest))))

    def locate(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Corpus number and first token of the windows at `index`, counted over all epochs from 0."""
        epoch, slot = np.divmod(np.asarray(index, dtype=np.int64), self.epoch_windows)
        block_start = slot // self.block * self.block
        block_end = np.minimum(block_start + self.block, self.epoch_windows)
        place = np.empty_like(slot)
        for size in np.unique(block_end - block_start):
            here = block_end - block_start == size
            key = mix(self.seed, 1, epoch[here], block_start[here])
            place[here] = permute(slot[here] - block_start[here], int(size), key)
        before = np.stack([self._share(block_start, bound) for bound in self.bounds])
        upto = np.stack([self._share(block_end, bound) for bound in self.bounds])
        counts_before, counts_here = np.diff(before, axis=0), np.diff(upto, axis=0) - np.diff(before, axis=0)
        firsts = np.cumsum(counts_here, axis=0) - counts_here
        corpus = (place[None] >= firsts + counts_here).sum(axis=0)
        pick = (corpus, np.arange(len(slot)))
        ordinal = epoch * np.diff(self.bounds)[corpus] + counts_before[pick] + place - firsts[pick]
        start = np.empty_like(ordinal)
        for number in np.unique(corpus):
            here = corpus == number
            start[here] = self._start(int(number), ordinal[here])
        return corpus, start

    def _share(self, slot: np.ndarray, bound: int) -> np.ndarray:
        """floor(slot * bound / epoch_windows) without overflow."""
        whole, rest = divmod(int(bound), self.epoch_windows)
        high, low = np.divmod(slot, 1 << 20)
        q_high, r_high = np.divmod(high * rest, self.epoch_windows)
        return slot * whole + (q_high << 20) + ((r_high << 20) + low * rest) // self.epoch_windows

    def _start(self, number: int, ordinal: np.ndarray) -> np.ndarray:
        """First token of a corpus's `ordinal`-th window in time, groups of neighbouring windows shuffled together."""
        windows, tokens = self.windows[number], self.tokens[number]
        epoch, place = np.divmod(ordinal, windows)
        full, tail = divmod(windows, GROUP_WINDOWS)
        group, inside = np.divmod(place, GROUP_WINDOWS)
        key = mix(self.seed, 2, number, epoch)
        window = np.empty_like(place)
        grouped = group < full
        if grouped.any():
            group[grouped] = permute(group[grouped], full, key[grouped])
            within = permute(inside[grouped], GROUP_WINDOWS, mix(key[grouped], group[grouped]))
            window[grouped] = group[grouped] * GROUP_WINDOWS + within
        if tail and not grouped.all():
            rest = ~grouped
            window[rest] = full * GROUP_WINDOWS + permute(inside[rest], tail, mix(key[rest], full))
        phase = (mix(self.seed, 3, number, epoch) % np.uint64(tokens)).astype(np.int64)
        return (phase + window * self.n_ctx) % tokens


def local_shards(data: DataConfig) -> Path:
    """The folder with `manifest.json` and `tokenizer/` of data.shards; of a URL, the cache that they are copied to."""
    root, cache = _place(data)
    if cache:
        cache.copy(MANIFEST)
        for name in read_manifest(root).tokenizer["files"]:
            cache.copy(f"tokenizer/{name}")
    return root


def _place(data: DataConfig) -> tuple[Path, ShardCache | None]:
    cache = shard_cache(data.shards, data.cache, data.cache_bytes) if "://" in data.shards else None
    return (cache.root if cache else Path(data.shards)), cache


def sound_manifest(data: DataConfig, manifest: Manifest) -> Manifest:
    """The manifest, once every shard is found as it says; all ranks call, each looks at its part.

    Sizes are checked and, by data.verify, hashes; shards behind a URL are hashed when they are fetched. DataError for
    the first damaged shard, or, with data.quarantine, the manifest of the others, the loss told by corpus.
    """
    root, cache = _place(data)
    if cache and data.quarantine:
        raise ConfigError(f"data.quarantine is true, but data.shards is {data.shards}; it takes a folder")
    mine = [] if cache else manifest.shards()[distributed.rank() :: distributed.world_size()]
    found = {}
    with tqdm(mine, "checking shards", unit="shard", delay=2, disable=None if distributed.is_main() else True) as bar:
        for shard in bar:
            if problem := damage(root / shard.file, shard, data.verify):
                found[shard.file] = problem
    everywhere = distributed.gather_json([found, fingerprint(manifest)])
    if any(prints != everywhere[0][1] for _, prints in everywhere):
        raise DataError(f"{root / MANIFEST}: ranks see different manifests; give all nodes the same data.shards")
    damaged = {file: problem for files, _ in everywhere for file, problem in files.items()}
    if damaged and not data.quarantine:
        file, problem = min(damaged.items())
        raise DataError(f"{root / file}: {problem} ({len(damaged)} damaged shards in all); build it again, or train "
                        "without with data.quarantine=true")  # fmt: skip
    whole = manifest.without(damaged)
    for split, corpora in manifest.splits.items() if damaged else ():
        for corpus, entry in corpora.items():
            tokens, shards = entry.tokens - whole.splits[split][corpus].tokens, len(entry.shards)
            lost = shards - len(whole.splits[split][corpus].shards)
            distributed.say(f"quarantine {split}/{corpus}: {lost} of {shards} shards left out, {tokens:,} of "
                            f"{entry.tokens:,} tokens")  # fmt: skip
    for file, problem in sorted(damaged.items()):
        distributed.say(f"quarantine {file}: {problem}")
    return whole


def fingerprint(manifest: Manifest) -> dict[str, str]:
    """Tokens and hash of each corpus by split: what the order is an order of, and what a resume must find again."""
    prints = {}
    for split, corpora in manifest.splits.items():
        for corpus, entry in corpora.items():
            digest = hashlib.sha256("".join(shard.sha256 for shard in entry.shards).encode()).hexdigest()[:12]
            prints[f"{split}/{corpus}"] = f"{entry.tokens} tokens, sha256 {digest}"
    return prints


def open_streams(data: DataConfig, manifest: Manifest, split: str) -> dict[str, TokenStream]:
    """The token stream of each corpus of a split; those with weight 0, or not named by the weights, are left out."""
    corpora = manifest.splits.get(split, {})
    for name in data.weights:
        if name not in manifest.splits.get("train", {}):
            raise ConfigError(f"data.weights.{name}: no such corpus in {data.shards}; "
                              f"{near(name, manifest.splits.get('train', {}))}")  # fmt: skip
    names = [name for name in corpora if split != "train" or not data.weights or data.weights.get(name, 0) > 0]
    root, cache = _place(data)
    names = [name for name in names if corpora[name].tokens > 1]
    streams = {name: TokenStream(root, manifest, split, name, cache=cache) for name in names}
    if not streams:
        raise DataError(f"{data.shards}: no tokens in split '{split}' of the chosen corpora; check data.weights or "
                        "rerun data_prep.build_shards")  # fmt: skip
    return streams


class Batches:
    """This rank's micro-batches from step `step` on, read ahead by a thread.

    Iterating yields (micro-batches of ids (micro_batch, n_ctx + 1) int64, Cursor after them).
    """

    def __init__(self, streams: dict[str, TokenStream], order: WindowOrder, cursor: Cursor,
                 sizes: BatchSizes | int, micro_batch: int, rank: int, world_size: int, step: int = 0):  # fmt: skip
        self.streams, self.order, self.cursor, self.step = list(streams.values()), order, cursor, step
        self.sizes = BatchSizes(sizes) if isinstance(sizes, int) else sizes
        self.micro_batch, self.rank, self.world_size = micro_batch, rank, world_size
        self._table = (0, np.empty((0, 0, order.n_ctx + 1), np.uint16))

    def read(self, first: int, size: int | None = None) -> list[torch.Tensor]:
        """Micro-batches of the step of `size` windows (None: the full batch) that begins with the `first`-th."""
        size = size or self.sizes.full
        begin, table_SBT = self._table
        step, off = divmod(first - begin, size)
        known = table_SBT.shape[1] * self.world_size == size
        if off or not known or not 0 <= step < len(table_SBT):
            # One step after a seek, then twice as many, and twice as many: the first is there at once.
            ahead = min(2 * len(table_SBT), TABLE_WINDOWS * self.world_size // size)
            table_SBT, step = self._read(first, size, max(1, ahead if known and step == len(table_SBT) else 1)), 0
            self._table = (first, table_SBT)
        return list(torch.from_numpy(table_SBT[step].astype(np.int64)).split(self.micro_batch))

    def _mine(self, size: int) -> np.ndarray:
        """This rank's windows of a step of `size`, counted within it."""
        share = size // self.world_size
        return np.arange(self.rank * share, (self.rank + 1) * share)

    def _read(self, first: int, size: int, steps: int) -> np.ndarray:
        """This rank's windows of some steps, (steps, B, n_ctx + 1)."""
        self._fetch_ahead(first)
        mine = self._mine(size)
        corpus, starts = self.order.locate((first + np.arange(steps)[:, None] * size + mine).ravel())
        ids_WT = np.empty((len(starts), self.order.n_ctx + 1), self.streams[0].dtype)
        for number in np.unique(corpus):
            here = corpus == number
            ids_WT[here] = self.streams[number].read_packed(starts[here], self.order.n_ctx + 1)
        return ids_WT.reshape(steps, len(mine), -1)

    def _fetch_ahead(self, first: int) -> None:
        """Have the node's cache, if there is one, fetch the shards of the groups in use and of the next ones."""
        if cache := self.streams[0].cache if self.streams else None:
            # Windows of a group are in random order: a sample of them meets every shard.
            corpus, starts = self.order.locate(first + np.arange(0, 2 * GROUP_WINDOWS, 32))
            runs = np.split(np.arange(len(corpus)), np.flatnonzero(np.diff(corpus)) + 1)
            shards = [shard for run in runs for shard in self.streams[corpus[run[0]]].shards_at(starts[run])]
            for stream in self.streams:
                stream.unmap()
            cache.fetch_ahead({shard.file: shard for shard in shards}.values())

    def dropout_keys(self, after: Cursor, step: int) -> torch.Tensor:
        """A key (B, 2) int32 for each of this rank's windows of `step`, which ends at `after`: by seed and place in
        the global order alone, so that dropout is the same on any number of ranks."""
        size = self.sizes.at(step)
        first = after.epoch * self.order.epoch_windows + after.index - size
        return torch.from_numpy(mix(self.order.seed, 4, first + self._mine(size)).view(np.int32).reshape(-1, 2))

    def __iter__(self) -> Iterator[tuple[list[torch.Tensor], Cursor]]:
        return self.until(lambda: False)

    def until(self, given_up: Callable[[], bool]) -> Iterator[tuple[list[torch.Tensor], Cursor]]:
        """The batches; while one is waited for, `given_up` is asked, and where it says so an empty one is yielded."""
        ahead: queue.Queue = queue.Queue(BATCHES_AHEAD)
        stop = threading.Event()

        def produce():
            first, step = self.cursor.epoch * self.order.epoch_windows + self.cursor.index, self.step
            try:
                while not stop.is_set():
                    size = self.sizes.at(step)
                    item = self.read(first, size), Cursor(*divmod(first + size, self.order.epoch_windows))
                    first, step = first + size, step + 1
                    while not stop.is_set():
                        try:
                            ahead.put(item, timeout=0.2)
                            time.sleep(0.0005)  # else a waiting loop gets the interpreter only 5 ms later
                            break
                        except queue.Full:
                            continue
            except BaseException as error:  # handed to the training loop, which owns the exit code
                ahead.put(error)

        producer = threading.Thread(target=produce, daemon=True, name="batches")
        producer.start()
        try:
            while True:
                try:
                    item = ahead.get(timeout=0.2)
                except queue.Empty:
                    if given_up():
                        yield [], self.cursor
                    continue
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            producer.join(JOIN_SECONDS)  # inside torch at the interpreter's end it would abort the process


def total_steps(order: WindowOrder, train: TrainConfig) -> int:
    """Optimizer steps of the run: `max_steps`, or the whole batches in `epochs` or `tokens`, whichever is fewest."""
    sizes = BatchSizes.of(train)
    windows = [train.epochs and int(train.epochs * order.epoch_windows), train.tokens and train.tokens // order.n_ctx]
    steps = min([sizes.steps_in(count) for count in windows if count is not None], default=train.max_steps)
    if steps < 1:
        raise ConfigError(f"train.epochs {train.epochs} or train.tokens {train.tokens} holds fewer windows of "
                          f"model.n_ctx {order.n_ctx} than one batch of train.global_batch {train.global_batch}; lower "
                          "one")  # fmt: skip
    return steps if train.max_steps is None else min(steps, train.max_steps)
