"""Text to tokens, one unit of work at a time: a few small sources, a large one, or a range of one.

Until the shards are written, a unit lies in the work folder in parts of some 10 MB, each of whole documents:
`NAME.tokens` (an `<eot>` behind each document), `NAME.keys` (a sorted run for `duplicates.py`) and, written last,
`NAME.npz` (the tables of its documents and texts). `unit-000000.json`, written after all parts, means complete.
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

import numpy as np

from data_prep.building.duplicates import NEAR, Signatures, sorted_run
from data_prep.building.ranks import Progress
from data_prep.reading.cleaning import Cleaning
from data_prep.reading.corpus import Piece, Source, SourceReader
from gpt1_ds.base.files import flush, write_atomically
from gpt1_ds.data.manifest import token_dtype
from gpt1_ds.data.tokenizer import Tokenizer

UNIT_BYTES = 4 << 20
"""Small sources are grouped up to this size, so that a unit is worth its files."""
PART_TOKENS, PART_DOCUMENTS = 1 << 23, 1 << 18
_BATCH_CHARACTERS = 1 << 19
DOCUMENT = np.dtype(
    [("begin", "<i8"), ("tokens", "<i8"), ("bytes", "<i8"), ("fallback", "<i8"), ("key", "<u8")]
    + [("heldout", "?"), ("bad", "?")]
)
"""`begin` and `tokens`: its place in the part, `<eot>` included; `bytes`: of its text as UTF-8; `fallback`: tokens that
stand for a byte outside the vocabulary; `key`: 64 bits of its text's BLAKE2b."""
TEXT = np.dtype(
    [
        ("document", "<u4"),
        ("whole", "?"),
        ("begin", "<i8"),
        ("tokens", "<i8"),
        ("bytes", "<i8"),
        ("fallback", "<i8"),
    ]
)
"""What may be a duplicate: long paragraphs, and behind those of each document the whole of it."""


@dataclass(frozen=True)
class Unit:
    """Consecutive sources of one corpus, all validation or none."""

    index: int
    sources: tuple[Source, ...]

    @property
    def corpus(self) -> str:
        return self.sources[0].corpus

    @property
    def validation(self) -> bool:
        return self.sources[0].validation

    @property
    def bytes(self) -> int:
        return sum(source.range_bytes for source in self.sources)

    @property
    def cost(self) -> int:
        return sum(source.cost for source in self.sources)

    def marker(self, work: Path) -> Path:
        return work / f"unit-{self.index:06d}.json"


def plan_units(sources: Iterable[Source]) -> list[Unit]:
    """Group the sources, in their order."""
    groups: list[list[Source]] = []
    for source in sources:
        last = groups[-1] if groups else []
        alike = last and (last[0].corpus, last[0].validation) == (source.corpus, source.validation)
        if alike and sum(s.range_bytes for s in last) + source.range_bytes <= UNIT_BYTES:
            last.append(source)
        else:
            groups.append([source])
    return [Unit(index, tuple(group)) for index, group in enumerate(groups)]


class Encoder:
    """Encodes units into the work folder; paragraphs of `duplicate_characters` and more are compared."""

    def __init__(
        self,
        work: Path,
        tokenizer: Tokenizer,
        cleaning: Cleaning,
        duplicate_characters: int,
        near: float,
    ):
        self.work, self.tokenizer, self.cleaning = work, tokenizer, cleaning
        self.duplicate_characters, self.near = duplicate_characters, near
        self.dtype = token_dtype(tokenizer.vocab_size)
        self.is_fallback_V = np.zeros(tokenizer.vocab_size, bool)
        self.is_fallback_V[list(tokenizer.fallback_ids)] = 1

    def encode(self, unit: Unit, progress: Progress) -> None:
        """Write the unit's parts and its marker, unless that is there."""
        if unit.marker(self.work).exists():
            progress.add(unit.bytes, 0)
            return
        counts, hashes, names = Counter(), [], []
        part = None
        for source in unit.sources:
            progress.doing = str(source.path)
            reader = SourceReader(source, self.cleaning)
            reported = 0
            for pieces in _batched(reader.pieces()):
                if part is None:
                    names.append(f"unit-{unit.index:06d}-{len(names):04d}")
                    part = _Part(self, names[-1], unit.validation)
                progress.add(reader.bytes_read - reported, part.add(pieces))
                reported = reader.bytes_read
                if part.is_full:
                    part.close()
                    part = None
            progress.add(reader.bytes_read - reported, 0)
            counts += reader.counts
            hashes.append(reader.sha256)
        if part:
            part.close()
        write_atomically(
            unit.marker(self.work), json.dumps({"counts": counts, "sha256": hashes, "parts": names})
        )


def _batched(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    batch, characters = [], 0
    for piece in pieces:
        batch.append(piece)
        characters += len(piece.text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


class _Part:
    """One part in the making."""

    def __init__(self, encoder: Encoder, name: str, validation: bool):
        self._encoder, self._name, self._validation = encoder, name, validation
        self._temporary = encoder.work / f".{name}.{os.getpid()}.tmp"
        self._file = open(self._temporary, "wb")
        self._documents, self._texts, self._keys, self._ids = [], [], [], []
        self._tokens = 0
        self._signatures = Signatures(encoder.near) if encoder.near else None
        self._digest = None
        """Hash of the document that is open: begun, but not ended."""

    @property
    def is_full(self) -> bool:
        full = self._tokens >= PART_TOKENS or len(self._documents) >= PART_DOCUMENTS
        return full and self._digest is None

    def add(self, pieces: list[Piece]) -> int:
        """Encode the pieces; how many tokens they have.

        Each line is encoded by itself: the ids are those of the whole text, since pieces do not cross white space.
        """
        encoder = self._encoder
        lines_P = [piece.text.split("\n") if piece.text else [] for piece in pieces]
        tokens_T, counts_L = encoder.tokenizer.encode_ragged(
            list(itertools.chain.from_iterable(lines_P))
        )
        ends_L = np.concatenate([[0], np.cumsum(counts_L)])
        fallback_T = np.flatnonzero(encoder.is_fallback_V[tokens_T])
        fallback_L, ends_L = np.searchsorted(fallback_T, ends_L).tolist(), ends_L.tolist()
        line, eots = 0, []
        for piece, lines in zip(pieces, lines_P, strict=True):
            raw = piece.text.encode()
            here = self._tokens + len(eots)  # what the part has before the batch's own tokens
            if self._digest is None:
                self._digest, self._bytes, self._fallback = (
                    hashlib.blake2b(raw, digest_size=16),
                    0,
                    0,
                )
                self._begin = here + ends_L[line]
            else:
                self._digest.update(b"\n" + raw)
            self._bytes += len(raw)
            later = not (piece.heldout or self._validation)
            if len(lines) > 1 or not (piece.last and self._begin == here + ends_L[line]):
                for i, text in enumerate(lines, line):
                    if len(text) >= encoder.duplicate_characters:
                        place = (
                            here + ends_L[i],
                            ends_L[i + 1] - ends_L[i],
                            len(text.encode()) + 1,
                        )
                        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
                        self._add_text(
                            digest, later, (False, *place, fallback_L[i + 1] - fallback_L[i])
                        )
            end = line + len(lines)
            self._fallback += fallback_L[end] - fallback_L[line]
            line = end
            if self._signatures:
                self._signatures.update(piece.text)
            if piece.last:
                self._end_document(piece, here + ends_L[line], later)
                eots.append(ends_L[line])
        tokens_T = np.insert(tokens_T, eots, encoder.tokenizer.special_ids["eot"]).astype(
            encoder.dtype
        )
        self._file.write(tokens_T.tobytes())
        self._tokens += len(tokens_T)
        return len(tokens_T)

    def _add_text(self, digest: bytes, later: bool, row: tuple[int, ...]) -> None:
        self._keys.append((digest, later, len(self._texts)))
        self._texts.append((len(self._documents), *row))

    def _end_document(self, piece: Piece, end: int, later: bool) -> None:
        digest, row = self._digest.digest(), len(self._documents)
        if self._signatures:
            self._keys += [(key, later, NEAR | row) for key in self._signatures.end()]
        self._add_text(digest, later, (True, 0, 0, 0, 0))
        place = (
            self._begin,
            end + 1 - self._begin,
            self._bytes,
            self._fallback,
            int.from_bytes(digest[:8], "little"),
        )
        self._documents.append((*place, piece.heldout, piece.bad))
        self._ids.append(piece.id)
        self._digest = None

    def close(self) -> None:
        """Give the part its files."""
        work, name = self._encoder.work, self._name
        self._file.close()
        flush(self._temporary)
        os.replace(self._temporary, work / f"{name}.tokens")
        if self._signatures:
            write_atomically(work / f"{name}.signatures", self._signatures.table())
        write_atomically(work / f"{name}.keys", sorted_run(self._keys))
        data = io.BytesIO()
        documents, texts = np.array(self._documents, DOCUMENT), np.array(self._texts, TEXT)
        ids = np.frombuffer("\0".join(self._ids).encode(), np.uint8)
        np.savez(data, documents=documents, texts=texts, ids=ids)
        write_atomically(work / f"{name}.npz", data.getvalue())
