"""One self-contained HTML page about one run, or several side by side.

    python -m gpt1_ds.report runs/gpt1                      # runs/gpt1/report.html
    python -m gpt1_ds.report runs/a runs/b --out both.html

Curves against steps, tokens and hours, final numbers, data, configuration, starts, skipped batches, checkpoints,
samples, task scores. Layer 3, template: report.html. Whatever comes from files is escaped; the page loads nothing.
"""

import argparse
import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt1_ds.base.errors import DataError, command
from gpt1_ds.base.files import write_atomically
from gpt1_ds.reports.page import render
from gpt1_ds.reports.run_files import Run


def main(argv: list[str]) -> int | None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder (runs/NAME)")
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="page to write (default: RUN/report.html; of several runs report.html)",
    )
    args = parser.parse_args(argv)
    folders = [Path(run) for run in args.runs]
    out = (
        Path(args.out)
        if args.out
        else folders[0] / "report.html"
        if len(folders) == 1
        else Path("report.html")
    )
    page = render([Run(folder) for folder in folders])
    try:
        write_atomically(out, page)
    except OSError as error:
        raise DataError(
            f"--out {out}: {error.strerror}; give a file in a folder that can be written"
        ) from error
    print(out)


cli = command(main, __name__)
