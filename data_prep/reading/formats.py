"""File formats of corpora: packings, encodings, and the documents in a stream of bytes, piece by piece.

Nothing here touches the disk. A document longer than `PIECE_BYTES` comes in several pieces, cut between paragraphs.
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
from typing import BinaryIO

from gpt1_ds.base.errors import ConfigError, DataError

BLOCK_LINES = 10_000
"""Lines of one document in a sentence file without book boundaries."""
PIECE_BYTES = 1 << 22
ROW_BYTES = 256 << 20
"""A longer row of a jsonl file is refused: it cannot be read in pieces."""
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
"""What the libraries raise on damaged files; zipfile's RuntimeError stands for an encrypted member."""
Records = Iterator[tuple[str, bytes, bool]]
"""(document id, its next piece, whether that is the last)"""
Reader = Callable[[str, BinaryIO, int], Records]


def read_book(name: str, stream: BinaryIO, first_line: int = 0) -> Records:
    data = stream.read(PIECE_BYTES)
    while len(data) >= PIECE_BYTES:
        cut = _cut(data)
        yield name, data[:cut], False
        data = data[cut:] + stream.read(PIECE_BYTES - len(data) + cut)
    yield name, data, True


def read_blocks(name: str, stream: BinaryIO, first_line: int) -> Records:
    number, lines, size, is_open = first_line, [], 0, False
    for data, ends in _lines(stream):
        block = number // BLOCK_LINES
        lines.append(data)
        size += len(data)
        number += ends
        last = number // BLOCK_LINES > block
        if last or size >= PIECE_BYTES:
            yield f"{name}#{block}", b"".join(lines), last
            lines, size, is_open = [], 0, not last
    if lines or is_open:
        yield f"{name}#{number // BLOCK_LINES}", b"".join(lines), True


def read_lines(name: str, stream: BinaryIO, first_line: int) -> Records:
    number = first_line
    for data, ends in _lines(stream):
        yield f"{name}#{number}", data, ends
        number += ends


def read_jsonl(name: str, stream: BinaryIO, first_line: int) -> Records:
    number = first_line
    while line := stream.readline(ROW_BYTES):
        if len(line) == ROW_BYTES:
            raise DataError(
                f"{name}: line {number + 1} is longer than {ROW_BYTES >> 20} MiB; make it a .txt file"
            )
        if line.strip():
            try:
                text = json.loads(line.decode(errors="surrogateescape"))["text"]
            except (ValueError, KeyError, TypeError, RecursionError):
                text = None
            if not isinstance(text, str):
                raise DataError(
                    f"{name}: line {number + 1} is not a JSON object with a string 'text'"
                )
            yield from row_pieces(f"{name}#{number}", text)
        number += 1


def row_pieces(document_id: str, text: str) -> Records:
    try:
        raw = text.encode(
            errors="surrogateescape"
        )  # bytes that were not UTF-8 are themselves again, for the decoder
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can hold
        raw = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
    return read_book(document_id, io.BytesIO(raw))


def _lines(stream: BinaryIO) -> Iterator[tuple[bytes, bool]]:
    """Lines, those longer than `PIECE_BYTES` in pieces, and whether the line ends there."""
    rest, is_open = b"", False
    while data := stream.readline(PIECE_BYTES - len(rest)):
        data = rest + data
        if len(data) < PIECE_BYTES or data.endswith(b"\n"):
            rest, is_open = b"", False
            yield data, True
        else:
            cut = _cut(data)
            rest, is_open = data[cut:], True
            yield data[:cut], False
    if is_open:
        yield rest, True


def _cut(data: bytes) -> int:
    """Where to part text: behind the last paragraph, line or word; within a word only if half of it is one word."""
    for boundary in (b"\n\n", b"\n\r\n", b"\n", b" "):
        if (found := data.rfind(boundary, len(data) // 2)) >= 0:
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
"""By file name without the packing's suffix; the first that fits reads it."""
_TAR_SUFFIXES = {".tgz": ".gz", ".txz": ".xz", ".tbz2": ".bz2"}


def packing(name: str) -> str:
    """`.gz`, `.xz`, `.bz2`, `.zst`, `.zip`, `.parquet`, or nothing."""
    suffix = PurePosixPath(name).suffix
    suffix = _TAR_SUFFIXES.get(suffix, suffix)
    return suffix if suffix in (".gz", ".xz", ".bz2", ".zst", ".zip", ".parquet") else ""


def reader_of(name: str) -> Reader | None:
    name = PurePosixPath(name).name.removesuffix(packing(name))
    return next(
        (reader for pattern, reader in _READERS.items() if fnmatch.fnmatch(name, pattern)), None
    )


def is_member(name: str) -> bool:
    return not PurePosixPath(name).name.startswith(".") and reader_of(name) is not None


def is_text(name: str) -> bool:
    return is_member(name) or (
        not name.startswith(".") and (is_tar(name) or name.endswith((".zip", ".parquet")))
    )


def is_tar(name: str) -> bool:
    return name.removesuffix(packing(name)).endswith(".tar") or name.endswith(tuple(_TAR_SUFFIXES))


def clean_name(name: str) -> str:
    """A name as it may stand in JSON: bytes of no encoding become U+FFFD."""
    return name.encode(errors="surrogateescape").decode(errors="replace").replace("\0", "")


def unpacked(name: str, stream: BinaryIO) -> BinaryIO:
    kind = packing(name)
    if kind == ".zst":
        return buffered(_zst_chunks(stream, name))
    opener = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}.get(kind)
    return io.BufferedReader(opener(stream) if opener else stream, 1 << 20)


def _zst_chunks(stream: BinaryIO, name: str) -> Iterator[bytes]:
    try:
        import zstandard
    except ImportError as error:
        raise ConfigError(f"{name}: needs zstandard: pip install 'gpt1-ds[zst]'") from error
    frame = None
    # Its own stream reader takes a file that is cut short for a whole one. So little at a time, since each 4 bytes can
    # stand for 128 KB.
    while data := (frame.unused_data if frame and frame.eof else b"") or stream.read(1024):
        if frame is None or frame.eof:
            frame = zstandard.ZstdDecompressor().decompressobj()
        try:
            yield frame.decompress(data)
        except zstandard.ZstdError as error:
            raise OSError(str(error)) from error
    if frame and not frame.eof:
        raise EOFError("the file ends within a frame")


class _Chunks(io.RawIOBase):
    """A readable file of the chunks that an iterator gives."""

    def __init__(self, chunks: Iterator[bytes]):
        self._chunks, self._ready = chunks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._ready:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._ready = memoryview(chunk)
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        return size


def buffered(chunks: Iterator[bytes]) -> io.BufferedReader:
    return io.BufferedReader(_Chunks(chunks), 1 << 20)


class Decoder:
    """The bytes of one file as text, whatever its encoding, with a count of what was wrong.

    UTF-16 is told by its mark or its NULs. A piece that is not UTF-8 is Windows-1252 (Latin-1's letters) where nothing
    in the file so far was UTF-8, else each broken sequence becomes U+FFFD. NULs are removed.
    """

    def __init__(self, counts: Counter[str]):
        self._counts, self._utf8_seen, self._recoded = counts, False, False

    def opened(self, stream: BinaryIO) -> BinaryIO:
        """The stream itself, or as UTF-8 where it is UTF-16."""
        encoding = utf16(stream.peek(1024)[:1024])
        if not encoding:
            return stream
        self._recoded = True
        self._counts["utf16"] += 1
        # newline="": line ends are the cleaner's business.
        text = io.TextIOWrapper(stream, encoding, errors="replace", newline="")
        return buffered(
            part.encode(errors="replace") for part in iter(lambda: text.read(1 << 18), "")
        )

    def __call__(self, raw: bytes) -> tuple[str, bool]:
        """The piece's text, and whether something was wrong with it."""
        bad = self._recoded
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


def utf16(head: bytes) -> str | None:
    """The kind of UTF-16 that a file begins with, if it is one; English in UTF-16 is every other byte NUL."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    pairs = len(head) // 2
    nuls = (head[: 2 * pairs : 2].count(0), head[1 : 2 * pairs : 2].count(0))
    if pairs < 4 or max(nuls) < 0.6 * pairs or min(nuls) > 0.1 * pairs:
        return None
    return "utf-16-le" if nuls[1] > nuls[0] else "utf-16-be"
