"""Text to tokens, one unit of work at a time: a few small sources, or one large one.

Until the shards are written, a unit lies in two files of the work folder: `unit-000000.tokens`, all its tokens one
after the other, and, written last, so that its presence means complete, `unit-000000.npz`, the index of its documents.
Which documents are dropped, and where the others go, is decided later, when all units are known: so neither the number
of ranks nor their speed has a say in it.
"""

import hashlib
import io
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.corpus import Document, Source, SourceReader
from data_prep.ranks import Progress
from gpt1_ds.files import flush, write_atomically
from gpt1_ds.shards import token_dtype
from gpt1_ds.tokenizer import Tokenizer

UNIT_BYTES = 4 << 20
"""Small sources are grouped up to this size, so that a unit is worth its two files."""

_BATCH_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class Unit:
    """Consecutive sources of one corpus, all validation or none."""

    index: int
    sources: tuple[Source, ...]

    @property
    def bytes(self) -> int:
        return sum(source.bytes for source in self.sources)

    def tokens_path(self, work: Path) -> Path:
        return work / f"unit-{self.index:06d}.tokens"

    def index_path(self, work: Path) -> Path:
        return work / f"unit-{self.index:06d}.npz"


@dataclass
class UnitIndex:
    """The D documents of a unit, in reading order."""

    tokens_D: np.ndarray
    """Tokens of each, its `<eot>` included."""
    bytes_D: np.ndarray
    """Bytes of its normalised text, as UTF-8."""
    fallback_D: np.ndarray
    """Tokens that stand for a byte outside the vocabulary."""
    hash_D2: np.ndarray
    """128 bits of its normalised text's BLAKE2b."""
    heldout_D: np.ndarray
    """From a part that the publisher holds out."""
    ids: list[str]
    counts: Counter[str]
    """Documents read, and dropped or mended, by reason."""
    sha256: list[str]
    """Of the unit's sources."""


def plan_units(sources: list[Source]) -> list[Unit]:
    """Group the sources, in their order."""
    groups: list[list[Source]] = []
    for source in sources:
        last = groups[-1] if groups else []
        alike = last and (last[0].corpus, last[0].validation) == (source.corpus, source.validation)
        if alike and sum(s.bytes for s in last) + source.bytes <= UNIT_BYTES:
            last.append(source)
        else:
            groups.append([source])
    return [Unit(index, tuple(group)) for index, group in enumerate(groups)]


def encode_unit(unit: Unit, work: Path, tokenizer: Tokenizer, progress: Progress) -> None:
    """Write the unit's two files, unless they are there."""
    if unit.index_path(work).exists():
        progress.add(unit.bytes, 0)
        return
    temporary = work / f".unit-{unit.index:06d}.{os.getpid()}.tmp"
    batches, counts, hashes = [], Counter(), []
    with open(temporary, "wb") as file:
        for source in unit.sources:
            progress.doing = str(source.path)
            reader = SourceReader(source)
            reported = 0
            for documents in _batched(reader.documents()):
                batch, tokens = _encode(documents, tokenizer)
                file.write(tokens.tobytes())
                batches.append(batch)
                progress.add(reader.bytes_read - reported, len(tokens))
                reported = reader.bytes_read
            progress.add(reader.bytes_read - reported, 0)
            counts += reader.counts
            hashes.append(reader.sha256)
    flush(temporary)
    os.replace(temporary, unit.tokens_path(work))
    record = {
        "ids": [document_id for batch in batches for document_id in batch["ids"]],
        "counts": counts,
        "sha256": hashes,
    }
    arrays = {name: np.concatenate([batch[name] for batch in batches]) for name in (batches[0] if batches else ())}
    arrays.pop("ids", None)
    data = io.BytesIO()
    np.savez(data, record=np.frombuffer(json.dumps(record).encode(), np.uint8), **arrays)
    write_atomically(unit.index_path(work), data.getvalue())


def read_index(unit: Unit, work: Path) -> UnitIndex:
    with np.load(unit.index_path(work)) as file:
        record = json.loads(file["record"].tobytes())
        arrays = {name: file[name] for name in file.files if name != "record"}
    if not arrays:
        empty = np.empty(0, np.int64)
        arrays = dict.fromkeys(("tokens_D", "bytes_D", "fallback_D"), empty)
        arrays |= {"hash_D2": np.empty((0, 2), np.uint64), "heldout_D": np.empty(0, bool)}
    return UnitIndex(**arrays, ids=record["ids"], counts=Counter(record["counts"]), sha256=record["sha256"])


def _batched(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch, characters = [], 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _encode(documents: list[Document], tokenizer: Tokenizer) -> tuple[dict[str, Any], np.ndarray]:
    """The index columns and the tokens (T,) of a batch of documents, an `<eot>` after each.

    Each line is encoded by itself: the ids are those of the whole text, since pieces do not cross white space.
    """
    lines = [document.text.split("\n") for document in documents]
    encoded = tokenizer.encode_batch(list(itertools.chain.from_iterable(lines)))
    line_tokens_L = np.fromiter(map(len, encoded), np.int64, len(encoded))
    tokens_T = np.fromiter(itertools.chain.from_iterable(encoded), np.int64, int(line_tokens_L.sum()))
    line_ends_D = np.cumsum([len(document_lines) for document_lines in lines])
    ends_D = np.cumsum(line_tokens_L)[line_ends_D - 1]
    is_fallback_V = np.zeros(tokenizer.vocab_size, np.int64)
    is_fallback_V[list(tokenizer.fallback_ids)] = 1
    fallback_so_far_T = np.concatenate([[0], np.cumsum(is_fallback_V[tokens_T])])
    texts = [document.text.encode() for document in documents]
    digests = b"".join(hashlib.blake2b(text, digest_size=16).digest() for text in texts)
    columns = {
        "ids": [document.id for document in documents],
        "tokens_D": np.diff(ends_D, prepend=0) + 1,
        "bytes_D": np.fromiter(map(len, texts), np.int64, len(texts)),
        "fallback_D": np.diff(fallback_so_far_T[ends_D], prepend=0),
        "hash_D2": np.frombuffer(digests, "<u8").reshape(-1, 2),
        "heldout_D": np.array([document.heldout for document in documents], bool),
    }
    dtype = token_dtype(tokenizer.vocab_size)
    return columns, np.insert(tokens_T, ends_D, tokenizer.special_ids["eot"]).astype(dtype)
