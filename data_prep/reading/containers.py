"""Compressed files and archives, read from front to back and to their very end.

A file is read whole or refused. The libraries' own readers end without an error at a damaged later
stream, at a damaged header, or where a second archive begins. The readers here do not.
"""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Protocol, Self, cast

from gpt1_ds.base.errors import ConfigError

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
_INPUT_BYTES, _OUTPUT_BYTES = 1 << 13, 1 << 20
_ZST_WINDOW = 1 << 31
"""The largest that the format allows to `zstd --ultra --long=31`."""
_ZIP_END, _ZIP_HEADER_BYTES, _ZIP_END_BYTES = b"PK\5\6", 30, 22
_ZIP_TAIL_BYTES = (1 << 16) + _ZIP_END_BYTES


class _Decompressor(Protocol):
    """A decompressor of one stream, of `lzma` or `bz2`."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


def unpacked(kind: str, name: str, stream: IO[bytes]) -> io.BufferedReader:
    """The stream without its compression `kind` (`.gz`, `.xz`, `.bz2`, `.zst`, or none)."""
    if kind == ".xz":
        return buffered(_streams(stream, lzma.LZMADecompressor, padding=4))
    if kind == ".bz2":
        return buffered(_streams(stream, bz2.BZ2Decompressor, padding=1))
    if kind == ".zst":
        return buffered(_zst_chunks(stream, name))
    plain = gzip.open(stream) if kind == ".gz" else stream
    return io.BufferedReader(cast(io.RawIOBase, plain), 1 << 20)


def _streams(stream: IO[bytes], new: Callable[[], _Decompressor], padding: int) -> Iterator[bytes]:
    """The content of all compressed streams of a file, which lie one behind the other.

    Between them and at the end may be zeros, a multiple of `padding` of them.
    """
    data = stream.read(_INPUT_BYTES)
    while True:
        decompressor = new()
        while not decompressor.eof:
            if decompressor.needs_input:
                data = data or stream.read(_INPUT_BYTES)
                if not data:
                    raise EOFError("the file ends within a compressed stream")
            yield decompressor.decompress(data, _OUTPUT_BYTES)
            data = b""
        zeros, data = 0, decompressor.unused_data or stream.read(_INPUT_BYTES)
        while data:
            rest = data.lstrip(b"\0")
            zeros += len(data) - len(rest)
            data = rest or stream.read(_INPUT_BYTES)
            if rest:
                break
        if zeros % padding:
            raise OSError(f"{zeros} bytes of padding behind a stream, not a multiple of {padding}")
        if not data:
            return


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
            frame = zstandard.ZstdDecompressor(max_window_size=_ZST_WINDOW).decompressobj()
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


class _Tar(tarfile.TarFile):
    is_closed_by_zeros = False
    """The blocks read last were zeros, which mark the end of an archive."""


class _TarHeader(tarfile.TarInfo):
    """A header that is refused if it is damaged; tarfile alone ends the archive there."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        assert isinstance(tar, _Tar)
        try:
            header = super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            tar.is_closed_by_zeros = True
            raise
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]
            if tar.is_closed_by_zeros:
                raise
            raise tarfile.ReadError("it ends without the mark of an archive's end") from None
        except tarfile.HeaderError as error:
            where = f"{error}, at byte {tar.fileobj.tell() - tarfile.BLOCKSIZE}"
            raise tarfile.ReadError(f"damaged header of a member: {where}") from None
        tar.is_closed_by_zeros = False
        return header


def tar_members(stream: io.BufferedReader) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    """The members that are no folders, each with its content if it is a plain file.

    Several archives one behind the other count as one.
    """
    with _Tar.open(fileobj=stream, mode="r|", tarinfo=_TarHeader, ignore_zeros=True) as tar:
        for member in tar:
            if not member.isdir():
                yield member, tar.extractfile(member) if member.isreg() else None


def zip_members(archive: zipfile.ZipFile, size: int) -> list[zipfile.ZipInfo]:
    """The members in the archive's order. BadZipFile if the file of `size` bytes holds more.

    Its directory names only the members of the last archive, if two are joined.
    """
    file = archive.fp
    assert file  # The archive is open.
    members = archive.infolist()
    position = 0
    for member in sorted(members, key=lambda member: member.header_offset):
        _check_gap(member.header_offset - position)
        file.seek(member.header_offset)
        header = file.read(_ZIP_HEADER_BYTES)
        names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        position = member.header_offset + _ZIP_HEADER_BYTES + names + member.compress_size
    _check_gap(archive.start_dir - position)
    file.seek(max(archive.start_dir, size - _ZIP_TAIL_BYTES))
    tail = file.read()
    end = tail.rfind(_ZIP_END) + _ZIP_END_BYTES + len(archive.comment)
    if tail[end:].strip(b"\0"):
        raise zipfile.BadZipFile("bytes behind the end of the archive")
    return members


def _check_gap(gap: int) -> None:
    # A streaming writer puts up to 24 bytes behind each member. No member is that small.
    if gap >= _ZIP_HEADER_BYTES:
        raise zipfile.BadZipFile(f"{gap} bytes that belong to no member of its directory")
