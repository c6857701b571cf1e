"""Text to tokens, one unit of work at a time: a few small sources, a large one, or a range of one.

Until the shards are written, a unit lies in the work folder in parts of some 10 MB, each of whole
documents: `NAME.tokens` (an `<eot>` behind each document), `NAME.keys` (a sorted run for
`duplicates.py`) and, written last, `NAME.npz` (the tables of its documents and texts).
`unit-000000.json`, written after all parts, means that the unit is complete. Which documents are
dropped, and where the others go, is decided later, when all units are known. So neither the number
of ranks nor their speed has an influence on it.
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
from typing import NamedTuple

import numpy as np

from data_prep.building.duplicates import NEAR, Signatures, TextKey, sorted_run
from data_prep.building.ranks import Progress
from data_prep.reading.cleaning import Cleaning
from data_prep.reading.corpus import Fragment, Source, SourceReader
from data_prep.reading.folders import PassedOver
from gpt1_ds.base.files import flush, write_atomically
from gpt1_ds.base.protocols import Json
from gpt1_ds.data.manifest import token_dtype
from gpt1_ds.data.tokenizer import Tokenizer

UNIT_BYTES = 4 << 20
"""Small sources are grouped up to this size, since each unit has several files of its own."""
PART_TOKENS, PART_DOCUMENTS = 1 << 23, 1 << 18
_BATCH_CHARACTERS = 1 << 19
DOCUMENT = np.dtype(
    [
        ("begin", "<i8"),
        ("tokens", "<i8"),
        ("bytes", "<i8"),
        ("words", "<i8"),
        ("fallback", "<i8"),
        ("key", "<u8"),
        ("heldout", "?"),
        ("bad", "?"),
    ]
)
"""`begin` and `tokens`: its place in the part, `<eot>` included. `bytes`: of its text as UTF-8.
`words`: of its text, between white space. `fallback`: tokens that stand for a byte outside the
vocabulary. `key`: 64 bits of its text's BLAKE2b."""
TEXT = np.dtype(
    [
        ("document", "<u4"),
        ("whole", "?"),
        ("begin", "<i8"),
        ("tokens", "<i8"),
        ("bytes", "<i8"),
        ("words", "<i8"),
        ("fallback", "<i8"),
    ]
)
"""What may be a duplicate: a document's long paragraphs, and behind them the whole document."""


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
    """Encodes units into the work folder.

    Paragraphs of at least `duplicate_characters` are compared with all others; documents too if
    `near`, the least similarity of near duplicates, is above 0.
    """

    def __init__(
        self,
        work: Path,
        tokenizer: Tokenizer,
        cleaning: Cleaning,
        duplicate_characters: int,
        near: float,
    ):
        self.work = work
        self.tokenizer = tokenizer
        self.cleaning = cleaning
        self.duplicate_characters = duplicate_characters
        self.near = near
        self.dtype = token_dtype(tokenizer.vocab_size)
        self.is_fallback_V = np.zeros(tokenizer.vocab_size, bool)
        self.is_fallback_V[list(tokenizer.fallback_ids)] = 1

    def encode(self, unit: Unit, progress: Progress) -> None:
        """Write the unit's parts and its marker, unless the marker is there."""
        marker = unit.marker(self.work)
        if marker.exists():
            progress.add(unit.bytes, 0)
            return
        counts: Counter[str] = Counter()
        cut: Counter[str] = Counter()
        passed_over: list[PassedOver] = []
        hashes: list[str] = []
        names: list[str] = []
        part = None
        for source in unit.sources:
            progress.doing = str(source.path)
            reader = SourceReader(source, self.cleaning)
            reported = 0
            for fragments in _batched(reader.fragments()):
                if part is None:
                    names.append(f"unit-{unit.index:06d}-{len(names):04d}")
                    part = _PartWriter(self, names[-1])
                progress.add(reader.bytes_read - reported, part.add(fragments))
                reported = reader.bytes_read
                if part.is_full:
                    part.close()
                    part = None
            progress.add(reader.bytes_read - reported, 0)
            counts += reader.counts
            cut += reader.cut
            passed_over += reader.passed_over
            hashes.append(reader.sha256)
        if part:
            part.close()
        record: Json = {"counts": counts, "sha256": hashes, "parts": names}
        record |= {"cut": cut, "passed_over": passed_over}
        write_atomically(marker, json.dumps(record))


def _batched(fragments: Iterable[Fragment]) -> Iterator[list[Fragment]]:
    batch, characters = [], 0
    for fragment in fragments:
        batch.append(fragment)
        characters += len(fragment.text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


class _Batch(NamedTuple):
    """The lines of some fragments as tokens, without any `<eot>`."""

    lines: list[list[str]]
    """By fragment."""
    tokens_T: np.ndarray
    """With a line break before each line, if the tokenizer has a token for it."""
    ends: list[int]
    """Tokens in front of each line, and of all lines, (L + 1,)."""
    fallback: list[int]
    """The same, of tokens that stand for a byte outside the vocabulary."""


class _OpenDocument:
    """A document that is begun, but not ended."""

    def __init__(self, begin: int, text: bytes):
        self.begin = begin
        """Its first token in the part."""
        self.bytes = len(text)
        self.words = 0
        self.fallback = 0
        self._digest = hashlib.blake2b(text, digest_size=16)

    def add(self, text: bytes) -> None:
        if text:  # The last fragment is empty if the document ends with much white space.
            self.bytes += len(text)
            self._digest.update(b"\n" + text)

    def digest(self) -> bytes:
        return self._digest.digest()


class _PartWriter:
    """Writes one part."""

    def __init__(self, encoder: Encoder, name: str):
        self._encoder, self._name = encoder, name
        self._temporary = encoder.work / f".{name}.{os.getpid()}.tmp"
        self._file = open(self._temporary, "wb")
        self._documents: list[tuple[int, int, int, int, int, int, bool, bool]] = []
        """Rows of `DOCUMENT`."""
        self._texts: list[tuple[int, bool, int, int, int, int, int]] = []
        """Rows of `TEXT`."""
        self._keys: list[TextKey] = []
        self._ids: list[str] = []
        self._tokens = 0
        self._signatures = Signatures(encoder.near) if encoder.near else None
        self._open: _OpenDocument | None = None

    @property
    def is_full(self) -> bool:
        full = self._tokens >= PART_TOKENS or len(self._documents) >= PART_DOCUMENTS
        return full and self._open is None

    def add(self, fragments: list[Fragment]) -> int:
        """Encode the fragments; how many tokens they have, with an `<eot>` behind each document."""
        encoder = self._encoder
        batch = self._encoded(fragments)
        line = 0
        eots: list[int] = []  # where in `batch.tokens_T` documents end
        for fragment, lines in zip(fragments, batch.lines, strict=True):
            here = self._tokens + len(eots)  # what the part has before the batch's own tokens
            raw = fragment.text.encode()
            if self._open is None:
                self._open = _OpenDocument(here + batch.ends[line], raw)
            else:
                self._open.add(raw)
            end = line + len(lines)
            # A document of one line has no paragraphs to compare: it is compared as a whole.
            is_whole = fragment.last and self._open.begin == here + batch.ends[line]
            if len(lines) > 1 or not is_whole:
                self._add_paragraphs(batch, line, lines, here)
            self._open.words += len(fragment.text.split())
            self._open.fallback += batch.fallback[end] - batch.fallback[line]
            line = end
            if self._signatures:
                self._signatures.update(fragment.text)
            if fragment.last:
                self._end_document(self._open, fragment, here + batch.ends[line])
                eots.append(batch.ends[line])
        tokens_T = np.insert(batch.tokens_T, eots, encoder.tokenizer.special_ids["eot"])
        self._file.write(tokens_T.astype(encoder.dtype).tobytes())
        self._tokens += len(tokens_T)
        return len(tokens_T)

    def _encoded(self, fragments: list[Fragment]) -> _Batch:
        # The ids of single lines are those of the whole text: no piece crosses white space.
        encoder = self._encoder
        lines = [fragment.text.split("\n") if fragment.text else [] for fragment in fragments]
        every_line = list(itertools.chain.from_iterable(lines))
        tokens_T, counts_L = encoder.tokenizer.encode_ragged(every_line)
        newline = encoder.tokenizer.newline_id
        if newline is not None:
            follows_L = self._follows_text(fragments, lines, counts_L)
            places = (np.cumsum(counts_L) - counts_L)[follows_L]
            tokens_T = np.insert(tokens_T, places, newline)
            counts_L = counts_L + follows_L
        ends_L = np.concatenate([[0], np.cumsum(counts_L)])
        fallback_T = np.flatnonzero(encoder.is_fallback_V[tokens_T])
        fallback_L = np.searchsorted(fallback_T, ends_L)
        return _Batch(lines, tokens_T, ends_L.tolist(), fallback_L.tolist())

    def _follows_text(
        self, fragments: list[Fragment], lines: list[list[str]], counts_L: np.ndarray
    ) -> np.ndarray:
        """(L,) bool: which lines have tokens, and tokens of their document before them."""
        has_text = self._open is not None and self._tokens > self._open.begin
        counts = iter(counts_L.tolist())
        follows = []
        for fragment, its_lines in zip(fragments, lines, strict=True):
            for count in itertools.islice(counts, len(its_lines)):
                follows.append(has_text and count > 0)
                has_text = has_text or count > 0
            has_text = has_text and not fragment.last
        return np.array(follows, bool)

    def _add_paragraphs(self, batch: _Batch, first: int, lines: list[str], here: int) -> None:
        """Add the long ones of `lines`, which begin at line `first` of the batch."""
        for i, text in enumerate(lines, first):
            if len(text) < self._encoder.duplicate_characters:
                continue
            raw = text.encode()
            begin, end = batch.ends[i], batch.ends[i + 1]
            fallback = batch.fallback[i + 1] - batch.fallback[i]
            digest = hashlib.blake2b(raw, digest_size=16).digest()
            self._keys.append(TextKey(digest, len(self._texts)))
            document = len(self._documents)
            # Without the paragraph, the text lacks its line end too.
            counts = (end - begin, len(raw) + 1, len(text.split()), fallback)
            self._texts.append((document, False, here + begin, *counts))

    def _end_document(self, document: _OpenDocument, fragment: Fragment, end: int) -> None:
        digest, row = document.digest(), len(self._documents)
        if self._signatures:
            self._keys += [TextKey(band, NEAR | row) for band in self._signatures.end()]
        self._keys.append(TextKey(digest, len(self._texts)))
        self._texts.append((row, True, 0, 0, 0, 0, 0))
        key = int.from_bytes(digest[:8], "little")
        tokens = end + 1 - document.begin
        counts = (tokens, document.bytes, document.words, document.fallback)
        row_of = (document.begin, *counts, key, fragment.heldout, fragment.bad)
        self._documents.append(row_of)
        self._ids.append(fragment.id)
        self._open = None

    def close(self) -> None:
        """Flush the part's files and give them their names."""
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
