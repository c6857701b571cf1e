"""The user's errors, each with its exit code, and the guard that turns them into one line.

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
    """An error a user can mend. The message is one line: file or option, value, fix.

    `of_this_rank`: the other ranks, rank 0 among them, do not raise it too, so that this one has to tell.
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


def near(word: str, choices: Iterable[str]) -> str:
    """`did you mean 'x'?` when something is close, else the whole list of choices."""
    choices = sorted(choices)
    close = difflib.get_close_matches(word, choices, n=1)
    return f"did you mean '{close[0]}'?" if close else f"choose from: {', '.join(choices)}"


def command(main: Callable[[list[str]], int | None], module: str) -> Callable[[], None]:
    """The entry point of a command: `guard(main)`, called at once where `module` is `__main__`.

    A command's file ends with `cli = command(main, __name__)`; the console scripts call `cli`.
    """

    def cli() -> None:
        guard(main)

    if module == "__main__":
        cli()
    return cli


def guard(main: Callable[[list[str]], int | None]) -> None:
    """Run `main(argv)` and exit with its code; a `UserError` becomes one line on stderr, rank 0's if all share it.

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
        ranks = (os.environ.get(name) for name in ("RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID"))
        if error.of_this_rank or next((rank for rank in ranks if rank), "0") == "0":
            line = " ".join(str(error).split())
            print(
                f"{'stopped' if code == StopRequested.exit_code else 'error'}: {line}",
                file=sys.stderr,
                flush=True,
            )
    except BrokenPipeError:
        # The reader of our output (`| head`) went away: not an error, but Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = DONE
    sys.exit(code)
