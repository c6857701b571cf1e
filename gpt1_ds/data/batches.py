"""The global order of windows, and the batches read along it.

    Cursor(epoch, index) -> WindowOrder: (corpus, start) of each window -> TokenStream.read -> micro-batches of a rank

The order is a pure function of (manifest, seed, epoch, index). No rank, worker or micro-batch is in it, so any world
size continues the same order, and a resume seeks. Shards behind a URL are fetched ahead of it into a node's cache.
"""

import functools
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from gpt1_ds.base.errors import ConfigError
from gpt1_ds.data.order import GROUP_WINDOWS, Cursor, WindowOrder, mix
from gpt1_ds.data.token_stream import TokenStream
from gpt1_ds.settings.sections import TrainConfig

TABLE_WINDOWS = 2_048  # read at a time: NumPy's overhead is that of a single step
JOIN_SECONDS = 5.0
BATCHES_AHEAD = 2


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
        return (
            (self.start * self.ramp + (self.full - self.start) * step)
            // (self.start * self.ramp)
            * self.start
        )

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


class Batches:
    """This rank's micro-batches from step `step` on, read ahead by a thread.

    Iterating yields (micro-batches of ids (micro_batch, n_ctx + 1) int64, Cursor after them).
    """

    def __init__(
        self,
        streams: dict[str, TokenStream],
        order: WindowOrder,
        cursor: Cursor,
        sizes: BatchSizes | int,
        micro_batch: int,
        rank: int,
        world_size: int,
        step: int = 0,
    ):
        self.streams, self.order, self.cursor, self.step = (
            list(streams.values()),
            order,
            cursor,
            step,
        )
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
            table_SBT, step = (
                self._read(first, size, max(1, ahead if known and step == len(table_SBT) else 1)),
                0,
            )
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
        corpus, starts = self.order.locate(
            (first + np.arange(steps)[:, None] * size + mine).ravel()
        )
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
            shards = [
                shard
                for run in runs
                for shard in self.streams[corpus[run[0]]].shards_at(starts[run])
            ]
            for stream in self.streams:
                stream.unmap()
            cache.fetch_ahead({shard.file: shard for shard in shards}.values())

    def dropout_keys(self, after: Cursor, step: int) -> torch.Tensor:
        """A key (B, 2) int32 for each of this rank's windows of `step`, which ends at `after`: by seed and place in
        the global order alone, so that dropout is the same on any number of ranks."""
        size = self.sizes.at(step)
        first = after.epoch * self.order.epoch_windows + after.index - size
        return torch.from_numpy(
            mix(self.order.seed, 4, first + self._mine(size)).view(np.int32).reshape(-1, 2)
        )

    def __iter__(self) -> Iterator[tuple[list[torch.Tensor], Cursor]]:
        return self.until(lambda: False)

    def until(self, given_up: Callable[[], bool]) -> Iterator[tuple[list[torch.Tensor], Cursor]]:
        """The batches; while one is waited for, `given_up` is asked, and where it says so an empty one is yielded."""
        ahead: queue.Queue = queue.Queue(BATCHES_AHEAD)
        stop = threading.Event()

        def produce():
            first, step = (
                self.cursor.epoch * self.order.epoch_windows + self.cursor.index,
                self.step,
            )
            try:
                while not stop.is_set():
                    size = self.sizes.at(step)
                    item = (
                        self.read(first, size),
                        Cursor(*divmod(first + size, self.order.epoch_windows)),
                    )
                    first, step = first + size, step + 1
                    while not stop.is_set():
                        try:
                            ahead.put(item, timeout=0.2)
                            time.sleep(
                                0.0005
                            )  # else a waiting loop gets the interpreter only 5 ms later
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
            producer.join(
                JOIN_SECONDS
            )  # inside torch at the interpreter's end it would abort the process


def total_steps(order: WindowOrder, train: TrainConfig) -> int:
    """Optimizer steps of the run: `max_steps`, or the whole batches in `epochs` or `tokens`, whichever is fewest."""
    sizes = BatchSizes.of(train)
    windows = [
        train.epochs and int(train.epochs * order.epoch_windows),
        train.tokens and train.tokens // order.n_ctx,
    ]
    steps = min(
        [sizes.steps_in(count) for count in windows if count is not None], default=train.max_steps
    )
    if steps < 1:
        raise ConfigError(
            f"train.epochs {train.epochs} or train.tokens {train.tokens} holds fewer windows of "
            f"model.n_ctx {order.n_ctx} than one batch of train.global_batch {train.global_batch}; lower "
            "one"
        )
    return steps if train.max_steps is None else min(steps, train.max_steps)
