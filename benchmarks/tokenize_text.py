"""Compares tokenising speed on one core with SentencePiece and Hugging Face `tokenizers`.

    python benchmarks/tokenize_text.py TOKENIZER [--text PATH] [--rounds 5]

It takes about a minute for 20 MB of books.

All use an equal BPE and take turns. `cold` starts with an empty word cache; `warm` has seen the
text before. A large corpus is between the two, nearer to `warm`. Ids are compared first. Speeds are
bytes of UTF-8 by processor time, so that other load on the machine has little effect. The results
are medians of the rounds, and of the ratios within a round. `sharding.py` measures the complete
path from files to shards.
"""

import argparse
import gc
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import sentencepiece

from data_prep import sample
from data_prep.reading.cleaning import Cleaning, parse_steps
from data_prep.reading.corpus import Source, SourceReader, find_sources
from gpt1_ds.base.errors import guard
from gpt1_ds.data.tokenizer import MODEL_FILE, load_tokenizer
from gpt1_ds.interchange.tokenizer_json import tokenizer_json

BATCH_CHARACTERS = 1 << 20
Way = Callable[[list[str]], Any]


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks/tokenize_text.py", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "tokenizer",
        type=Path,
        metavar="TOKENIZER",
        help="folder of train_tokenizer or of OpenAI's BPE",
    )
    parser.add_argument(
        "--text", type=Path, metavar="PATH", help="a corpus (default: 4 MB of the embedded sample)"
    )
    parser.add_argument("--megabytes", type=float, default=20, help="how much of it (default: 20)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each way (default: 5)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        if not args.text:
            sample.main(["--out", scratch])
            args.text = Path(scratch) / "books"
        compare(args.tokenizer, args.text, args.megabytes, args.rounds)


def compare(folder: Path, text: Path, megabytes: float, rounds: int) -> None:
    sources = find_sources([f"text={text}"], [])
    batches = list(read(sources, megabytes * 1e6))
    size = sum(len(line.encode()) + 1 for batch in batches for line in batch)
    warm, theirs = load_tokenizer(folder), hugging_face(folder)
    ways: dict[str, Callable[[], Way]] = {
        "tokenizers": lambda: theirs,
        "ours, cold": lambda: load_tokenizer(folder).encode_ragged,
        "ours, warm": lambda: warm.encode_ragged,
    }
    same(warm.encode_batch, theirs, batches, "tokenizers")
    if (folder / MODEL_FILE).exists():
        model = sentencepiece.SentencePieceProcessor(model_file=str(folder / MODEL_FILE))
        ways = {"sentencepiece": lambda: lambda batch: model.encode(batch, num_threads=1)} | ways
        same(warm.encode_batch, ways["sentencepiece"](), batches, "sentencepiece")
    gc.freeze()  # otherwise the garbage collector would scan all lines again and again
    speeds = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            encode = way()
            start = time.process_time()
            for batch in batches:
                encode(batch)
            speeds[name].append(size / (time.process_time() - start) / 1e6)
    base = next(iter(ways))
    print(
        f"{warm.kind}, {warm.vocab_size:,} pieces; {size / 1e6:.1f} MB of {text.name}; {rounds} "
        "rounds"
    )
    print(f"{'':<16}{'MB/s':>8}   times {base}")
    for name, found in speeds.items():
        ratio = statistics.median(a / b for a, b in zip(found, speeds[base], strict=True))
        print(f"{name:<16}{statistics.median(found):>8.2f}{ratio:>9.2f}")


def read(sources: list[Source], limit_bytes: float) -> Iterator[list[str]]:
    """Lines of the cleaned text, in batches of about a million characters, as in
    `build_shards`."""
    cleaning = Cleaning(parse_steps([], {"text"}))
    batch, characters, total = [], 0, 0
    for fragment in itertools.chain.from_iterable(
        SourceReader(source, cleaning).fragments() for source in sources
    ):
        batch += fragment.text.split("\n")
        characters += len(fragment.text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            total += characters
            batch, characters = [], 0
            if total >= limit_bytes:
                return
    if batch:
        yield batch


def hugging_face(folder: Path) -> Way:
    import tokenizers

    converted = tokenizer_json(load_tokenizer(folder), folder)
    fast = tokenizers.Tokenizer.from_str(json.dumps(converted))
    return lambda batch: [
        encoding.ids for encoding in fast.encode_batch_fast(batch, add_special_tokens=False)
    ]


def same(ours: Way, theirs: Way, batches: list[list[str]], name: str) -> None:
    pairs = (pair for batch in batches for pair in zip(ours(batch), theirs(batch), strict=True))
    equal = [a == b for a, b in pairs]
    print(f"ids equal those of {name} on {sum(equal):,} of {len(equal):,} lines")


def cli() -> None:
    guard(main)


if __name__ == "__main__":
    cli()
