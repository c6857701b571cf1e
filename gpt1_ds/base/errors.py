"""User errors, each with its exit code, and the entry point that prints them as one line.

| code | class           | meaning                                                    |
|------|-----------------|------------------------------------------------------------|
| 2    | `ConfigError`   | bad usage or configuration                                 |
| 3    | `DataError`     | bad data or checkpoint                                     |
| 4    | `DivergedError` | non-finite or diverged training; last good checkpoint kept |
| 5    | `PeerError`     | a rank died or hung                                        |
| 75   | `StopRequested` | stopped on request with a committed checkpoint             |
"""

import difflib
import os
import sys
import traceback
from collections.abc import Callable, Iterable

DONE = 0


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


class DataError(UserError):
    exit_code = 3


class DivergedError(UserError):
    exit_code = 4


class PeerError(UserError):
    exit_code = 5


class StopRequested(UserError):
    exit_code = 75


RANK_VARIABLES = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")


def near(word: str, choices: Iterable[str]) -> str:
    """`did you mean 'x'?` if one of `choices` is close to `word`, else the list of all choices."""
    choices = sorted(choices)
    close = difflib.get_close_matches(word, choices, n=1)
    return f"did you mean '{close[0]}'?" if close else f"choose from: {', '.join(choices)}"


def command(main: Callable[[list[str]], int | None], module: str) -> Callable[[], None]:
    """The entry point of a command: `guard(main)`. It runs at once if `module` is `__main__`.

    A command's file ends with `cli = command(main, __name__)`; the console scripts call `cli`.
    """

    def cli() -> None:
        guard(main)

    if module == "__main__":
        cli()
    return cli


def guard(main: Callable[[list[str]], int | None]) -> None:
    """Run `main(argv)` and exit with its code; a `UserError` becomes one line on stderr.

    `--traceback`, anywhere on the command line, adds the Python traceback.
    """
    argv = sys.argv[1:]
    show_traceback = "--traceback" in argv
    argv = [arg for arg in argv if arg != "--traceback"]
    try:
        code = main(argv) or DONE
    except UserError as error:
        code = error.exit_code
        if show_traceback:
            traceback.print_exc()
        if error.of_this_rank or _is_first_rank():
            kind = "stopped" if isinstance(error, StopRequested) else "error"
            print(f"{kind}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    except BrokenPipeError:
        # The reader of our output (`| head`) ended. This is no error. But at exit, Python flushes
        # standard output and would report one.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = DONE
    sys.exit(code)


def _is_first_rank() -> bool:
    """Whether the launcher's variables say rank 0. The process group may not exist yet."""
    ranks = (os.environ.get(name) for name in RANK_VARIABLES)
    return next((rank for rank in ranks if rank), "0") == "0"
