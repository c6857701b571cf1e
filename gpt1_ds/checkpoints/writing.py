"""Files that are written while training goes on.

A file is first made in memory, byte for byte, while the tensors in it stand still. Then one thread
writes, hashes and flushes all files. A fault is remembered and raised at the end, since the peers
of this rank may be waiting for it in a collective.
"""

import errno
import fcntl
import hashlib
import io
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from gpt1_ds.base.files import ALIGNMENT, BLOCK_BYTES
from gpt1_ds.checkpoints.state import FileSeal

Buffer = bytes | bytearray | memoryview
LOOK_SECONDS = 1.0
"""How often a wait for the thread looks whether it hangs."""


class BlockBuffer:
    """A file object that gathers what is written to it in blocks, aligned to pages.

    `on_block` gets each block with its length once it is full, and the last one at `end`. It may
    return a block, which is then filled next.
    """

    def __init__(self, on_block: Callable[[np.ndarray, int], np.ndarray | None]):
        self.on_block = on_block
        self.block: np.ndarray | None = None
        self.filled = 0

    def write(self, data: Buffer) -> int:
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
        """Nothing: a block is passed on only when it is full, or at the end."""

    def end(self) -> None:
        if self.block is not None and self.filled:
            block, length = self.block, self.filled
            self.block = None
            self.filled = 0
            self.block = self.on_block(block, length)


def _aligned_block() -> np.ndarray:
    """From the heap, which still holds the memory of the last save: fresh pages cost more time."""
    memory = np.empty(BLOCK_BYTES + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + BLOCK_BYTES]


class HashedFile:
    """A new file that is hashed as its bytes are written: write to `blocks`, then call `seal`.

    Whole blocks go past the page cache (O_DIRECT) where the file system can. Through the cache, a
    write of some gigabytes takes seconds of processor time, from a training that goes on.
    """

    def __init__(self, path: Path | str):
        self.file = io.FileIO(path, "xb")
        self.digest = hashlib.sha256()
        self.size = 0
        self.fault: OSError | None = None
        self.blocks = BlockBuffer(self.write_block)
        with suppress(OSError):
            self._set_direct(True)

    def write_block(self, block: np.ndarray, length: int) -> np.ndarray:
        left = block[:length].data
        self.digest.update(left)
        if length < BLOCK_BYTES:
            self._set_direct(False)
        while left:
            try:
                left = left[self.file.write(left) :]
            except OSError as error:
                if error.errno != errno.EINVAL or not self._set_direct(False):
                    # Kept, since torch's writer in C++ raises another error, without the reason.
                    self.fault = error
                    raise
            if left:  # The rest of a block may not be aligned.
                self._set_direct(False)
        self.size += length
        return block

    def seal(self) -> FileSeal:
        """Flush to the disk and close."""
        self.blocks.end()
        os.fsync(self.file.fileno())
        self.file.close()
        return FileSeal(self.size, self.digest.hexdigest())

    def _set_direct(self, wanted: bool) -> bool:
        """Write past the page cache, or through it; whether this is a change."""
        flags = fcntl.fcntl(self.file, fcntl.F_GETFL)
        changed = flags | os.O_DIRECT if wanted else flags & ~os.O_DIRECT
        fcntl.fcntl(self.file, fcntl.F_SETFL, changed)
        return changed != flags


class MemoryFile(BlockBuffer):
    """A file in memory."""

    def __init__(self) -> None:
        super().__init__(self._keep)
        self.kept: deque[tuple[np.ndarray, int]] = deque()

    def _keep(self, block: np.ndarray, length: int) -> None:
        self.kept.append((block, length))

    def write_to(self, file: BlockBuffer) -> None:
        """Write it all to `file`, and free each block of memory once it is written."""
        while self.kept:
            file.on_block(*self.kept.popleft())


WriteContent = Callable[[BlockBuffer], object]
"""Writes the content of one file to the file object that it is given."""


class FileWriter:
    """Writes new files to `folder`: by a thread, or, if not `in_background`, as they are added.

    Call `add` for each file, then `start`, and at the end `finish`.
    """

    def __init__(self, folder: Path, in_background: bool):
        self.folder = folder
        self.in_background = in_background
        self.seconds = 0.0
        """Time spent writing."""
        self.fault: str | None = None
        self._seals: dict[str, FileSeal] = {}
        self._copies: deque[tuple[str, MemoryFile]] = deque()
        self.hung: str | None = None
        self._name = ""
        self._file: HashedFile | None = None
        self._progress = ("", 0)
        self._moved_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, daemon=True, name="checkpoint-writer")

    def add(self, name: str, write_content: WriteContent) -> None:
        """The file `name`. A fault is not raised here but by `finish`."""
        if not self.in_background:
            self._write(name, write_content)
            return
        try:
            copy = MemoryFile()
            write_content(copy)
            copy.end()
            self._copies.append((name, copy))
        except (MemoryError, RuntimeError, OSError) as error:
            self.fault = self.fault or f"{name}: {error or 'no memory for a copy of it'}"

    def start(self) -> None:
        """All files are added: let the thread write them."""
        if self.in_background:
            self._thread.start()

    def busy(self) -> bool:
        return self._thread.is_alive()

    def hanging(self, stall_seconds: float) -> str | None:
        """The file that has made no progress between calls for so long, if there is one."""
        file = self._file
        progress = self._name, file.size if file else 0
        if progress != self._progress:
            self._progress, self._moved_at = progress, time.monotonic()
        hangs = self.busy() and time.monotonic() - self._moved_at > stall_seconds
        return str(self.folder / self._name) if hangs else None

    def finish(self, stall_seconds: float = math.inf) -> dict[str, FileSeal] | None:
        """Wait until all files are on the disk, and return their seals; OSError if one failed.

        None if one hangs: `hung` is its name.
        """
        self.hung = None
        while self.busy():
            self.hung = self.hanging(stall_seconds)
            if self.hung:
                return None
            self._thread.join(min(LOOK_SECONDS, stall_seconds))
        if self.fault:
            raise OSError(self.fault)
        return self._seals

    def _run(self) -> None:
        try:
            while self._copies and not self.fault:
                name, copy = self._copies.popleft()
                self._write(name, copy.write_to)
        # Whatever ended the thread: without a fault, the files written so far would look complete.
        except BaseException as error:
            self.fault = repr(error)
        self._copies.clear()

    def _write(self, name: str, write_content: WriteContent) -> None:
        started = time.perf_counter()
        file = self._file = None
        self._name = name
        try:
            file = self._file = HashedFile(self.folder / name)
            write_content(file.blocks)
            self._seals[name] = file.seal()
        except (OSError, RuntimeError) as error:
            reason = file.fault if file and file.fault else error
            self.fault = self.fault or f"{name}: {reason}"
        self.seconds += time.perf_counter() - started
