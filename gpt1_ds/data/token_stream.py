"""One corpus and split as one stream of tokens, read from the shards by position."""

import functools
import itertools
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gpt1_ds.base.errors import DataError
from gpt1_ds.data.manifest import MANIFEST, Manifest, Shard, damage


class _Mapped:
    """One shard's bytes, and where its tokens lie among them."""

    def __init__(self, path: Path, shard: Shard, token_bytes: int):
        if problem := damage(path, shard, hashed=False):
            raise DataError(f"{path}: {problem}; build it again")
        try:
            with open(path, "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: shard cannot be read ({error})") from error
        # The first batch after a seek wants its few pages at once, later ones the megabytes around each too.
        self._map.madvise(mmap.MADV_RANDOM)
        self._reads = 0
        self.bytes_N = np.frombuffer(self._map, np.uint8)
        counts_S = np.asarray(shard.sample_tokens, np.int64)
        self.ends_S = np.cumsum(counts_S)
        self._shift_S = (
            np.asarray(shard.sample_offsets, np.int64) - (self.ends_S - counts_S) * token_bytes
        )
        self._token_bytes = token_bytes

    def places(self, positions_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The byte of each token, and how many tokens of its sample follow from there."""
        self._reads += 1
        if self._reads == 2:
            self._map.madvise(mmap.MADV_NORMAL)
        sample_B = self.ends_S.searchsorted(positions_B, side="right")
        return self._shift_S[sample_B] + positions_B * self._token_bytes, self.ends_S[
            sample_B
        ] - positions_B


class TokenStream:
    """One corpus of one split as a ring of tokens: manifest order, across samples and shards, wrapping at the end.

    Shards are mapped on first use, and at most `max_open` stay mapped. With a `cache`
    (`gpt1_ds.remote.ShardCache`) they come from there.
    """

    def __init__(
        self,
        root: Path | str,
        manifest: Manifest,
        split: str,
        corpus: str,
        max_open: int = 64,
        cache: Any = None,
    ):
        entry = manifest.splits.get(split, {}).get(corpus)
        if entry is None or not entry.tokens:
            raise DataError(
                f"{Path(root) / MANIFEST}: no tokens of corpus '{corpus}' in split '{split}'"
            )
        self.tokens, self.cache = entry.tokens, cache
        self._root, self.shards = Path(root), [shard for shard in entry.shards if shard.tokens]
        self.dtype, self._vocab_size = manifest.dtype, manifest.tokenizer["vocab_size"]
        self._ends_S = np.cumsum([shard.tokens for shard in self.shards])
        self._mapped = functools.lru_cache(max_open)(self._map)

    def read(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Tokens (B, length) int64 at positions start .. start + length - 1, for starts (B,) int64, modulo `tokens`.

        DataError where a shard cannot be read or holds an id outside the vocabulary.
        """
        return self.read_packed(starts, length).astype(np.int64)

    def read_packed(self, starts: np.ndarray, length: int) -> np.ndarray:
        """`read`, of the shards' own dtype: a quarter of the memory, to be widened when it is used."""
        starts_B = np.asarray(starts, np.int64) % self.tokens
        shard_B = self._ends_S.searchsorted(starts_B, side="right")
        out_BL = np.empty((len(starts_B), length), self.dtype)
        row_bytes = length * self.dtype.itemsize
        order_B = starts_B.argsort()  # neighbours in memory one after the other: a third faster
        for number, begin, end in _runs(shard_B[order_B]):
            mapped, rows = self._mapped(number), order_B[begin:end]
            byte_R, left_R = mapped.places(starts_B[rows] - self._first(number))
            last = len(mapped.bytes_N) - row_bytes
            if last >= 0:
                # Every run of `row_bytes` bytes of the file is a row of this view: NumPy copies the chosen ones with
                # one memcpy each, several times faster than a gather token by token.
                runs = np.ndarray((last + 1, row_bytes), np.uint8, mapped.bytes_N, strides=(1, 1))
                out_BL[rows] = runs[np.minimum(byte_R, last)].view(self.dtype)
            for row in rows[
                left_R < length
            ].tolist():  # beyond its sample's end: from the next ones
                self._fill(out_BL[row], int(starts_B[row]))
        if out_BL.size and int(out_BL.max()) >= self._vocab_size:
            row = int(out_BL.max(axis=1).argmax())
            raise DataError(
                f"{self._root / self.shards[shard_B[row]].file}: token id {out_BL.max()} at or after it, "
                f"outside the vocabulary of {self._vocab_size}; run data_prep.verify_shards"
            )
        return out_BL

    def _fill(self, out_L: np.ndarray, position: int) -> None:
        filled = 0
        for number, sample, first, count in self.spans(position, len(out_L)):
            byte = self.shards[number].sample_offsets[sample] + first * self.dtype.itemsize
            raw = self._mapped(number).bytes_N[byte : byte + count * self.dtype.itemsize]
            out_L[filled : filled + count] = raw.view(self.dtype)
            filled += count

    def spans(self, position: int, length: int) -> Iterator[tuple[int, int, int, int]]:
        """Where `length` tokens from `position` on lie: (number in `shards`, sample, first token in it, tokens)."""
        while length:
            position %= self.tokens
            number = int(self._ends_S.searchsorted(position, side="right"))
            ends_S, local = self._mapped(number).ends_S, position - self._first(number)
            sample = int(ends_S.searchsorted(local, side="right"))
            count = min(length, int(ends_S[sample]) - local)
            yield number, sample, local - (int(ends_S[sample - 1]) if sample else 0), count
            position, length = position + count, length - count

    def path(self, number: int) -> Path:
        """The file of a shard, fetched where it is a remote one."""
        shard = self.shards[number]
        return self.cache.fetch(shard) if self.cache else self._root / shard.file

    def shards_at(self, starts: np.ndarray) -> list[Shard]:
        return [self.shards[number] for number in self._ends_S.searchsorted(starts, side="right")]

    def unmap(self) -> None:
        """Let go of the shards mapped so far: a file that a cache has removed keeps its disk space until then."""
        self._mapped.cache_clear()

    def _first(self, number: int) -> int:
        return int(self._ends_S[number]) - self.shards[number].tokens

    def _map(self, number: int) -> _Mapped:
        shard = self.shards[number]
        for last in (False, False, True):
            path = self.path(number)
            try:
                return _Mapped(path, shard, self.dtype.itemsize)
            except DataError:
                if (
                    last or path.exists() or not self.cache
                ):  # else another rank made room between the two calls
                    raise


def _runs(sorted_B: np.ndarray) -> list[tuple[int, int, int]]:
    """(value, begin, end) of each run of equal values."""
    begins = [0, *(np.flatnonzero(np.diff(sorted_B)) + 1).tolist(), len(sorted_B)]
    return [
        (int(sorted_B[begin]), begin, end)
        for begin, end in itertools.pairwise(begins)
        if begin < end
    ]
