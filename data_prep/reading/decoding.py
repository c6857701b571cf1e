"""Bytes become text: UTF-8, UTF-16, UTF-32 or Windows-1252, whatever a file holds.

The whole document decides what it is. A document of several fragments is therefore held back from
its first character beyond ASCII on, up to `HELD_BYTES`.
"""

import codecs
import io
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from data_prep.reading.containers import buffered
from data_prep.reading.formats import RawFragment

HELD_BYTES = 1 << 25
"""A longer document is decided by this much of it."""
_BINARY = re.compile(
    rb"\x1f\x8b\x08|BZh[1-9]1AY&SY|\xfd7zXZ\0|\x28\xb5\x2f\xfd|PK(?:\x03\x04|\x05\x06)"
    rb"|7z\xbc\xaf|Rar!\x1a|%PDF-\d|\x89PNG\r\n|\xff\xd8\xff|GIF8[79]a|\x7fELF|\xd0\xcf\x11\xe0"
    rb"|PAR1|SQLite format 3\0|(?s:.{257})ustar[\0 ]"
)
"""How files of well-known kinds begin, none of them text."""
_TEXT_BYTES = bytes(set(range(256)) - set(range(32)) | set(b"\b\t\n\v\f\r\x1a\x1b"))
"""All but control characters. Backspaces and escapes are in the output of text tools."""
_HIGH_BYTES = bytes(range(128, 256))
_NO_TEXT = "none"
_LEAST_CONTROLS, _CONTROL_SHARE = 8, 0.05
"""A document with more control characters is binary. Of random bytes, they are a tenth."""


class Text(NamedTuple):
    """The next characters of a document."""

    document: str
    text: str
    last: bool
    """The document ends here."""
    bad: bool
    """Something was wrong with its bytes."""
    binary: bool
    """The document is no text at all; `text` is empty."""


class Decoder:
    """Decodes the documents of one file, in any encoding, and counts what was wrong with them.

    UTF-16 and UTF-32 are recognised by a mark or by their NULs. A document that is not UTF-8 is
    read as Windows-1252 (a superset of Latin-1's letters) if it has more broken sequences than
    right ones. If it has no right one, the file's other documents decide, and a UTF-8 mark in front
    of the file decides always. In other documents, each broken sequence becomes U+FFFD. NULs are
    removed.
    """

    def __init__(self, counts: Counter[str]):
        self._counts = counts
        self._is_marked = False
        self._balance = 0
        """Documents of the file that were UTF-8 beyond ASCII, less those that were not."""
        self._was_utf16 = False

    def utf8_stream(self, stream: io.BufferedReader) -> io.BufferedReader:
        """The stream itself, or its text as UTF-8 if it is UTF-16 or UTF-32."""
        head = stream.peek(1024)[:1024]
        self._is_marked = head.startswith(codecs.BOM_UTF8)
        encoding = utf16_kind(head)
        if not encoding:
            return stream
        self._was_utf16 = True
        self._counts["utf16"] += 1
        # newline="": the cleaner handles line ends.
        text = io.TextIOWrapper(stream, encoding, errors="replace", newline="")
        parts = iter(lambda: text.read(1 << 18), "")
        return buffered(part.encode(errors="replace") for part in parts)

    def __call__(self, raw: Iterator[RawFragment]) -> Iterator[Text]:
        held: list[bytes] = []
        size, encoding = 0, ""
        for document, data, last in raw:
            # Text of ASCII alone need not wait for the rest of its document.
            if not (held or encoding) and data.isascii() and not data.translate(None, _TEXT_BYTES):
                yield Text(document, data.decode(), last, self._was_utf16, False)
                continue
            held.append(data)
            size += len(data)
            if not encoding:
                if not last and size < HELD_BYTES:
                    continue
                encoding = self._encoding(held)
            for number, part in enumerate(held, 1):
                text, bad = self._decoded(part, encoding)
                is_last = last and number == len(held)
                yield Text(document, text, is_last, bad, encoding == _NO_TEXT)
            held, size = [], 0
            if last:
                encoding = ""

    def _encoding(self, held: list[bytes]) -> str:
        """That of a document that begins with these fragments; nothing if all of it is ASCII."""
        controls = sum(_controls(data) for data in held)
        if controls >= _LEAST_CONTROLS:
            if controls > _CONTROL_SHARE * sum(len(data.strip(b"\0")) for data in held):
                return _NO_TEXT
        right = broken = 0
        for data in held:
            if not data.isascii():
                kept = data.decode(errors="ignore")
                right += len(kept) - len(data.translate(None, _HIGH_BYTES))
                broken += len(data.decode(errors="replace")) - len(kept)
        if not (right or broken):
            return ""
        is_utf8 = right >= broken if right else self._balance > 1
        self._balance += 1 if is_utf8 else -1
        if is_utf8 or self._is_marked:
            return "utf-8"
        self._counts["latin1"] += 1
        return "cp1252"

    def _decoded(self, raw: bytes, encoding: str) -> tuple[str, bool]:
        """The fragment's text, and whether something was wrong with its bytes."""
        bad = self._was_utf16 or encoding == "cp1252"
        if encoding == _NO_TEXT:
            return "", True
        try:
            text = raw.decode(encoding or "utf-8")
        except UnicodeDecodeError:
            bad = True
            text = raw.decode(encoding, errors="replace")
            self._counts["invalid_utf8"] += len(text) - len(raw.decode(encoding, errors="ignore"))
        if "\0" in text:
            bad = True
            self._counts["nul"] += text.count("\0")
            text = text.replace("\0", "")
        return text.removeprefix("\ufeff"), bad


def _controls(data: bytes) -> int:
    """Control characters in it. NULs at an end only fill a file up."""
    return len(data.strip(b"\0").translate(None, _TEXT_BYTES))


def is_binary(head: bytes) -> bool:
    """Whether a file that begins so is no text, whatever its name says."""
    return _BINARY.match(head) is not None


def utf16_kind(head: bytes) -> str | None:
    """Which UTF-16 or UTF-32 a file begins with, None if none.

    In English, every second byte of UTF-16 is NUL.
    """
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    pairs = len(head) // 2
    nuls = (head[: 2 * pairs : 2].count(0), head[1 : 2 * pairs : 2].count(0))
    if pairs < 4 or max(nuls) < 0.6 * pairs or min(nuls) > 0.1 * pairs:
        return None
    return "utf-16-le" if nuls[1] > nuls[0] else "utf-16-be"
