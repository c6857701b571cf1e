"""Atomic writes, flushing to the disk, locks, hashes of files."""

import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import sys
import time
from pathlib import Path
from typing import TextIO

BLOCK_BYTES = 1 << 22
"""Number of bytes that are read, hashed or written at a time."""
ALIGNMENT = 1 << 12
"""Direct writes, which skip the page cache, need addresses and lengths in multiples of this."""
LOCK_POLL_SECONDS = 0.05
_NO_FOLDER_FLUSH = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EBADF, errno.EACCES)
"""What network file systems say that cannot flush a folder, or a folder that may not be listed."""


def write_atomically(path: Path | str, data: str | bytes) -> None:
    """Replace the file at `path` by `data`; a kill at any moment leaves the old or the new file.

    The data first go to a temporary file in the same folder. The file is flushed to the disk and
    then renamed.
    """
    path, content = Path(path), data.encode("utf-8") if isinstance(data, str) else data
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(content)
        flush(temporary)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()  # on a full disk even a part takes room
        raise
    flush(path.parent)


def flush(path: Path | str) -> None:
    """Force a file or a folder to the disk (fsync), a folder only where the file system can."""
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _NO_FOLDER_FLUSH or not os.path.isdir(path):
            raise


def lock_file(path: Path | str, without: str, wait_seconds: float = 0.0) -> TextIO | None:
    """The open file at `path`, locked until it is closed or this process ends.

    None if another process still holds the lock after `wait_seconds`. Where the file system has no
    locks, a warning with the advice `without` is printed, and the file is returned without a lock.
    The lock is an flock, because the kernel releases it when the process ends. The filelock package
    is not used: on a file system without flock, a killed process would leave its lock file behind.
    """
    file = open(path, "a", encoding="utf-8")  # noqa: SIM115
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if time.monotonic() >= deadline:
                file.close()
                return None
            time.sleep(LOCK_POLL_SECONDS)
        except OSError as error:
            _warn_of_no_locks(Path(path).parent, error.strerror, without)
            return file


@functools.cache
def _warn_of_no_locks(folder: Path, reason: str, without: str) -> None:
    """Once for each folder, since a folder may have many locks."""
    print(f"warning: {folder} cannot be locked ({reason}); {without}", file=sys.stderr, flush=True)


def file_sha256(path: Path | str) -> str:
    """The SHA-256 of a file in hexadecimal. The file is read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def folder_sha256(folder: Path) -> str:
    """One hash for the names and the contents of all files below a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(folder)} {file_sha256(path)}\n".encode())
    return digest.hexdigest()


def sha256_of(path: Path) -> str:
    """The hash of a file, or of a folder."""
    return folder_sha256(path) if path.is_dir() else file_sha256(path)
