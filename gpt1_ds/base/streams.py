"""Standard output and standard error that may be lost while a command goes on."""

import io
import os
import select
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO

from gpt1_ds.base.errors import LAUNCHER_RANKS, is_first_rank, open_closed_descriptors

if TYPE_CHECKING:
    from typing_extensions import Buffer

WAIT_SECONDS = 5.0
"""Longest wait for the reader of a pipe that is full and does not block."""


def keep_going_without_output() -> None:
    """From now on, a fault of standard output or standard error loses text and raises nothing.

    Such a fault is a closed pipe, a full disk, or a terminal that is gone. The first one of each
    stream is told on the other. A descriptor that is not open at all becomes /dev/null: otherwise
    the next file that is opened would get its number, and warnings would be written into it. A
    stream that a caller has replaced stays as it is.
    """
    threading.excepthook = _spare_a_traceback
    open_closed_descriptors()
    if sys.stdout is None or sys.stdout is sys.__stdout__:
        sys.stdout = _lossy_stream(sys.stdout, 1, "standard output", tell_on=2)
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        sys.stderr = _lossy_stream(sys.stderr, 2, "standard error", tell_on=1)


def _spare_a_traceback(fault: threading.ExceptHookArgs) -> None:
    """Print none for TensorBoard's thread on a full disk: its next call raises the fault again."""
    of_tensorboard = type(fault.thread).__module__.startswith("tensorboard.")
    if not (of_tensorboard and isinstance(fault.exc_value, OSError)):
        threading.__excepthook__(fault)


def _lossy_stream(old: TextIO | None, number: int, title: str, tell_on: int) -> TextIO:
    encoding = "utf-8"
    if old is not None:
        encoding = old.encoding
        with suppress(OSError):
            old.flush()
    blocks = io.BufferedWriter(LossyFile(number, title, tell_on))
    return io.TextIOWrapper(blocks, encoding, errors="backslashreplace", line_buffering=True)


class LossyFile(io.FileIO):
    """The file descriptor `number`. What cannot be written is lost.

    The first loss is told on the descriptor `tell_on`: without the stream on it, which might come
    back here.
    """

    def __init__(self, number: int, title: str, tell_on: int):
        super().__init__(number, "w", closefd=False)
        self.title = title
        self.tell_on = tell_on
        self.told = False

    def write(self, data: "Buffer") -> int:
        length = memoryview(data).nbytes
        try:
            written = super().write(data)
            if written is None and select.select([], [self], [], WAIT_SECONDS)[1]:
                written = super().write(data)
        except OSError as error:
            self._tell_once(error)
            return length
        return length if written is None else written

    def _tell_once(self, error: OSError) -> None:
        if self.told or not is_first_rank(LAUNCHER_RANKS):
            return
        self.told = True
        text = f"warning: {self.title}: {error.strerror}; the run goes on without it\n"
        with suppress(OSError):
            os.write(self.tell_on, text.encode())
