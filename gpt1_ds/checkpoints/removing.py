"""Folders that a thread deletes while training goes on.

A folder is renamed first: it then has a name that no search for checkpoints takes, so that a half
deleted one is never loaded. What a kill leaves behind is deleted by the next start.
"""

import os
import shutil
import threading
import time
from collections import deque
from pathlib import Path

from gpt1_ds.base.files import flush
from gpt1_ds.distributed.console import warn

PATTERN = "step-*.tmp"
"""Saves that were not committed, and folders on their way out, which end with `ENDING`."""
ENDING = ".old.tmp"


class Removal:
    """Deletes folders of one run's `root`; one rank has it."""

    def __init__(self, root: Path):
        self.root = root
        self._left: deque[Path] = deque()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        """It ends, and sets this to None, when nothing is left."""
        self._knows_earlier = False

    def add(self, folder: Path) -> None:
        """Rename `folder` now, and delete it in the thread."""
        renamed = folder.with_name(f"{folder.name}.{time.time_ns()}{ENDING}")
        os.rename(folder, renamed)
        self._begin(renamed)

    def add_leftovers(self) -> None:
        """What earlier starts and failed saves left in `root`; call it while no save is written."""
        for folder in sorted(self.root.glob(PATTERN)):
            if not folder.name.endswith(ENDING):
                self.add(folder)
            elif not self._knows_earlier:
                self._begin(folder)
        self._knows_earlier = True

    def make_room(self, temporary: Path, needed: int) -> None:
        """Have what earlier saves left unfinished deleted, and make an empty folder.

        Only if the disk has less than `needed` bytes free does it wait for the deletion. OSError if
        there is no room then either.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        self.add_leftovers()
        free = shutil.disk_usage(self.root).free
        if free < needed:
            self.wait()
            free = shutil.disk_usage(self.root).free
        if free < needed:
            raise OSError(
                f"it takes up to {needed / 1e9:.3f} GB and the disk has {free / 1e9:.3f} GB free"
            )
        temporary.mkdir()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until all is deleted, at most so many seconds; whether it is."""
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join(seconds)
        return thread is None or not thread.is_alive()

    def _begin(self, folder: Path) -> None:
        with self._lock:
            self._left.append(folder)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True, name="removal")
                self._thread.start()

    def _run(self) -> None:
        while (folder := self._next()) is not None:
            try:
                flush(self.root)  # else the old name may be there again after a loss of power
                shutil.rmtree(folder)
            except OSError as error:
                warn(f"{folder}: not deleted ({error.strerror}); the next start tries again")

    def _next(self) -> Path | None:
        with self._lock:
            if self._left:
                return self._left.popleft()
            self._thread = None
            return None
