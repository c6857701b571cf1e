"""Runs all CPU benchmarks, one after the other, as `make bench` does.

    python benchmarks/bench.py SHARDS [--only ROW ..] [--corpus stories] [--nanogpt PATH]
        [--shakespeare FILE] [--max-size 1e8]

SHARDS is quickstart/shards after `make quickstart`, or your own folder. --help lists the rows with
their minutes on 2 idle CPU cores. Each row prints its own table. If a row fails, the others still
run. The `test` extra installs transformers and tokenizers for comparison; `pip install
mosaicml-streaming` adds one more library; nanoGPT needs a checkout, and `shakespeare` char-rnn's
tinyshakespeare/input.txt, without which it is left out. benchmarks/README.md has the
target figures and the measured ones. For a GPU there is `gpu.py`, which is run separately.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt1_ds.base.errors import DataError, guard

HERE = Path(__file__).resolve().parent
# Row: minutes, and the script with its arguments. Words in capitals are placeholders.
ROWS = {
    "step": (9, "train_step.py NANOGPT"),
    "host": (4, "host.py"),
    "ranks": (5, "runs.py SHARDS --threads"),
    "startup": (2, "runs.py SHARDS --startup"),
    "busy": (8, "busy.py SHARDS"),
    "checkpoint": (2, "runs.py SHARDS --checkpoint"),
    "scaling": (4, "runs.py SHARDS --scaling"),
    "sharding": (3, "sharding.py SHARDS/tokenizer SAMPLE/books"),
    "tokenizing": (1, "tokenize_text.py SHARDS/tokenizer"),
    "loading": (3, "loading.py"),
    "finetuning": (3, "finetuning.py --data SAMPLE/tasks/SST-2 --tokenizer SHARDS/tokenizer"),
    "generation": (4, "generation.py"),
    "shakespeare": (6, "shakespeare.py TEXT NANOGPT"),
    "growth-model": (1, "growth.py model"),
    "growth-corpus": (1, "growth.py corpus SHARDS/tokenizer --max-size MAX_SIZE"),
    "gather": (1, "scale.py gather"),
    "resize": (2, "scale.py resize"),
    "start": (2, "scale.py start"),
    "ngram": (1, "ngram.py SHARDS --valid-corpus CORPUS"),
}


def main(argv: list[str]) -> int:
    listed = "".join(
        f"\n  {name:15}{minutes:3} min  {words}" for name, (minutes, words) in ROWS.items()
    )
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\nrows:{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shards", type=Path, metavar="SHARDS")
    parser.add_argument(
        "--only", nargs="+", choices=ROWS, metavar="ROW", help="these rows (default: all)"
    )
    parser.add_argument(
        "--corpus", default="stories", help="the corpus of SHARDS that `ngram` validates on"
    )
    parser.add_argument(
        "--nanogpt", type=Path, metavar="PATH", help="checkout of nanoGPT; left out without it"
    )
    parser.add_argument(
        "--shakespeare",
        type=Path,
        metavar="FILE",
        help="text of `shakespeare`; left out without it",
    )
    parser.add_argument(
        "--max-size",
        type=float,
        default=1e8,
        help="bytes of text in `growth-corpus` (default: 1e8)",
    )
    args = parser.parse_args(argv)
    if not (args.shards / "manifest.json").exists():
        raise DataError(
            f"{args.shards}: no shards here: make quickstart first, or name others: make "
            "SHARDS=DIR bench"
        )
    failed = []
    with tempfile.TemporaryDirectory(prefix="bench-") as sample:
        make = [sys.executable, "-m", "data_prep.sample", "--out", sample, "--megabytes", "24"]
        subprocess.run(make, cwd=HERE.parent, check=True, stdout=subprocess.DEVNULL)
        nanogpt = f"--nanogpt {args.nanogpt.resolve()}" if args.nanogpt else ""
        filled = {
            "SHARDS": str(args.shards.resolve()),
            "SAMPLE": sample,
            "CORPUS": args.corpus,
            "NANOGPT": nanogpt,
            "TEXT": str(args.shakespeare.resolve()) if args.shakespeare else "",
            "MAX_SIZE": f"{args.max_size:.0f}",
        }
        for name in args.only or ROWS:
            if name == "shakespeare" and not args.shakespeare:
                print("\n== shakespeare: left out, since --shakespeare FILE is not given")
                continue
            minutes, words = ROWS[name]
            print(f"\n== {name}: {words} (about {minutes} min)", flush=True)
            for placeholder, value in filled.items():
                words = words.replace(placeholder, value)
            script, *options = words.split()
            began = time.monotonic()
            if subprocess.run(
                [sys.executable, HERE / script, *options], cwd=HERE.parent
            ).returncode:
                failed.append(name)
            print(f"== {name}: {time.monotonic() - began:.0f} s", flush=True)
    if failed:
        print(f"error: these rows failed: {', '.join(failed)}; see above", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    guard(main)
