"""Calls that may hang, such as writes to a disk that does not answer."""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

_hanging: set["Calls"] = set()


def any_hangs() -> bool:
    """Whether this process has a call that hangs: Python's usual end could then wait for it."""
    return bool(_hanging)


@dataclass
class Call:
    """One of `Calls`."""

    action: Callable[[], object]
    ended: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None


class Calls:
    """Makes calls in their order, in a thread. One that hangs holds up nobody for long."""

    def __init__(self, name: str):
        """`name` of the thread."""
        self.name = name
        self.hangs = False
        """Whether a call that took too long has not ended, or one behind it."""
        self._calls: deque[Call] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def make(self, action: Callable[[], object], seconds: float) -> bool:
        """Make the call, and wait for its end; whether it ended within `seconds`.

        Raises what it raised. While an earlier call hangs, it is made after that one, and this
        returns at once. What it raises then is lost.
        """
        return self.wait(self.begin(action), seconds)

    def begin(self, action: Callable[[], object]) -> Call:
        """Make the call after the earlier ones; returns at once."""
        call = Call(action)
        with self._changed:
            self._calls.append(call)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True, name=self.name)
                self._thread.start()
            self._changed.notify()
        return call

    def wait(self, call: Call, seconds: float) -> bool:
        """As `make`, for a call that was begun."""
        if not self.hangs:
            call.ended.wait(seconds)
        with self._changed:
            if not call.ended.is_set():
                self.hangs = True
                _hanging.add(self)
                return False
        if call.error is not None:
            raise call.error
        return True

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._calls:
                    self._changed.wait()
                call = self._calls[0]
            try:
                call.action()
            except BaseException as error:  # raised again in the thread that waits for it
                call.error = error
            with self._changed:
                self._calls.popleft()
                call.ended.set()
                if not self._calls:
                    self.hangs = False
                    _hanging.discard(self)
