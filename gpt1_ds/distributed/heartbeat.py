"""Finds the rank that hangs, by a heartbeat of every rank in the store of the process group.

The error of a failed collective names an address at best. So each rank has a key in the store. Once
a second it writes a higher count to its key, with the part of the step it is in. The first rank
that loses a peer decides for all: it reads all keys twice and writes its verdict, which the others
read. It names the ranks with a count that does not change. If there is none, it names the ranks
that are in another part of the step than most ranks. If the verdict does not come in time, because
the deciding rank has ended, another rank decides.

With NCCL no error of a lost peer reaches the training (`nccl.py`). There the thread of the
heartbeat is the one that loses a peer: when this rank has waited too long for others, or these have
lost it. It then ends the process.

A decision reads as many keys as there are ranks, and the store has one thread. So one rank must do
it and not each of thousands: each of those makes five short calls.
"""

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import TypeVar

import torch.distributed as dist

from gpt1_ds.base.errors import (
    LAUNCHER_RANKS,
    STARTS_OVER,
    MemoryShortage,
    PeerError,
    UserError,
    report,
)
from gpt1_ds.distributed.environment import start_number
from gpt1_ds.distributed.waiting import Waits

T = TypeVar("T")
BEAT_SECONDS = 1.0
LOOK_SECONDS = 3 * BEAT_SECONDS
DECIDE_SECONDS = 3 * LOOK_SECONDS
"""How long the other ranks wait for the verdict until one of them decides."""
TURNS = 3
"""How many ranks may try to decide."""
MOST_RANKS_SHOWN = 8
POLL_SECONDS = 0.02
SAY_SECONDS = 5.0
"""How long a rank with an error waits for rank 0 to have the same."""
LEAVE_SECONDS = 2.0
"""How long rank 0 waits for ranks that have its error too."""
SAID, READERS = "said", "said/readers"
VERDICT = "verdict"
LOST_PEER = "a lost peer"
NO_MEMORY = "too little memory"
"""What the errors about a lost peer have in common; each rank has its own text."""
ASKS = "asks"
"""The count of a rank that has lost a peer: it is not silent, and beats no more."""
UNDECIDED = "undecided"
"""Nobody has decided in time."""
NO_STORE = "rank 0 is silent: stopped, dead, or its machine is"
place = "start"
"""The part of a step that this rank is in: data, forward, backward or optimizer.

The timer of the engine sets it.
"""
_heartbeat: "Heartbeat | None" = None
_last_actions: list[Callable[[UserError], object]] = []
_ending = threading.Lock()
"""Held by the thread that ends this process."""


class Heartbeat:
    """A thread writes the heartbeat of this rank; `suspects` tells whose heartbeat has stopped.

    It has one connection to the store, because rank 0 holds those of all ranks.
    """

    def __init__(
        self, store: dist.Store, rank: int, world_size: int, patience: float | None = None
    ):
        """`patience`: the longest wait for a peer, seconds, after which the thread ends the
        process; None if the training gets an error."""
        self.rank = rank
        self.patience = patience
        self.keys = [f"{peer}" for peer in range(world_size)]
        self.store = store
        self.stopped = threading.Event()
        self.store.set(self.keys[rank], f"0 {place}")  # a rank may hang in its first second
        self.thread = threading.Thread(target=self._beat, daemon=True, name="heartbeat")
        self.thread.start()

    def _beat(self) -> None:
        waits = Waits() if self.patience is not None else None
        beats, named = 0, False
        while not self.stopped.wait(BEAT_SECONDS):
            beats += 1
            try:
                self.store.set(self.keys[self.rank], f"{beats} {place}")
                named = waits is not None and self.store.check([VERDICT])
            except (RuntimeError, ValueError):  # the store is gone, and rank 0 with it
                if waits is None:
                    return
            waited = waits.seconds() if waits is not None else 0.0
            if named:
                self._end("the others have waited for it, or for the same one")
            elif self.patience is not None and waited > self.patience:
                self._end(f"a collective takes more than {self.patience:g} s")

    def _end(self, why: str) -> None:
        """End this process, unless the training does it already: it may hang for good."""
        if not _ending.acquire(blocking=False):
            return
        fault = lost_peer(self.rank, why)
        for action in list(_last_actions):
            call_within(LEAVE_SECONDS, partial(action, fault))
        choose_speaker(fault)
        os._exit(report(fault, STARTS_OVER, LAUNCHER_RANKS))

    def suspects(self) -> str:
        """A phrase that names the silent ranks, or those in another part; empty if none.

        The heartbeat of this rank stops: it ends because of another one.
        """
        self.stopped.set()
        if self.thread is not threading.current_thread():
            self.thread.join(LOOK_SECONDS)  # a last beat must not come after what follows
        if not call_within(2 * LOOK_SECONDS, self._tell_of_asking):
            return NO_STORE
        asked = time.monotonic()
        for turn in range(TURNS):
            verdict = call_within(DECIDE_SECONDS + LOOK_SECONDS, partial(self._ask, turn))
            if verdict != UNDECIDED:
                break
        if self.rank == 0:  # the store ends with it, and others may lose their peer a little later
            time.sleep(max(0.0, asked + LOOK_SECONDS - time.monotonic()))
        if verdict is None:
            return NO_STORE
        return "" if verdict == UNDECIDED else verdict

    def _tell_of_asking(self) -> bool:
        self.store.set(self.keys[self.rank], f"{ASKS} {place}")
        return True

    def _ask(self, turn: int) -> str:
        """The verdict; this rank decides if it is the first to ask in this turn."""
        if not self.store.check([VERDICT]):
            if self.store.add(f"turn/{turn}", 1) == 1:
                self.store.set(VERDICT, self._decide())
            try:
                self.store.wait([VERDICT], timedelta(seconds=DECIDE_SECONDS))
            except dist.DistStoreError:  # of the time limit; a store that is gone raises another
                return UNDECIDED
        return bytes(self.store.get(VERDICT)).decode()

    def _decide(self) -> str:
        before = self._read()
        time.sleep(LOOK_SECONDS)
        after = self._read()
        others = [peer for peer in range(len(self.keys)) if peer != self.rank]
        silent = [
            peer
            for peer in others
            if after[peer] == before[peer] and not after[peer].startswith(ASKS)
        ]
        if silent:
            return f"{_ranks(silent)} silent: stopped, dead, or the machine is"
        # This rank has waited for others, so of two parts its own is the one where ranks wait.
        places = {self.rank: place}
        places |= {peer: after[peer].partition(" ")[2] for peer in others}
        common = Counter(places.values()).most_common(1)[0][0]
        elsewhere = {peer: part for peer, part in places.items() if part != common}
        if not elsewhere:
            return ""
        parts = "/".join(sorted(set(elsewhere.values())))
        return f"{_ranks(list(elsewhere))} alive, in {parts}, others in {common}"

    def _read(self) -> list[str]:
        """The value of each rank; empty if it has none."""
        try:
            self.store.wait(self.keys, timedelta(seconds=LOOK_SECONDS))
        except dist.DistStoreError:  # a rank has died before its first beat
            return [self._value(key) for key in self.keys]
        return [value.decode() for value in self.store.multi_get(self.keys)]

    def _value(self, key: str) -> str:
        return bytes(self.store.get(key)).decode() if self.store.check([key]) else ""

    def say(self, topic: str) -> None:
        """On rank 0: write that it prints an error, and wait for ranks that have it too."""
        call_within(LOOK_SECONDS, lambda: self.store.set(SAID, topic))
        deadline = time.monotonic() + LEAVE_SECONDS
        while time.monotonic() < deadline:
            readers = call_within(LOOK_SECONDS, lambda: self.store.add(READERS, 0))
            if readers is None or readers >= len(self.keys) - 1:
                return
            time.sleep(POLL_SECONDS)

    def is_said(self, topic: str) -> bool:
        """On the other ranks: whether rank 0, or another rank before this one, prints it."""
        said = call_within(SAY_SECONDS + LOOK_SECONDS, self._said)
        if said is not None:
            call_within(LOOK_SECONDS, lambda: self.store.add(READERS, 1))
            return said == topic or topic == LOST_PEER
        first = call_within(LOOK_SECONDS, lambda: self.store.add(f"{SAID}/{topic}", 1))
        return first is not None and first > 1

    def _said(self) -> str:
        self.store.wait([SAID], timedelta(seconds=SAY_SECONDS))
        return bytes(self.store.get(SAID)).decode()


def call_within(seconds: float, action: Callable[[], T]) -> T | None:
    """The result of `action`, a call to a store; None if it fails or takes too long."""
    answer = []

    def attempt() -> None:
        try:
            answer.append(action())
        except (RuntimeError, ValueError):
            pass

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)
    return answer[0] if answer else None


def start_heartbeat(
    store: dist.TCPStore, rank: int, world_size: int, patience: float | None
) -> None:
    """Start the heartbeat of this process; `store` is the store of the process group."""
    global _heartbeat
    own: dist.Store = store.clone()  # type: ignore[attr-defined]
    own = dist.PrefixStore(f"gpt1_ds/heartbeat/{start_number(os.environ)}", own)
    _heartbeat = Heartbeat(own, rank, world_size, patience)


@contextmanager
def last_action(action: Callable[[UserError], object]) -> Iterator[None]:
    """If the heartbeat ends the process inside this block, it first calls `action`.

    The action gets the error. It runs in another thread, and has `LEAVE_SECONDS`.
    """
    _last_actions.insert(0, action)
    try:
        yield
    finally:
        _last_actions.remove(action)


def begin_to_end() -> None:
    """The training ends this process. If the heartbeat does so already, this does not return."""
    if _heartbeat is not None and _heartbeat.patience is not None:
        _ending.acquire()


def lost_peer(rank: int, why: str) -> PeerError:
    """The error of this rank, which has lost a peer; after this call its heartbeat stops."""
    found = suspects()
    return PeerError(
        f"rank {rank} lost a peer ({why}); {found or 'see which rank died'}; "
        "start the run again to resume",
        of_this_rank=found == NO_STORE,  # then no rank can know what the others print
    )


def suspects() -> str:
    """A phrase that names the ranks that may have caused an error; empty if unknown.

    After this call the heartbeat of this rank stops: the rank ends because of the others.
    """
    if _heartbeat is None:
        return ""
    return _heartbeat.suspects()


def choose_speaker(error: UserError) -> None:
    """Choose which rank prints `error`, which ends this rank: set `error.of_this_rank`.

    Rank 0 does, if it has the same error. If it has not, perhaps because it still waits for
    something else, the first rank with this error does: no run ends without a line.
    """
    global _heartbeat
    if _heartbeat is None:
        return
    beats, _heartbeat = _heartbeat, None
    topic = LOST_PEER if isinstance(error, PeerError) else str(error)
    if isinstance(error, MemoryShortage):
        topic = NO_MEMORY
    if beats.rank == 0:
        beats.say(topic)
    elif not error.of_this_rank:
        error.of_this_rank = not beats.is_said(topic)


def _ranks(ranks: list[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]} is"
    shown = ", ".join(map(str, ranks[:MOST_RANKS_SHOWN]))
    more = len(ranks) - MOST_RANKS_SHOWN
    return f"ranks {shown} and {more} more are" if more > 0 else f"ranks {shown} are"
