"""Shards behind a URL (layer 0): fetched into a bounded folder that the ranks of a node share.

A shard lies there under its sha256, checked by every process before its first use, so that neither a damaged file nor
one of an earlier build is ever read. Writers work under temporary names; a lock for each shard saves a second download.
"""

import contextlib
import fcntl
import functools
import hashlib
import itertools
import os
import queue
import random
import re
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gpt1_ds.base.errors import ConfigError, DataError, UserError
from gpt1_ds.base.files import file_sha256

SCHEMES = ("file", "http", "https", "s3", "gs", "abfs")
FETCHERS = 4
REQUEST_SECONDS = (
    1800.0  # the longest download of one file; a silent server is given up much sooner
)


class ShardCache:
    """Copies of a remote shard directory's files. Every wait is bounded; what fails for good is a UserError.

    A shard is anything with `file`, `bytes` and `sha256`, such as `gpt1_ds.shards.Shard`.
    """

    def __init__(
        self,
        url: str,
        folder: str | None,
        limit_bytes: int,
        attempts: int = 6,
        stall_seconds: float = 30.0,
    ):
        scheme, _, rest = url.partition("://")
        if scheme not in SCHEMES or "::" in url or not rest:
            raise ConfigError(
                f"data.shards {url}: not a URL of {', '.join(SCHEMES)}; give one, or a folder"
            )
        self._url, self._limit_bytes, self._attempts = url.rstrip("/"), limit_bytes, attempts
        self._stall_seconds, self._files = stall_seconds, None
        self._folder = Path(folder or f"{tempfile.gettempdir()}/gpt1-shards-{os.getuid()}")
        name = re.sub(r"\W+", "-", rest)[-60:].strip("-")
        self.root = self._folder / f"{name}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"
        """Folder of manifest.json and tokenizer/."""
        self._whole: set[Path] = set()
        self._numbers = itertools.count()
        self._ahead: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._fetchers: list[threading.Thread] = []
        try:
            (self._folder / "locks").mkdir(parents=True, exist_ok=True, mode=0o700)
            if (
                self._folder.stat().st_uid != os.getuid()
            ):  # below TMPDIR anyone can make a folder of any name
                raise ConfigError(
                    f"data.cache {self._folder}: belongs to another user; choose another folder"
                )
        except OSError as error:
            raise ConfigError(
                f"data.cache {self._folder}: {error.strerror}; choose another folder"
            ) from error

    def copy(self, name: str) -> None:
        """Fetch `root/name` anew."""
        self._fetch(name, self.root / name)

    def fetch(self, shard: Any) -> Path:
        """The file of a shard, whole; waits for it."""
        path = self._folder / f"{shard.sha256}.{shard.bytes}.tar"
        if not self._is_whole(path, shard):
            with self._lock(shard.sha256):
                if not self._is_whole(path, shard):
                    self._make_room(shard.bytes)
                    self._fetch(shard.file, path, shard)
        return path

    def fetch_ahead(self, shards: Iterable[Any]) -> None:
        """Have these at hand soon, the first first, as far as the bound allows; returns at once."""
        room = self._limit_bytes
        for shard in shards:
            room -= shard.bytes
            if room >= 0:
                self._ahead.put(shard)
        while len(self._fetchers) < FETCHERS:
            self._fetchers.append(threading.Thread(target=self._work, daemon=True, name="shards"))
            self._fetchers[-1].start()

    def _work(self) -> None:
        while True:
            with contextlib.suppress(UserError):  # told when the shard is asked for
                self.fetch(self._ahead.get())

    def _is_whole(self, path: Path, shard: Any) -> bool:
        try:
            if path not in self._whole and _mismatch(path, shard):
                return False
            self._whole.add(path)
            os.utime(path)  # what was wanted longest ago is removed first
        except FileNotFoundError:
            self._whole.discard(path)
        return path in self._whole

    def _make_room(self, size: int) -> None:
        """Remove what was wanted longest ago until `size` more bytes fit, those on their way counted whole."""
        if size > self._limit_bytes:
            raise ConfigError(
                f"data.cache_bytes {self._limit_bytes}: below the {size} bytes of one shard; raise it"
            )
        files = []
        for path in self._folder.glob("*.tar*"):
            with contextlib.suppress(FileNotFoundError):
                files.append((path.stat().st_mtime, int(path.name.split(".")[1]), path))
        total = size + sum(bytes_ for _, bytes_, _ in files)
        for when, bytes_, path in sorted(files):
            # A part that old is a killed process's.
            if total > self._limit_bytes and (
                path.suffix == ".tar" or when < time.time() - REQUEST_SECONDS
            ):
                path.unlink(missing_ok=True)
                total -= bytes_

    def _fetch(self, name: str, path: Path, shard: Any = None) -> None:
        """Download `url/name` to `path`, again after a failure, until it is whole."""
        url, reason = f"{self._url}/{name}", ""
        self._files = self._files or _file_system(url.partition("://")[0], self._stall_seconds)
        path.parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(self._attempts):
            if attempt:
                time.sleep(min(self._stall_seconds, 0.5 * 2**attempt) * random.uniform(0.5, 1.0))
            part = path.with_name(f"{path.name}.{os.getpid()}-{next(self._numbers)}.part")
            try:
                self._files.get_file(url, str(part))
                expected = None if shard else self._files.size(url)
                reason = (
                    _mismatch(part, shard)
                    if shard
                    else expected not in (None, part.stat().st_size) and "cut short"
                )
                if not reason:
                    return os.replace(part, path)
            except FileNotFoundError:
                raise DataError(f"{url}: is not there; check data.shards") from None
            except Exception as error:  # every file system of fsspec has its own
                reason = " ".join(str(error).split()) or type(error).__name__
            finally:
                part.unlink(missing_ok=True)
        raise DataError(
            f"{url}: could not be fetched in {self._attempts} attempts (the last: {reason}); mend the "
            "address or the network, then run the same command again"
        )

    @contextlib.contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        with open(self._folder / "locks" / name, "a") as file:
            # Where its holder is stuck, or a file system has no locks, a second download does no harm.
            deadline = time.monotonic() + REQUEST_SECONDS
            while time.monotonic() < deadline:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(0.05)
                except OSError:
                    break
            yield


shard_cache = functools.cache(ShardCache)  # one a process and URL


def _mismatch(path: Path, shard: Any) -> str | None:
    if (size := path.stat().st_size) != shard.bytes:
        return f"{size} of {shard.bytes} bytes arrived"
    return None if file_sha256(path) == shard.sha256 else "sha256 differs from the manifest's"


def _file_system(scheme: str, stall_seconds: float) -> Any:
    try:
        import fsspec

        if scheme not in ("http", "https"):
            return fsspec.filesystem(scheme)
        import aiohttp

        timeout = aiohttp.ClientTimeout(
            REQUEST_SECONDS, sock_connect=stall_seconds, sock_read=stall_seconds
        )
        return fsspec.filesystem(scheme, client_kwargs={"timeout": timeout})
    except ImportError as error:
        raise ConfigError(
            f"data.shards {scheme}://: {error}; pip install 'gpt1-ds[remote]' (s3: s3fs too)"
        ) from error
