"""The table of runs that `watch` shows, as wide as the terminal."""

from collections.abc import Callable, Sequence

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from gpt1_ds.base.formatting import duration
from gpt1_ds.reports.run_states import RunState

COLORS = {
    "running": "green",
    "starting": "cyan",
    "dead": "bold red",
    "failed": "red",
    "unreadable": "yellow",
    "damaged": "yellow",
}
LINES_BESIDE = 4
"""Lines of a screen that are no rows: the summary, which may take two, head, last line."""
NOTES_SHARE = 3
"""Notes get at most this part of a screen that has no room for all."""


def _step(row: RunState) -> str:
    if row.step is None:
        return ""
    return f"{row.step}/{row.total}" if row.total else str(row.step)


def _checkpoint(row: RunState) -> str:
    if row.checkpoint is None:
        return "none"
    age = "" if row.checkpoint_age is None else f", {duration(row.checkpoint_age)} ago"
    return f"{row.checkpoint}{age}"


def _node(row: RunState) -> str:
    return f"{row.node} x{row.ranks}" if row.ranks and row.node else row.node


COLUMNS: dict[str, tuple[int, Callable[[RunState], str]]] = {
    "run": (0, lambda row: row.name),
    "state": (0, lambda row: row.state),
    "step": (0, _step),
    "loss": (0, lambda row: "" if row.loss is None else f"{row.loss:.4f}"),
    "valid": (80, lambda row: row.score),
    "tok/s": (
        80,
        lambda row: "" if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}",
    ),
    "left": (0, lambda row: "" if row.seconds_left is None else duration(row.seconds_left)),
    "checkpoint": (100, _checkpoint),
    "node": (115, _node),
}
"""Each column: the width of the terminal from which on it is shown, and its text."""
NUMBERS = ("step", "loss", "tok/s", "left")


def table(rows: Sequence[RunState], console: Console, most_rows: int | None = None) -> Group:
    """The table of `rows`, and below it a line for each run with a note.

    With `most_rows`, rows and notes that have no room in so many lines are left out.
    """
    shown = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    names = [name for name, (width, _) in COLUMNS.items() if console.width >= width]
    for name in names:
        if name in NUMBERS:
            shown.add_column(name, justify="right", no_wrap=True)
        else:
            shown.add_column(name, overflow="fold", no_wrap=name == "state")
    notes = [Text(_printable(f"{row.name}: {row.note}")) for row in rows if row.note]
    kept = rows
    if most_rows is not None and most_rows < len(rows) + len(notes):
        kept = rows[: most_rows - min(len(notes), most_rows // NOTES_SHARE)]
        notes = notes[: max(0, most_rows - len(kept))]
    for row in kept:
        texts = [Text(_printable(COLUMNS[name][1](row))) for name in names]
        texts[1].stylize(COLORS.get(row.state, ""))
        shown.add_row(*texts)
    more = len(rows) - len(kept)
    if more:
        notes.append(Text(f"and {more} more: make the terminal higher, or give --once"))
    return Group(shown, *notes)


def summary(rows: Sequence[RunState]) -> str:
    """How many runs are in each state."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.state] = counts.get(row.state, 0) + 1
    states = ", ".join(f"{count} {state}" for state, count in counts.items())
    return f"{len(rows)} run{'s' if len(rows) != 1 else ''}: {states}"


def _printable(text: str) -> str:
    """Names of folders may hold anything, escape sequences of terminals too."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
