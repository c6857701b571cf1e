"""Checks and times the training of GPT-1 on one GPU, beside other code, within a given time.

    python benchmarks/gpu.py OUT [--wheels FOLDER] [--seconds 540] [--nanogpt PATH]

It needs a Python with a CUDA build of torch (2.11 or newer), no network, and no other package:
those that are missing are installed from FOLDER into a temporary one. `make gpu-wheels` fills such
a folder for Python 3.12, on a machine with network. OUT.json and OUT.md have the results after each
row, most valuable rows first, so that they are there whenever the run ends. OUT-kernels.txt and
OUT-trace.json.gz are of one step of train.py. A check that fails is a row, like all others. Exit
code 1: a check failed, or a row that can run here did not.

GPT-1 with 512 tokens, random tokens, dropout 0.1, clipping and the optimizer; MFU is relative to
the dense bf16 peak in the data sheet. Without a GPU it runs on the CPU, where
`--layers 1 --width 48 --vocab 600 --windows 1 --steps 1 --loop-steps 8` tests it.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.on_gpu import report
from benchmarks.on_gpu.rows import Options, in_order
from benchmarks.on_gpu.running import Result, Row, run_rows
from benchmarks.on_gpu.wheels import install_missing
from gpt1_ds.base.errors import guard

BEGAN = time.monotonic()
ROOT = Path(__file__).resolve().parents[1]
RESERVE_SECONDS = 5.0
"""For the last files and the end of the last child."""
STOPPED = ("failed", "fault")


def _parser() -> argparse.ArgumentParser:
    default = Options()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    option = parser.add_argument
    option("out", type=Path, metavar="OUT", help="where the results go, without their ending")
    option("--wheels", type=Path, metavar="FOLDER", help="wheels of packages that are missing")
    option("--seconds", type=float, default=540.0, help="when the run is over (default: 540)")
    option("--patience", type=float, default=1.0, help="factor of each row's longest time")
    option("--nanogpt", type=Path, metavar="PATH", help="checkout of nanoGPT; else it is left out")
    option("--only", nargs="+", metavar="WORDS", help="rows whose name has one of these words")
    option("--windows", type=int, nargs="+", default=default.windows, help="micro-batches")
    option("--steps", type=int, default=default.steps, help="of each of three timings")
    option("--loop-steps", type=int, default=default.loop_steps, help="steps of train.py")
    option("--layers", type=int, default=default.layers, help="blocks")
    option("--width", type=int, default=default.width, help="a multiple of 12")
    option("--vocab", type=int, default=default.vocab_size, help="size of the vocabulary")
    return parser


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    out = args.out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    options = Options(
        args.layers,
        tuple(args.windows),
        args.steps,
        args.loop_steps,
        args.width,
        args.vocab,
        str(out),
    )
    rows = [row._replace(seconds=args.patience * row.seconds) for row in in_order(options)]
    if args.only:
        rows = [row for row in rows if any(word in row.name for word in args.only)]
    with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": folder}
        if args.nanogpt:
            environment["NANOGPT"] = str(args.nanogpt.resolve())
        if args.wheels:
            packages = Path(folder, "packages")
            installed = install_missing(args.wheels, packages)
            print(f"installed: {', '.join(installed)}", file=sys.stderr, flush=True)
            environment["PYTHONPATH"] += f"{os.pathsep}{packages}"
        return work(rows, environment, args.seconds, out)


def work(rows: list[Row], environment: dict[str, str], seconds: float, out: Path) -> int:
    """Work `rows` until `seconds` after the start, with both files written after each of them."""
    results: list[tuple[Row, Result]] = []

    def done(row: Row, result: Result) -> None:
        results.append((row, result))
        passed = f"{time.monotonic() - BEGAN:.0f}"
        report.write(out, results, {"rows": f"{len(results)} of {len(rows)}", "seconds": passed})
        print(f"{passed:>4} s  {row.name}: {result}", file=sys.stderr, flush=True)

    run_rows(rows, environment, BEGAN + seconds - RESERVE_SECONDS, done)
    print(out.with_name(f"{out.name}.md").read_text(encoding="utf-8"))
    return int(any(report.verdict(result) in STOPPED for _, result in results))


if __name__ == "__main__":
    guard(main)
