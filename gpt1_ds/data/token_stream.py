"""One corpus and split as one stream of tokens, read from the shards by position.

Names of arrays end with their shape: B windows, L tokens of a window, S samples of a shard (or
shards of a stream), N bytes of a file.
"""

import functools
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpt1_ds.base.errors import DataError
from gpt1_ds.data.manifest import MANIFEST, Manifest, Shard, find_damage
from gpt1_ds.data.remote import ShardCache

MAP_ATTEMPTS = 3
FEW_SHARDS = 64
"""Are mapped at once in any case: a mapped file counts among the open files of the process."""


class Span(NamedTuple):
    """Neighbouring tokens of one sample."""

    shard: int
    """Number of the shard in `TokenStream.shards`."""
    sample: int
    first: int
    """First token, counted from the start of the sample."""
    tokens: int


class TokenStream:
    """One corpus of one split as a circular sequence of tokens.

    The samples follow each other in manifest order, over all shards. After the last token the first
    one follows again. A shard is memory-mapped at its first use, and at most `max_open` shards stay
    mapped. With a `cache`, shards are downloaded through it.
    """

    def __init__(
        self,
        root: Path | str,
        manifest: Manifest,
        split: str,
        corpus: str,
        max_open: int = FEW_SHARDS,
        cache: ShardCache | None = None,
    ):
        entry = manifest.splits.get(split, {}).get(corpus)
        if entry is None or not entry.tokens:
            raise DataError(
                f"{Path(root) / MANIFEST}: no tokens of corpus '{corpus}' in split '{split}'"
            )
        self.tokens = entry.tokens
        self.shards = [shard for shard in entry.shards if shard.tokens]
        self.dtype = manifest.dtype
        self.cache = cache
        self._root = Path(root)
        self._vocab_size = manifest.tokenizer["vocab_size"]
        self._ends_S = np.cumsum([shard.tokens for shard in self.shards])
        self._mapped = functools.lru_cache(max_open)(self._map)

    def read(self, starts_B: np.ndarray, length: int) -> np.ndarray:
        """Tokens (B, length) int64 at the positions start .. start + length - 1, modulo `tokens`.

        Raises DataError if a shard cannot be read or has an id outside the vocabulary.
        """
        return self.read_packed(starts_B, length).astype(np.int64)

    def read_packed(self, starts_B: np.ndarray, length: int) -> np.ndarray:
        """The same as `read`, but in the dtype of the shards, which needs less memory."""
        starts_B = np.asarray(starts_B, np.int64) % self.tokens
        shard_B = self._shard_at(starts_B)
        out_BL = np.empty((len(starts_B), length), self.dtype)
        order_B = starts_B.argsort()  # reading in disk order is a third faster
        for number, begin, end in _runs(shard_B[order_B]):
            self._read_rows(number, order_B[begin:end], starts_B, out_BL)
        if out_BL.size and int(out_BL.max()) >= self._vocab_size:
            row = int(out_BL.max(axis=1).argmax())
            raise DataError(
                f"{self._root / self.shards[shard_B[row]].file}: token id {out_BL.max()} at or "
                f"after it, outside the vocabulary of {self._vocab_size}; run "
                "data_prep.verify_shards"
            )
        return out_BL

    def _read_rows(
        self, number: int, rows: np.ndarray, starts_B: np.ndarray, out_BL: np.ndarray
    ) -> None:
        """Fill the `rows` of `out_BL`, which all start in the shard `number`."""
        mapped = self._mapped(number)
        length = out_BL.shape[1]
        byte_R, left_R = mapped.places(starts_B[rows] - self._first_token(number))
        row_bytes = length * self.dtype.itemsize
        last = len(mapped.bytes_N) - row_bytes
        if last >= 0:
            # Row i of this view is the `row_bytes` bytes of the file from byte i on. NumPy copies
            # each selected row with one memcpy. That is several times faster than single tokens.
            view = np.ndarray((last + 1, row_bytes), np.uint8, mapped.bytes_N, strides=(1, 1))
            out_BL[rows] = view[np.minimum(byte_R, last)].view(self.dtype)
        # A row that goes beyond the end of its sample continues in the next samples.
        for row in rows[left_R < length].tolist():
            self._fill(out_BL[row], int(starts_B[row]))

    def _fill(self, out_L: np.ndarray, position: int) -> None:
        filled = 0
        for number, sample, first, tokens in self.spans(position, len(out_L)):
            byte = self.shards[number].sample_offsets[sample] + first * self.dtype.itemsize
            raw = self._mapped(number).bytes_N[byte : byte + tokens * self.dtype.itemsize]
            out_L[filled : filled + tokens] = raw.view(self.dtype)
            filled += tokens

    def spans(self, position: int, length: int) -> Iterator[Span]:
        """The spans that hold the `length` tokens from `position` on."""
        while length:
            position %= self.tokens
            number = int(self._shard_at(position))
            ends_S = self._mapped(number).ends_S
            local = position - self._first_token(number)
            sample = int(ends_S.searchsorted(local, side="right"))
            sample_start = int(ends_S[sample - 1]) if sample else 0
            tokens = min(length, int(ends_S[sample]) - local)
            yield Span(number, sample, local - sample_start, tokens)
            position += tokens
            length -= tokens

    def path(self, number: int) -> Path:
        """The file of a shard; a remote shard is downloaded first."""
        shard = self.shards[number]
        return self.cache.fetch(shard) if self.cache else self._root / shard.file

    def shards_at(self, starts_B: np.ndarray) -> list[Shard]:
        """The shard of each position."""
        return [self.shards[number] for number in self._shard_at(starts_B)]

    def unmap(self) -> None:
        """Unmap all shards. A file that the cache removed uses disk space while it is mapped."""
        self._mapped.cache_clear()

    def _shard_at(self, positions: np.ndarray | int) -> np.ndarray:
        return self._ends_S.searchsorted(positions, side="right")

    def _first_token(self, number: int) -> int:
        return int(self._ends_S[number]) - self.shards[number].tokens

    def _map(self, number: int) -> "_Mapped":
        shard = self.shards[number]
        for _ in range(MAP_ATTEMPTS - 1):
            path = self.path(number)
            try:
                return _Mapped(path, shard, self.dtype.itemsize)
            except DataError:
                if path.exists() or not self.cache:
                    raise
                # Another rank removed the file from the cache after `path` found it: try again.
        return _Mapped(self.path(number), shard, self.dtype.itemsize)


class _Mapped:
    """The memory-mapped bytes of a shard, and the positions of its tokens in them."""

    def __init__(self, path: Path, shard: Shard, token_bytes: int):
        try:
            self._map = _map_file(path, shard.bytes)
        except (OSError, ValueError) as error:
            problem = find_damage(path, shard, hashed=False) or f"shard cannot be read ({error})"
            raise DataError(f"{path}: {problem}; build it again") from error
        # The first batch after a seek should read only the pages that it needs. From the second
        # batch on, `places` allows the kernel to read ahead.
        self._map.madvise(mmap.MADV_RANDOM)
        self._reads = 0
        self.bytes_N = np.frombuffer(self._map, np.uint8)
        counts_S = np.asarray(shard.sample_tokens, np.int64)
        self.ends_S = np.cumsum(counts_S)
        """Number of tokens of the shard up to the end of each sample."""
        first_tokens_S = self.ends_S - counts_S
        offsets_S = np.asarray(shard.sample_offsets, np.int64)
        self._shift_S = offsets_S - first_tokens_S * token_bytes
        self._token_bytes = token_bytes

    def places(self, positions_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The byte offset of each token, and the number of tokens from it to its sample's end."""
        self._reads += 1
        if self._reads == 2:
            self._map.madvise(mmap.MADV_NORMAL)
        sample_B = self.ends_S.searchsorted(positions_B, side="right")
        bytes_B = self._shift_S[sample_B] + positions_B * self._token_bytes
        return bytes_B, self.ends_S[sample_B] - positions_B


def _map_file(path: Path, size: int) -> mmap.mmap:
    """The bytes of a file; ValueError if they are not `size`.

    It takes few system calls: the first batch of the order GLOBAL may have to open 64 shards.
    """
    file = os.open(path, os.O_RDONLY)
    try:
        if os.fstat(file).st_size != size:
            raise ValueError(f"it has not {size} bytes")
        return mmap.mmap(file, size, prot=mmap.PROT_READ)
    finally:
        os.close(file)


def _runs(sorted_B: np.ndarray) -> list[tuple[int, int, int]]:
    """(value, begin, end) of each run of equal values."""
    if not len(sorted_B):
        return []
    ends = [*(np.flatnonzero(np.diff(sorted_B)) + 1).tolist(), len(sorted_B)]
    begins = [0, *ends[:-1]]
    return [(int(sorted_B[begin]), begin, end) for begin, end in zip(begins, ends, strict=True)]
