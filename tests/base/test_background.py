"""Calls in a thread: in their order, with their errors, and none that hangs holds up the caller."""

import threading
import time

import pytest

from gpt1_ds.base import background
from gpt1_ds.base.background import Calls


def test_a_call_that_hangs_holds_up_once_and_all_are_made_in_order():
    calls, done, gate = Calls("test"), [], threading.Event()
    assert calls.make(lambda: done.append(1), 10) and not calls.hangs
    with pytest.raises(OSError, match="full"):
        calls.make(lambda: raise_error(OSError("full")), 10)
    assert not calls.make(lambda: (gate.wait(60), done.append(2)), 0.05)
    assert calls.hangs and background.any_hangs()
    began = time.monotonic()
    last = calls.begin(lambda: done.append(3))
    assert not calls.wait(last, 30) and time.monotonic() - began < 10 and done == [1]
    gate.set()
    assert last.ended.wait(10) and done == [1, 2, 3]
    assert calls.make(lambda: done.append(4), 10) and done == [1, 2, 3, 4]
    assert not calls.hangs and not background.any_hangs()


def raise_error(error: Exception) -> None:
    raise error
