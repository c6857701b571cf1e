"""Shard directories (layer 0): the manifest's schema, and the way between WebDataset tars and token arrays.

A directory holds `manifest.json` (written last: its presence means complete), `tokenizer/`, and plain tars
`{train,valid}/CORPUS/CORPUS-000000.tar`. A sample is `KEY.tokens.npy` (1-D) and `KEY.json`
(`{corpus, documents: [[id, offset], ..]}`, the offset in tokens from the sample's start, negative where the document
began in an earlier sample). The manifest gives every sample's byte offset and token count: a window is one seek away.
"""

import dataclasses
import functools
import io
import itertools
import json
import mmap
import os
import re
import tarfile
from array import array
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt1_ds.errors import DataError
from gpt1_ds.files import file_sha256, flush, write_atomically

MANIFEST = "manifest.json"
VERSION = 1
SPLITS = ("train", "valid")
SAMPLE_TOKENS = 65_536
"""Most tokens of one sample."""

_FILE = re.compile(r"(train|valid)/([\w-]+)/\2-\d{6,}\.tar")

_BUILD_HINT = "build it with `python -m data_prep.build_shards` or `sbatch slurm/prepare_data.sh`"


@dataclass
class Shard:
    """One tar, as the manifest describes it."""

    file: str
    """Path below the shard directory, with forward slashes."""
    bytes: int
    sha256: str
    samples: int
    documents: int
    """Documents that begin in this shard."""
    tokens: int
    sample_offsets: Sequence[int]
    """Byte in the tar of each sample's first token."""
    sample_tokens: Sequence[int]


@dataclass
class CorpusEntry:
    """One corpus in one split."""

    documents: int
    tokens: int
    shards: list[Shard]


@dataclass
class Manifest:
    tokenizer: dict[str, Any]
    """`kind files sha256 vocab_size special_ids`"""
    preparation: dict[str, Any]
    """Normalisation, sources with hashes, split rule, and what was dropped and why."""
    splits: dict[str, dict[str, CorpusEntry]]
    version: int = VERSION

    @property
    def dtype(self) -> np.dtype:
        return token_dtype(self.tokenizer["vocab_size"])

    def shards(self) -> list[Shard]:
        """Of every split and corpus, in manifest order."""
        return [shard for corpora in self.splits.values() for entry in corpora.values() for shard in entry.shards]

    def without(self, files: Collection[str]) -> "Manifest":
        """The manifest of the other shards."""

        def rest(entry: CorpusEntry) -> CorpusEntry:
            kept = [shard for shard in entry.shards if shard.file not in files]
            return CorpusEntry(sum(shard.documents for shard in kept), sum(shard.tokens for shard in kept), kept)

        splits = {split: {name: rest(entry) for name, entry in c.items()} for split, c in self.splits.items()}
        return dataclasses.replace(self, splits=splits)


def token_dtype(vocab_size: int) -> np.dtype:
    """Little-endian uint16 where every id fits, else uint32."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


def read_manifest(root: Path | str) -> Manifest:
    """The manifest of a shard directory; DataError where it is missing, malformed or points outside the directory."""
    path = Path(root) / MANIFEST
    try:
        manifest = Manifest(**json.loads(path.read_text(), object_hook=_record))
        _check_manifest(manifest)
    except FileNotFoundError:
        raise DataError(f"{path}: no such shard manifest; {_BUILD_HINT}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: malformed manifest ({error!r}); {_BUILD_HINT}") from error
    return manifest


def _record(raw: dict[str, Any]) -> Any:
    """A `Shard`, a `CorpusEntry`, or `raw` itself."""
    if {"sample_offsets", "sample_tokens"} <= raw.keys():
        # Numbers by the million as 8 bytes each: 10^5 shards have 2.5 * 10^7 samples.
        return Shard(**raw | {name: array("q", raw[name]) for name in ("sample_offsets", "sample_tokens")})
    return CorpusEntry(**raw) if raw.keys() == {"documents", "tokens", "shards"} else raw


def _check_manifest(manifest: Manifest) -> None:
    if manifest.version != VERSION:
        raise ValueError(f"version {manifest.version}, this code reads {VERSION}")
    if not isinstance(manifest.tokenizer["vocab_size"], int) or not manifest.tokenizer["special_ids"]:
        raise ValueError("tokenizer without vocab_size or special_ids")
    for name in manifest.tokenizer["files"]:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(f"tokenizer file {name!r} lies outside the shard directory")
    for split, corpora in manifest.splits.items():
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}")
        for corpus, entry in corpora.items():
            for shard in entry.shards:
                _check_entry(shard, manifest.dtype.itemsize)
            if sum(shard.tokens for shard in entry.shards) != entry.tokens:
                raise ValueError(f"{split}/{corpus}: the shards' tokens do not add up to {entry.tokens}")


def _check_entry(shard: Shard, token_bytes: int) -> None:
    if not _FILE.fullmatch(shard.file):
        raise ValueError(f"{shard.file!r} lies outside the shard directory or is no shard's name")
    if not shard.samples == len(shard.sample_offsets) == len(shard.sample_tokens):
        raise ValueError(f"{shard.file}: {shard.samples} samples, but not as many offsets and counts")
    if sum(shard.sample_tokens) != shard.tokens:
        raise ValueError(f"{shard.file}: the samples' tokens do not add up to {shard.tokens}")
    offsets_S, tokens_S = (np.asarray(column) for column in (shard.sample_offsets, shard.sample_tokens))
    # Without overflow also where a hostile count is near 2^63.
    beyond = (offsets_S > shard.bytes) | (tokens_S > (shard.bytes - offsets_S) // token_bytes)
    if shard.samples and (offsets_S.min() < 0 or tokens_S.min() < 1 or beyond.any()):
        raise ValueError(f"{shard.file}: a sample lies outside the {shard.bytes} bytes")


def write_manifest(root: Path | str, manifest: Manifest) -> None:
    """Write `manifest.json` atomically; call it last, when every shard lies in its place."""
    text = json.dumps(dataclasses.asdict(manifest), sort_keys=True, ensure_ascii=False, default=list) + "\n"
    write_atomically(Path(root) / MANIFEST, text)


class ShardWriter:
    """Writes `root/file`, a tar whose bytes depend on its samples alone, under a temporary name until `close`.

    As a context manager it removes the temporary file when the block fails; a good end still needs `close`.
    """

    def __init__(self, root: Path | str, file: str, corpus: str, vocab_size: int):
        self.path = Path(root) / file
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        self._tar = tarfile.open(self._temporary, "w", format=tarfile.USTAR_FORMAT)
        self._corpus = corpus
        self._dtype = token_dtype(vocab_size)
        self._shard = Shard(file, 0, "", 0, 0, 0, [], [])

    def add(self, tokens: np.ndarray, documents: list[tuple[str, int]]) -> None:
        """Append one sample: tokens (T,), and the (id, token offset) of each document in it."""
        shard = self._shard
        # Unique in its corpus and split, and free of dots: WebDataset cuts the key at the first one.
        key = f"{self.path.stem}-{shard.samples:06d}"
        npy = io.BytesIO()
        np.lib.format.write_array(npy, np.ascontiguousarray(tokens, self._dtype), version=(1, 0))
        member_start = self._add_member(f"{key}.tokens.npy", npy.getvalue())
        record = {"corpus": self._corpus, "documents": [list(document) for document in documents]}
        self._add_member(f"{key}.json", json.dumps(record, ensure_ascii=False).encode())
        shard.sample_offsets.append(member_start + npy.tell() - len(tokens) * self._dtype.itemsize)
        shard.sample_tokens.append(len(tokens))
        shard.samples += 1
        shard.documents += sum(offset >= 0 for _, offset in documents)
        shard.tokens += len(tokens)

    def _add_member(self, name: str, data: bytes) -> int:
        info = tarfile.TarInfo(name)  # mtime, uid and gid are 0, the mode 0644
        info.size = len(data)
        start = self._tar.offset + tarfile.BLOCKSIZE
        self._tar.addfile(info, io.BytesIO(data))
        return start

    def close(self) -> Shard:
        """Flush to disk and give the shard its final name."""
        self._tar.close()
        flush(self._temporary)
        size, sha256 = self._temporary.stat().st_size, file_sha256(self._temporary)
        os.replace(self._temporary, self.path)
        return dataclasses.replace(self._shard, bytes=size, sha256=sha256)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind, value, trace) -> None:
        self._temporary.unlink(missing_ok=True)
        self._tar.fileobj.close()


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
        self._shift_S = np.asarray(shard.sample_offsets, np.int64) - (self.ends_S - counts_S) * token_bytes
        self._token_bytes = token_bytes

    def places(self, positions_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The byte of each token, and how many tokens of its sample follow from there."""
        self._reads += 1
        if self._reads == 2:
            self._map.madvise(mmap.MADV_NORMAL)
        sample_B = self.ends_S.searchsorted(positions_B, side="right")
        return self._shift_S[sample_B] + positions_B * self._token_bytes, self.ends_S[sample_B] - positions_B


class TokenStream:
    """One corpus of one split as a ring of tokens: manifest order, across samples and shards, wrapping at the end.

    Shards are mapped on first use, and at most `max_open` stay mapped. With a `cache`
    (`gpt1_ds.remote.ShardCache`) they come from there.
    """

    def __init__(self, root: Path | str, manifest: Manifest, split: str, corpus: str, max_open: int = 64,
                 cache: Any = None):  # fmt: skip
        entry = manifest.splits.get(split, {}).get(corpus)
        if entry is None or not entry.tokens:
            raise DataError(f"{Path(root) / MANIFEST}: no tokens of corpus '{corpus}' in split '{split}'")
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
            for row in rows[left_R < length].tolist():  # beyond its sample's end: from the next ones
                self._fill(out_BL[row], int(starts_B[row]))
        if out_BL.size and int(out_BL.max()) >= self._vocab_size:
            row = int(out_BL.max(axis=1).argmax())
            raise DataError(f"{self._root / self.shards[shard_B[row]].file}: token id {out_BL.max()} at or after it, "
                            f"outside the vocabulary of {self._vocab_size}; run data_prep.verify_shards")  # fmt: skip
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
                if last or path.exists() or not self.cache:  # else another rank made room between the two calls
                    raise


def _runs(sorted_B: np.ndarray) -> list[tuple[int, int, int]]:
    """(value, begin, end) of each run of equal values."""
    begins = [0, *(np.flatnonzero(np.diff(sorted_B)) + 1).tolist(), len(sorted_B)]
    return [(int(sorted_B[begin]), begin, end) for begin, end in itertools.pairwise(begins) if begin < end]


def damage(path: Path, shard: Shard, hashed: bool) -> str | None:
    """What is wrong with a shard's size or, where `hashed`, its hash."""
    try:
        size = path.stat().st_size
        if size != shard.bytes:
            return f"shard has {size} bytes, the manifest says {shard.bytes}"
        if hashed and file_sha256(path) != shard.sha256:
            return "sha256 differs from the manifest's"
    except OSError as error:
        return f"shard is in the manifest but cannot be read ({error.strerror})"
    return None
