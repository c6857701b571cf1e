"""The global order of windows: a pure function of (manifest, seed, epoch, index).

Names of arrays end with their shape: N windows, C corpora.
"""

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from gpt1_ds.base.errors import ConfigError

GLOBAL, GROUPED, GROUPED_1 = "global", "grouped", "grouped-1"
"""The ways to shuffle the windows of a corpus; the last one is that of early versions."""
GROUP_TOKENS = 1 << 25
"""Most tokens of a group of neighbouring windows. Such a group lies in a few shards."""
LANES = 12
"""Groups that are read at a time in the order GROUPED, each from another part of the corpus."""
GROUPED_1_WINDOWS = 65_536
"""Windows of a group in the order GROUPED_1, which reads one group at a time."""
BLOCK_WINDOWS = 8_192
"""Length of the blocks of the mixture in which each corpus has its exact share."""


@dataclass(frozen=True)
class Cursor:
    """A position in the global order: after `epoch` passes over the mixture, and `index` windows of
    the next pass."""

    epoch: int = 0
    index: int = 0

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


def mix(*words: np.ndarray | int) -> np.ndarray:
    """A 64-bit hash of the words, elementwise.

    It mixes in one word at a time, by the finaliser of splitmix64 (Steele, Lea, Flood 2014).
    """
    state: np.ndarray = np.uint64(0)  # type: ignore[assignment]  # a scalar acts as an array
    with np.errstate(over="ignore"):
        return functools.reduce(_absorb, words, state)


def _absorb(state: np.ndarray, word: np.ndarray | int) -> np.ndarray:
    state = (state ^ np.asarray(word).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
    state ^= state >> np.uint64(30)
    state *= np.uint64(0xBF58476D1CE4E5B9)
    state ^= state >> np.uint64(27)
    state *= np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    return state


def permute(
    index_N: np.ndarray, size: int, key: np.ndarray | int, tight: bool = False
) -> np.ndarray:
    """The image of each index below `size` under the permutation that `key` selects, (N,) int64.

    It takes O(1) time and memory for each element. It is a Feistel network of four rounds over the
    next even number of bits, which is applied again until the value is below `size`. `tight`: over
    as few bits as `size` has, so that it is applied less often; early orders are not.
    """
    bits = max(size - 1, 1).bit_length()
    bits = max(2, bits) if tight else bits + bits % 2
    right_bits = bits - bits // 2
    masks = np.uint64((1 << bits // 2) - 1), np.uint64((1 << right_bits) - 1)
    key_K = _one_if_equal(np.atleast_1d(mix(key)))
    rounds = [_absorb(key_K, number) for number in range(4)]  # equals mix(key, number)
    value_N = np.asarray(index_N).astype(np.uint64)
    outside, value_O = np.arange(len(value_N)), value_N
    while len(outside):
        halves = [value_O >> np.uint64(right_bits), value_O & masks[1]]
        for number, state_K in enumerate(rounds):
            state_O = state_K if len(state_K) == 1 else state_K[outside]
            halves[number % 2] ^= _absorb(state_O, halves[1 - number % 2]) & masks[number % 2]
        value_O = (halves[0] << np.uint64(right_bits)) | halves[1]
        value_N[outside] = value_O
        again = value_O >= np.uint64(size)
        outside, value_O = outside[again], value_O[again]
    return value_N.astype(np.int64)


def _one_if_equal(values_N: np.ndarray) -> np.ndarray:
    """The first value alone, (1,), if all are equal, which saves work for each of them."""
    return values_N[:1] if len(values_N) and (values_N == values_N[0]).all() else values_N


def _shuffle_globally(
    place_N: np.ndarray, windows: int, key_N: np.ndarray, n_ctx: int
) -> np.ndarray:
    """The window at each place of an epoch: a permutation of the whole corpus."""
    return permute(place_N, windows, key_N, tight=True)


def _shuffle_in_lanes(
    place_N: np.ndarray, windows: int, key_N: np.ndarray, n_ctx: int
) -> np.ndarray:
    """The window at each place of an epoch, where neighbours come from `LANES` groups at once.

    The corpus is cut into lanes, and each lane into groups of equal size. The lanes take turns.
    Each reads its groups one after another in random order, and a group's windows in random order.
    The lanes change their groups at different times, so that the shards of one more group at a time
    are needed. The few windows that the division leaves come last.
    """
    groups = -(-windows * n_ctx // (LANES * GROUP_TOKENS))
    size = windows // (LANES * groups)
    lane_windows = groups * size
    window_N = np.empty_like(place_N)
    even = place_N < LANES * lane_windows
    if even.any():
        turn_E, lane_E = np.divmod(place_N[even], LANES)
        turn_E = (turn_E + lane_E * size // LANES) % lane_windows
        slot_E, inside_E = np.divmod(turn_E, size)
        group_E = lane_E * groups + permute(slot_E, groups, mix(key_N[even], lane_E), True)
        within_E = permute(inside_E, size, mix(key_N[even], LANES + group_E), True)
        window_N[even] = group_E * size + within_E
    if not even.all():
        first = LANES * lane_windows
        within = permute(place_N[~even] - first, windows - first, key_N[~even], True)
        window_N[~even] = first + within
    return window_N


def _shuffle_in_one_group(
    place_N: np.ndarray, windows: int, key_N: np.ndarray, n_ctx: int
) -> np.ndarray:
    """The window at each place of an epoch: groups in random order, one after another."""
    groups, tail = divmod(windows, GROUPED_1_WINDOWS)
    group_N, inside_N = np.divmod(place_N, GROUPED_1_WINDOWS)
    window_N = np.empty_like(place_N)
    full = group_N < groups
    if full.any():
        group_N[full] = permute(group_N[full], groups, key_N[full])
        key_F = mix(key_N[full], group_N[full])
        within_F = permute(inside_N[full], GROUPED_1_WINDOWS, key_F)
        window_N[full] = group_N[full] * GROUPED_1_WINDOWS + within_F
    if tail and not full.all():
        within = permute(inside_N[~full], tail, mix(key_N[~full], groups))
        window_N[~full] = groups * GROUPED_1_WINDOWS + within
    return window_N


Shuffle = Callable[[np.ndarray, int, np.ndarray, int], np.ndarray]
SHUFFLES: dict[str, Shuffle] = {
    GLOBAL: _shuffle_globally,
    GROUPED: _shuffle_in_lanes,
    GROUPED_1: _shuffle_in_one_group,
}
"""(place in an epoch (N,), windows of the corpus, key of the epoch (N,), n_ctx) -> window (N,)."""


class WindowOrder:
    """Finds the corpus and the first token of each window of the training order, vectorised.

    `tokens` is the length of each corpus's stream. One pass over the mixture (an epoch) has as many
    windows as all corpora together. `weights` divides these windows among the corpora (default: by
    size). If the share of a corpus is larger than its size, the corpus is read again. ConfigError
    if a share above 0 is less than one window. `kind` is one of `SHUFFLES`.
    """

    def __init__(
        self,
        tokens: dict[str, int],
        n_ctx: int,
        seed: int,
        weights: dict[str, float],
        kind: str = GLOBAL,
    ):
        self.kind = kind
        self.corpora = list(tokens)
        self.n_ctx = n_ctx
        self.seed = seed
        self.tokens = list(tokens.values())
        self.windows = [-(-count // n_ctx) for count in self.tokens]
        self.epoch_windows = sum(self.windows)
        given = [weights.get(name, 0.0) for name in self.corpora]
        shares_C = np.array(given if weights else self.windows)
        bounds = np.concatenate([[0.0], shares_C.cumsum() / shares_C.sum()]) * self.epoch_windows
        self.bounds = np.rint(bounds).astype(np.int64)
        """bounds[c] is the number of windows of an epoch from the corpora before c, (C + 1,)."""
        for name, weight, count in zip(self.corpora, shares_C, np.diff(self.bounds), strict=True):
            if weight > 0 and not count:
                raise ConfigError(
                    f"data.weights.{name} is {weight:g}: that is less than one of the "
                    f"{self.epoch_windows} windows of an epoch; raise it, or leave {name} out"
                )
        smallest = min((count for count in np.diff(self.bounds) if count), default=1)
        # Each corpus gets at least two windows in a block. Otherwise rounding could give a corpus a
        # negative number of windows in a block.
        block = max(BLOCK_WINDOWS, -(-2 * self.epoch_windows // smallest))
        self.block = int(min(self.epoch_windows, block))

    @property
    def windows_ahead(self) -> int:
        """After so many windows some shards are no longer needed, and others are."""
        if self.kind == GROUPED_1:
            return 2 * GROUPED_1_WINDOWS
        return max(1, 2 * GROUP_TOKENS // self.n_ctx)

    def index_of(self, cursor: Cursor) -> int:
        """Number of windows before `cursor`, over all epochs."""
        return cursor.epoch * self.epoch_windows + cursor.index

    def cursor_at(self, index: int) -> Cursor:
        return Cursor(*divmod(index, self.epoch_windows))

    def locate(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Corpus number and first token, (N,) each, of the windows at `index` (N,).

        `index` counts from 0 over all epochs.
        """
        epoch_N, slot_N = np.divmod(np.asarray(index, dtype=np.int64), self.epoch_windows)
        start_N = slot_N // self.block * self.block
        end_N = np.minimum(start_N + self.block, self.epoch_windows)
        place_N = self._shuffled_in_block(epoch_N, slot_N, start_N, end_N)
        before_CN = self._windows_before(start_N)
        here_CN = self._windows_before(end_N) - before_CN
        # The first places of a block belong to corpus 0, the next ones to corpus 1, and so on.
        firsts_CN = np.cumsum(here_CN, axis=0) - here_CN
        corpus_N = (place_N >= firsts_CN + here_CN).sum(axis=0)
        pick = (corpus_N, np.arange(len(slot_N)))
        epoch_start_N = epoch_N * np.diff(self.bounds)[corpus_N]
        ordinal_N = epoch_start_N + before_CN[pick] + place_N - firsts_CN[pick]
        first_token_N = np.empty_like(ordinal_N)
        for number in np.unique(corpus_N):
            here = corpus_N == number
            first_token_N[here] = self._first_token(int(number), ordinal_N[here])
        return corpus_N, first_token_N

    def _shuffled_in_block(
        self, epoch_N: np.ndarray, slot_N: np.ndarray, start_N: np.ndarray, end_N: np.ndarray
    ) -> np.ndarray:
        """The place of each slot in its block (start to end) after the block is shuffled."""
        place_N = np.empty_like(slot_N)
        for size in np.unique(end_N - start_N):
            here = end_N - start_N == size
            key = mix(self.seed, 1, epoch_N[here], start_N[here])
            inside = slot_N[here] - start_N[here]
            place_N[here] = permute(inside, int(size), key, tight=self.kind != GROUPED_1)
        return place_N

    def _windows_before(self, slot_N: np.ndarray) -> np.ndarray:
        """Number of windows of each corpus (C, N) among the first `slot` windows of the epoch."""
        return np.diff(np.stack([self._share(slot_N, bound) for bound in self.bounds]), axis=0)

    def _share(self, slot_N: np.ndarray, bound: int) -> np.ndarray:
        """floor(slot * bound / epoch_windows) without overflow."""
        whole, rest = divmod(int(bound), self.epoch_windows)
        high_N, low_N = np.divmod(slot_N, 1 << 20)
        high_N, carry_N = np.divmod(high_N * rest, self.epoch_windows)
        low_N = ((carry_N << 20) + low_N * rest) // self.epoch_windows
        return slot_N * whole + (high_N << 20) + low_N

    def _first_token(self, number: int, ordinal_N: np.ndarray) -> np.ndarray:
        """First token of a corpus's `ordinal`-th window, counted over its epochs."""
        windows, tokens = self.windows[number], self.tokens[number]
        epoch_N, place_N = np.divmod(ordinal_N, windows)
        epoch_E = _one_if_equal(epoch_N)
        key_N = np.broadcast_to(mix(self.seed, 2, number, epoch_E), place_N.shape)
        window_N = SHUFFLES[self.kind](place_N, windows, key_N, self.n_ctx)
        phase_N = (mix(self.seed, 3, number, epoch_E) % np.uint64(tokens)).astype(np.int64)
        return (phase_N + window_N * self.n_ctx) % tokens
