"""Which texts occur more than once, in any corpus: documents and long paragraphs.

They are compared exactly or, on request, approximately by MinHash. Every text has a key: 128 bits
of its BLAKE2b, or of that of one band of its MinHash signature. The keys of one part lie sorted in
its `.keys` file, so all texts of one range of keys (a bucket) are a slice of each such file. A
bucket is small, whatever the size of the corpora, and the ranks share the buckets. The texts with
the same key are a group. `survivors.py` decides which text of a group stays.
"""

import functools
import hashlib
import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gpt1_ds.base.errors import ConfigError
from gpt1_ds.base.files import write_atomically

if TYPE_CHECKING:
    from datasketch import MinHash

RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("row", "<u8")])
"""A key, and the row of its text in the part's table. Bits 32 to 62 of the row, once parts are
compared: number of the part. Bit 31: `NEAR`."""
NEAR = 1 << 31
"""The key is a band of a signature, and the row is a document's."""
GROUPED = np.dtype([("row", "<u8"), ("group", "<u8")])
"""A text that is not alone with its key, and the number of its group."""
BUCKET_RECORDS = 1 << 21
"""Sorting a bucket takes about 100 bytes of memory a record."""
_STARTS = 1024
_PERMUTATIONS = 128
_SHINGLE_WORDS = 5


class TextKey(NamedTuple):
    """The key of one text of a part."""

    digest: bytes
    row: int


def sorted_run(keys: list[TextKey]) -> bytes:
    """The `.keys` file of these keys: where each range of keys begins, then the sorted records."""
    run_R = np.empty(len(keys), RECORD)
    high_low_R2 = np.frombuffer(b"".join(digest for digest, _ in keys), "<u8").reshape(-1, 2)
    run_R["high"] = high_low_R2[:, 0]
    run_R["low"] = high_low_R2[:, 1]
    run_R["row"] = [row for _, row in keys]
    run_R = run_R[np.argsort(run_R["high"])]
    edges = np.arange(_STARTS, dtype=np.uint64) << np.uint64(54)
    starts = np.append(np.searchsorted(run_R["high"], edges), len(run_R)).astype("<u8")
    return starts.tobytes() + run_R.tobytes()


class Duplicates:
    """The groups of equal texts, of parts in reading order."""

    def __init__(self, work: Path, parts: Sequence[str], threshold: float):
        self._work, self._parts, self._threshold = work, parts, threshold
        self.bytes = sum((work / f"{part}.keys").stat().st_size for part in parts)
        full_buckets = self.bytes // RECORD.itemsize // BUCKET_RECORDS
        self.buckets = min(_STARTS, 1 << full_buckets.bit_length())

    def find(self, bucket: int) -> None:
        """Write down the groups of one bucket, unless that is done."""
        path = self._path(bucket)
        if path.exists():
            return
        records_R = self._records(bucket)
        records_R = records_R[np.lexsort((records_R["low"], records_R["high"]))]
        same_high_R = records_R["high"][1:] == records_R["high"][:-1]
        same_R = same_high_R & (records_R["low"][1:] == records_R["low"][:-1])
        is_again_R = np.insert(same_R, 0, False)[: len(records_R)]
        has_next_R = np.append(same_R, False)[: len(records_R)]
        is_grouped_R = is_again_R | has_next_R
        grouped_G = np.empty(int(is_grouped_R.sum()), GROUPED)
        grouped_G["row"] = records_R["row"][is_grouped_R]
        grouped_G["group"] = np.cumsum(~is_again_R[is_grouped_R]) - 1
        write_atomically(path, np.sort(grouped_G).tobytes())

    def _records(self, bucket: int) -> np.ndarray:
        """The records of one bucket, of all parts."""
        width = _STARTS // self.buckets
        first, last = width * bucket, width * (bucket + 1)
        slices = [np.empty(0, RECORD)]
        for number, name in enumerate(self._parts):
            with open(self._work / f"{name}.keys", "rb") as file:
                starts = np.fromfile(file, "<u8", _STARTS + 1).astype(np.int64)
                file.seek(int(starts[first]) * RECORD.itemsize, io.SEEK_CUR)
                records_R = np.fromfile(file, RECORD, int(starts[last] - starts[first]))
            records_R["row"] |= np.uint64(number << 32)
            slices.append(records_R)
        return np.concatenate(slices)

    @functools.cached_property
    def _first_groups(self) -> list[int]:
        """The number of each bucket's first group, and behind them the number of all groups."""
        sizes = [self._path(bucket).stat().st_size for bucket in range(self.buckets)]
        # A group has two texts or more.
        groups = [size // GROUPED.itemsize // 2 for size in sizes]
        return list(itertools.accumulate(groups, initial=0))

    @property
    def groups(self) -> int:
        """All groups have smaller numbers."""
        return self._first_groups[-1]

    def of(self, number: int) -> np.ndarray:
        """The texts of part `number` that are in a group, (G,) `GROUPED`.

        Their rows are those of the part's table, without the number of the part.
        """
        found = [np.empty(0, GROUPED)]
        bounds = np.array([number << 32, number + 1 << 32], np.uint64)
        for bucket in range(self.buckets):
            if self._path(bucket).stat().st_size:
                bucket_G = np.memmap(self._path(bucket), GROUPED, mode="r")
                first, last = np.searchsorted(bucket_G["row"], bounds)
                grouped_G = np.array(bucket_G[first:last])
                grouped_G["group"] += np.uint64(self._first_groups[bucket])
                found.append(grouped_G)
        all_G = np.concatenate(found)
        all_G["row"] &= np.uint64(0xFFFFFFFF)
        return all_G

    def _path(self, bucket: int) -> Path:
        return self._work / f"groups-{bucket:04d}"

    def are_alike(self, one: int, other: int) -> bool:
        """Whether the signatures of two documents say so. Their rows have the part's number."""
        share = np.mean(self._signature(one) == self._signature(other))
        return bool(share >= self._threshold)

    def _signature(self, row: int) -> np.ndarray:
        path = self._work / f"{self._parts[row >> 32]}.signatures"
        return np.fromfile(path, "<u4", _PERMUTATIONS, offset=(row & NEAR - 1) * _PERMUTATIONS * 4)


class Signatures:
    """MinHash signatures of documents over runs of five words.

    A signature is cut into bands. Documents are compared if they have a band in common.
    """

    def __init__(self, threshold: float):
        count, size = bands(threshold)
        self._edges = [(band * size, (band + 1) * size) for band in range(count)]
        self._rows: list[bytes] = []
        self._open: MinHash | None = None
        """Of the document that is begun, but not ended."""

    def update(self, text: str) -> None:
        """Add text to the open document."""
        from datasketch import MinHash

        self._open = self._open or MinHash(_PERMUTATIONS, seed=1)
        words = text.lower().encode().split()
        starts = range(max(1, len(words) - _SHINGLE_WORDS + 1))
        self._open.update_batch([b" ".join(words[i : i + _SHINGLE_WORDS]) for i in starts])

    def end(self) -> list[bytes]:
        """End the document: the digests of its signature's bands."""
        assert self._open, "a document has at least one fragment"
        values = self._open.hashvalues.astype("<u4")
        self._rows.append(values.tobytes())
        self._open = None
        parts = (bytes([band]) + values[a:b].tobytes() for band, (a, b) in enumerate(self._edges))
        return [hashlib.blake2b(part, digest_size=16).digest() for part in parts]

    def table(self) -> bytes:
        return b"".join(self._rows)


@functools.cache
def bands(threshold: float) -> tuple[int, int]:
    """How many bands of how many values find most pairs above the threshold.

    ConfigError without datasketch, or for a threshold that it does not take.
    """
    try:
        from datasketch import MinHashLSH
    except ImportError as error:
        raise ConfigError(
            "--near-duplicates needs datasketch: pip install 'gpt1-ds[near-duplicates]'"
        ) from error
    try:
        lsh = MinHashLSH(threshold, _PERMUTATIONS)
    except ValueError as error:
        raise ConfigError(
            f"--near-duplicates {threshold:g}: too high for datasketch ({error}); choose 0.98 or"
            " less, or 0: equal documents are always dropped"
        ) from error
    return lsh.b, lsh.r
