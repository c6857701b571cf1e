"""Many ranks lose a peer at the same time: real clients, each with its own thread, of a real
store."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from gpt1_ds.distributed import heartbeat
from gpt1_ds.distributed.heartbeat import Heartbeat

RANKS, SILENT = 256, 77


class CountingStore:
    """A connection to a store that counts the calls."""

    calls: Counter[str] = Counter()
    lock = threading.Lock()

    def __init__(self, store: dist.Store):
        self.store = store

    def __getattr__(self, name: str):
        with self.lock:
            self.calls[name] += 1
        return getattr(self.store, name)


@pytest.fixture(scope="module")
def connections() -> Iterator[list[dist.Store]]:
    """One for each rank. They are made at the same time: torch asks for the name of each address,
    which may take a name server seconds."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with ThreadPoolExecutor(RANKS) as threads:
        clones = list(threads.map(lambda _: server.clone(), range(RANKS)))
    yield clones  # the server lives as long


@pytest.fixture
def beats(connections, monkeypatch, request) -> Iterator[list[Heartbeat]]:
    """The heartbeats of all ranks, of which one has stopped."""
    monkeypatch.setattr(heartbeat, "LOOK_SECONDS", 2.5)  # in which all others beat
    monkeypatch.setattr(heartbeat, "DECIDE_SECONDS", 6.0)
    monkeypatch.setattr(CountingStore, "calls", Counter())
    stores = [dist.PrefixStore(request.node.name, connection) for connection in connections]
    beating = [Heartbeat(CountingStore(store), rank, RANKS) for rank, store in enumerate(stores)]
    beating[SILENT].stopped.set()
    yield beating
    for rank in beating:
        rank.stopped.set()


def verdicts(beats: list[Heartbeat]) -> tuple[list[str], float]:
    """What the ranks say, all at once, and how long that takes."""
    said: list[str] = []
    threads = [
        threading.Thread(target=lambda rank=rank: said.append(rank.suspects())) for rank in beats
    ]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return said, time.monotonic() - began


def test_one_rank_decides_for_all_with_few_calls(beats, monkeypatch):
    # All are threads of this process: in this time each of them has to ask.
    monkeypatch.setattr(heartbeat, "LOOK_SECONDS", 5.0)
    asking = [rank for rank in beats if rank.rank != SILENT]
    CountingStore.calls.clear()
    said, seconds = verdicts(asking)
    assert said == [f"rank {SILENT} is silent: stopped, dead, or the machine is"] * (RANKS - 1)
    assert seconds < heartbeat.DECIDE_SECONDS + 5
    calls = CountingStore.calls
    assert calls.pop("multi_get") == 2
    beats_in_that_time = (RANKS - 1) * (1 + seconds / heartbeat.BEAT_SECONDS)
    assert calls.pop("set") <= RANKS + beats_in_that_time
    assert sum(calls.values()) <= 4 * RANKS + 2, calls  # check, add, wait and get of each rank


def test_another_rank_takes_over_if_the_deciding_one_ends(beats):
    asking = beats[100:104]
    assert beats[5].store.add("turn/0", 1) == 1  # and it ends before it has decided
    beats[5].stopped.set()
    said, seconds = verdicts(asking)
    assert said == [f"ranks 5, {SILENT} are silent: stopped, dead, or the machine is"] * 4
    assert seconds < 2 * heartbeat.DECIDE_SECONDS + 2


def test_a_rank_that_asks_later_and_one_that_never_beat(beats):
    beats[SILENT].store.delete_key(str(SILENT))
    assert beats[1].suspects().startswith(f"rank {SILENT} is silent")
    assert beats[2].suspects().startswith(f"rank {SILENT} is silent")  # not rank 1, which has ended
