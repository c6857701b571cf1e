"""Which rank is the slowest, by the seconds that it takes for data and forward by itself.

A slow rank delays all: they wait for it in the next collective, so that all have the same seconds a
step. Its own part of a step still tells. Every rank's number is sent while the next steps are
computed, and shown with the next line of the log: nothing waits for it.
"""

import socket
from statistics import median

from gpt1_ds.distributed import collectives
from gpt1_ds.distributed.console import say

LINES = 5
"""So many lines in a row a rank must be slow, before the console names it."""


class SlowRanks:
    """Exchanges the ranks' seconds; all ranks make one, and call `exchange` at each line."""

    def __init__(self, slow_ratio: float):
        self.slow_ratio = slow_ratio
        self.pending: collectives.PendingGather | None = None
        self.slow_rank = -1
        self.lines = 0
        """In how many lines in a row `slow_rank` was slow."""
        self.several = collectives.world_size() > 1
        self.hosts: list[str] = collectives.gather_json_on_main(socket.gethostname())
        """Of all ranks, on rank 0."""

    def exchange(self, step: int, own_seconds: float) -> dict[str, float | str]:
        """Send this rank's seconds; on rank 0, the slowest rank by those of the line before."""
        if not self.several:
            return {}
        pending, self.pending = self.pending, collectives.PendingGather(own_seconds)
        seconds = pending.read() if pending else []
        if not seconds or not collectives.is_main():
            return {}
        rank = max(range(len(seconds)), key=seconds.__getitem__)
        others = median(seconds[:rank] + seconds[rank + 1 :])
        ratio = seconds[rank] / others if others > 0 else 1.0
        self._count(step, rank, ratio)
        return {
            "slowest_rank": rank,
            "slowest_host": self.hosts[rank],
            "slowest_ratio": round(ratio, 3),
        }

    def _count(self, step: int, rank: int, ratio: float) -> None:
        """Name a rank that is slow for `LINES` lines in a row, once until it is so anew."""
        if ratio <= self.slow_ratio or rank != self.slow_rank:
            self.lines = 0
        self.slow_rank = rank
        if ratio <= self.slow_ratio:
            return
        self.lines += 1
        if self.lines == LINES:
            say(
                f"warning: step {step}: rank {rank} ({self.hosts[rank]}) is slow: {LINES} lines in "
                f"a row, it took {ratio:.2f} times as long for data and forward as the median of "
                "the other ranks, which wait for it; see docs/cluster.md"
            )
