"""Measures loading against other libraries, resuming, big manifests, and the mixture.

    python benchmarks/loading.py                    two minutes; 50 million tokens below TMPDIR
    python benchmarks/loading.py --shards shards    on shards of your own

The variants take turns, so that other load on the machine affects all of them. Each figure is the
median of the rounds. All files are in the page cache, but for the last table, which reads each
order from a cold one (a corpus worth it: --tokens 800000000). A batch has 64 windows of 513 tokens
as int64. This project and the memory map read the same random windows. WebDataset reads its samples
in order and cuts them into windows.
"""

import argparse
import dataclasses
import importlib.util
import itertools
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from tqdm import tqdm

from gpt1_ds.base.errors import guard
from gpt1_ds.data.batches import TABLE_WINDOWS, Batches, Share
from gpt1_ds.data.manifest import (
    MANIFEST,
    SAMPLE_TOKENS,
    CorpusEntry,
    Manifest,
    Shard,
    read_manifest,
    write_manifest,
)
from gpt1_ds.data.order import SHUFFLES, Cursor, WindowOrder
from gpt1_ds.data.shard_writer import ShardWriter
from gpt1_ds.data.token_stream import TokenStream

BATCH, N_CTX, ROUNDS, TURN_SECONDS = 64, 512, 15, 0.2
VOCAB_SIZE, SHARD_TOKENS = 40_000, 1 << 24
BOOK_TOKENS = 100_000
TOKENIZER = {
    "kind": "none",
    "files": [],
    "sha256": "",
    "vocab_size": VOCAB_SIZE,
    "special_ids": {"eot": 4},
}


def make_corpus(root: Path, tokens: int) -> None:
    """Random tokens in books of 100,000, laid out as build_shards does."""
    rng, shards = np.random.default_rng(0), []
    for number, size in enumerate(
        [SHARD_TOKENS] * (tokens // SHARD_TOKENS) + [tokens % SHARD_TOKENS]
    ):
        with ShardWriter(
            root, f"train/books/books-{number:06d}.tar", "books", VOCAB_SIZE
        ) as writer:
            for begin in range(0, size, SAMPLE_TOKENS):
                count = min(SAMPLE_TOKENS, size - begin)
                writer.add(rng.integers(0, VOCAB_SIZE, count), [("book", -(begin % BOOK_TOKENS))])
            shards.append(writer.close())
    write_manifest(
        root, Manifest(TOKENIZER, {}, {"train": {"books": CorpusEntry(0, tokens, shards)}})
    )


def per_batch(contenders: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Milliseconds a batch for each variant: the median of alternating rounds."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in tqdm(range(ROUNDS), "rounds", disable=None):
        for name, action in contenders.items():
            action()
            count, began = 0, time.perf_counter()
            while time.perf_counter() < began + TURN_SECONDS:
                action()
                count += 1
            times[name].append((time.perf_counter() - began) / count * 1000)
    return {name: float(np.median(values)) for name, values in times.items()}


def compare(root: Path, manifest: Manifest, scratch: Path) -> None:
    import webdataset

    corpus, entry = max(manifest.splits["train"].items(), key=lambda item: item[1].tokens)
    stream = TokenStream(root, manifest, "train", corpus)
    flat = scratch / "flat.bin"
    flat.write_bytes(
        stream.read(np.zeros(1, np.int64), stream.tokens)[0].astype(manifest.dtype).tobytes()
    )
    memory_map = np.memmap(flat, manifest.dtype, mode="r")
    rng = np.random.default_rng(1)
    starts = [rng.integers(0, stream.tokens - N_CTX - 1, BATCH) for _ in range(1000)]
    ours, alone_B, gathered, sliced = (itertools.cycle(starts) for _ in range(4))
    window_T = np.arange(N_CTX + 1)
    batches, first = (
        Batches({corpus: stream}, order_of(stream.tokens), Cursor(), BATCH, BATCH, Share(0, 1)),
        iter(range(10**9)),
    )

    def web(urls: list[str], shuffle: int) -> Iterator[np.ndarray]:
        rows: list[np.ndarray] = []
        while True:
            for sample in webdataset.WebDataset(urls, shardshuffle=False).shuffle(shuffle).decode():
                tokens = sample["tokens.npy"]
                rows += [tokens[at : at + N_CTX + 1] for at in range(0, len(tokens) - N_CTX, N_CTX)]
                while len(rows) >= BATCH:
                    yield np.stack(rows[:BATCH]).astype(np.int64)
                    del rows[:BATCH]

    single = [str(scratch / "single.tar")]
    with webdataset.TarWriter(single[0]) as writer:
        for number, tokens in enumerate(
            stream.read(np.arange(20_000) * N_CTX, N_CTX + 1).astype(manifest.dtype)
        ):
            writer.write({"__key__": f"{number:06d}", "tokens.npy": tokens})
    urls = [str(root / shard.file) for shard in entry.shards]
    plain, alone, shuffled = web(urls, 0), web(single, 0), web(single, 1000)
    contenders = {
        "ours, as training reads": lambda: tables(stream, ours),
        "ours, a batch alone": lambda: stream.read(next(alone_B), N_CTX + 1),
        "ours, with the order, to torch": lambda: batches.read(next(first) * BATCH),
        "memmap, one gather": lambda: memory_map[next(gathered)[:, None] + window_T].astype(
            np.int64
        ),
        "memmap, a slice a window": lambda: np.stack(
            [memory_map[at : at + N_CTX + 1] for at in next(sliced)]
        ).astype(np.int64),
        "WebDataset, these shards, in order": lambda: next(plain),
        "WebDataset, a sample a window": lambda: next(alone),
        "the same, shuffle(1000)": lambda: next(shuffled),
    }
    times = per_batch(contenders)
    if importlib.util.find_spec("streaming"):
        # It runs last, because its threads never end and would slow the other variants.
        mosaic = iterate_streaming(scratch / "streaming", stream)
        times |= per_batch({"mosaicml streaming, shuffled": lambda: next(mosaic)})
    else:
        print("mosaicml streaming is left out: pip install mosaicml-streaming")
    print(
        f"{stream.tokens:,} tokens of {corpus} in {len(entry.shards)} shards; {BATCH} x "
        f"{N_CTX + 1} a batch"
    )
    print(f"{'':34s}{'ms a batch':>12s}{'windows/s':>12s}{'ours is faster by':>20s}")
    best = times["ours, as training reads"]
    for name, milliseconds in times.items():
        print(
            f"{name:34s}{milliseconds:12.3f}{BATCH / milliseconds * 1000:12,.0f}"
            f"{milliseconds / best:19.1f}x"
        )


def iterate_streaming(folder: Path, stream: TokenStream) -> Iterator[np.ndarray]:
    """Batches from mosaicml's StreamingDataset, with one window in each sample."""
    from streaming import MDSWriter, StreamingDataset

    rows = stream.read(np.arange(20_000) * N_CTX, N_CTX + 1).astype(np.uint16)
    with MDSWriter(out=str(folder), columns={"tokens": f"ndarray:uint16:{N_CTX + 1}"}) as writer:
        for tokens in rows:
            writer.write({"tokens": tokens})
    dataset = StreamingDataset(local=str(folder), shuffle=True, batch_size=BATCH)
    samples = itertools.chain.from_iterable(itertools.repeat(dataset))
    while True:
        yield np.stack([sample["tokens"] for sample in itertools.islice(samples, BATCH)]).astype(
            np.int64
        )


TABLE: list[np.ndarray] = []


def tables(stream: TokenStream, starts: Iterator[np.ndarray]) -> np.ndarray:
    """A batch from a table of several batches, read as `Batches` does."""
    if not TABLE:
        steps = TABLE_WINDOWS // BATCH
        packed = stream.read_packed(np.concatenate([next(starts) for _ in range(steps)]), N_CTX + 1)
        TABLE.extend(packed.reshape(steps, BATCH, -1))
    return TABLE.pop().astype(np.int64)


def order_of(tokens: int, seed: int = 1) -> WindowOrder:
    return WindowOrder({"books": tokens}, N_CTX, seed, {})


def resume(scratch: Path, like: Shard) -> None:
    """Time the first batch at 90 % of an epoch. The shards are sparse files of a real size."""
    heads = f"{'shards':>12s}{'open, ms':>12s}{'first batch, ms':>20s}{'the best':>12s}"
    print(f"\n{'resume at 90 % of an epoch':34s}{heads}")
    for n_shards in (6, 600, 60_000):
        root = scratch / f"sparse-{n_shards}"
        shards = [
            dataclasses.replace(like, file=f"train/books/books-{n:06d}.tar")
            for n in range(n_shards)
        ]
        (root / "train" / "books").mkdir(parents=True)
        for shard in shards:
            with open(root / shard.file, "wb") as file:
                file.truncate(shard.bytes)
        manifest = Manifest(
            TOKENIZER, {}, {"train": {"books": CorpusEntry(0, like.tokens * n_shards, shards)}}
        )
        times = []
        for seed in range(15):
            began = time.perf_counter()
            stream = TokenStream(root, manifest, "train", "books")
            opened = time.perf_counter()
            order = order_of(stream.tokens, seed)
            cursor = Cursor(0, int(0.9 * order.epoch_windows) // BATCH * BATCH)
            next(iter(Batches({"books": stream}, order, cursor, BATCH, BATCH, Share(0, 1))))
            times.append((opened - began, time.perf_counter() - opened))
        (open_ms, first_ms), best = (
            np.median(times, axis=0) * 1000,
            min(first for _, first in times) * 1000,
        )
        print(
            f"{f'{stream.tokens:,} tokens':34s}{n_shards:12,}{open_ms:12.2f}{first_ms:20.2f}"
            f"{best:12.2f}"
        )


def cold(root: Path, manifest: Manifest) -> None:
    """Time batches of each order whose shards are not in the page cache."""
    corpus, entry = max(manifest.splits["train"].items(), key=lambda item: item[1].tokens)
    print(f"\n{'from a cold page cache, ms a batch':34s}{'the first 20':>14s}{'20 to 400':>14s}")
    for kind in SHUFFLES:
        for shard in entry.shards:
            evict(root / shard.file)
        stream = TokenStream(root, manifest, "train", corpus)
        order = WindowOrder({corpus: stream.tokens}, N_CTX, 1, {}, kind)
        batches = Batches({corpus: stream}, order, Cursor(), BATCH, BATCH, Share(0, 1))
        times = []
        for number in range(min(400, order.epoch_windows // BATCH)):
            began = time.perf_counter()
            batches.read(number * BATCH)
            times.append(1000 * (time.perf_counter() - began))
        stream.unmap()
        print(f"{kind:34s}{np.mean(times[:20]):14.2f}{np.mean(times[20:]):14.2f}")


def evict(path: Path) -> None:
    """Drop a file from the page cache. No process may have it mapped."""
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)


def big_manifest(scratch: Path, like: Shard, n_shards: int) -> None:
    text = json.dumps(dataclasses.asdict(like), default=list)
    before, after = text.split(json.dumps(like.file))
    with open(scratch / MANIFEST, "w") as file:
        documents, tokens = like.documents * n_shards, like.tokens * n_shards
        tokenizer = json.dumps(TOKENIZER)
        file.write(f'{{"version": 1, "preparation": {{}}, "tokenizer": {tokenizer}, ')
        file.write(f'"splits": {{"train": {{"books": {{"documents": {documents}, ')
        file.write(f'"tokens": {tokens}, "shards": [')
        file.writelines(
            f'{"," if n else ""}{before}"train/books/books-{n:06d}.tar"{after}'
            for n in range(n_shards)
        )
        file.write("]}}}}")
    size, began = (scratch / MANIFEST).stat().st_size, time.perf_counter()
    manifest = read_manifest(scratch)
    seconds, samples = time.perf_counter() - began, like.samples * n_shards
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"\nmanifest of {n_shards:,} shards, {samples:,} samples, "
        f"{len(manifest.shards()) * like.tokens:,} tokens: "
        f"{size / 1e6:,.0f} MB, read and checked in {seconds:.1f} s; the process grew to {rss:.1f}"
        " GB"
    )


def mixture() -> None:
    mixed = WindowOrder(
        {"books": 10**9, "lm1b": 8 * 10**8, "small": 10**7},
        N_CTX,
        1,
        {"books": 5, "lm1b": 4, "small": 1},
    )
    corpus, _ = mixed.locate(np.arange(mixed.epoch_windows))
    shares = np.bincount(corpus) / len(corpus)
    print(
        "\nmixture asked 50 %, 40 %, 10 %: over an epoch "
        + ", ".join(f"{share:.4%}" for share in shares)
    )


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/loading.py", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "--shards", type=Path, metavar="DIR", help="shard directory (default: a made one)"
    )
    parser.add_argument(
        "--tokens", type=int, default=50_000_000, help="size of the made one (default: %(default)s)"
    )
    parser.add_argument(
        "--manifest-shards",
        type=int,
        default=100_000,
        help="of the big manifest (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="loading-") as folder:
        root, scratch = args.shards or Path(folder) / "shards", Path(folder)
        if not args.shards:
            make_corpus(root, args.tokens)
        manifest = read_manifest(root)
        compare(root, manifest, scratch)
        like = max(manifest.shards(), key=lambda shard: shard.tokens)
        resume(scratch, like)
        mixture()
        cold(root, manifest)
        big_manifest(scratch, like, args.manifest_shards)


if __name__ == "__main__":
    guard(main)
