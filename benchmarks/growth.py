"""Measures how costs grow with the size of the model and with the size of the corpus.

    python benchmarks/growth.py model [--steps 6]                    about 3 minutes on 2 CPU cores
    python benchmarks/growth.py corpus TOKENIZER [--max-size 1e9]

The second command takes about 4 minutes for up to 1 GB, and needs 2 GB in TMPDIR.

`model` times a training step of a small GPT in bf16 with ZeRO-1 on one process. It varies layers,
width or context, one at a time. If time grows as the matrix products do, GFLOP/s are constant.
`runs.py --scaling` varies the world size. `corpus` makes books of random words from the sample: 10
MB, then ten times as much, up to --max-size. One process shards and reads each corpus. Memory and
the time of the first batch should not grow. `loading.py` tests a manifest of 100,000 shards.
"""

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch

from benchmarks.sharding import timed
from data_prep.stories import words as story_words
from gpt1_ds.data.batches import Batches, Share
from gpt1_ds.data.manifest import read_manifest
from gpt1_ds.data.order import Cursor, WindowOrder
from gpt1_ds.data.token_stream import TokenStream
from gpt1_ds.distributed import rendezvous
from gpt1_ds.engine.start import initialize
from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.settings.deepspeed_json import resolve
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import PretrainConfig

ROOT = Path(__file__).resolve().parents[1]
VOCAB_SIZE, WINDOWS, HEAD_WIDTH = 2048, 4, 64
BASE = {"layers": 4, "width": 256, "context": 256}
RANGES = {
    "layers": (2, 4, 8, 16),
    "width": (128, 256, 512, 1024),
    "context": (64, 128, 256, 512, 1024),
}
BOOK_BYTES, BATCH, N_CTX, BATCHES = 500_000, 64, 512, 50


def step_seconds(layers: int, width: int, context: int, steps: int) -> tuple[float, float]:
    """The median seconds of a step, and the GFLOP of a step."""
    config = load(
        PretrainConfig, None, [f"train.global_batch={WINDOWS}", f"train.micro_batch={WINDOWS}"]
    )
    shape = GPTConfig(VOCAB_SIZE, layers, width // HEAD_WIDTH, width, context)
    trainer = initialize(
        GPT(shape), config, resolve(ROOT / "ds_configs" / "zero1_bf16.json", config, 1)
    )
    ids_BT, times = torch.randint(0, VOCAB_SIZE, (WINDOWS, context + 1)), []
    for _ in range(steps + 2):
        began = time.perf_counter()
        trainer.backward(trainer(ids_BT[:, :-1], ids_BT[:, 1:])[1].mean())
        trainer.step()
        times.append(time.perf_counter() - began)
    trainer.destroy()
    return statistics.median(times[2:]), shape.flops_per_token * WINDOWS * context / 1e9


def model(steps: int) -> None:
    os.environ["DS_ACCELERATOR"] = "cpu"
    rendezvous.join_process_group(600.0)
    base = ", ".join(f"{value} {name}" for name, value in BASE.items())
    print(
        f"a step of {WINDOWS} windows; where not varied {base}\n{'':16}{'seconds':>9}{'GFLOP':>9}"
        f"{'GFLOP/s':>9}"
    )
    for name, values in RANGES.items():
        for value in values:
            seconds, gflop = step_seconds(**BASE | {name: value}, steps=steps)
            print(
                f"{f'{name} {value}':16}{seconds:9.3f}{gflop:9.1f}{gflop / seconds:9.1f}",
                flush=True,
            )


def write_books(folder: Path, size: int) -> None:
    """Write sentences of 12 random words of the sample's vocabulary. The first words are the
    commonest."""
    rng = np.random.default_rng(size)
    lists = [value for value in vars(story_words).values() if isinstance(value, list)]
    words = np.array(
        sorted({word for phrase in sum(lists, []) for word in str(phrase).lower().split()})
    )
    folder.mkdir()
    for number in range(-(-size // BOOK_BYTES)):
        left = min(BOOK_BYTES, size - number * BOOK_BYTES)
        picks = (len(words) * rng.random((left // 78, 12)) ** 3).astype(int)
        lines = [" ".join(row) + " ." for row in words[picks]]
        (folder / f"{number:06d}.txt").write_text("\n".join(lines), encoding="utf-8")


def corpus(tokenizer: Path, max_size: float) -> None:
    print(
        f"{'text':>9}{'sharding':>10}{'peak':>9}{'tokens':>15}{'shards':>8}{'manifest':>10}"
        f"{'open':>9}"
        f"{'batch at 90 %':>15}{'windows/s':>11}"
    )
    size = 10_000_000
    while size <= max_size:
        with tempfile.TemporaryDirectory(prefix="growth-") as folder:
            books, root = Path(folder) / "books", Path(folder) / "shards"
            write_books(books, size)
            written = sum(path.stat().st_size for path in books.iterdir())
            seconds, _ = timed(
                [
                    sys.executable,
                    "-m",
                    "data_prep.build_shards",
                    "--tokenizer",
                    str(tokenizer),
                    "--corpus",
                    f"c={books}",
                    "--validation-fraction",
                    "0",
                    "--duplicate-paragraphs",
                    "0",
                    "--out",
                    str(root),
                ]
            )
            peak = (
                resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
            )  # the maximum so far, and this corpus is the largest so far
            began = time.perf_counter()
            manifest = read_manifest(root)
            stream = TokenStream(root, manifest, "train", "c")
            opened = time.perf_counter()
            order = WindowOrder({"c": stream.tokens}, N_CTX, 1, {})
            cursor = Cursor(0, int(0.9 * order.epoch_windows) // BATCH * BATCH)
            batches = Batches({"c": stream}, order, cursor, BATCH, BATCH, Share(0, 1))
            next(iter(batches))
            first = time.perf_counter() - opened
            began_reading = time.perf_counter()
            for number in range(BATCHES):
                batches.read(number * BATCH)
            rate = BATCHES * BATCH / (time.perf_counter() - began_reading)
            print(
                f"{written / 1e6:6.0f} MB{written / seconds / 1e6:5.1f} MB/s{peak:6.2f} "
                f"GB{stream.tokens:15,}"
                f"{len(manifest.shards()):8}{(root / 'manifest.json').stat().st_size / 1e3:7.0f} kB"
                f"{(opened - began) * 1e3:6.1f} ms{first * 1e3:12.2f} ms{rate:11,.0f}",
                flush=True,
            )
        size *= 10


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(dest="part", required=True)
    parts.add_parser("model").add_argument(
        "--steps", type=int, default=6, help="timed steps of each shape"
    )
    options = parts.add_parser("corpus")
    options.add_argument("tokenizer", type=Path, help="its folder")
    options.add_argument("--max-size", type=float, default=1e9, help="bytes of text (default: 1e9)")
    args = parser.parse_args()
    model(args.steps) if args.part == "model" else corpus(args.tokenizer, args.max_size)


if __name__ == "__main__":
    main()
