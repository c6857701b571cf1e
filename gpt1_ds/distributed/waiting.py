"""Since when this rank waits for its peers, as a thread beside the training can see it.

Our own collectives end on the host, so `for_peers` marks them there. DeepSpeed's return at once on
a GPU, and a stream of the GPU waits in place of the host. So an event is put at the end of each
stream in which a collective was begun: it happens once all that is before it has ended.

Work of this rank alone is no wait, however long it takes: reading data, compiling, copying a
checkpoint. Nor is that of all ranks at the same time. A peer that waits for this work in a
collective does wait.
"""

import ctypes
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

import torch

RELAXED = 2
"""CU_STREAM_CAPTURE_MODE_RELAXED of cuda.h."""
_host_since: float | None = None
_streams: set[torch.cuda.Stream] = set()


@contextmanager
def for_peers() -> Iterator[None]:
    """A collective whose end the host waits for inside this block."""
    global _host_since
    in_stream()
    _host_since = time.monotonic()
    try:
        yield
    finally:
        _host_since = None


def in_stream() -> None:
    """A collective begins in the current stream of this rank's GPU, if it has one."""
    if torch.cuda.is_available():
        _streams.add(torch.cuda.current_stream())


class Mark(NamedTuple):
    """An event at the end of a stream, and when it was put there."""

    event: torch.cuda.Event
    since: float


class Waits:
    """Looks at the host's waits and at the streams; one thread has it for itself."""

    def __init__(self) -> None:
        self.marks: dict[torch.cuda.Stream, Mark] = {}
        # Else no event may be asked for while the training captures a CUDA graph.
        with suppress(OSError, AttributeError):
            mode = ctypes.c_int(RELAXED)
            ctypes.CDLL("libcuda.so.1").cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))

    def seconds(self) -> float:
        """How long this rank has waited by now; 0 if it does not wait.

        It counts from the look before: a wait may be a second or two older.
        """
        now = time.monotonic()
        began = [now if _host_since is None else _host_since]
        for stream in list(_streams):
            mark = self.marks.get(stream)
            if mark is None or mark.event.query():
                mark = Mark(torch.cuda.Event(), now)
                mark.event.record(stream)
                self.marks[stream] = mark
            began.append(mark.since)
        return now - min(began)
