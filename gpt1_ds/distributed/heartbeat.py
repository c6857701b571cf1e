"""Finds the rank that hangs, by a heartbeat of every rank in the store of the process group.

The error of a failed collective names an address at best. So each rank has a key in the store. Once
a second it writes a higher count to its key, with the part of the step it is in. A rank that loses
a peer reads all keys. It reports the ranks with a count that does not change. If there is none, it
reports the ranks that are in another part of the step than most ranks.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

from gpt1_ds.base.errors import MemoryShortage, PeerError, UserError

T = TypeVar("T")
BEAT_SECONDS = 1.0
LOOK_SECONDS = 3 * BEAT_SECONDS
MOST_RANKS_SHOWN = 8
POLL_SECONDS = 0.02
SAY_SECONDS = 5.0
"""How long a rank with an error waits for rank 0 to have the same."""
LEAVE_SECONDS = 2.0
"""How long rank 0 waits for ranks that have its error too."""
SAID, READERS = "said", "said/readers"
LOST_PEER = "a lost peer"
NO_MEMORY = "too little memory"
"""What the errors about a lost peer have in common; each rank has its own text."""
LEFT = "left"
"""The value that a rank writes when it ends because of another rank."""
place = "start"
"""The part of a step that this rank is in: data, forward, backward or optimizer.

The timer of the engine sets it.
"""
_heartbeat: "Heartbeat | None" = None


class Heartbeat:
    """A thread writes the heartbeat of this rank; `suspects` reads those of all ranks."""

    def __init__(self, store: dist.TCPStore, rank: int, world_size: int):
        self.rank = rank
        self.keys = [f"heartbeat/{peer}" for peer in range(world_size)]
        # Two connections: a read that blocks must not delay the beat.
        self.beating: dist.TCPStore = store.clone()  # type: ignore[attr-defined]
        self.looking: dist.TCPStore = store.clone()  # type: ignore[attr-defined]
        self.stopped = threading.Event()
        self.beating.set(self.keys[rank], f"0 {place}")  # a rank may hang in its first second
        threading.Thread(target=self._beat, daemon=True, name="heartbeat").start()

    def _beat(self) -> None:
        beats = 0
        try:
            while not self.stopped.wait(BEAT_SECONDS):
                beats += 1
                self.beating.set(self.keys[self.rank], f"{beats} {place}")
        except (RuntimeError, ValueError):
            pass  # the store is gone, and rank 0 with it

    def leave(self) -> None:
        """Write that this rank ends because of another one, so that no rank suspects it."""
        if self.stopped.is_set():
            return
        self.stopped.set()
        call_within(2 * LOOK_SECONDS, lambda: self.looking.set(self.keys[self.rank], LEFT))

    def suspects(self) -> str:
        """A phrase that names the silent ranks, or those in another part; empty if none."""
        before = call_within(2 * LOOK_SECONDS, self._read)
        self.stopped.wait(LOOK_SECONDS)
        after = call_within(2 * LOOK_SECONDS, self._read)
        if after is None:
            return "rank 0 is silent: stopped, dead, or its machine is"
        peers = [peer for peer in range(len(self.keys)) if peer != self.rank]
        others = [peer for peer in peers if after[peer] != LEFT]
        if before:
            silent = [peer for peer in others if after[peer] == before[peer]]
            if silent:
                return f"{_ranks(silent)} silent: stopped, dead, or the machine is"
        places = {peer: after[peer].partition(" ")[2] for peer in others}
        places[self.rank] = place
        common = Counter(places.values()).most_common(1)[0][0]
        elsewhere = {peer: part for peer, part in places.items() if part != common}
        if not elsewhere:
            return ""
        parts = "/".join(sorted(set(elsewhere.values())))
        return f"{_ranks(list(elsewhere))} alive, in {parts}, others in {common}"

    def say(self, topic: str) -> None:
        """On rank 0: write that it prints an error, and wait for ranks that have it too."""
        call_within(LOOK_SECONDS, lambda: self.looking.set(SAID, topic))
        deadline = time.monotonic() + LEAVE_SECONDS
        while time.monotonic() < deadline:
            readers = call_within(LOOK_SECONDS, lambda: self.looking.add(READERS, 0))
            if readers is None or readers >= len(self.keys) - 1:
                return
            time.sleep(POLL_SECONDS)

    def is_said(self, topic: str) -> bool:
        """On the other ranks: whether rank 0, or another rank before this one, prints it."""
        said = call_within(SAY_SECONDS + LOOK_SECONDS, self._said)
        if said is not None:
            call_within(LOOK_SECONDS, lambda: self.looking.add(READERS, 1))
            return said == topic or topic == LOST_PEER
        first = call_within(LOOK_SECONDS, lambda: self.looking.add(f"{SAID}/{topic}", 1))
        return first is not None and first > 1

    def _said(self) -> str:
        self.looking.wait([SAID], timedelta(seconds=SAY_SECONDS))
        return bytes(self.looking.get(SAID)).decode()

    def _read(self) -> list[str]:
        self.looking.wait(self.keys, timedelta(seconds=LOOK_SECONDS))
        return [value.decode() for value in self.looking.multi_get(self.keys)]


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


def start_heartbeat(store: dist.TCPStore, rank: int, world_size: int) -> None:
    """Start the heartbeat of this process; `store` is the store of the process group."""
    global _heartbeat
    _heartbeat = Heartbeat(store, rank, world_size)


def suspects() -> str:
    """A phrase that names the ranks that may have caused an error; empty if unknown.

    After this call the heartbeat of this rank stops: the rank ends because of the others.
    """
    if _heartbeat is None:
        return ""
    found = _heartbeat.suspects()
    _heartbeat.leave()
    return found


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
