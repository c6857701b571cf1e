"""Downloads shards from a URL into a cache folder of limited size, shared by the ranks of a node.

The name of a shard's file in this folder is its sha256. Every process checks a file before it first
uses it, so it never reads a damaged file or a file of an earlier build. Downloads go to temporary
names. A lock for each shard prevents that two processes download the same shard.
"""

import contextlib
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
from typing import NamedTuple, Protocol

from gpt1_ds.base.errors import ConfigError, DataError, UserError
from gpt1_ds.base.files import file_sha256, lock_file
from gpt1_ds.base.urls import below, hide_secrets, is_local_fault, is_web_page
from gpt1_ds.data.manifest import Shard

SCHEMES = ("file", "http", "https", "s3", "gs", "abfs")
UNTRIED = ("sftp", "ssh", "ftp", "smb", "hdfs", "webhdfs", "az", "gcs", "s3a", "oss", "oci")
"""Other schemes of fsspec, of which some need a package of their own."""
FETCHERS = 4
"""Number of threads that download ahead."""
REQUEST_SECONDS = 1800.0
"""Time limit for the download of one file. If the server sends nothing, `stall_seconds` applies."""


class MissingFile(DataError):
    """The server says that it has no such file."""


class Options(NamedTuple):
    """The names, in messages, of what the user gave."""

    url: str
    cache: str


SHARDS = Options("data.shards", "data.cache")


class FileSystem(Protocol):
    """The methods of fsspec's file systems that are used here."""

    def get_file(self, url: str, path: str) -> None: ...

    def size(self, url: str) -> int | None: ...


class ShardCache:
    """Local copies of the files of a remote shard directory.

    Every wait has a time limit. A download that fails in all attempts raises a UserError.
    """

    def __init__(
        self,
        url: str,
        folder: str | None,
        limit_bytes: int,
        attempts: int = 6,
        stall_seconds: float = 30.0,
        options: Options = SHARDS,
    ):
        scheme, _, rest = url.partition("://")
        if scheme not in SCHEMES + UNTRIED or "::" in url or not rest:
            raise ConfigError(
                f"{options.url} {hide_secrets(url)}: not a URL of {', '.join(SCHEMES)}; give one, "
                "or a folder"
            )
        self._url = url.rstrip("/")
        self._options = options
        self._limit_bytes = limit_bytes
        self._attempts = attempts
        self._stall_seconds = stall_seconds
        self._folder = Path(folder or f"{tempfile.gettempdir()}/gpt1-shards-{os.getuid()}")
        name = re.sub(r"\W+", "-", hide_secrets(url).partition("://")[2])[-60:].strip("-")
        self.root = self._folder / f"{name}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"
        """The folder for manifest.json and tokenizer/."""
        self._checked: set[Path] = set()
        self._part_numbers = itertools.count()
        self._ahead: queue.SimpleQueue[Shard] = queue.SimpleQueue()
        self._fetchers: list[threading.Thread] = []
        self._make_folder()

    def _make_folder(self) -> None:
        try:
            (self._folder / "locks").mkdir(parents=True, exist_ok=True, mode=0o700)
            owner = self._folder.stat().st_uid
        except OSError as error:
            raise ConfigError(
                f"{self._options.cache} {self._folder}: {error.strerror}; choose another folder"
            ) from error
        if owner != os.getuid():  # any user can create a folder in TMPDIR
            raise ConfigError(
                f"{self._options.cache} {self._folder}: belongs to another user; choose "
                "another folder"
            )

    def copy(self, name: str) -> None:
        """Download `root/name`, even if there is an older copy."""
        self._fetch(name, self.root / name)

    def fetch(self, shard: Shard) -> Path:
        """The complete file of a shard; downloads it first if necessary."""
        path = self._folder / f"{shard.sha256}.{shard.bytes}.tar"
        with self._local_faults(path):
            if not self._is_whole(path, shard):
                with self._lock(shard.sha256):
                    if not self._is_whole(path, shard):
                        self._fetch(shard.file, path, shard, self._reserve(path, shard.bytes))
        return path

    def fetch_ahead(self, shards: Iterable[Shard]) -> None:
        """Let threads download these shards in this order, as many as the size limit allows.

        Returns at once. Shards of an earlier call that are still to come are given up.
        """
        room = self._limit_bytes
        with contextlib.suppress(queue.Empty):
            while True:
                self._ahead.get_nowait()
        for shard in shards:
            room -= shard.bytes
            if room >= 0:
                self._ahead.put(shard)
        while len(self._fetchers) < FETCHERS:
            thread = threading.Thread(target=self._fetch_queued, daemon=True, name="shards")
            self._fetchers.append(thread)
            thread.start()

    def _fetch_queued(self) -> None:
        while True:
            # `fetch` raises the error again when the shard is needed.
            with contextlib.suppress(UserError):
                self.fetch(self._ahead.get())

    def _is_whole(self, path: Path, shard: Shard) -> bool:
        try:
            if path not in self._checked and _mismatch(path, shard):
                return False
            self._checked.add(path)
            os.utime(path)  # `_make_room` removes the least recently used files
        except FileNotFoundError:
            self._checked.discard(path)
        return path in self._checked

    def _reserve(self, path: Path, size: int) -> Path:
        """Make room for a file of `size` bytes: an empty file that counts as the download.

        Downloads begin one after another, else each would take the same room for itself.
        """
        part = self._part_of(path)
        with self._lock("room"):
            self._make_room(size)
            part.touch()
        return part

    def _part_of(self, path: Path) -> Path:
        """A new temporary name for the download of `path`."""
        return path.with_name(f"{path.name}.{os.getpid()}-{next(self._part_numbers)}.part")

    def _make_room(self, size: int) -> None:
        """Remove the least recently used files until there is room for `size` more bytes.

        A file in download counts with its final size, which is part of its name.
        """
        if size > self._limit_bytes:
            raise ConfigError(
                f"data.cache_bytes {self._limit_bytes}: below the {size} bytes of one shard; "
                "raise it"
            )
        files = []
        for path in self._folder.glob("*.tar*"):
            with contextlib.suppress(FileNotFoundError):
                files.append((path.stat().st_mtime, int(path.name.split(".")[1]), path))
        total = size + sum(file_bytes for _, file_bytes, _ in files)
        for used, file_bytes, path in sorted(files):
            if total <= self._limit_bytes:
                break
            # A partial file that is this old belongs to a killed process.
            if path.suffix == ".tar" or used < time.time() - REQUEST_SECONDS:
                path.unlink(missing_ok=True)
                total -= file_bytes

    def _fetch(
        self, name: str, path: Path, shard: Shard | None = None, reserved: Path | None = None
    ) -> None:
        """Download `url/name` to `path`, with several attempts if it fails."""
        url, reason = below(self._url, name), ""
        shown, files = hide_secrets(url), self._files
        if url.partition("://")[0] in UNTRIED:
            url = path_of(url)
        for attempt in range(self._attempts):
            if attempt:
                time.sleep(min(self._stall_seconds, 0.5 * 2**attempt) * random.uniform(0.5, 1.0))
            part = self._part_of(path) if attempt or reserved is None else reserved
            try:
                with self._local_faults(part):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    files.get_file(url, str(part))
                    if shard:
                        reason = _mismatch(part, shard)
                    else:
                        reason = _unverified_fault(part, files.size(url))
                    if not reason:
                        os.replace(part, path)
                        return
            except FileNotFoundError:
                raise MissingFile(f"{shown}: is not there; check {self._options.url}") from None
            except UserError:
                raise
            except Exception as error:  # each fsspec file system raises its own errors
                reason = hide_secrets(" ".join(str(error).split())) or type(error).__name__
            finally:
                with contextlib.suppress(OSError):
                    part.unlink()
        raise DataError(
            f"{shown}: could not be fetched in {self._attempts} attempts (the last: {reason}); "
            "mend the address or the network, then run the same command again"
        )

    @contextlib.contextmanager
    def _local_faults(self, part: Path) -> Iterator[None]:
        """Errors of the local disk become a DataError, at once: another attempt would not help."""
        try:
            yield
        except OSError as error:
            of_folder = str(error.filename).startswith(str(self._folder))
            if not (of_folder or is_local_fault(error, part)):
                raise
            raise DataError(
                f"{self._options.cache} {self._folder}: {error.strerror}; free space there, or "
                "choose another folder"
            ) from error

    @functools.cached_property
    def _files(self) -> FileSystem:
        return file_system(self._url, self._stall_seconds, self._options.url)

    @contextlib.contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        """Hold the lock of a shard. After REQUEST_SECONDS go on without it: its holder is stuck.

        Without a lock a shard may be downloaded twice, which does no harm.
        """
        path = self._folder / "locks" / name
        file = lock_file(path, "ranks may download a shard twice", REQUEST_SECONDS)
        with file or contextlib.nullcontext():
            yield


shard_cache = functools.cache(ShardCache)
"""Returns the same cache for the same arguments within a process."""


def _mismatch(path: Path, shard: Shard) -> str:
    """How a file differs from its entry in the manifest; empty if it is right."""
    size = path.stat().st_size
    if size != shard.bytes:
        return f"{size} of {shard.bytes} bytes arrived"
    return "" if file_sha256(path) == shard.sha256 else "sha256 differs from the manifest's"


def _unverified_fault(path: Path, size: int | None) -> str:
    """What is wrong with a file whose hash is not known; empty if nothing can be seen."""
    if size not in (None, path.stat().st_size):
        return "cut short"
    return "a web page came in its place" if is_web_page(path) else ""


def file_system(url: str, stall_seconds: float, option: str) -> FileSystem:
    """fsspec's file system for the scheme of `url`, through the proxies of the environment."""
    scheme = url.partition("://")[0]
    try:
        import fsspec

        if scheme in UNTRIED:
            fsspec.get_filesystem_class(scheme)
            return fsspec.core.url_to_fs(url)[0]
        if scheme == "gs":
            return fsspec.filesystem(scheme, session_kwargs={"trust_env": True})
        if scheme == "s3":
            limits = {"connect_timeout": stall_seconds, "read_timeout": stall_seconds}
            client = {**limits, "retries": {"max_attempts": 1}}
            return fsspec.filesystem(scheme, config_kwargs=client, use_listings_cache=False)
        if scheme not in ("http", "https"):
            return fsspec.filesystem(scheme)
        import aiohttp

        timeout = aiohttp.ClientTimeout(
            REQUEST_SECONDS, sock_connect=stall_seconds, sock_read=stall_seconds
        )
        return fsspec.filesystem(scheme, client_kwargs={"timeout": timeout, "trust_env": True})
    except ImportError as error:
        raise ConfigError(
            f"{option} {scheme}://: {error}; pip install 'gpt1-ds[remote]' (s3: s3fs too; of "
            "another scheme, the package that is named)"
        ) from error
    except OSError as error:  # some connect at once
        raise DataError(
            f"{option} {hide_secrets(url)}: not reached ({error}); mend the address or the network"
        ) from error


def path_of(url: str) -> str:
    """The path of `url` on its file system, of which some do not take the whole URL."""
    import fsspec

    return str(fsspec.core.strip_protocol(url))
