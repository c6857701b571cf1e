"""Which rank has fallen silent: every rank's heartbeat in the store through which they met.

A collective that fails or times out names an address at best. Each rank counts up a key a second, with the place its
training is at; whoever loses a peer reads the keys of all and says whose do not move, or who is elsewhere.
"""

import threading
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist

BEAT_SECONDS = 1.0
LOOK_SECONDS = 3 * BEAT_SECONDS
SHOWN = 8
LEFT = "left"
place = "start"
"""What this rank's training is doing: data, forward, backward, optimizer, ..; set by whoever times it."""
_heart: "Heart | None" = None


class Heart:
    def __init__(self, store: dist.Store, rank: int, world_size: int):
        self.rank, self.keys = rank, [f"heartbeat/{peer}" for peer in range(world_size)]
        self.beating, self.looking = (
            store.clone(),
            store.clone(),
        )  # one that blocks must not keep the other
        self.stopped = threading.Event()
        self.beating.set(self.keys[rank], f"0 {place}")  # a rank may hang within its first second
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
        """This rank ends because of another one, and must not be taken for the culprit."""
        if not self.stopped.is_set():
            self.stopped.set()
            call_within(2 * LOOK_SECONDS, lambda: self.looking.set(self.keys[self.rank], LEFT))

    def verdict(self) -> str:
        """Who does not move, in a few words; empty where nobody stands out."""
        before = call_within(2 * LOOK_SECONDS, self._read)
        self.stopped.wait(LOOK_SECONDS)
        after = call_within(2 * LOOK_SECONDS, self._read)
        if after is None:
            return "rank 0 is silent: stopped, dead, or its machine is"
        others = [
            peer for peer in range(len(self.keys)) if peer != self.rank and after[peer] != LEFT
        ]
        if silent := [peer for peer in others if before and after[peer] == before[peer]]:
            return f"{_ranks(silent)} silent: stopped, dead, or the machine is"
        places = {peer: after[peer].partition(" ")[2] for peer in others} | {self.rank: place}
        common = Counter(places.values()).most_common(1)[0][0]
        odd = {peer: where for peer, where in places.items() if where != common}
        return (
            f"{_ranks(list(odd))} alive, in {'/'.join(sorted(set(odd.values())))}, others in {common}"
            if odd
            else ""
        )

    def _read(self) -> list[str]:
        self.looking.wait(self.keys, timedelta(seconds=LOOK_SECONDS))
        return [value.decode() for value in self.looking.multi_get(self.keys)]


def call_within(seconds: float, action: Callable[[], Any]) -> Any:
    """What `action`, a call of a store, returns; None where the store fails or does not answer."""
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


def start_heartbeat(store: dist.Store, rank: int, world_size: int) -> None:
    global _heart
    _heart = Heart(store, rank, world_size)


def suspects() -> str:
    """Who this rank's loss of a peer is due to, and that this rank leaves because of it; empty if nobody can tell."""
    if _heart is None:
        return ""
    said = _heart.verdict()
    _heart.leave()
    return said


def _ranks(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:SHOWN])) + (
        f" and {len(ranks) - SHOWN} more" if len(ranks) > SHOWN else ""
    )
    return f"rank {shown} is" if len(ranks) == 1 else f"ranks {shown} are"
