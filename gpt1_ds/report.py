"""Write an HTML page about one run or several.

    python -m gpt1_ds.report runs/gpt1
    python -m gpt1_ds.report runs/a runs/b --out both.html

It shows curves against steps, tokens, time and epochs, final numbers beside the expected ones,
data, settings, starts, skipped batches, checkpoints, samples and task scores, and offers all
records as CSV. Whatever comes from files is escaped; the page loads nothing.
"""

import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt1_ds.base.errors import DataError, command
from gpt1_ds.base.files import write_atomically
from gpt1_ds.base.options import RUN_HELP, Parser, path, run_path
from gpt1_ds.reports.page import report_page
from gpt1_ds.reports.run_files import RunFiles


def main(argv: list[str]) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=run_path, metavar="RUN", help=RUN_HELP)
    parser.add_argument(
        "--out",
        type=path,
        metavar="FILE",
        help="page to write (default: RUN/report.html; of several runs report.html)",
    )
    args = parser.parse_args(argv)
    folders: list[Path] = args.runs
    default_folder = folders[0] if len(folders) == 1 else Path()
    out = args.out or default_folder / "report.html"
    runs = [RunFiles(folder) for folder in folders]
    page = report_page(runs)
    for run in runs:
        for text in run.lost:
            print(f"warning: {run.folder}: {text}", file=sys.stderr)
    try:
        # JSON may hold a half of a surrogate pair, which UTF-8 cannot.
        write_atomically(out, page.encode("utf-8", "replace"))
    except OSError as error:
        raise DataError(
            f"--out {out}: {error.strerror}; give a file in a folder that can be written"
        ) from error
    print(out)


cli = command(main, __name__)
