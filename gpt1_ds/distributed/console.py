"""What a run prints: rank 0's lines and progress, and the warnings of any rank."""

import sys

from gpt1_ds.base.progress import Progress, write_line
from gpt1_ds.distributed.collectives import is_main


def say(text: str, folded: bool = True) -> None:
    """Print a line on rank 0, above the progress bar; see `base/progress.py`."""
    if not is_main():
        return
    try:
        write_line(text, folded=folded)
    except BrokenPipeError:
        raise
    except OSError:
        pass  # the disk with the log is full: the command goes on without this line


def warn(text: str) -> None:
    """Print `warning: text` on stderr, above the progress bar, on every rank that calls."""
    if sys.stderr is not None:
        write_line(f"warning: {text}", sys.stderr)


def progress(
    title: str, total: int | None, unit: str, done: int = 0, logged: bool = False
) -> Progress:
    """The progress of a piece of work, which rank 0 shows; see `base/progress.py`."""
    return Progress(title, total, unit, done, shown=is_main(), logged=logged)
