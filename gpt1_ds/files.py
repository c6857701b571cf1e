"""Files that are whole or not there: atomic writes, flushing, hashes (layer 0)."""

import hashlib
import io
import os
from pathlib import Path
from typing import Any

BLOCK_BYTES = 1 << 22


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


class HashedFile(io.FileIO):
    """A new file that is hashed as its bytes reach the system; `buffered` is what to write to, `seal` ends it."""

    def __init__(self, path: Path | str):
        super().__init__(path, "xb")
        self.digest, self.size, self.fault = hashlib.sha256(), 0, None
        self.buffered = io.BufferedWriter(self, BLOCK_BYTES)

    def write(self, data) -> int:
        try:
            count = super().write(data)
        except OSError as error:
            self.fault = error  # a caller in C++ may tell of its own position alone
            raise
        self.digest.update(memoryview(data)[:count])
        self.size += count
        return count

    def seal(self) -> dict[str, Any]:
        """Flush to the disk and close; size and sha256."""
        self.buffered.flush()
        os.fsync(self.fileno())
        self.buffered.close()
        return {"bytes": self.size, "sha256": self.digest.hexdigest()}
