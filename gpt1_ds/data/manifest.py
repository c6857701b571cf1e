"""The manifest of a shard directory: its schema, reading, checking and writing.

A shard directory holds `manifest.json`, `tokenizer/` and plain WebDataset tars
`{train,valid}/CORPUS/CORPUS-000000.tar`. The manifest is written last, so a directory with a
manifest is complete. A sample consists of two files in a tar:

- `KEY.tokens.npy`: tokens, 1-D
- `KEY.json`: `{corpus, documents: [[id, offset], ..]}`. An offset counts tokens from the
  start of the sample. It is negative if the document began in an earlier sample.

The manifest has the byte offset and the token count of each sample, so that one seek finds any
window.
"""

import dataclasses
import json
import re
from array import array
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt1_ds.base.errors import DataError
from gpt1_ds.base.files import file_sha256, write_atomically
from gpt1_ds.base.protocols import Json

MANIFEST = "manifest.json"
VERSION = 1
SPLITS = ("train", "valid")
SAMPLE_TOKENS = 65_536
"""Largest number of tokens in a sample."""
NEWLINE_TOKEN = "newline_token"
"""Setting of the preparation: id of the line breaks in the shards. It is absent if the tokenizer
has none, and in shards of an early version, which left the line breaks out."""
_FILE = re.compile(r"(train|valid)/([\w-]+)/\2-\d{6,}\.tar")
_BUILD_HINT = "build it with `python -m data_prep.build_shards` or `sbatch slurm/prepare_data.sh`"


@dataclass
class Shard:
    """One tar, as the manifest describes it."""

    file: str
    """Path relative to the shard directory, with forward slashes."""
    bytes: int
    sha256: str
    samples: int
    documents: int
    """Documents that begin in this shard."""
    tokens: int
    sample_offsets: Sequence[int]
    """Byte offset in the tar of each sample's first token."""
    sample_tokens: Sequence[int]


@dataclass
class CorpusEntry:
    """One corpus in one split."""

    documents: int
    tokens: int
    shards: list[Shard]

    def without(self, files: Collection[str]) -> "CorpusEntry":
        kept = [shard for shard in self.shards if shard.file not in files]
        documents = sum(shard.documents for shard in kept)
        return CorpusEntry(documents, sum(shard.tokens for shard in kept), kept)


@dataclass
class Manifest:
    """What `manifest.json` holds."""

    tokenizer: Json
    """With the keys `kind files sha256 vocab_size special_ids`."""
    preparation: Json
    """Normalisation, sources with hashes, rule of the split, and what was dropped and why."""
    splits: dict[str, dict[str, CorpusEntry]]
    version: int = VERSION

    @property
    def dtype(self) -> np.dtype:
        return token_dtype(self.tokenizer["vocab_size"])

    @property
    def newline_id(self) -> int | None:
        """Id of the line breaks in the shards; None if the shards have none."""
        found = self.preparation.get("settings", {}).get(NEWLINE_TOKEN)
        return found if isinstance(found, int) else None

    def shards(self) -> list[Shard]:
        """All shards of all splits and corpora, in manifest order."""
        shards: list[Shard] = []
        for corpora in self.splits.values():
            for entry in corpora.values():
                shards += entry.shards
        return shards

    def without(self, files: Collection[str]) -> "Manifest":
        """The same manifest without the shards `files`."""
        splits: dict[str, dict[str, CorpusEntry]] = {}
        for split, corpora in self.splits.items():
            splits[split] = {name: entry.without(files) for name, entry in corpora.items()}
        return dataclasses.replace(self, splits=splits)


def token_dtype(vocab_size: int) -> np.dtype:
    """Little-endian uint16 if every id fits, else uint32."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


def read_manifest(root: Path | str) -> Manifest:
    """The manifest of a shard directory.

    Raises DataError if it is missing, malformed or has a path outside the directory.
    """
    path = Path(root) / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
        raw = json.loads(text, object_pairs_hook=_record)
        if "version" not in raw:
            raise ValueError("no version")
        manifest = Manifest(**raw)
        _check_manifest(manifest)
    except FileNotFoundError:
        raise DataError(f"{path}: no such shard manifest; {_BUILD_HINT}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise DataError(f"{path}: malformed manifest ({error!r}); {_BUILD_HINT}") from error
    return manifest


def _record(pairs: list[tuple[str, Any]]) -> Shard | CorpusEntry | Json:
    """The JSON object as a `Shard` or a `CorpusEntry` if it has these keys, else as a dict."""
    raw = dict(pairs)
    if len(raw) < len(pairs):
        raise ValueError(f"a key twice among {', '.join(name for name, _ in pairs)}")
    if {"sample_offsets", "sample_tokens"} <= raw.keys():
        # An array needs 8 bytes for a number: 10^5 shards have 2.5 * 10^7 samples.
        for name in ("sample_offsets", "sample_tokens"):
            raw[name] = array("q", raw[name])
        return Shard(**raw)
    if raw.keys() == {"documents", "tokens", "shards"}:
        return CorpusEntry(**raw)
    return raw


def _check_manifest(manifest: Manifest) -> None:
    if manifest.version != VERSION:
        raise ValueError(f"version {manifest.version}, this code reads {VERSION}")
    has_vocabulary = isinstance(manifest.tokenizer["vocab_size"], int)
    if not has_vocabulary or not manifest.tokenizer["special_ids"]:
        raise ValueError("tokenizer without vocab_size or special_ids")
    for name in manifest.tokenizer["files"]:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(f"tokenizer file {name!r} lies outside the shard directory")
    for split, corpora in manifest.splits.items():
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}")
        for corpus, entry in corpora.items():
            if not isinstance(entry, CorpusEntry):
                raise ValueError(f"{split}/{corpus}: must have just documents, shards and tokens")
            _check_counts(entry, f"{split}/{corpus}")
            for shard in entry.shards:
                if not isinstance(shard, Shard):
                    raise ValueError(f"{split}/{corpus}: a shard without its samples")
                _check_counts(shard, shard.file)
                _check_entry(shard, manifest.dtype.itemsize)
            if sum(shard.tokens for shard in entry.shards) != entry.tokens:
                raise ValueError(
                    f"{split}/{corpus}: the shards' tokens do not add up to {entry.tokens}"
                )


def _check_counts(entry: Shard | CorpusEntry, place: str) -> None:
    for name, value in vars(entry).items():
        if name in ("bytes", "samples", "documents", "tokens"):
            if type(value) is not int or value < 0:
                raise ValueError(f"{place}: {name} is {value!r}")
        elif name == "sha256" and not isinstance(value, str):
            raise ValueError(f"{place}: sha256 is {value!r}")


def _check_entry(shard: Shard, token_bytes: int) -> None:
    if not _FILE.fullmatch(shard.file):
        raise ValueError(f"{shard.file!r} lies outside the shard directory or is no shard's name")
    if not shard.samples == len(shard.sample_offsets) == len(shard.sample_tokens):
        raise ValueError(
            f"{shard.file}: {shard.samples} samples, but not as many offsets and counts"
        )
    if sum(shard.sample_tokens) != shard.tokens:
        raise ValueError(f"{shard.file}: the samples' tokens do not add up to {shard.tokens}")
    offsets_S = np.asarray(shard.sample_offsets)
    tokens_S = np.asarray(shard.sample_tokens)
    # A division, because a product overflows if a malicious count is near 2^63.
    beyond = (offsets_S > shard.bytes) | (tokens_S > (shard.bytes - offsets_S) // token_bytes)
    if shard.samples and (offsets_S.min() < 0 or tokens_S.min() < 1 or beyond.any()):
        raise ValueError(f"{shard.file}: a sample lies outside the {shard.bytes} bytes")


def write_manifest(root: Path | str, manifest: Manifest) -> None:
    """Write `manifest.json` atomically; call it after all shards are written."""
    write_atomically(Path(root) / MANIFEST, manifest_text(manifest))


def manifest_text(manifest: Manifest) -> str:
    raw = dataclasses.asdict(manifest)
    return json.dumps(raw, sort_keys=True, ensure_ascii=False, default=list) + "\n"


def find_damage(path: Path, shard: Shard, hashed: bool) -> str | None:
    """The fault of a shard's file: its size or, if `hashed`, its hash; None if both are right."""
    try:
        size = path.stat().st_size
        if size != shard.bytes:
            return f"shard has {size} bytes, the manifest says {shard.bytes}"
        if hashed and file_sha256(path) != shard.sha256:
            return "sha256 differs from the manifest's"
    except OSError as error:
        return f"shard is in the manifest but cannot be read ({error.strerror})"
    return None
