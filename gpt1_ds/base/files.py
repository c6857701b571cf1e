"""Atomic writes, flushing to the disk, hashes of files."""

import hashlib
import os
from pathlib import Path

BLOCK_BYTES = 1 << 22
"""Number of bytes that are read, hashed or written at a time."""
ALIGNMENT = 1 << 12
"""Direct writes, which skip the page cache, need addresses and lengths in multiples of this."""


def write_atomically(path: Path | str, data: str | bytes) -> None:
    """Replace the file at `path` by `data`; a kill at any moment leaves the old or the new file.

    The data first go to a temporary file in the same folder. The file is flushed to the disk and
    then renamed.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)
    flush(temporary)
    os.replace(temporary, path)
    flush(path.parent)


def flush(path: Path | str) -> None:
    """Force a file or a folder to the disk (fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_sha256(path: Path | str) -> str:
    """The SHA-256 of a file in hexadecimal. The file is read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
