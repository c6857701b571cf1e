"""Files that are written while training goes on.

A file is first made in memory, byte for byte, while the tensors in it stand still; one thread then writes, hashes and
flushes them all. What fails is remembered and told at the end, since the peers of this rank may wait for it meanwhile.
"""

import errno
import fcntl
import hashlib
import io
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from gpt1_ds.base.files import ALIGNMENT, BLOCK_BYTES


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


class CheckpointFiles:
    """New files of `folder`: a thread writes them if they come `behind`, else they are written as they are added."""

    def __init__(self, folder: Path, behind: bool):
        self.folder, self.behind, self.seconds = folder, behind, 0.0
        self.fault: str | None = None
        self._sealed: dict[str, dict[str, Any]] = {}
        self._copies: deque[tuple[str, Copy]] = deque()
        self._thread = threading.Thread(target=self._run, daemon=True, name="checkpoint-writer")

    def add(self, name: str, make: Callable[[Any], Any]) -> None:
        """The file `name`: what `make` writes to the file object that it is given."""
        if not self.behind:
            self._write(name, make)
            return
        try:
            copy = Copy()
            make(copy)
            copy.end()
            self._copies.append((name, copy))
        except (MemoryError, RuntimeError, OSError) as error:
            self.fault = self.fault or f"{name}: {error or 'no memory for a copy of it'}"

    def start(self) -> None:
        """All files are added."""
        if self.behind:
            self._thread.start()

    def busy(self) -> bool:
        return self._thread.is_alive()

    def sealed(self) -> dict[str, dict[str, Any]]:
        """Size and sha256 of every file once all are on the disk, for which it waits; OSError where one is not."""
        if self.behind:
            self._thread.join()
        if self.fault:
            raise OSError(self.fault)
        return self._sealed

    def _run(self) -> None:
        try:
            while self._copies and not self.fault:
                name, copy = self._copies.popleft()
                self._write(name, copy.pour)
        except BaseException as error:  # or what is missing would be taken for complete
            self.fault = repr(error)
        self._copies.clear()

    def _write(self, name: str, make: Callable[[Any], Any]) -> None:
        started, file = time.perf_counter(), None
        try:
            file = HashedFile(self.folder / name)
            make(file.blocks)
            self._sealed[name] = file.seal()
        except (OSError, RuntimeError) as error:
            self.fault = self.fault or f"{name}: {(file and file.fault) or error}"
        self.seconds += time.perf_counter() - started


class Copy(Blocks):
    """A file in memory."""

    def __init__(self):
        super().__init__(self._keep)
        self.kept: deque[tuple[np.ndarray, int]] = deque()

    def _keep(self, block: np.ndarray, length: int) -> None:
        self.kept.append((block, length))

    def pour(self, file: Blocks) -> None:
        """Write it all to `file`, giving up the memory on the way."""
        while self.kept:
            file.take(*self.kept.popleft())


def memory_left() -> float:
    """Bytes that processes of this machine can still take, within the limits on this one's control groups."""
    try:
        left = float(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]) * 1024
        groups = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except (OSError, IndexError):
        return 0.0
    for _, controllers, own in groups:
        if controllers in ("", "memory"):  # version 2, version 1
            top = Path("/sys/fs/cgroup", controllers)
            names = (
                ("max", "current", "inactive_file")
                if not controllers
                else ("limit_in_bytes", "usage_in_bytes", "total_inactive_file")
            )
            folder = top / own.strip("/")
            for group in (folder, *folder.parents):
                left = min(left, _group_left(group, *names))
    return left


def _group_left(group: Path, limit: str, used: str, cache: str) -> float:
    """What a control group has left, the file cache that can go counted in; infinite where it has no limit."""
    try:
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        taken = int((group / f"memory.{used}").read_text()) - int(stat[cache])
        return float(int((group / f"memory.{limit}").read_text()) - taken)
    except (OSError, ValueError, KeyError):
        return float("inf")
