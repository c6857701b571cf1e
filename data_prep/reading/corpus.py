"""Corpora as users have them: paths in, documents out.

| file                             | documents                                                   |
|----------------------------------|-------------------------------------------------------------|
| `*.txt`                          | one a file                                                  |
| `books_large_p*.txt`             | blocks of 10,000 lines, aligned from the start of the file  |
| `news.en*` (1B Word)             | one a line; `heldout*` and `news.en-00000-*` are validation |
| `*.jsonl`, `*.parquet`           | the `text` of each row                                      |
| `*.tar` `*.tgz` `*.txz` `*.zip`  | those of its members, by the same rules, read in place      |

Each may be compressed: `.gz`, `.xz`, `.bz2`, `.zst` (not `.zip` and `.parquet`). A folder stands
for all such files below it, also behind links. Documents come in the order of the sources' names.
Nothing is ever unpacked to the disk. A file is read to its end or refused. Hidden files, links in
archives, and files and members of other kinds are passed over and counted, also if only their name
is that of a text.
"""

import dataclasses
import hashlib
import io
import re
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

import numpy as np

from data_prep.reading.cleaning import Cleaner, Cleaning
from data_prep.reading.containers import READ_ERRORS, buffered, tar_members, unpacked, zip_members
from data_prep.reading.decoding import Decoder, is_binary, utf16_kind
from data_prep.reading.folders import PassedOver, files_below, unread
from data_prep.reading.formats import (
    BLOCK_LINES,
    FORMATS,
    RawFragment,
    Reader,
    clean_name,
    is_corpus_file,
    is_member,
    is_tar,
    packing,
    read_blocks,
    read_book,
    read_jsonl,
    read_lines,
    reader_of,
)
from data_prep.reading.parquet import parquet_batches
from gpt1_ds.base.errors import ConfigError, DataError
from gpt1_ds.base.files import file_sha256

HELDOUT_FILES = ("news.en.heldout", "news.en-00000-")
"""Parts of 1B Word that its publisher holds out."""
SPLIT_BYTES = 64 << 20
"""A larger plain file of many documents is read in ranges of this size, so that ranks share it."""
READ_BYTES = 1 << 22
"""Read at a time to find the ranges; at most one range begins in each."""


@dataclass(frozen=True)
class Source:
    """One input file of a corpus, or a range of whole documents of it."""

    corpus: str
    path: Path
    name: str
    """Path below the corpus's own, so that a moved corpus keeps its document ids."""
    validation: bool
    """Given by `--validation`: all its documents are validation."""
    bytes: int
    """Of the whole file."""
    mtime_ns: int
    begin: int = 0
    end: int = -1
    """Bytes begin .. end - 1 of the file; -1 stands for its end."""
    first_line: int = 0
    """Number of the line at `begin`."""
    sha256: str = ""
    """Hash of the whole file, known before it is read only for a range."""
    passed_over: tuple[PassedOver, ...] = ()
    """Files of the corpus's folder that are not read. The folder's first source has them all."""

    @property
    def range_bytes(self) -> int:
        return (self.bytes if self.end < 0 else self.end) - self.begin

    @property
    def cost(self) -> int:
        """Estimated bytes of text: English compresses to about a quarter."""
        return self.range_bytes * (1 if packing(self.name) == "" else 4)


class Fragment(NamedTuple):
    """Some paragraphs of a document, or all of it."""

    id: str
    """Of the document."""
    text: str
    """Clean, one paragraph or sentence a line. Only the last of several fragments may be empty."""
    last: bool
    """The document ends here."""
    heldout: bool
    """From a part that the publisher holds out (1B Word's `news.en.heldout-*`)."""
    bad: bool
    """Some of the document so far was not clean UTF-8."""


def find_sources(corpora: list[str], validation: list[str]) -> list[Source]:
    """The files of `--corpus` and `--validation` (both `NAME=PATH`), as given, then by name.

    ConfigError for a malformed option; DataError for a path that is missing, unreadable or holds
    no text.
    """
    names = [_parse_option("--corpus", value)[0] for value in corpora]
    sources = []
    for option, values in (("--corpus", corpora), ("--validation", validation)):
        for value in values:
            corpus, path = _parse_option(option, value)
            if corpus not in names:
                raise ConfigError(f"--validation {value}: no --corpus {corpus}=PATH goes with it")
            found = _sources_below(corpus, path, option == "--validation")
            if sum(source.bytes for source in found) == 0:
                raise DataError(
                    f"{option} {value}: holds no text; it takes {FORMATS}, or a folder of them"
                )
            sources += found
    seen = Counter((source.corpus, source.validation, source.name) for source in sources)
    for (corpus, _, name), count in seen.items():
        if count > 1:
            raise ConfigError(
                f"--corpus {corpus}: two of its paths hold a file named {name}; rename one"
            )
    return sources


def _parse_option(option: str, value: str) -> tuple[str, Path]:
    name, equals, path = value.partition("=")
    if not (equals and path and re.fullmatch(r"[A-Za-z0-9_-]+", name)):
        raise ConfigError(
            f"{option} {value}: must be NAME=PATH, NAME of letters, digits, '-' and '_'"
        )
    return name, Path(path).expanduser()


def _sources_below(corpus: str, path: Path, validation: bool) -> list[Source]:
    passed_over: list[PassedOver] = []
    try:
        if path.is_dir():
            named, passed_over = files_below(path)
        elif path.exists():
            if not is_corpus_file(path.name):
                takes = f"it takes {FORMATS}, or a folder"
                raise DataError(f"{path}: corpus '{corpus}' is of no known format; {takes}")
            named = [(path.name, path)]
        else:
            raise DataError(
                f"{path}: corpus '{corpus}' is not there; mend --corpus or GPT1_CORPORA"
            )
        found = [_source(corpus, p, clean_name(name), validation) for name, p in named]
    except OSError as error:
        where = error.filename or path
        raise DataError(f"{where}: corpus '{corpus}' cannot be read ({error.strerror})") from error
    if found:
        found[0] = dataclasses.replace(found[0], passed_over=tuple(passed_over))
    return found


def _source(corpus: str, path: Path, name: str, validation: bool) -> Source:
    stat = path.stat()
    return Source(corpus, path, name, validation, stat.st_size, stat.st_mtime_ns)


def is_divisible(source: Source) -> bool:
    """Whether it is a plain file of many documents, and large."""
    if source.bytes <= SPLIT_BYTES or packing(source.name):
        return False
    return reader_of(source.name) in (read_lines, read_blocks, read_jsonl)


def in_ranges(source: Source) -> list[Source]:
    """A divisible source in ranges of about `SPLIT_BYTES`. Reads and hashes the file once."""
    step = BLOCK_LINES if reader_of(source.name) is read_blocks else 1
    digest = hashlib.sha256()
    lines = position = 0  # of the file, in front of `data`
    cuts = [(0, 0)]  # (byte, line) of each range's begin
    try:
        with open(source.path, "rb") as file:
            if utf16_kind(file.peek(1024)[:1024]):
                return [source]
            while data := file.read(READ_BYTES):
                digest.update(data)
                ends_L = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n")) + 1
                first = int(np.searchsorted(ends_L, cuts[-1][0] + SPLIT_BYTES - position))
                first += -(lines + first + 1) % step
                if first < len(ends_L) and position + ends_L[first] < source.bytes:
                    cuts.append((position + int(ends_L[first]), lines + first + 1))
                lines += len(ends_L)
                position += len(data)
    except OSError as error:
        raise DataError(
            f"{source.path}: cannot be read ({error.strerror}); mend it or leave it out"
        ) from error
    sha256 = digest.hexdigest()
    ends = [begin for begin, _ in cuts[1:]] + [source.bytes]
    return [
        dataclasses.replace(source, begin=begin, end=end, first_line=line, sha256=sha256)
        for (begin, line), end in zip(cuts, ends, strict=True)
    ]


class SourceReader:
    """Reads the documents of one source, and counts for a progress bar and the manifest."""

    def __init__(self, source: Source, cleaning: Cleaning):
        self.source = source
        self.counts: Counter[str] = Counter()
        """Documents read, and dropped or mended ones by reason."""
        self.cut: Counter[str] = Counter()
        """Characters cut out of the documents, by the step of cleaning."""
        # A range of a file leaves what lies beside the file to the first range.
        self.passed_over = list(source.passed_over) if source.begin == 0 else []
        self.bytes_read = 0
        """Of the file as it lies on disk, compressed or not."""
        self._digest = hashlib.sha256()
        self._sha256 = source.sha256
        self._cleaning = cleaning

    @property
    def sha256(self) -> str:
        """Hash of the file. It covers the whole file once `fragments` has ended."""
        return self._sha256 or self._digest.hexdigest()

    def fragments(self) -> Iterator[Fragment]:
        """Read the source once. DataError if it is unreadable or changed since it was listed."""
        source = self.source
        try:
            if packing(source.name) in (".zip", ".parquet"):
                # Not read from front to back, so it is hashed first.
                self._sha256 = file_sha256(source.path)
                is_parquet = packing(source.name) == ".parquet"
                yield from self._from_parquet() if is_parquet else self._from_zip()
                self.bytes_read = source.path.stat().st_size
            else:
                with open(source.path, "rb") as file:
                    file.seek(source.begin)
                    size = source.range_bytes if source.end >= 0 else sys.maxsize
                    chunks = map(self._count, _chunks(file, size))
                    yield from self._from_stream(source.name, buffered(chunks))
                    for _ in chunks:  # The rest of a file that is no text belongs to the hash too.
                        pass
            stat = source.path.stat()
            now = (stat.st_size, stat.st_mtime_ns, self.bytes_read)
            if now != (source.bytes, source.mtime_ns, source.range_bytes):
                raise DataError(
                    f"{source.path}: changed while it was read; run the same command again"
                )
        except READ_ERRORS as error:
            reason = " ".join(str(error).split())  # It may have several lines.
            raise DataError(
                f"{source.path}: cannot be read ({reason}); replace the file or leave it out"
            ) from error

    def _count(self, data: bytes) -> bytes:
        self.bytes_read += len(data)
        if not self._sha256:
            self._digest.update(data)
        return data

    def _from_stream(self, name: str, compressed: IO[bytes]) -> Iterator[Fragment]:
        stream = unpacked(packing(name), name, compressed)
        if is_tar(name):
            yield from self._from_tar(name, stream)
            return
        reader = reader_of(name)
        assert reader, name  # Only files and members of a known format come here.
        if is_binary(stream.peek(1024)):
            self._pass_over_binary(name)
            return
        decoder = Decoder(self.counts)
        raw = reader(name, decoder.utf8_stream(stream), self.source.first_line)
        path = PurePosixPath(name.lower())
        in_heldout = path.parent.name.startswith("heldout-mono")
        heldout = in_heldout or path.name.startswith(HELDOUT_FILES)
        yield from self._cleaned(raw, reader, decoder, heldout)

    def _pass_over_binary(self, name: str) -> None:
        if self._cleaning.bad_text == "refuse":
            raise DataError(
                f"{self.source.path}: {name} is binary data, no text; convert it, give it the name"
                " of its format, leave it out, or let --bad-text mend or drop pass over it"
            )
        self.passed_over.append(PassedOver("binary", name))

    def _from_tar(self, archive: str, stream: io.BufferedReader) -> Iterator[Fragment]:
        for member, content in tar_members(stream):
            name = f"{archive}/{clean_name(member.name)}"
            if content is None:
                is_link = member.islnk() or member.issym()
                self.passed_over.append(PassedOver("link" if is_link else "special", name))
            elif is_member(member.name):
                yield from self._from_stream(name, content)
            else:
                self.passed_over.append(unread(name))

    def _from_zip(self) -> Iterator[Fragment]:
        with zipfile.ZipFile(self.source.path) as archive:
            for member in zip_members(archive, self.source.bytes):
                name = f"{self.source.name}/{clean_name(member.filename)}"
                if is_member(member.filename) and not member.is_dir():
                    with archive.open(member) as stream:
                        yield from self._from_stream(name, stream)
                elif not member.is_dir():
                    self.passed_over.append(unread(name))
                self.bytes_read += member.compress_size

    def _from_parquet(self) -> Iterator[Fragment]:
        path = self.source.path
        try:
            from pyarrow import ArrowException
        except ImportError as error:
            raise ConfigError(f"{path}: needs pyarrow: pip install 'gpt1-ds[parquet]'") from error
        try:
            raw = self._parquet_rows()
            yield from self._cleaned(raw, read_jsonl, Decoder(self.counts), False)
        except ArrowException as error:
            reason = " ".join(str(error).split())  # It may have several lines.
            raise DataError(
                f"{path}: cannot be read ({reason}); replace it or leave it out"
            ) from error

    def _parquet_rows(self) -> Iterator[RawFragment]:
        number = 0
        for total, rows in parquet_batches(self.source.path):
            for data in rows:
                yield from read_book(f"{self.source.name}#{number}", io.BytesIO(data))
                number += 1
            self.bytes_read = self.source.bytes * number // total

    def _cleaned(
        self, raw: Iterator[RawFragment], reader: Reader, decoder: Decoder, heldout: bool
    ) -> Iterator[Fragment]:
        wrapped = reader in (read_book, read_jsonl)
        clean = Cleaner(self._cleaning.steps[self.source.corpus], wrapped)
        refuse = self._cleaning.bad_text == "refuse"
        first, has_text, ever_bad = True, False, False
        for document, text, last, bad, binary in decoder(raw):
            if binary:
                if last:
                    self._pass_over_binary(document)
            elif bad and refuse:
                raise DataError(
                    f"{self.source.path}: document {document} is not clean UTF-8 text;"
                    " convert it, or let --bad-text mend or drop such documents"
                )
            text = clean(text, first, last)
            has_text = has_text or bool(text)
            ever_bad = ever_bad or bad
            if text or (last and has_text):
                yield Fragment(document, text, last, heldout, ever_bad)
            if last:
                self.counts["read"] += 1
                self.counts["empty"] += not (has_text or binary)
                has_text = ever_bad = False
            first = last
        if clean.cut:
            self.cut["gutenberg"] += clean.cut


def _chunks(file: IO[bytes], size: int) -> Iterator[bytes]:
    """The next `size` bytes of a file, or all it has."""
    while data := file.read(min(size, 1 << 20)):
        size -= len(data)
        yield data
