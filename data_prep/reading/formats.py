"""File formats of corpora: compression, text encodings, and the documents in a stream of bytes.

Nothing here touches the disk. A document that is longer than `FRAGMENT_BYTES` comes in several
fragments, cut between paragraphs.
"""

import bz2
import fnmatch
import gzip
import io
import json
import lzma
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import IO, NamedTuple, cast

from gpt1_ds.base.errors import ConfigError, DataError

BLOCK_LINES = 10_000
"""Lines of one document in a sentence file without book boundaries."""
FRAGMENT_BYTES = 1 << 22
ROW_BYTES = 256 << 20
"""A longer row of a jsonl file is refused: a row cannot be read in parts."""
FORMATS = "*.txt, news.en*, *.jsonl (each also .gz .xz .bz2 .zst), *.parquet, *.tar, *.tar.*, *.zip"
READ_ERRORS = (
    OSError,
    EOFError,
    lzma.LZMAError,
    zlib.error,
    tarfile.TarError,
    zipfile.BadZipFile,
    RuntimeError,
)
"""What the libraries raise on damaged files. zipfile raises RuntimeError on an encrypted member."""


class RawFragment(NamedTuple):
    """The next bytes of a document."""

    document: str
    """Id of the document."""
    data: bytes
    last: bool
    """The document ends here."""


Reader = Callable[[str, IO[bytes], int], Iterator[RawFragment]]
"""Splits a stream into documents: (file name, stream, number of its first line)."""


def read_book(name: str, stream: IO[bytes], first_line: int = 0) -> Iterator[RawFragment]:
    """The whole stream is one document."""
    data = stream.read(FRAGMENT_BYTES)
    while len(data) >= FRAGMENT_BYTES:
        cut = _cut(data)
        yield RawFragment(name, data[:cut], False)
        data = data[cut:] + stream.read(FRAGMENT_BYTES - len(data) + cut)
    yield RawFragment(name, data, True)


def read_blocks(name: str, stream: IO[bytes], first_line: int) -> Iterator[RawFragment]:
    """Each block of `BLOCK_LINES` lines, counted from the start of the file, is a document."""
    number, lines, size, is_open = first_line, [], 0, False
    for data, ends in _lines(stream):
        block = number // BLOCK_LINES
        lines.append(data)
        size += len(data)
        number += ends
        last = number // BLOCK_LINES > block
        if last or size >= FRAGMENT_BYTES:
            yield RawFragment(f"{name}#{block}", b"".join(lines), last)
            lines, size, is_open = [], 0, not last
    if lines or is_open:
        yield RawFragment(f"{name}#{number // BLOCK_LINES}", b"".join(lines), True)


def read_lines(name: str, stream: IO[bytes], first_line: int) -> Iterator[RawFragment]:
    """Each line is a document."""
    number = first_line
    for data, ends in _lines(stream):
        yield RawFragment(f"{name}#{number}", data, ends)
        number += ends


def read_jsonl(name: str, stream: IO[bytes], first_line: int) -> Iterator[RawFragment]:
    """The `text` of each line's JSON object is a document. DataError for a line without one."""
    number = first_line
    while line := stream.readline(ROW_BYTES):
        if len(line) == ROW_BYTES:
            size = f"longer than {ROW_BYTES >> 20} MiB"
            raise DataError(f"{name}: line {number + 1} is {size}; make it a .txt file")
        if line.strip():
            try:
                text = json.loads(line.decode(errors="surrogateescape"))["text"]
            except (ValueError, KeyError, TypeError, RecursionError):
                text = None
            if not isinstance(text, str):
                raise DataError(
                    f"{name}: line {number + 1} is not a JSON object with a string 'text'"
                )
            yield from row_fragments(f"{name}#{number}", text)
        number += 1


def row_fragments(document: str, text: str) -> Iterator[RawFragment]:
    """The text of one row as bytes. Bytes that were not UTF-8 are themselves again."""
    try:
        raw = text.encode(errors="surrogateescape")
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can hold
        raw = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
    return read_book(document, io.BytesIO(raw))


def _lines(stream: IO[bytes]) -> Iterator[tuple[bytes, bool]]:
    """(bytes, whether a line ends there). A line over `FRAGMENT_BYTES` comes in several parts."""
    rest, is_open = b"", False
    while data := stream.readline(FRAGMENT_BYTES - len(rest)):
        data = rest + data
        if len(data) < FRAGMENT_BYTES or data.endswith(b"\n"):
            rest, is_open = b"", False
            yield data, True
        else:
            cut = _cut(data)
            rest, is_open = data[cut:], True
            yield data[:cut], False
    if is_open:
        yield rest, True


def _cut(data: bytes) -> int:
    """Where to cut a text: after its last paragraph, line or word.

    It is cut within a word only if that word fills the second half.
    """
    for boundary in (b"\n\n", b"\n\r\n", b"\n", b" "):
        found = data.rfind(boundary, len(data) // 2)
        if found >= 0:
            return found + len(boundary)
    cut = len(data) - 1
    while cut > len(data) - 4 and data[cut] & 0xC0 == 0x80:  # not within a character either
        cut -= 1
    return cut


_READERS: dict[str, Reader] = {
    "books_large_p*.txt": read_blocks,
    "*.txt": read_book,
    "news.en*": read_lines,
    "*.jsonl": read_jsonl,
}
"""By file name without the suffix of a compression. The first pattern that fits counts."""
_TAR_SUFFIXES = {".tgz": ".gz", ".txz": ".xz", ".tbz2": ".bz2"}
_OPENERS: dict[str, Callable[[IO[bytes]], object]] = {
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".bz2": bz2.open,
}
_PACKINGS = (".gz", ".xz", ".bz2", ".zst", ".zip", ".parquet")


def packing(name: str) -> str:
    """`.gz`, `.xz`, `.bz2`, `.zst`, `.zip`, `.parquet`, or nothing for a plain file."""
    suffix = PurePosixPath(name).suffix
    suffix = _TAR_SUFFIXES.get(suffix, suffix)
    return suffix if suffix in _PACKINGS else ""


def reader_of(name: str) -> Reader | None:
    """The reader for a file of this name; None for a name of no known format."""
    name = PurePosixPath(name).name.removesuffix(packing(name))
    fitting = (reader for pattern, reader in _READERS.items() if fnmatch.fnmatch(name, pattern))
    return next(fitting, None)


def is_member(name: str) -> bool:
    """Whether a member of an archive is read."""
    return not PurePosixPath(name).name.startswith(".") and reader_of(name) is not None


def is_corpus_file(name: str) -> bool:
    """Whether a file of a corpus folder is read."""
    if is_member(name):
        return True
    is_container = is_tar(name) or name.endswith((".zip", ".parquet"))
    return is_container and not name.startswith(".")


def is_tar(name: str) -> bool:
    return name.removesuffix(packing(name)).endswith(".tar") or name.endswith(tuple(_TAR_SUFFIXES))


def clean_name(name: str) -> str:
    """A file name that JSON can hold: bytes that are not UTF-8 become U+FFFD."""
    return name.encode(errors="surrogateescape").decode(errors="replace").replace("\0", "")


def decompressed(name: str, stream: IO[bytes]) -> io.BufferedReader:
    """The stream without the compression that the name's suffix states."""
    kind = packing(name)
    if kind == ".zst":
        return buffered(_zst_chunks(stream, name))
    opener = _OPENERS.get(kind)
    plain = opener(stream) if opener else stream
    return io.BufferedReader(cast(io.RawIOBase, plain), 1 << 20)


def _zst_chunks(stream: IO[bytes], name: str) -> Iterator[bytes]:
    try:
        import zstandard
    except ImportError as error:
        raise ConfigError(f"{name}: needs zstandard: pip install 'gpt1-ds[zst]'") from error
    frame = None
    # The library's own stream reader does not notice that a file is cut short, so frames are
    # read here. Only 1 KB at a time, since 4 bytes of it can stand for 128 KB of text.
    while data := (frame.unused_data if frame and frame.eof else b"") or stream.read(1024):
        if frame is None or frame.eof:
            frame = zstandard.ZstdDecompressor().decompressobj()
        try:
            yield frame.decompress(data)
        except zstandard.ZstdError as error:
            raise OSError(str(error)) from error
    if frame and not frame.eof:
        raise EOFError("the file ends within a frame")


class _ChunkFile(io.RawIOBase):
    """A readable file made of the chunks that an iterator gives."""

    def __init__(self, chunks: Iterator[bytes]):
        self._chunks = chunks
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        while not self._ready:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._ready = memoryview(chunk)
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size


def buffered(chunks: Iterator[bytes]) -> io.BufferedReader:
    return io.BufferedReader(_ChunkFile(chunks), 1 << 20)


class Decoder:
    """Decodes the bytes of one file, in any encoding, and counts what was wrong with them.

    UTF-16 is recognised by its byte order mark or by its NULs. A fragment that is not UTF-8 is
    read as Windows-1252 (a superset of Latin-1's letters) if no character beyond ASCII in the file
    was UTF-8 so far. Otherwise each broken sequence becomes U+FFFD. NULs are removed.
    """

    def __init__(self, counts: Counter[str]):
        self._counts = counts
        self._utf8_seen = False
        self._was_utf16 = False

    def utf8_stream(self, stream: io.BufferedReader) -> io.BufferedReader:
        """The stream itself, or its text as UTF-8 if it is UTF-16."""
        encoding = utf16_kind(stream.peek(1024)[:1024])
        if not encoding:
            return stream
        self._was_utf16 = True
        self._counts["utf16"] += 1
        # newline="": the cleaner handles line ends.
        text = io.TextIOWrapper(stream, encoding, errors="replace", newline="")
        parts = iter(lambda: text.read(1 << 18), "")
        return buffered(part.encode(errors="replace") for part in parts)

    def __call__(self, raw: bytes) -> tuple[str, bool]:
        """The fragment's text, and whether something was wrong with its bytes."""
        bad = self._was_utf16
        try:
            text = raw.decode()
            if not self._utf8_seen and len(text) < len(raw):
                self._utf8_seen = True
        except UnicodeDecodeError:
            bad = True
            kept = raw.decode(errors="ignore")
            if self._utf8_seen or not kept.isascii():
                text = raw.decode(errors="replace")
                self._counts["invalid_utf8"] += len(text) - len(kept)
            else:
                text = raw.decode("cp1252", errors="replace")
                self._counts["latin1"] += 1
        if "\0" in text:
            bad = True
            self._counts["nul"] += text.count("\0")
            text = text.replace("\0", "")
        return text.removeprefix("\ufeff"), bad


def utf16_kind(head: bytes) -> str | None:
    """Which UTF-16 a file begins with, None if none. In English, every second byte of it is NUL."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    pairs = len(head) // 2
    nuls = (head[: 2 * pairs : 2].count(0), head[1 : 2 * pairs : 2].count(0))
    if pairs < 4 or max(nuls) < 0.6 * pairs or min(nuls) > 0.1 * pairs:
        return None
    return "utf-16-le" if nuls[1] > nuls[0] else "utf-16-be"
