"""The batches of a training run, read along the global order of windows.

    Cursor(epoch, index) -> WindowOrder.locate: (corpus, first token) of each window
                         -> TokenStream.read:   its tokens
                         -> Batch:              this rank's micro-batches, with their dropout keys

The order does not depend on ranks, workers or micro-batches. So a run can resume with any world
size, and a resume only needs to seek. Remote shards are downloaded to the node's cache in advance.

Names of tensors end with their shape: S steps, B windows of a step on this rank, T tokens of a
window (n_ctx + 1), W = S * B windows.
"""

import functools
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from gpt1_ds.base.errors import ConfigError
from gpt1_ds.data.manifest import Shard
from gpt1_ds.data.order import Cursor, WindowOrder, mix
from gpt1_ds.data.remote import ShardCache
from gpt1_ds.data.token_stream import TokenStream
from gpt1_ds.settings.sections import TrainConfig

TABLE_WINDOWS = 2_048
"""Windows that are read in one call, for several steps, which saves NumPy's cost per call."""
SAMPLE_WINDOWS = 4_096
"""Windows that are looked up to find out which shards to download."""
BATCHES_AHEAD = 2
JOIN_SECONDS = 5.0
POLL_SECONDS = 0.2
YIELD_SECONDS = 0.0005
DROPOUT = 4
"""Makes the hashes of dropout keys differ from the other hashes of the seed."""


class Batch(NamedTuple):
    """This rank's windows of one optimizer step."""

    micro_batches: list[torch.Tensor]
    """Ids, (micro_batch, n_ctx + 1) int64 each. Empty if a stop was requested during the wait."""
    after: Cursor
    """Place in the order after this batch."""
    dropout_keys: torch.Tensor
    """A key for each window, (B, 2) int32."""


class Share(NamedTuple):
    """The part of each batch that this rank reads."""

    rank: int
    world_size: int

    def windows(self, size: int) -> np.ndarray:
        """Numbers (B,) of this rank's windows among the `size` windows of a step."""
        count = size // self.world_size
        return np.arange(self.rank * count, (self.rank + 1) * count)


class _Table(NamedTuple):
    """This rank's windows of several steps of equal size, read in one call."""

    first: int
    """Index in the order of the first step's first window, over all ranks."""
    ids_SBT: np.ndarray
    """In the dtype of the shards."""


SETTINGS_OF_SIZES = ("global_batch", "batch_start", "batch_warmup_steps")


@dataclass(frozen=True)
class BatchSizes:
    """Number of windows of each optimizer step, over all ranks.

    The size grows from `start` to `full` over the first `ramp` steps, in multiples of `start`. It
    depends only on the step, not on the number of ranks.
    """

    full: int
    start: int = 0
    ramp: int = 0
    more: int = 0
    """Windows that earlier starts of a run, which had other sizes, trained beyond these sizes."""

    @classmethod
    def of(cls, train: TrainConfig) -> "BatchSizes":
        return cls(train.global_batch, train.batch_start or 0, train.batch_warmup_steps)

    @classmethod
    def from_dict(cls, values: Mapping[str, int]) -> "BatchSizes":
        """The sizes of which `to_dict` is in `values`."""
        return cls(*(values[name] for name in SETTINGS_OF_SIZES))

    def to_dict(self) -> dict[str, int]:
        """The settings that the sizes come from."""
        return dict(zip(SETTINGS_OF_SIZES, (self.full, self.start, self.ramp), strict=True))

    def at(self, step: int) -> int:
        if step >= self.ramp:
            return self.full
        grown = self.start * self.ramp + (self.full - self.start) * step
        return grown // (self.start * self.ramp) * self.start

    @functools.cached_property
    def _ramp_ends(self) -> np.ndarray:
        """Windows before each step of the ramp, and before the first step after it, (ramp + 1,)."""
        return np.cumsum([0, *map(self.at, range(self.ramp))])

    def before(self, step: int) -> int:
        """Number of windows of all steps before `step`."""
        of_ramp = int(self._ramp_ends[min(step, self.ramp)])
        return of_ramp + self.full * max(0, step - self.ramp) + self.more

    def steps_in(self, windows: float) -> int:
        """Number of complete steps in the first `windows` windows."""
        windows -= self.more
        rest = windows - self._ramp_ends[-1]
        if rest < 0:
            return int(np.searchsorted(self._ramp_ends, windows, side="right")) - 1
        return self.ramp + int(rest // self.full)


class Batches:
    """This rank's batches, starting with step `step`; a thread reads them ahead.

    `cursor` is the position in the order where `step` begins. `sizes` may be a number if all steps
    have the same size. Iteration yields a `Batch` for each step.
    """

    def __init__(
        self,
        streams: dict[str, TokenStream],
        order: WindowOrder,
        cursor: Cursor,
        sizes: BatchSizes | int,
        micro_batch: int,
        share: Share,
        step: int = 0,
    ):
        self.streams = list(streams.values())
        self.order = order
        self.cursor = cursor
        self.sizes = BatchSizes(sizes) if isinstance(sizes, int) else sizes
        self.micro_batch = micro_batch
        self.share = share
        self.step = step
        self._ahead: queue.Queue[Batch | BaseException] = queue.Queue(BATCHES_AHEAD)
        self._table = _Table(0, np.empty((0, 0, order.n_ctx + 1), np.uint16))

    def read(self, first: int, size: int | None = None) -> list[torch.Tensor]:
        """Micro-batches of the step that has the windows from `first` to `first + size - 1`.

        `first` counts windows of the order over all epochs. Without `size` the batch is full.
        """
        size = size or self.sizes.full
        table = self._table  # read and replaced as one object: several threads may call this
        steps, own, _ = table.ids_SBT.shape
        step, within = divmod(first - table.first, size)
        same_size = own * self.share.world_size == size
        if within or not same_size or not 0 <= step < steps:
            # After a seek the table has only one step, so that the first batch is ready quickly.
            # Each later table has twice as many steps as the one before.
            most = min(2 * steps, TABLE_WINDOWS * self.share.world_size // size)
            follows = same_size and step == steps
            table = self._read_table(first, size, max(1, most) if follows else 1)
            self._table, step = table, 0
        ids_BT = torch.from_numpy(table.ids_SBT[step].astype(np.int64))
        return list(ids_BT.split(self.micro_batch))

    def _read_table(self, first: int, size: int, steps: int) -> "_Table":
        if cache := self.streams[0].cache:
            self._fetch_ahead(cache, first)
        own_B = self.share.windows(size)
        first_S1 = first + np.arange(steps)[:, None] * size
        corpus_W, start_W = self.order.locate((first_S1 + own_B).ravel())
        ids_WT = np.empty((len(start_W), self.order.n_ctx + 1), self.streams[0].dtype)
        for number in np.unique(corpus_W):
            here = corpus_W == number
            ids_WT[here] = self.streams[number].read_packed(start_W[here], self.order.n_ctx + 1)
        return _Table(first, ids_WT.reshape(steps, len(own_B), -1))

    def _fetch_ahead(self, cache: ShardCache, first: int) -> None:
        """Start to download the shards of the windows that follow, up to the next groups."""
        # The windows of a group are in random order, so a sample of them covers all its shards.
        ahead = self.order.windows_ahead
        index_W = first + np.arange(0, ahead, max(1, ahead // SAMPLE_WINDOWS))
        shards = shards_of(self.order, self.streams, index_W)
        for stream in self.streams:
            stream.unmap()
        cache.fetch_ahead(shards)

    def _dropout_keys(self, first: int, size: int) -> torch.Tensor:
        """A key (B, 2) int32 for each of this rank's windows of a step.

        The key depends only on the seed and on the window's index in the global order. So dropout
        is the same on any number of ranks.
        """
        keys_B = mix(self.order.seed, DROPOUT, first + self.share.windows(size))
        return torch.from_numpy(keys_B.view(np.int32).reshape(-1, 2))

    def _batch(self, first: int, size: int) -> Batch:
        keys_B2 = self._dropout_keys(first, size)
        return Batch(self.read(first, size), self.order.cursor_at(first + size), keys_B2)

    def __iter__(self) -> Iterator[Batch]:
        return self.until(lambda: False)

    def has_next(self) -> bool:
        """Whether the next batch is here: then `until` yields it at once."""
        return not self._ahead.empty()

    def until(self, stopping: Callable[[], bool]) -> Iterator[Batch]:
        """The batches.

        While it waits for the next batch, it calls `stopping`. If that returns True, it yields a
        batch without windows.
        """
        ahead = self._ahead = queue.Queue(BATCHES_AHEAD)
        stop = threading.Event()
        producer = threading.Thread(
            target=self._produce, args=(ahead, stop), daemon=True, name="batches"
        )
        producer.start()
        try:
            while True:
                try:
                    batch = ahead.get(timeout=POLL_SECONDS)
                except queue.Empty:
                    if stopping():
                        yield Batch([], self.cursor, torch.empty(0, 2, dtype=torch.int32))
                    continue
                if isinstance(batch, BaseException):
                    raise batch
                yield batch
        finally:
            stop.set()
            # If a thread is still inside torch when the interpreter ends, the process aborts.
            producer.join(JOIN_SECONDS)

    def _produce(self, ahead: "queue.Queue[Batch | BaseException]", stop: threading.Event) -> None:
        """Read batches into the queue until `stop`."""
        first, step = self.order.index_of(self.cursor), self.step
        try:
            while not stop.is_set():
                size = self.sizes.at(step)
                _put(ahead, self._batch(first, size), stop)
                first += size
                step += 1
        except BaseException as error:  # the training loop raises it and sets the exit code
            ahead.put(error)


def _put(ahead: "queue.Queue[Batch | BaseException]", batch: Batch, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            ahead.put(batch, timeout=POLL_SECONDS)
        except queue.Full:
            continue
        # This pause gives the interpreter lock to the loop that waits for the batch. Without it,
        # the loop would wait 5 ms longer.
        time.sleep(YIELD_SECONDS)
        return


def shards_of(
    order: WindowOrder, streams: Sequence[TokenStream], index_W: np.ndarray
) -> list[Shard]:
    """The shards where these windows of the order begin, in the order of their first use."""
    corpus_W, start_W = order.locate(index_W)
    shards = {}
    ends = np.flatnonzero(np.diff(corpus_W)) + 1
    for run in np.split(np.arange(len(corpus_W)), ends):
        for shard in streams[corpus_W[run[0]]].shards_at(start_W[run]):
            shards[shard.file] = shard
    return list(shards.values())


def step_limits(
    order: WindowOrder, train: TrainConfig, token_flops: int, sizes: BatchSizes | None = None
) -> dict[str, int]:
    """The optimizer steps that each budget of `train` allows: complete batches.

    `token_flops`: those of a trained token, for `flops`.
    """
    sizes = sizes or BatchSizes.of(train)
    limits = {}
    if train.max_steps is not None:
        limits["max_steps"] = train.max_steps
    if train.epochs is not None:
        limits["epochs"] = sizes.steps_in(int(train.epochs * order.epoch_windows))
    if train.tokens is not None:
        limits["tokens"] = sizes.steps_in(train.tokens // order.n_ctx)
    if train.flops is not None:
        limits["flops"] = sizes.steps_in(train.flops // (token_flops * order.n_ctx))
    return limits


def total_steps(
    order: WindowOrder,
    train: TrainConfig,
    token_flops: int,
    sizes: BatchSizes | None = None,
    done: int = 0,
) -> int:
    """Optimizer steps of the run: the smallest of `step_limits`.

    A run that has `done` more steps already has no further ones.
    """
    limits = step_limits(order, train, token_flops, sizes)
    first = min(limits, key=limits.__getitem__)
    steps = max(done, limits[first])
    if steps < 1:
        raise ConfigError(
            f"train.{first} {getattr(train, first)} holds fewer windows of model.n_ctx "
            f"{order.n_ctx} than one batch of train.global_batch {train.global_batch}; raise it, "
            "or lower one of them"
        )
    return steps
