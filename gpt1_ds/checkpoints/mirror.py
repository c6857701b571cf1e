"""Copies of committed checkpoints at a URL, which outlive the run's own file system.

    URL/config.yaml, metrics.jsonl, tokenizer/ ..   what a run needs if its disk is lost
    URL/checkpoints/step-00001000/                  a checkpoint, its MANIFEST.json last
    URL/checkpoints/latest                          a text file with the name of the newest one

A checkpoint counts if its MANIFEST.json is there, which is written last and removed first. So a
kill between any two requests leaves the checkpoints that were there before.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from gpt1_ds.base.errors import ConfigError, DataError
from gpt1_ds.base.urls import hide_secrets
from gpt1_ds.checkpoints.folder import (
    LATEST,
    MANIFEST,
    STEP_FOLDER,
    find_faults,
    read_checkpoint_manifest,
)
from gpt1_ds.data.remote import SCHEMES, UNTRIED, file_system, path_of
from gpt1_ds.distributed.console import say, warn

SETTING = "checkpoint.mirror"
WRITABLE = tuple(name for name in SCHEMES if not name.startswith("http"))
WITHOUT_FOLDERS = ("s3", "gs", "abfs", "az", "gcs", "s3a", "oss", "oci")
"""Here a file is written whole or not at all, and needs no folder."""
STALL_SECONDS = 30.0
"""Longest silence of the other side."""
LONGEST_PAUSE_SECONDS = 60.0
END_SECONDS = 90.0
"""What the end of a run waits for copies: less than Slurm leaves it after its signal."""
RUN_FILES = ("config.yaml", "deepspeed.json", "metrics.jsonl", "skipped.jsonl")
T = TypeVar("T")


class Files(Protocol):
    """The methods of fsspec's file systems that are used here."""

    def put_file(self, path: str, url: str) -> None: ...

    def get_file(self, url: str, path: str) -> None: ...

    def pipe_file(self, url: str, content: bytes) -> None: ...

    def cat_file(self, url: str) -> bytes: ...

    def info(self, url: str) -> dict[str, object]: ...

    def size(self, url: str) -> int | None: ...

    def ls(self, url: str, detail: bool) -> list[str]: ...

    def rm_file(self, url: str) -> None: ...

    def rmdir(self, url: str) -> None: ...

    def mv(self, url: str, to: str) -> None: ...

    def makedirs(self, url: str, exist_ok: bool) -> None: ...

    def invalidate_cache(self) -> None: ...


class Store:
    """The files of one run at a URL. Each method raises what the file system of fsspec raises."""

    def __init__(self, url: str):
        scheme, _, rest = url.partition("://")
        if scheme not in WRITABLE + UNTRIED or "::" in url or not rest:
            others = ", ".join(UNTRIED)
            raise ConfigError(
                f"{SETTING} {hide_secrets(url)}: not a URL of {', '.join(WRITABLE)} (or, untried, "
                f"of {others}); give one"
            )
        self.url = url.rstrip("/")
        self.shown = hide_secrets(self.url)
        self.has_folders = scheme not in WITHOUT_FOLDERS
        self.files: Files = file_system(url, STALL_SECONDS, SETTING)  # type: ignore[assignment]
        self._folder = path_of(self.url)

    def _path(self, name: str) -> str:
        """As the file system takes it: some do not take the whole URL."""
        return f"{self._folder}/{name}"

    def names(self, folder: str) -> list[str]:
        """What is in a folder; empty if it is not there."""
        self.files.invalidate_cache()
        with contextlib.suppress(FileNotFoundError):
            return [path.rstrip("/").rpartition("/")[2] for path in self._list(folder)]
        return []

    def _list(self, folder: str) -> list[str]:
        return self.files.ls(self._path(folder), detail=False)

    def read(self, name: str) -> bytes | None:
        """None if it is not there."""
        url = self._path(name)
        return self._unless_missing(url, lambda: self.files.cat_file(url))

    def _unless_missing(self, url: str, action: Callable[[], T]) -> T | None:
        """What `action` returns; None if `url` is not there, which some file systems tell by an
        error of their own."""
        try:
            return action()
        except FileNotFoundError:
            return None
        except Exception:
            with contextlib.suppress(FileNotFoundError):
                self.files.info(url)
                raise
        return None

    def fetch(self, name: str, path: Path) -> None:
        self.files.get_file(self._path(name), str(path))

    def write(self, name: str, content: bytes) -> None:
        """A small file, so that no reader sees a part of it."""
        url = self._path(name)
        if not self.has_folders:
            self.files.pipe_file(url, content)
            return
        self._make_parent(url)
        self.files.pipe_file(f"{url}.part", content)
        self.files.mv(f"{url}.part", url)

    def put(self, path: Path, name: str) -> None:
        """OSError if the other side then has another size."""
        url, size = self._path(name), path.stat().st_size
        if self.has_folders:
            self._make_parent(url)
        self.files.put_file(str(path), url)
        self.files.invalidate_cache()
        if (there := self.files.size(url)) != size:
            raise OSError(f"{there} of {size} bytes arrived")

    def _make_parent(self, url: str) -> None:
        self.files.makedirs(url.rpartition("/")[0], exist_ok=True)

    def remove(self, name: str) -> None:
        url = self._path(name)
        self._unless_missing(url, lambda: self.files.rm_file(url))

    def remove_folder(self, folder: str, files: list[str]) -> None:
        """Remove its files, in this order, and the folder."""
        for file in files:
            self.remove(f"{folder}/{file}")
        if self.has_folders:
            url = self._path(folder)
            self._unless_missing(url, lambda: self.files.rmdir(url))

    def steps(self) -> list[str]:
        """Names of the folders of checkpoints, newest first, whole or not."""
        names = filter(STEP_FOLDER.fullmatch, self.names("checkpoints"))
        return sorted(names, key=lambda name: int(name.removeprefix("step-")), reverse=True)


def reason_of(error: Exception) -> str:
    return hide_secrets(" ".join(str(error).split())[:200]) or type(error).__name__


class Mirror:
    """Copies the checkpoints of a run in a thread, each one after it is committed; rank 0 has it.

    One is copied at a time, and the newest of the others waits. A fault is tried again, with longer
    and longer pauses; it is told once, and never ends or delays the training.
    """

    def __init__(self, url: str, keep: int | None, run_dir: Path):
        self.store = Store(url)
        self.keep = keep
        self.run_dir = run_dir
        self._changed = threading.Condition()
        self._current: Path | None = None
        self._waiting: Path | None = None
        self._ending = False
        self._thread: threading.Thread | None = None
        self._told = False
        """Whether the fault that lasts was told."""

    def add(self, folder: Path) -> None:
        """Copy a committed checkpoint, in place of the one that waits. Returns at once."""
        with self._changed:
            self._waiting = folder
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True, name="mirror")
                self._thread.start()
            self._changed.notify_all()

    def holds(self, folder: Path) -> bool:
        """Whether it is still to be copied, so that it must not be deleted."""
        with self._changed:
            return folder in (self._current, self._waiting)

    def finish(self, seconds: float = END_SECONDS) -> bool:
        """Wait until all is copied, at most so many seconds; whether it is, which is said."""
        deadline = time.monotonic() + seconds
        with self._changed:
            self._ending = True
            self._changed.notify_all()
            left = self._left()
            if left:
                say(f"{SETTING}: copying {left} to {self.store.shown}, up to {seconds:.0f} s")
            while self._left() and (pause := deadline - time.monotonic()) > 0:
                self._changed.wait(pause)
            lost = self._left()
        if lost:
            warn(
                f"{SETTING} {self.store.shown}: {lost} is not copied; it is in {self.run_dir}, and "
                "the next start copies it"
            )
        elif left:
            say(f"{SETTING}: {left} is copied")
        return not lost

    def _left(self) -> str:
        """The newest checkpoint that is still to be copied; empty: none."""
        newest = self._waiting or self._current
        return newest.name if newest else ""

    def _run(self) -> None:
        while True:
            with self._changed:
                while self._waiting is None:
                    self._changed.wait()
                self._current, self._waiting = self._waiting, None
            self._copy_until_it_is_there(self._current)
            with self._changed:
                self._current = None
                self._changed.notify_all()

    def _copy_until_it_is_there(self, folder: Path) -> None:
        """Give up only for a newer checkpoint, or for one that is damaged or gone."""
        pause = 0.5
        while True:
            try:
                if faults := find_faults(folder):
                    warn(f"{SETTING}: {folder} is not copied: {faults[0]}")
                    return
                copy_checkpoint(self.store, self.run_dir, folder)
                if self._told:
                    say(f"{SETTING} {self.store.shown}: {folder.name} is copied now")
                self._told = False
                prune(self.store, self.keep)
                return
            except Exception as error:  # each fsspec file system raises its own errors
                if not self._told:
                    warn(
                        f"{SETTING} {self.store.shown}: {folder.name}: {reason_of(error)}; it is "
                        "tried again until the run ends"
                    )
                self._told = True
            with self._changed:
                self._changed.wait(pause)  # shorter for a newer checkpoint, and at the end
                if self._waiting is not None:
                    return
                pause = 1.0 if self._ending else min(LONGEST_PAUSE_SECONDS, 2 * pause)


def copy_checkpoint(store: Store, run_dir: Path, folder: Path) -> None:
    """Copy a committed checkpoint, unless it is there, and the files of its run before."""
    name = f"checkpoints/{folder.name}"
    manifest = (folder / MANIFEST).read_bytes()
    if store.read(f"{name}/{MANIFEST}") != manifest:
        store.remove(f"{name}/{MANIFEST}")  # another checkpoint of that step
        for path in run_files(run_dir):
            store.write(str(path.relative_to(run_dir)), path.read_bytes())
        for file in sorted(read_checkpoint_manifest(folder).files):
            store.put(folder / file, f"{name}/{file}")
        store.write(f"{name}/{MANIFEST}", manifest)
    store.write(f"checkpoints/{LATEST}", f"{folder.name}\n".encode())


def run_files(run_dir: Path) -> list[Path]:
    """What a run needs beside its checkpoints."""
    named = [run_dir / name for name in RUN_FILES]
    return [path for path in [*named, *sorted((run_dir / "tokenizer").glob("*"))] if path.is_file()]


def prune(store: Store, keep: int | None) -> None:
    """Remove all checkpoints but the newest `keep` (None: all), and what was never whole."""
    whole = 0
    for name in store.steps():
        files = store.names(f"checkpoints/{name}")
        is_whole = MANIFEST in files
        whole += is_whole
        if whole and (not is_whole or (keep is not None and whole > keep)):
            manifest_first = sorted(files, key=lambda file: file != MANIFEST)
            store.remove_folder(f"checkpoints/{name}", manifest_first)


def attempted(action: Callable[[], T], store: Store, attempts: int = 5) -> T:
    """What `action` returns, after several attempts; DataError if all of them fail."""
    pause = 0.5
    for left in reversed(range(attempts)):
        try:
            return action()
        except (ConfigError, DataError):
            raise
        except Exception as error:  # each fsspec file system raises its own errors
            if not left:
                raise DataError(
                    f"{SETTING} {store.shown}: not reached in {attempts} attempts (the last: "
                    f"{reason_of(error)}); mend the address or the network, or set {SETTING}=null"
                ) from error
        time.sleep(pause)
        pause *= 2
    raise AssertionError("the last attempt returns or raises")
