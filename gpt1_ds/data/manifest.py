"""Shard directories (layer 0): the manifest's schema, and the way between WebDataset tars and token arrays.

A directory holds `manifest.json` (written last: its presence means complete), `tokenizer/`, and plain tars
`{train,valid}/CORPUS/CORPUS-000000.tar`. A sample is `KEY.tokens.npy` (1-D) and `KEY.json`
(`{corpus, documents: [[id, offset], ..]}`, the offset in tokens from the sample's start, negative where the document
began in an earlier sample). The manifest gives every sample's byte offset and token count: a window is one seek away.
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
        return [
            shard
            for corpora in self.splits.values()
            for entry in corpora.values()
            for shard in entry.shards
        ]

    def without(self, files: Collection[str]) -> "Manifest":
        """The manifest of the other shards."""

        def rest(entry: CorpusEntry) -> CorpusEntry:
            kept = [shard for shard in entry.shards if shard.file not in files]
            return CorpusEntry(
                sum(shard.documents for shard in kept), sum(shard.tokens for shard in kept), kept
            )

        splits = {
            split: {name: rest(entry) for name, entry in c.items()}
            for split, c in self.splits.items()
        }
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
        return Shard(
            **raw | {name: array("q", raw[name]) for name in ("sample_offsets", "sample_tokens")}
        )
    return CorpusEntry(**raw) if raw.keys() == {"documents", "tokens", "shards"} else raw


def _check_manifest(manifest: Manifest) -> None:
    if manifest.version != VERSION:
        raise ValueError(f"version {manifest.version}, this code reads {VERSION}")
    if (
        not isinstance(manifest.tokenizer["vocab_size"], int)
        or not manifest.tokenizer["special_ids"]
    ):
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
                raise ValueError(
                    f"{split}/{corpus}: the shards' tokens do not add up to {entry.tokens}"
                )


def _check_entry(shard: Shard, token_bytes: int) -> None:
    if not _FILE.fullmatch(shard.file):
        raise ValueError(f"{shard.file!r} lies outside the shard directory or is no shard's name")
    if not shard.samples == len(shard.sample_offsets) == len(shard.sample_tokens):
        raise ValueError(
            f"{shard.file}: {shard.samples} samples, but not as many offsets and counts"
        )
    if sum(shard.sample_tokens) != shard.tokens:
        raise ValueError(f"{shard.file}: the samples' tokens do not add up to {shard.tokens}")
    offsets_S, tokens_S = (
        np.asarray(column) for column in (shard.sample_offsets, shard.sample_tokens)
    )
    # Without overflow also where a hostile count is near 2^63.
    beyond = (offsets_S > shard.bytes) | (tokens_S > (shard.bytes - offsets_S) // token_bytes)
    if shard.samples and (offsets_S.min() < 0 or tokens_S.min() < 1 or beyond.any()):
        raise ValueError(f"{shard.file}: a sample lies outside the {shard.bytes} bytes")


def write_manifest(root: Path | str, manifest: Manifest) -> None:
    """Write `manifest.json` atomically; call it last, when every shard lies in its place."""
    text = (
        json.dumps(dataclasses.asdict(manifest), sort_keys=True, ensure_ascii=False, default=list)
        + "\n"
    )
    write_atomically(Path(root) / MANIFEST, text)


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
