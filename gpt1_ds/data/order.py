"""The global order of windows: a pure function of (manifest, seed, epoch, index)."""

import functools
from dataclasses import asdict, dataclass

import numpy as np

GROUP_WINDOWS = 65_536  # shuffled together: neighbours in the stream, so that shards far ahead need not be at hand
BLOCK_WINDOWS = 8_192  # stretch of the mixture in which each corpus has its exact share


@dataclass(frozen=True)
class Cursor:
    """Place in the global order: `index` windows of pass `epoch` over the weighted mixture are behind us."""

    epoch: int = 0
    index: int = 0

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


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
    states = [
        _absorb(np.broadcast_to(mix(key), value.shape), turn) for turn in range(4)
    ]  # mix(key, turn)
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
        shares = np.array(
            [weights.get(name, 0.0) for name in self.corpora] if weights else self.windows
        )
        # bounds[c]: windows of a mixture epoch that belong to corpora before c
        bounds = np.concatenate([[0.0], shares.cumsum() / shares.sum()]) * self.epoch_windows
        self.bounds = np.rint(bounds).astype(np.int64)
        smallest = min((n for n in np.diff(self.bounds) if n), default=1)
        # Every corpus has at least two windows in each block, so that no rounding can take one back.
        self.block = int(
            min(self.epoch_windows, max(BLOCK_WINDOWS, -(-2 * self.epoch_windows // smallest)))
        )

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
        counts_before, counts_here = (
            np.diff(before, axis=0),
            np.diff(upto, axis=0) - np.diff(before, axis=0),
        )
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
