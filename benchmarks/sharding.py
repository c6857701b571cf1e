"""Compares the speed of sharding with plain SentencePiece, and checks that the ids are the same.

    python benchmarks/sharding.py tok PATH [--clean STEPS] [--rounds 3]

PATH is a file or a folder with about 100 MB of books.

`encode` is `SentencePieceProcessor.encode` with one thread, for clean text in memory. `1 process`
and `2 ranks` are complete runs of `data_prep.build_shards`: start, reading the files, writing
shards and manifest. They take turns. MB are MB of clean text. The result is the best of the rounds.
CPU seconds are the time that the processes run on a core, without the time of other programs.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import sentencepiece

from data_prep.reading.cleaning import Cleaning, add_option, parse_steps
from data_prep.reading.corpus import SourceReader, find_sources
from data_prep.verify_shards import iter_samples
from gpt1_ds.data.manifest import read_manifest
from gpt1_ds.data.tokenizer import MODEL_FILE, load_tokenizer

# By default Open MPI refuses to run as root, but containers often run as root.
os.environ.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
ROOT = Path(__file__).resolve().parents[1]
LAUNCHERS = {
    "1 process": [],
    "2 ranks": [str(Path(sys.executable).with_name("mpirun")), "--oversubscribe", "-n", "2"],
}


def clean_documents(corpus: str, cleaning: Cleaning) -> list[str]:
    documents = [""]
    for source in find_sources([f"c={corpus}"], []):
        for fragment in SourceReader(source, cleaning).fragments():
            documents[-1] += ("\n" if documents[-1] and fragment.text else "") + fragment.text
            if fragment.last:
                documents.append("")
    return documents[:-1]


def timed(command: list[str]) -> tuple[float, float]:
    """The wall seconds, and the CPU seconds of all ranks together."""
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"error: {' '.join(command)} failed")
    return time.monotonic() - started, usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("tokenizer", type=Path, help="folder of a SentencePiece model")
    parser.add_argument("corpus", help="text, a file or a folder")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each way (default: 3)")
    add_option(parser.add_argument)
    args = parser.parse_args()
    documents = clean_documents(args.corpus, Cleaning(parse_steps(args.clean, ["c"])))
    megabytes = sum(len(document.encode()) for document in documents) / 1e6
    model = sentencepiece.SentencePieceProcessor(model_file=str(args.tokenizer / MODEL_FILE))
    eot = load_tokenizer(args.tokenizer).special_ids["eot"]
    seconds: dict[str, list[tuple[float, float]]] = {"encode": [], **{way: [] for way in LAUNCHERS}}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.rounds):
            wall, cpu = time.monotonic(), time.process_time()
            ids = [model.encode(document, num_threads=1) for document in documents]
            seconds["encode"].append((time.monotonic() - wall, time.process_time() - cpu))
            for way, launcher in LAUNCHERS.items():
                out = Path(folder) / f"{number} {way}"
                options = [
                    "--tokenizer",
                    args.tokenizer,
                    "--corpus",
                    f"c={args.corpus}",
                    "--validation-fraction",
                    0,
                ]
                options += [
                    "--duplicate-paragraphs",
                    0,
                    *(word for steps in args.clean for word in ("--clean", steps)),
                ]
                command = [
                    *launcher,
                    sys.executable,
                    "-m",
                    "data_prep.build_shards",
                    *options,
                    "--out",
                    out,
                ]
                seconds[way].append(timed([str(word) for word in command]))
        shards = read_manifest(out).splits["train"]["c"].shards
        sharded_T = np.concatenate(
            [tokens for shard in shards for tokens, _, _ in iter_samples(out / shard.file)]
        )
    raw_T = np.concatenate([np.array([*one, eot], np.int64) for one in ids])
    print(
        f"{megabytes:.1f} MB in {len(documents):,} documents, {len(raw_T):,} tokens; {args.rounds}"
        " rounds"
    )
    print(f"{'':<12}{'MB/s':>8}{'MB per CPU second':>20}{'beside encode, per core':>26}")
    best = {
        way: tuple(megabytes / min(column) for column in zip(*times, strict=True))
        for way, times in seconds.items()
    }
    for way, (wall, cpu) in best.items():
        print(f"{way:<12}{wall:>8.2f}{cpu:>20.2f}{cpu / best['encode'][1]:>25.2f}x")
    print(f"2 ranks are {best['2 ranks'][0] / best['1 process'][0]:.2f}x as fast as 1 process")
    print(f"ids {'the same' if np.array_equal(raw_T, sharded_T) else 'DIFFER'}")


if __name__ == "__main__":
    main()
