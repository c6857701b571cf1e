"""How a command shows its progress on stderr: a bar on a terminal, plain lines anywhere else.

A plain line has the time of day, the count, the last figures, and the time left:

    22:57:10 pre-training: step 30/600, loss 5.405, lr 1.0e-03, 10,408 tokens/s, 58 s left
"""

import os
import re
import sys
import textwrap
import time
from contextlib import suppress
from types import TracebackType
from typing import TextIO

from tqdm import tqdm

from gpt1_ds.base.formatting import duration
from gpt1_ds.base.urls import hide_secrets

LINE_SECONDS = 30.0
"""Least time between two plain lines."""
BAR_SECONDS = 0.2
"""Least time between two drawings of the bar."""
SHORT_SECONDS = 0.5
"""Work that is done sooner shows no bar."""
DEFAULT_COLUMNS = 80
TITLED, PLAIN = "{desc} |{bar}| {text}", "|{bar}| {text}"
"""The bar of tqdm, with its title or without it."""
LABEL = re.compile(r"\w+ {2,}")
"""The name in front of a line of a table."""


def on_terminal() -> bool:
    """Whether stderr can show a bar."""
    stderr = sys.stderr
    return stderr is not None and stderr.isatty() and os.environ.get("TERM") != "dumb"


def write_line(text: str, file: TextIO | None = None, folded: bool = True) -> None:
    """Print lines on `file` (default: standard output), above the bars that are on the screen.

    A terminal gets a line that is too long for it in parts, cut between words. A line that is not
    `folded` stays whole, so that it can be copied.
    """
    file = file or sys.stdout
    if file is None:
        return
    lines = hide_secrets(text).split("\n")
    if folded and file.isatty():
        columns = os.get_terminal_size(file.fileno()).columns or DEFAULT_COLUMNS
        lines = [_fold(line, columns) for line in lines]
    tqdm.write("\n".join(lines), file=file)
    file.flush()


def _fold(line: str, columns: int) -> str:
    label = LABEL.match(line)
    indent = " " * (len(label[0]) if label else 2)
    parts = textwrap.wrap(
        line,
        columns,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(parts)


class Progress:
    """How many of `total` units are done. `title` says what is done with them.

    The bar, or the first line, appears in a `with` block. Without a terminal a line comes each
    `LINE_SECONDS`. A `logged` progress has lines only when `show` is called, and the first one at
    once. A progress that is not `shown` prints nothing.
    """

    def __init__(
        self,
        title: str,
        total: int | None,
        unit: str,
        done: int = 0,
        *,
        shown: bool = True,
        logged: bool = False,
    ):
        self.title, self.total, self.unit = title, total, unit
        self.done = self.first = float(done)
        self.shown, self.logged = shown and sys.stderr is not None, logged
        self.figures: list[str] = []
        self.seconds_left: float | None = None
        self.bar: _Bar | None = None

    def __enter__(self) -> "Progress":
        self.began = time.monotonic()
        self.next_line = self.began + (0 if self.logged else LINE_SECONDS)
        if self.shown and on_terminal():
            self.bar = _Bar(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the bar as it is; what is printed next comes below it."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def update(self, units: float = 1, *figures: str) -> None:
        """Count `units` more; a negative number counts back. `figures` replace those shown."""
        self.done += units
        self.figures = list(figures) or self.figures
        if self.bar is not None:
            self.bar.update(units)
        elif not self.logged:
            self._print_if_due()

    def show(self, *figures: str, seconds_left: float | None = None) -> None:
        """Show these figures behind the count. `seconds_left` replaces the own estimate."""
        self.figures, self.seconds_left = list(figures), seconds_left
        if self.bar is not None:
            self.bar.refresh()
        else:
            self._print_if_due()

    def _print_if_due(self) -> None:
        now = time.monotonic()
        if not self.shown or now < self.next_line:
            return
        self.next_line = now + LINE_SECONDS
        parts = [self.count(), *(self.figures or [self.rate()])]
        if left := self.left():
            parts.append(f"{left} left")
        clock = time.strftime("%H:%M:%S")
        with suppress(OSError):  # no line is worth the end of a command
            write_line(f"{clock} {self.title}: {', '.join(parts)}", sys.stderr)

    def count(self) -> str:
        """The units done, of how many; bytes as megabytes."""
        scale, digits, unit = self._scale()
        done = f"{self.done / scale:.{digits}f}"
        of = "" if self.total is None else f"/{self.total / scale:.{digits}f}"
        return f"{done}{of} {unit}" if unit == "MB" else f"{unit} {done}{of}"

    def _scale(self) -> tuple[float, int, str]:
        """What the count is divided by, its digits behind the point, and the name of a unit."""
        return (1e6, 1, "MB") if self.unit == "byte" else (1, 0, self.unit)

    def rate(self) -> str:
        scale, _, unit = self._scale()
        per_second = (self.done - self.first) / max(1e-9, time.monotonic() - self.began)
        return f"{per_second / scale:.3g} {unit}/s"

    def left(self) -> str:
        """The time left, at the mean pace so far; empty if it cannot be known."""
        seconds, counted = self.seconds_left, self.done - self.first
        if seconds is None:
            if self.total is None or counted <= 0:
                return ""
            spent = time.monotonic() - self.began
            seconds = spent / counted * max(0, self.total - self.done)
        return duration(seconds)


class _Bar(tqdm):
    """tqdm's bar with the first of `LAYOUTS` that fits into the line."""

    monitor_interval = 0  # no thread: each `update` looks at the clock

    def __init__(self, progress: Progress):
        self.progress = progress
        super().__init__(
            total=progress.total,
            initial=progress.done,
            mininterval=BAR_SECONDS,
            delay=0 if progress.logged else SHORT_SECONDS,
            miniters=1,
            dynamic_ncols=True,
            leave=None,  # a bar below another one vanishes
            file=sys.stderr,
        )

    def __str__(self) -> str:
        """The line for the screen: of the title and the figures, the last ones may have no room."""
        progress, values = self.progress, dict(self.format_dict)
        columns = (
            values["ncols"] or DEFAULT_COLUMNS
        ) - 1  # some terminals wrap after the last column
        figures = progress.figures or [progress.rate()]
        left = f"{progress.left() or '?'} left"
        for layout in (TITLED, PLAIN):
            for shown in range(len(figures), 0, -1):
                values |= {
                    "prefix": progress.title,
                    "text": ", ".join([progress.count(), *figures[:shown], left]),
                    "bar_format": layout,
                }
                # Without a width, the bar has ten characters.
                if len(self.format_meter(**values | {"ncols": None})) <= columns:
                    return self.format_meter(**values | {"ncols": columns})
        return progress.count()[:columns]
