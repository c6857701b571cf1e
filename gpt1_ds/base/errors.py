"""User errors, each with its exit code, and the entry point that prints them as one line.

Whatever a user can cause ends in one line. Faults of files and disks are data errors.

| code | class           | meaning                                                    |
|------|-----------------|------------------------------------------------------------|
| 1    | any other       | not foreseen; `--traceback` shows where                    |
| 2    | `ConfigError`   | bad usage or configuration; too little memory for it       |
| 3    | `DataError`     | bad data or checkpoint; a file or disk that fails          |
| 4    | `DivergedError` | non-finite or diverged training; last good checkpoint kept |
| 5    | `PeerError`     | a rank died or hung                                        |
| 75   | `StopRequested` | stopped on request with a committed checkpoint             |
| 130  | `Interrupted`   | Ctrl-C before there was anything to commit                 |
"""

import difflib
import errno
import gc
import io
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TextIO

from gpt1_ds.base import background, beginning, spinning
from gpt1_ds.base.memory import is_shortage, shortage
from gpt1_ds.base.urls import hide_secrets

DONE = 0
UNFORESEEN = 1


class UserError(Exception):
    """An error that a user can fix. Its text is one line: file or option, value, fix.

    `of_this_rank`: only this rank raises the error, so this rank must print the line. Otherwise
    all ranks raise the same error, and rank 0 prints it.
    """

    exit_code = 2

    def __init__(self, text: str = "", of_this_rank: bool = False):
        super().__init__(text)
        self.of_this_rank = of_this_rank


class ConfigError(UserError):
    exit_code = 2


class MemoryShortage(ConfigError):
    """An allocation failed. The ranks say different numbers, and only one of them prints."""


class DataError(UserError):
    exit_code = 3


class DivergedError(UserError):
    exit_code = 4


class PeerError(UserError):
    exit_code = 5


class StopRequested(UserError):
    exit_code = 75


class Interrupted(UserError):
    exit_code = beginning.INTERRUPTED


def near(word: str, choices: Iterable[str]) -> str:
    """`did you mean 'x'?` if one of `choices` is close to `word`, else the list of all choices."""
    choices = sorted(choices)
    close = difflib.get_close_matches(word, choices, n=1)
    return f"did you mean '{close[0]}'?" if close else f"choose from: {', '.join(choices)}"


class RankVariables(NamedTuple):
    """The names of two environment variables of one launcher."""

    rank: str
    size: str


MPI_RANKS = (
    RankVariables("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    RankVariables("PMI_RANK", "PMI_SIZE"),
    RankVariables("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
)
LAUNCHER_RANKS = (RankVariables("RANK", "WORLD_SIZE"), *MPI_RANKS)
Main = Callable[[list[str]], int | None]
STARTS_OVER = "the same command starts over"
_LONGEST = 1000
"""Most characters of an unforeseen error: a C++ library may add a whole stack."""
_NOT_DETERMINISTIC = re.compile(r"(\S+) does not have a deterministic implementation")
"""What torch raises of an operator, where `train.deterministic` is on."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def command(
    main: Main, module: str, again: str = STARTS_OVER, ranks: Sequence[RankVariables] = ()
) -> Callable[[], None]:
    """The entry point of a command: `guard(main)`. It runs at once if `module` is `__main__`.

    A command's file ends with `cli = command(main, __name__)`; the console scripts call `cli`.
    """

    def cli() -> None:
        guard(main, again, ranks)

    if module == "__main__":
        cli()
    return cli


def guard(main: Main, again: str = STARTS_OVER, ranks: Sequence[RankVariables] = ()) -> None:
    """Run `main(argv)` and exit with its code; an exception becomes one line on stderr.

    `--traceback`, anywhere on the command line, adds the Python traceback. `again` says what the
    same command does after Ctrl-C. `ranks` are the variables by which this command knows its rank:
    an error that all ranks have is printed by rank 0 alone. A command without ranks always prints.
    """
    argv = sys.argv[1:]
    show_traceback = "--traceback" in argv
    argv = [arg for arg in argv if arg != "--traceback"]
    _mend_streams()
    if not gc.isenabled():  # see `beginning.begin`
        gc.freeze()
        gc.enable()
    began_as_command = signal.getsignal(signal.SIGINT) is beginning.interrupted_early
    try:
        if began_as_command:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        spinning.watch()
        try:
            code = main(argv) or DONE
        except SystemExit as end:  # --help
            code = end.code if isinstance(end.code, int) else DONE
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output (`| head`) ended. This is no error. But at exit, Python flushes
        # standard output and would report one.
        _drop(1)
        code = DONE
    except BaseException as error:
        if began_as_command:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not hide the line
        if show_traceback:
            traceback.print_exc()
        code = report(error, again, ranks)
    if began_as_command:
        if code == Interrupted.exit_code:
            os._exit(code)  # Python ends by a signal where Ctrl-C came in a string it executed
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's own end would print a traceback
    if background.any_hangs():
        os._exit(code)
    beginning.exit_code = code
    sys.exit(code)


def report(error: BaseException, again: str, ranks: Sequence[RankVariables]) -> int:
    """Print the line of an error, if this rank is the one to print it; its exit code."""
    told = as_user_error(error, again)
    code = UNFORESEEN if told is None else told.exit_code
    text = _unforeseen(error) if told is None else str(told)
    first = is_first_rank(ranks)
    if first or told is None or told.of_this_rank:
        kind = "stopped" if isinstance(told, StopRequested | Interrupted) else "error"
        try:
            print(f"{kind}: {hide_secrets(' '.join(text.split()))}", file=sys.stderr, flush=True)
        except (OSError, ValueError):
            _drop(2)
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        return code
    _drop(1)
    return code


def as_user_error(error: BaseException, again: str = STARTS_OVER) -> UserError | None:
    """The error of a file, disk, memory or user as a `UserError`; None for any other."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return Interrupted(f"interrupted; {again}")
    if is_shortage(error):
        return MemoryShortage(
            f"not enough memory: {shortage(error)}; end other programs, give less at once, or take "
            "a machine with more"
        )
    if isinstance(error, RuntimeError) and (lacking := _NOT_DETERMINISTIC.search(str(error))):
        return ConfigError(
            f"train.deterministic is true but torch has no deterministic {lacking[1]} for this "
            "device; set train.deterministic=false"
        )
    if isinstance(error, OSError):
        return DataError(_of_the_system(error))
    if isinstance(error, RecursionError):
        return DataError("a file or value is nested too deeply; --traceback shows which")
    if isinstance(error, UnicodeDecodeError):
        byte = error.object[error.start]
        return DataError(
            f"a file, name or standard input is not {error.encoding}: byte 0x{byte:02x} at"
            f" {error.start}; convert it to UTF-8"
        )
    if isinstance(error, UnicodeEncodeError):
        text = ascii(error.object[max(0, error.start - 20) : error.end])
        return DataError(
            f"{text} cannot be written as {error.encoding}; give names and text in UTF-8, and set"
            " PYTHONUTF8=1 if the locale is another"
        )
    return None


def _of_the_system(error: OSError) -> str:
    """The text of an error of the operating system: the file, the reason, what to do."""
    reason = error.strerror or str(error) or type(error).__name__
    name = "" if error.filename is None else f"{os.fsdecode(str(error.filename))}: "
    if error.errno in _FULL:
        return f"{name}the local disk is full ({reason}); free some space, then run it again"
    if name:
        return f"{name}{reason}; check this path, then run it again"
    return f"{reason} (at {_place(error)}); --traceback shows more"


def _unforeseen(error: BaseException) -> str:
    text = " ".join(str(error).split())[:_LONGEST]
    return (
        f"{type(error).__name__}: {text} (at {_place(error)}); this error was not foreseen; run the"
        " command again with --traceback to see all of it"
    )


def _place(error: BaseException) -> str:
    """File and line where this project's code was when the error was raised."""
    frames = traceback.extract_tb(error.__traceback__)[1:]  # without `guard`
    own = [frame for frame in frames if set(beginning.PACKAGES) & set(Path(frame.filename).parts)]
    frame = (own or frames)[-1]
    return f"{'/'.join(Path(frame.filename).parts[-2:])}:{frame.lineno}"


def is_first_rank(ranks: Sequence[RankVariables]) -> bool:
    """Whether this process is rank 0 or alone, by the first launcher that started several ranks.

    The process group may not exist yet. A rank without the number of ranks says nothing: some
    clusters set it in every container.
    """
    for names in ranks:
        rank, size = (os.environ.get(name, "") for name in names)
        if rank.isdecimal() and size.isdecimal() and int(size) > 1:
            return int(rank) == 0
    return True


def open_closed_descriptors() -> None:
    """Open /dev/null in place of each standard stream that is closed.

    Otherwise the next file that is opened would become standard input or output.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one


def _mend_streams() -> None:
    """Let every text be printed, and every standard stream be there."""
    open_closed_descriptors()
    sys.stdin = sys.stdin or _nothing("r")
    sys.stdout = sys.stdout or _nothing("w")
    sys.stderr = sys.stderr or _nothing("w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _nothing(mode: str) -> TextIO:
    return io.TextIOWrapper(
        open(os.devnull, f"{mode}b"), "utf-8", "backslashreplace", write_through=True
    )


def _drop(number: int) -> None:
    """Let the descriptor lead to /dev/null: at exit, Python flushes what is left for it."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
