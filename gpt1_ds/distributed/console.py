"""What rank 0 prints: lines and a progress bar."""

import sys

from tqdm import tqdm

from gpt1_ds.base.urls import hide_secrets
from gpt1_ds.distributed.collectives import is_main


def say(text: str) -> None:
    """Print a line on rank 0."""
    if not is_main():
        return
    try:
        print(hide_secrets(text), flush=True)
    except BrokenPipeError:
        raise
    except OSError:
        pass  # the disk with the log is full: the command goes on without this line


def progress_bar(total: int | None, done: int, unit: str, description: str) -> tqdm:
    """A progress bar on rank 0. If stderr is a file, it prints one line every half minute."""
    terminal = sys.stderr is not None and sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=done,
        unit=unit,
        desc=description,
        disable=sys.stderr is None or not is_main(),
        mininterval=0.2 if terminal else 30.0,
        maxinterval=10.0 if terminal else 60.0,
        ascii=not terminal,
        dynamic_ncols=True,
    )


def note(text: str) -> None:
    """Print a line on rank 0 above the progress bar."""
    if is_main():
        tqdm.write(hide_secrets(text))
