"""Files that are whole or not there: atomic writes, flushing, hashes (layer 0)."""

import errno
import fcntl
import hashlib
import io
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

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


class Blocks:
    """File object that gathers what is written to it in page-aligned blocks: `take` gets each with its length once it
    is full, and the last one at the `end`; the block it returns, if any, is filled next."""

    def __init__(self, take: Callable[[np.ndarray, int], np.ndarray | None]):
        self.take, self.filled = take, 0
        self.block: np.ndarray | None = None

    def write(self, data) -> int:
        left = np.frombuffer(data, np.uint8)
        while len(left):
            if self.block is None:
                self.block = _aligned_block()
            part = left[: BLOCK_BYTES - self.filled]
            self.block[self.filled : self.filled + len(part)] = part
            self.filled += len(part)
            left = left[len(part) :]
            if self.filled == BLOCK_BYTES:
                self.end()
        return len(data)

    def flush(self) -> None:
        """Part of a block goes nowhere yet."""

    def end(self) -> None:
        if self.filled:
            block, length, self.block, self.filled = self.block, self.filled, None, 0
            self.block = self.take(block, length)


def _aligned_block() -> np.ndarray:
    """From the heap, where memory given back by the last save lies ready: fresh pages take longer than the copy."""
    memory = np.empty(BLOCK_BYTES + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + BLOCK_BYTES]


class HashedFile:
    """A new file that is hashed as its bytes reach the system; `blocks` is what to write to, `seal` ends it.

    Whole blocks go past the page cache (O_DIRECT) where the file system can: through it, a write of some gigabytes
    takes seconds of processor time, from a training that goes on meanwhile.
    """

    def __init__(self, path: Path | str):
        self.file = io.FileIO(path, "xb")
        self.digest, self.size, self.fault = hashlib.sha256(), 0, None
        self.blocks = Blocks(self.write_block)
        with suppress(OSError):
            self._past_the_cache(True)

    def write_block(self, block: np.ndarray, length: int) -> np.ndarray:
        left = memoryview(block)[:length]
        self.digest.update(left)
        if length < BLOCK_BYTES:
            self._past_the_cache(False)
        while left:
            try:
                left = left[self.file.write(left) :]
            except OSError as error:
                if error.errno != errno.EINVAL or not self._past_the_cache(False):
                    self.fault = error  # a caller in C++ may tell of its own position alone
                    raise
            if left:  # what follows part of a block may not be aligned any more
                self._past_the_cache(False)
        self.size += length
        return block

    def seal(self) -> dict[str, Any]:
        """Flush to the disk and close; size and sha256."""
        self.blocks.end()
        os.fsync(self.file.fileno())
        self.file.close()
        return {"bytes": self.size, "sha256": self.digest.hexdigest()}

    def _past_the_cache(self, wanted: bool) -> bool:
        """Whether that was otherwise before."""
        flags = fcntl.fcntl(self.file, fcntl.F_GETFL)
        changed = flags | os.O_DIRECT if wanted else flags & ~os.O_DIRECT
        fcntl.fcntl(self.file, fcntl.F_SETFL, changed)
        return changed != flags
