"""Corpora as users have them: paths in, normalised documents out, one at a time.

| file (also `.gz`, `.xz`)  | documents                                                  |
|---------------------------|------------------------------------------------------------|
| `*.txt`                   | one a file; hard-wrapped lines are joined into paragraphs  |
| `books_large_p*.txt`      | blocks of 10,000 lines, aligned from the start of the file |
| `news.en*` (1B Word)      | one a line                                                 |
| `*.jsonl`                 | the `text` of each row                                     |
| `*.tar`, `*.tar.*`        | those of its members, by the same rules, read in place     |

A folder stands for all such files below it. Documents come in the order of the sources' names.
"""

import fnmatch
import gzip
import hashlib
import io
import itertools
import json
import lzma
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from gpt1_ds.errors import ConfigError, DataError
from gpt1_ds.tokenizer import normalize

BLOCK_LINES = 10_000
"""Lines of one document in a sentence file without book boundaries."""

_FORMATS = "*.txt, news.en*, *.jsonl, each also .gz or .xz, and *.tar, *.tar.*"
_READ_ERRORS = (OSError, EOFError, lzma.LZMAError, zlib.error, tarfile.TarError)


@dataclass(frozen=True)
class Source:
    """One input file of a corpus."""

    corpus: str
    path: Path
    name: str
    """Path below the corpus's own, so that a moved corpus keeps its document ids."""
    validation: bool
    """Given by `--validation`: all its documents are validation."""
    bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class Document:
    id: str
    text: str
    """Normalised, one paragraph or sentence a line; never empty."""
    heldout: bool
    """From a part that the publisher holds out (1B Word's `news.en.heldout-*`)."""


def find_sources(corpora: list[str], validation: list[str]) -> list[Source]:
    """The files of `--corpus` and `--validation` (both `NAME=PATH`), in the order given and then of their names.

    ConfigError for a malformed option; DataError for a path that is missing, unreadable or holds no text.
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
                raise DataError(f"{option} {value}: holds no text; it takes {_FORMATS}, or a folder of them")
            sources += found
    seen = Counter((source.corpus, source.validation, source.name) for source in sources)
    for (corpus, _, name), count in seen.items():
        if count > 1:
            raise ConfigError(f"--corpus {corpus}: two of its paths hold a file named {name}; rename one")
    return sources


def _parse_option(option: str, value: str) -> tuple[str, Path]:
    name, equals, path = value.partition("=")
    if not (equals and path and re.fullmatch(r"[A-Za-z0-9_-]+", name)):
        raise ConfigError(f"{option} {value}: must be NAME=PATH, NAME of letters, digits, '-' and '_'")
    return name, Path(path).expanduser()


def _sources_below(corpus: str, path: Path, validation: bool) -> list[Source]:
    try:
        if path.is_dir():
            below = [p for p in path.rglob("*") if _is_text(p.name) and p.is_file()]
            named = sorted((p.relative_to(path).as_posix(), p) for p in below)
        elif path.exists():
            if not _is_text(path.name):
                raise DataError(f"{path}: corpus '{corpus}' is of no known format; it takes {_FORMATS}, or a folder")
            named = [(path.name, path)]
        else:
            raise DataError(f"{path}: corpus '{corpus}' is not there; mend --corpus or GPT1_CORPORA")
        stats = [(name, p, p.stat()) for name, p in named]
    except OSError as error:
        raise DataError(f"{path}: corpus '{corpus}' cannot be read ({error.strerror})") from error
    return [Source(corpus, p, name, validation, stat.st_size, stat.st_mtime_ns) for name, p, stat in stats]


class SourceReader:
    """The documents of one source, with what a progress bar and the manifest want to know of it."""

    def __init__(self, source: Source):
        self.source = source
        self.counts: Counter[str] = Counter()
        """Documents read, and dropped or mended ones by reason."""
        self.bytes_read = 0
        """Of the file as it lies on disk, packed or not."""
        self._sha256 = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Hash of the file; of the whole of it once `documents` has ended."""
        return self._sha256.hexdigest()

    def documents(self) -> Iterator[Document]:
        """Read the file once. DataError, naming it, where it cannot be read or has changed since it was planned."""
        source = self.source
        try:
            with open(source.path, "rb") as file:
                raw = _Watched(file, self._saw)
                yield from self._from_stream(source.name, _unpacked(source.name, io.BufferedReader(raw, 1 << 20)))
                while raw.read(1 << 20):  # what follows an archive's end belongs to the hash too
                    pass
            if self.bytes_read != source.bytes or source.path.stat().st_mtime_ns != source.mtime_ns:
                raise DataError(f"{source.path}: changed while it was read; run the same command again")
        except _READ_ERRORS as error:
            raise DataError(f"{source.path}: cannot be read ({error}); replace the file or leave it out") from error

    def _saw(self, data: bytes) -> None:
        self.bytes_read += len(data)
        self._sha256.update(data)

    def _from_stream(self, name: str, stream: BinaryIO) -> Iterator[Document]:
        if _is_tar(name):
            for member, member_stream in _members(stream):
                yield from self._from_stream(f"{name}/{member}", _unpacked(member, member_stream))
            return
        heldout = fnmatch.fnmatch(PurePosixPath(name).name, "news.en.heldout*")
        for document_id, raw, unwrap in _reader(name)(name, stream):
            self.counts["read"] += 1
            text = normalize(self._to_text(raw), unwrap=unwrap)
            if text:
                yield Document(document_id, text, heldout)
            else:
                self.counts["empty"] += 1

    def _to_text(self, raw: bytes | str) -> str:
        if isinstance(raw, bytes):
            try:
                text = raw.decode()
            except UnicodeDecodeError:
                text = raw.decode(errors="replace")
                self.counts["invalid_utf8"] += len(text) - len(raw.decode(errors="ignore"))
        else:
            text = raw
        if "\0" in text:
            self.counts["nul"] += text.count("\0")
            text = text.replace("\0", "")
        return text.removeprefix("\ufeff")


_Records = Iterator[tuple[str, bytes | str, bool]]
"""(document id, its content, whether its lines are hard-wrapped)"""


def _read_book(name: str, stream: BinaryIO) -> _Records:
    yield name, stream.read(), True


def _read_blocks(name: str, stream: BinaryIO) -> _Records:
    for block in itertools.count():
        lines = b"".join(itertools.islice(stream, BLOCK_LINES))
        if not lines:
            return
        yield f"{name}#{block}", lines, False


def _read_lines(name: str, stream: BinaryIO) -> _Records:
    for number, line in enumerate(stream):
        yield f"{name}#{number}", line, False


def _read_jsonl(name: str, stream: BinaryIO) -> _Records:
    for number, line in enumerate(stream):
        if line.strip():
            try:
                text = json.loads(line)["text"]
            except (ValueError, KeyError, TypeError):
                text = None
            if not isinstance(text, str):
                raise DataError(f"{name}: line {number + 1} is not a JSON object with a string 'text'")
            yield f"{name}#{number}", text, True


_READERS: dict[str, Callable[[str, BinaryIO], _Records]] = {
    "books_large_p*.txt": _read_blocks,
    "*.txt": _read_book,
    "news.en*": _read_lines,
    "*.jsonl": _read_jsonl,
}
"""By file name without `.gz` or `.xz`; the first that fits reads it."""


def _reader(name: str) -> Callable[[str, BinaryIO], _Records] | None:
    name = PurePosixPath(name).name.removesuffix(".gz").removesuffix(".xz")
    return next((reader for pattern, reader in _READERS.items() if fnmatch.fnmatch(name, pattern)), None)


def _is_text(name: str) -> bool:
    return not name.startswith(".") and (_is_tar(name) or _reader(name) is not None)


def _is_tar(name: str) -> bool:
    return name.endswith((".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2"))


def _members(stream: BinaryIO) -> Iterator[tuple[str, BinaryIO]]:
    with tarfile.open(fileobj=stream, mode="r|*") as tar:
        for member in tar:
            if member.isreg() and _reader(member.name):
                yield member.name, tar.extractfile(member)


def _unpacked(name: str, stream: BinaryIO) -> BinaryIO:
    if _is_tar(name):  # tarfile unpacks by itself
        return stream
    if name.endswith(".gz"):
        return gzip.open(stream)
    return lzma.open(stream) if name.endswith(".xz") else stream


class _Watched(io.RawIOBase):
    """A readable file that shows every piece to `saw`."""

    def __init__(self, file: BinaryIO, saw: Callable[[bytes], None]):
        self._file, self._saw = file, saw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        size = self._file.readinto(buffer)
        self._saw(bytes(memoryview(buffer)[:size]))
        return size
