"""What rank 0 prints: lines and a progress bar."""

import sys

from tqdm import tqdm

from gpt1_ds.distributed import collectives
from gpt1_ds.distributed.collectives import is_main


def say(text: str) -> None:
    """Print on rank 0."""
    if is_main():
        try:
            print(text, flush=True)
        except BrokenPipeError:
            raise
        except OSError:
            pass  # the disk under the log is full: that costs a line, not the training


def progress_bar(total: int, done: int, unit: str, description: str) -> tqdm:
    """A live bar on rank 0's terminal; a line every half minute where stderr is a file."""
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=done,
        unit=unit,
        desc=description,
        disable=not collectives.is_main(),
        mininterval=0.2 if terminal else 30.0,
        maxinterval=10.0 if terminal else 60.0,
        ascii=not terminal,
        dynamic_ncols=True,
    )


def note(text: str) -> None:
    """A line on rank 0 that does not tear the bar."""
    if collectives.is_main():
        tqdm.write(text)
