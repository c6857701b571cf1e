"""Functions that ranks of the pool run: pre-training on two ranks of which one is slow."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from gpt1_ds import train
from gpt1_ds.data.batches import Batches
from gpt1_ds.distributed import collectives
from gpt1_ds.engine.counting import counted, join_fake_group
from gpt1_ds.runs.slow_ranks import SlowRanks
from tests.support.cases_losses import RUN, end_of_process

STOPPING = """
import os, signal, sys, time
while os.getppid() == int(sys.argv[1]):
    for number, seconds in ((signal.SIGSTOP, 0.012), (signal.SIGCONT, 0.004)):
        os.kill(int(sys.argv[2]), number)
        time.sleep(seconds)
"""


@contextmanager
def stopped_in_turns() -> Iterator[None]:
    """Rank 1 gets SIGSTOP and SIGCONT in turns, from a process that rank 0 starts."""
    processes = collectives.gather_json(os.getpid())
    stopping = None
    if collectives.is_main():
        words = [sys.executable, "-c", STOPPING, str(os.getpid()), str(processes[1])]
        stopping = subprocess.Popen(words)
    try:
        yield
    finally:
        if stopping:
            stopping.kill()
            stopping.wait()
            os.kill(processes[1], signal.SIGCONT)


@contextmanager
def slow_data() -> Iterator[None]:
    """Rank 1 reads each of its batches 0.2 s later."""
    plain = Batches.read

    def read(batches: Batches, first: int, size: int | None = None) -> list:
        if collectives.rank() == 1:
            time.sleep(0.2)
        return plain(batches, first, size)

    Batches.read = read
    try:
        yield
    finally:
        Batches.read = plain


def pretrain(ds: str, shards: str, runs: str, fault: str, every: int) -> list[dict]:
    """Eight lines of the log, one each `every` steps; the training records."""
    words = [*RUN, f"train.max_steps={8 * every}", f"log.every={every}", "checkpoint.every=1000"]
    words += [f"data.shards={shards}", f"run.dir={runs}", "run.name=run"]
    faults = {"stopped": stopped_in_turns, "data": slow_data}
    with end_of_process(), faults[fault]():
        train.main(["--deepspeed_config", ds, *words])
    lines = (Path(runs) / "run" / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["split"] == "train"]


def exchange_behind_a_late_rank() -> tuple[float, dict]:
    """Rank 1 comes to its line half a second late: how long rank 0 is there, and what it is told
    at its next line."""
    slow = SlowRanks(1.3)
    collectives.barrier()
    if collectives.rank() == 1:
        time.sleep(0.5)
    began = time.perf_counter()
    assert slow.exchange(1, 1.0 + collectives.rank()) == {}
    seconds = time.perf_counter() - began
    return seconds, slow.exchange(2, 1.0)


def count_exchange(ranks: int) -> dict[str, int]:
    """Collectives of a line, and the bytes that this rank gives and gets, over the fake group."""
    join_fake_group(ranks)
    slow = SlowRanks(1.3)
    slow.exchange(1, 1.0)
    with counted() as counts:
        told = slow.exchange(2, 1.0)
    torch.distributed.destroy_process_group()
    assert told["slowest_ratio"] == 1.0
    got = sum(sent.bytes for sent in counts.sent.values())
    return {"messages": counts.messages, "given": counts.message_bytes, "got": got}
