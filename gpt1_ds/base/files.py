"""Files that are whole or not there: atomic writes, flushing, hashes (layer 0)."""

import hashlib
import os
from pathlib import Path

BLOCK_BYTES, ALIGNMENT = 1 << 22, 1 << 12


def write_atomically(path: Path | str, data: str | bytes) -> None:
    """Put `data` at `path` by way of a temporary name beside it, flushed to the disk before and after the rename."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)
    flush(temporary)
    os.replace(temporary, path)
    flush(path.parent)


def flush(path: Path | str) -> None:
    """fsync a file or a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_sha256(path: Path | str) -> str:
    """Hex digest of a file's bytes, read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
