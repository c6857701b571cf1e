"""Before anything is built, the ranks compare what they were started with, and share their errors.

Each rank writes its facts, or its error, to the store of the process group. Rank 0 compares them
as they arrive and writes a verdict, which every rank reads. So all ranks end with the same error,
and rank 0 prints it. Nothing is sent as a pickle, and no collective is needed.
"""

import contextlib
import json
import os
import socket
import time
from datetime import timedelta
from typing import NamedTuple

import torch.distributed as dist

from gpt1_ds.base.errors import ConfigError, DataError, PeerError, UserError
from gpt1_ds.base.protocols import Json
from gpt1_ds.distributed.environment import RankEnv, start_number

POLL_SECONDS = 0.02
PATIENCE_SECONDS = 20.0
"""Longest wait of a rank with an error for the others."""
LEAVE_SECONDS = 2.0
"""Time for rank 0 to print an error before the other ranks end, which ends it by some launchers."""
MOST_DIFFERENCES, MOST_CHARACTERS = 3, 200


class Verdict(NamedTuple):
    """What rank 0 tells the others: an error of any rank, or that there is none."""

    world_size: int
    exit_code: int = 0
    text: str = ""


class Exchange:
    """The ranks' facts and errors, in one or more rounds; all ranks take part in each round."""

    def __init__(self, store: dist.Store, env: RankEnv, timeout_seconds: float):
        self.store = dist.PrefixStore(f"gpt1_ds/start/{start_number(os.environ)}", store)
        self.env = env
        self.timeout_seconds = timeout_seconds
        self.round = 0

    def agree(self, facts: Json, error: UserError | None = None) -> None:
        """Return if no rank has an error and all have the same facts; else raise, on all ranks.

        RuntimeError of torch if a rank does not come in time.
        """
        self.round += 1
        told: Json = {"host": socket.gethostname(), "facts": facts}
        if error is not None:
            told["error"] = [error.exit_code, str(error)]
        if self.env.rank == 0:
            verdict = self._judge(told)
        else:
            verdict = self._ask(told, error)
        if verdict.exit_code:
            kinds = {kind.exit_code: kind for kind in (ConfigError, DataError, PeerError)}
            raise kinds[verdict.exit_code](verdict.text)
        if verdict.world_size != self.env.world_size:
            raise ConfigError(
                f"WORLD_SIZE is {verdict.world_size} on rank 0, {self.env.world_size} on rank "
                f"{self.env.rank} ({socket.gethostname()}); give all ranks the same",
                of_this_rank=True,
            )

    def _key(self, name: str | int) -> str:
        return f"{self.round}/{name}"

    # --- Rank 0 ---

    def _judge(self, own: Json) -> Verdict:
        """Compare each rank with rank 0 when it comes; the verdict, once all ranks can have it."""
        own = json.loads(json.dumps(own))  # as the others' come back
        verdict = self._fault(0, own, own)
        missing = set(range(1, self.env.world_size))
        deadline = time.monotonic() + self.timeout_seconds
        while missing and verdict is None:
            for rank in sorted(missing):
                if self.store.check([self._key(rank)]):
                    missing.remove(rank)
                    verdict = verdict or self._fault(rank, own, json.loads(self._get(rank)))
            if missing and time.monotonic() > deadline:
                late = ", ".join(map(str, sorted(missing)[:8]))
                raise RuntimeError(f"no word of rank {late} in {self.timeout_seconds:.0f} s")
            if missing and verdict is None:
                time.sleep(POLL_SECONDS)
        verdict = verdict or Verdict(self.env.world_size)
        self.store.set(self._key("verdict"), json.dumps(verdict))
        if verdict.exit_code:
            self._wait_for_readers()
        return verdict

    def _fault(self, rank: int, own: Json, told: Json) -> Verdict | None:
        if "error" in told:
            code, text = told["error"]
            text = text if rank == 0 else f"rank {rank} ({told['host']}): {text}"
            return Verdict(self.env.world_size, code, text)
        here, there = f"rank 0 ({own['host']})", f"rank {rank} ({told['host']})"
        text = difference(own["facts"], told["facts"], here, there)
        return Verdict(self.env.world_size, ConfigError.exit_code, text) if text else None

    def _wait_for_readers(self) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.store.add(self._key("readers"), 0) < self.env.world_size - 1:
            if time.monotonic() > deadline:
                return
            time.sleep(POLL_SECONDS)

    # --- The other ranks ---

    def _ask(self, told: Json, error: UserError | None) -> Verdict:
        try:
            self.store.set(self._key(self.env.rank), json.dumps(told))
            patience = self.timeout_seconds if error is None else PATIENCE_SECONDS
            self.store.wait([self._key("verdict")], timedelta(seconds=patience))
            verdict = Verdict(*json.loads(self._get("verdict")))
        except RuntimeError:
            if error is None:
                raise
            error.of_this_rank = True  # nobody else says it
            raise error from None
        if verdict.exit_code:
            with contextlib.suppress(RuntimeError):
                self.store.add(self._key("readers"), 1)
            self._wait_for_rank_0()
        return verdict

    def _wait_for_rank_0(self) -> None:
        """Until its store is gone. A connection of its own tells that without torch's warnings."""
        address = (self.env.master_addr, self.env.master_port)
        with contextlib.suppress(OSError):
            with socket.create_connection(address, LEAVE_SECONDS) as connection:
                connection.recv(1)

    def _get(self, name: str | int) -> str:
        return bytes(self.store.get(self._key(name))).decode()


def difference(own: Json, other: Json, here: str, there: str) -> str:
    """A line that names what differs, with both values; empty if nothing does."""
    differing = []
    for name in own | other:
        if own.get(name) != other.get(name):
            ours, theirs = (_shown(facts.get(name)) for facts in (own, other))
            differing.append(f"{name} is {ours} on {here}, {theirs} on {there}")
    if not differing:
        return ""
    more = len(differing) - MOST_DIFFERENCES
    listed = "; ".join(differing[:MOST_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")
    return f"the ranks of this start differ: {listed}; start all ranks with the same"


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}.."
