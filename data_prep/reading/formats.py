"""File formats of corpora: what a file's name says, and the documents in a stream of bytes.

Nothing here touches the disk. The case of a name's letters does not matter. A document that is
longer than `FRAGMENT_BYTES` comes in several fragments, cut between paragraphs.
"""

import codecs
import fnmatch
import io
import json
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import IO, NamedTuple

from gpt1_ds.base.errors import DataError

BLOCK_LINES = 10_000
"""Lines of one document in a sentence file without book boundaries."""
FRAGMENT_BYTES = 1 << 22
ROW_BYTES = 256 << 20
"""A longer row of a jsonl file is refused: a row cannot be read in parts."""
FORMATS = "*.txt, news.en*, *.jsonl (each also .gz .xz .bz2 .zst), *.parquet, *.tar, *.tar.*, *.zip"


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
        # Tools of Windows write a mark in front; joined files have several.
        line = line.removeprefix(codecs.BOM_UTF8)
        if line.strip():
            text = _row_text(line)
            if text is None:
                raise DataError(
                    f"{name}: line {number + 1} is not a JSON object with a string 'text'"
                )
            yield from row_fragments(f"{name}#{number}", text)
        number += 1


def _row_text(line: bytes) -> str | None:
    """The only string `text` of a JSON object; None if there is none, or more than one."""
    try:
        decoded = line.decode(errors="surrogateescape")
        text = json.loads(decoded)["text"]
        if line.count(b'"text"') > 1:  # json keeps the last one alone.
            pairs = json.loads(decoded, object_pairs_hook=list)
            if [key for key, _ in pairs].count("text") > 1:
                return None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return text if isinstance(text, str) else None


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
_PACKINGS = (".gz", ".xz", ".bz2", ".zst", ".zip", ".parquet")


def packing(name: str) -> str:
    """`.gz`, `.xz`, `.bz2`, `.zst`, `.zip`, `.parquet`, or nothing for a plain file."""
    suffix = PurePosixPath(name.lower()).suffix
    suffix = _TAR_SUFFIXES.get(suffix, suffix)
    return suffix if suffix in _PACKINGS else ""


def reader_of(name: str) -> Reader | None:
    """The reader for a file of this name; None for a name of no known format."""
    name = PurePosixPath(name.lower()).name.removesuffix(packing(name))
    fitting = (reader for pattern, reader in _READERS.items() if fnmatch.fnmatch(name, pattern))
    return next(fitting, None)


def is_hidden(name: str) -> bool:
    return PurePosixPath(name).name.startswith(".")


def is_member(name: str) -> bool:
    """Whether a member of an archive is read. A member may be a tar, but no zip and no parquet."""
    if is_hidden(name) or packing(name) in (".zip", ".parquet"):
        return False
    return is_tar(name) or reader_of(name) is not None


def is_corpus_file(name: str) -> bool:
    """Whether a file of a corpus folder is read."""
    return not is_hidden(name) and (is_member(name) or packing(name) in (".zip", ".parquet"))


def is_tar(name: str) -> bool:
    name = name.lower()
    return name.removesuffix(packing(name)).endswith(".tar") or name.endswith(tuple(_TAR_SUFFIXES))


def clean_name(name: str) -> str:
    """A file name that JSON can hold: bytes that are not UTF-8 become U+FFFD."""
    return name.encode(errors="surrogateescape").decode(errors="replace").replace("\0", "")
