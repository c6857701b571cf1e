"""Show all runs in a table that follows them.

    python -m gpt1_ds.watch
    python -m gpt1_ds.watch runs /scratch/ada/runs --every 10
    python -m gpt1_ds.watch --once

It shows state, step, loss, speed, time left, last checkpoint and node of each run; a wide terminal
shows more. Folders may be runs or hold runs, at several levels. Nothing is written or locked, so
runs of other users can be watched too. Ctrl-C ends it; the runs go on.
"""

import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from gpt1_ds.base.arguments import numeric
from gpt1_ds.base.bounds import Bounds
from gpt1_ds.base.errors import DataError, command
from gpt1_ds.base.options import Parser, path
from gpt1_ds.reports.run_states import Watched
from gpt1_ds.reports.watch_table import LINES_BESIDE, summary, table

PLAIN_WIDTH = 160
"""Columns of a table that goes into a file or a pipe."""
EVERY = Bounds(low=0.2, high=3600)


def main(argv: list[str]) -> None:
    args = _parser().parse_args(argv)
    for root in args.runs:
        if not root.is_dir():
            raise DataError(f"{root}: no such folder; give the folder of a run, or of runs")
    watched = Watched(args.runs)
    is_terminal = sys.stdout.isatty()
    console = Console(highlight=False) if is_terminal else Console(width=PLAIN_WIDTH)
    if args.once or not is_terminal:
        rows = watched.states(time.time())
        console.print(table(rows, console) if rows else nothing(args.runs))
        return
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # give the screen back
    try:
        follow(watched, console, args.every)
    except KeyboardInterrupt:
        console.print("stopped watching; the runs go on")


def _parser() -> Parser:
    parser = Parser(description=__doc__)
    option = parser.add_argument
    runs_help = "folder of a run, or of runs (default: runs)"
    option("runs", nargs="*", type=path, default=[Path("runs")], metavar="FOLDER", help=runs_help)
    once_help = "print the table once and end, as into a file or a pipe"
    option("--once", action="store_true", help=once_help)
    every = numeric("--every", float, EVERY)
    option("--every", type=every, default=2.0, metavar="SECONDS", help="how often runs are read")
    return parser


def follow(watched: Watched, console: Console, every: float) -> None:
    """Show the table until Ctrl-C, on a screen of its own if the terminal has one."""
    if console.is_dumb_terminal:
        while True:
            console.print(screen(watched, console))
            time.sleep(every)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(screen(watched, console), refresh=True)
            time.sleep(every)


def screen(watched: Watched, console: Console) -> Group:
    rows = watched.states(time.time())
    if not rows:
        return Group(Text(nothing(watched.roots)))
    most = None if console.is_dumb_terminal else max(1, console.height - LINES_BESIDE)
    clock = time.strftime("%H:%M:%S")
    # Above the table: what has no room is cut off below.
    return Group(Text(f"{clock}  {summary(rows)}  (Ctrl-C ends)"), table(rows, console, most))


def nothing(roots: Sequence[Path]) -> str:
    return f"no runs in {', '.join(map(str, roots))}"


cli = command(main, __name__)
