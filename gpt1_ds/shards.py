"""Shard directories (layer 0): the manifest's schema, and the way between WebDataset tars and token arrays.

A directory holds `manifest.json` (written last: its presence means complete), `tokenizer/`, and plain tars
`{train,valid}/CORPUS/CORPUS-000000.tar`. A sample is `KEY.tokens.npy` (1-D) and `KEY.json`
(`{corpus, documents: [[id, offset], ..]}`, the offset in tokens from the sample's start, negative where the document
began in an earlier sample). The manifest gives every sample's byte offset and token count: a window is one seek away.
"""

import dataclasses
import hashlib
import io
import json
import os
import tarfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from gpt1_ds.errors import DataError
from gpt1_ds.files import file_sha256, write_atomically

MANIFEST = "manifest.json"
VERSION = 1
SPLITS = ("train", "valid")
SAMPLE_TOKENS = 65_536
"""Most tokens of one sample."""

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
    sample_offsets: list[int]
    """Byte in the tar of each sample's first token."""
    sample_tokens: list[int]


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
    splits: dict[str, dict[str, CorpusEntry]] = field(default_factory=dict)
    version: int = VERSION

    @property
    def dtype(self) -> np.dtype:
        return token_dtype(self.tokenizer["vocab_size"])


def token_dtype(vocab_size: int) -> np.dtype:
    """Little-endian uint16 where every id fits, else uint32."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


def read_manifest(root: Path | str) -> Manifest:
    """The manifest of a shard directory; DataError where it is missing, malformed or points outside the directory."""
    path = Path(root) / MANIFEST
    try:
        raw = json.loads(path.read_text())
        manifest = Manifest(
            version=raw["version"],
            tokenizer=raw["tokenizer"],
            preparation=raw["preparation"],
            splits={
                split: {
                    corpus: CorpusEntry(entry["documents"], entry["tokens"], [Shard(**s) for s in entry["shards"]])
                    for corpus, entry in corpora.items()
                }
                for split, corpora in raw["splits"].items()
            },
        )
        _check_manifest(manifest)
    except FileNotFoundError:
        raise DataError(f"{path}: no such shard manifest; {_BUILD_HINT}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: malformed manifest ({error!r}); {_BUILD_HINT}") from error
    return manifest


def _check_manifest(manifest: Manifest) -> None:
    if manifest.version != VERSION:
        raise ValueError(f"version {manifest.version}, this code reads {VERSION}")
    if not isinstance(manifest.tokenizer["vocab_size"], int) or not manifest.tokenizer["special_ids"]:
        raise ValueError("tokenizer without vocab_size or special_ids")
    for split, corpora in manifest.splits.items():
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}")
        for corpus, entry in corpora.items():
            for shard in entry.shards:
                name = PurePosixPath(shard.file)
                if name.is_absolute() or ".." in name.parts:
                    raise ValueError(f"{shard.file!r} lies outside the shard directory")
                if not shard.samples == len(shard.sample_offsets) == len(shard.sample_tokens):
                    raise ValueError(f"{shard.file}: {shard.samples} samples, but not as many offsets and counts")
                if sum(shard.sample_tokens) != shard.tokens:
                    raise ValueError(f"{shard.file}: the samples' tokens do not add up to {shard.tokens}")
            if sum(shard.tokens for shard in entry.shards) != entry.tokens:
                raise ValueError(f"{split}/{corpus}: the shards' tokens do not add up to {entry.tokens}")


def write_manifest(root: Path | str, manifest: Manifest) -> None:
    """Write `manifest.json` atomically; call it last, when every shard lies in its place."""
    text = json.dumps(dataclasses.asdict(manifest), sort_keys=True, ensure_ascii=False) + "\n"
    write_atomically(Path(root) / MANIFEST, text)


class _HashingFile:
    """A write-only file that hashes what passes."""

    def __init__(self, file):
        self.file, self.sha256, self.bytes = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.bytes += len(data)
        return self.file.write(data)

    def tell(self) -> int:
        return self.bytes


class ShardWriter:
    """Writes `root/file`, a tar whose bytes depend on its samples alone, under a temporary name until `close`.

    As a context manager it removes the temporary file when the block fails; a good end still needs `close`.
    """

    def __init__(self, root: Path | str, file: str, corpus: str, vocab_size: int):
        self.path = Path(root) / file
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        self._file = open(self._temporary, "wb")
        self._hashing = _HashingFile(self._file)
        self._tar = tarfile.open(fileobj=self._hashing, mode="w", format=tarfile.USTAR_FORMAT)
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
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._temporary, self.path)
        return dataclasses.replace(self._shard, bytes=self._hashing.bytes, sha256=self._hashing.sha256.hexdigest())

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind, value, trace) -> None:
        if not self._file.closed:
            self._file.close()
            self._temporary.unlink(missing_ok=True)


class TokenStream:
    """One corpus of one split as a ring of tokens: manifest order, across samples and shards, wrapping at the end.

    Shards are mapped on first use, and at most `max_open` stay mapped.
    """

    def __init__(self, root: Path | str, manifest: Manifest, split: str, corpus: str, max_open: int = 64):
        entry = manifest.splits.get(split, {}).get(corpus)
        if entry is None or not entry.tokens:
            raise DataError(f"{Path(root) / MANIFEST}: no tokens of corpus '{corpus}' in split '{split}'")
        self.tokens = entry.tokens
        self._dtype = manifest.dtype
        self._paths = [Path(root) / shard.file for shard in entry.shards]
        for path, shard in zip(self._paths, entry.shards, strict=True):
            _check_size(path, shard)
        counts_S = np.concatenate([np.asarray(shard.sample_tokens, np.int64) for shard in entry.shards])
        self._ends_S = np.cumsum(counts_S)
        self._starts_S = self._ends_S - counts_S
        self._offsets_S = np.concatenate([np.asarray(shard.sample_offsets, np.int64) for shard in entry.shards])
        self._shard_S = np.repeat(np.arange(len(entry.shards)), [shard.samples for shard in entry.shards])
        self._maps: OrderedDict[int, np.ndarray] = OrderedDict()
        self._max_open = max_open

    def read(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Tokens (B, length) int64 at positions start .. start + length - 1, for starts (B,) int64, modulo `tokens`."""
        starts_B = np.asarray(starts, np.int64) % self.tokens
        samples_B = np.searchsorted(self._ends_S, starts_B, side="right")
        out_BL = np.empty((len(starts_B), length), np.int64)
        # A copy of a run costs one memcpy; gathering token by token is several times slower.
        for row_L, position, sample in zip(out_BL, starts_B.tolist(), samples_B.tolist(), strict=True):
            filled = 0
            while filled < length:
                run = min(length - filled, int(self._ends_S[sample]) - position)
                row_L[filled : filled + run] = self._slice(sample, position - int(self._starts_S[sample]), run)
                filled += run
                position += run
                if position == self._ends_S[sample]:
                    sample = (sample + 1) % len(self._ends_S)
                    position %= self.tokens
        return out_BL

    def _slice(self, sample: int, first: int, count: int) -> np.ndarray:
        begin = int(self._offsets_S[sample]) + first * self._dtype.itemsize
        raw = self._map(int(self._shard_S[sample]))[begin : begin + count * self._dtype.itemsize]
        return raw.view(self._dtype)

    def _map(self, index: int) -> np.ndarray:
        if index in self._maps:
            self._maps.move_to_end(index)
            return self._maps[index]
        try:
            # A plain view: slicing the memmap class itself costs ten times as much.
            mapped = np.memmap(self._paths[index], np.uint8, mode="r").view(np.ndarray)
        except (OSError, ValueError) as error:
            raise DataError(f"{self._paths[index]}: shard cannot be read ({error})") from error
        self._maps[index] = mapped
        if len(self._maps) > self._max_open:
            self._maps.popitem(last=False)
        return mapped


def _check_size(path: Path, shard: Shard) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: shard is in the manifest but cannot be read ({error.strerror})") from None
    if size != shard.bytes:
        raise DataError(f"{path}: shard has {size} bytes, the manifest says {shard.bytes}; build it again")


def iter_samples(path: Path) -> Iterator[tuple[np.ndarray, dict[str, Any], int]]:
    """Each sample of a tar: tokens (T,), its json record, and the byte offset of its first token.

    ValueError for anything but pairs `KEY.tokens.npy`, `KEY.json` of plain files. Pickled arrays are refused.
    """
    with tarfile.open(path, "r:") as tar:
        members = iter(tar)
        for first in members:
            second = next(members, None)
            key = first.name.removesuffix(".tokens.npy")
            if second is None or second.name != f"{key}.json" or not (first.isreg() and second.isreg()):
                raise ValueError(f"member {first.name!r} is not the first of a pair KEY.tokens.npy, KEY.json")
            data = tar.extractfile(first).read()
            tokens = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
            offset = first.offset_data + len(data) - tokens.nbytes
            yield tokens, json.loads(tar.extractfile(second).read()), offset


def verify(root: Path | str, progress: Callable[[int], None] | None = None) -> list[str]:
    """Problems of a shard directory, one line each, in manifest order; none where it is whole.

    Checks the tokenizer's hash, every shard's size and hash, and every sample's count, place, dtype, id range and
    document offsets. `progress` is called with the bytes of each shard done. DataError where no manifest can be read.
    """
    root = Path(root)
    manifest = read_manifest(root)
    problems = _verify_tokenizer(root, manifest)
    for split, corpora in manifest.splits.items():
        for corpus, entry in corpora.items():
            if sum(shard.documents for shard in entry.shards) != entry.documents:
                problems.append(f"{split}/{corpus}: the shards' documents do not add up to {entry.documents}")
            for shard in entry.shards:
                found = _verify_shard(root, manifest, corpus, shard)
                problems += [f"{root / shard.file}: {problem}" for problem in found]
                if progress:
                    progress(shard.bytes)
    return problems


def _verify_tokenizer(root: Path, manifest: Manifest) -> list[str]:
    digest = hashlib.sha256()
    for name in manifest.tokenizer["files"]:
        path = root / "tokenizer" / name
        if not path.is_file():
            return [f"{path}: missing"]
        digest.update(path.read_bytes())
    if digest.hexdigest() != manifest.tokenizer["sha256"]:
        return [f"{root / 'tokenizer'}: not the tokenizer of the manifest (sha256 differs)"]
    return []


def _verify_shard(root: Path, manifest: Manifest, corpus: str, shard: Shard) -> list[str]:
    path = root / shard.file
    try:
        _check_size(path, shard)
        if file_sha256(path) != shard.sha256:
            return ["sha256 differs from the manifest's"]
        documents = 0
        counts, offsets = [], []
        for tokens, record, offset in iter_samples(path):
            counts.append(len(tokens))
            offsets.append(offset)
            starts = [start for _, start in record["documents"]]
            documents += sum(start >= 0 for start in starts)
            if tokens.dtype != manifest.dtype or tokens.ndim != 1 or not 0 < len(tokens) <= SAMPLE_TOKENS:
                return [f"sample {len(counts) - 1}: {tokens.dtype} array of shape {tokens.shape}"]
            if int(tokens.max()) >= manifest.tokenizer["vocab_size"]:
                return [f"sample {len(counts) - 1}: token id {tokens.max()} outside the vocabulary"]
            if record["corpus"] != corpus or starts != sorted(starts) or not starts or starts[-1] >= len(tokens):
                return [f"sample {len(counts) - 1}: documents do not fit its tokens"]
        if (counts, offsets, documents) != (shard.sample_tokens, shard.sample_offsets, shard.documents):
            return ["samples, their places or documents differ from the manifest's"]
    except DataError as error:
        return [str(error).removeprefix(f"{path}: ")]
    except (OSError, tarfile.TarError, ValueError, KeyError, TypeError) as error:
        return [f"cannot be read as a shard ({error})"]
    return []
