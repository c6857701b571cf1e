"""Which documents, and which of their tokens, were in step N of a pre-training run.

    python -m data_prep.trace runs/gpt1 --step 1000

One line for each document in a window: window (its place in the step), corpus, first and last token in the document,
document, shard and sample. The order is a pure function of the run's configuration, its shards, and the batches that
loss spikes made it skip (skipped.jsonl). Steps are counted as in metrics.jsonl, from 1; the batch settings must have
been the same from the start.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from data_prep.inspect_shards import parts
from gpt1_ds.base.errors import ConfigError, command
from gpt1_ds.data.batches import BatchSizes
from gpt1_ds.data.manifest import read_manifest
from gpt1_ds.data.opening import local_shards, open_streams, sound_manifest
from gpt1_ds.data.order import WindowOrder
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import PretrainConfig


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.trace", description=__doc__.split("\n")[0]
    )
    parser.add_argument("run", type=Path, help="run folder (runs/NAME) of gpt1_ds.train")
    parser.add_argument(
        "--step", type=int, required=True, metavar="N", help="optimizer step, from 1"
    )
    parser.add_argument(
        "--shards", metavar="DIR", help="where the run's shards are now (default: where they were)"
    )
    args = parser.parse_args(argv)
    if args.step < 1:
        raise ConfigError(f"--step {args.step}: steps are counted from 1")
    config = load(
        PretrainConfig,
        args.run / "config.yaml",
        [f"data.shards={args.shards}"] if args.shards else [],
    )
    manifest = read_manifest(local_shards(config.data))
    if config.data.quarantine:
        manifest = sound_manifest(config.data, manifest)
    streams = open_streams(config.data, manifest, "train")
    order = WindowOrder(
        {name: stream.tokens for name, stream in streams.items()},
        config.model.n_ctx,
        config.run.seed,
        config.data.weights,
    )
    sizes = BatchSizes.of(config.train)
    first = first_window(args.run / "skipped.jsonl", args.step, sizes, order)
    corpora, starts = order.locate(first + np.arange(sizes.at(args.step - 1)))
    print("window\tcorpus\tfirst\tlast\tdocument\tshard\tsample")
    for window, (corpus, start) in enumerate(zip(corpora.tolist(), starts.tolist(), strict=True)):
        stream = streams[order.corpora[corpus]]
        for number, sample, first, count in stream.spans(start, config.model.n_ctx + 1):
            shard = stream.shards[number]
            for part in parts(stream.path(number), manifest, shard, sample):
                begin, end = max(first, part.first), min(first + count, part.first + part.tokens)
                if begin < end:
                    offset = part.offset - part.first
                    print(
                        f"{window}\t{order.corpora[corpus]}\t{offset + begin}\t{offset + end - 1}\t{part.document}\t"
                        f"{shard.file}\t{sample}"
                    )


def first_window(ledger: Path, step: int, sizes: BatchSizes, order: WindowOrder) -> int:
    """Windows in front of `step`, counted from 1, in the order: trained, or skipped by the last rollback before it."""
    events = map(
        json.loads, ledger.read_text(encoding="utf-8").splitlines() if ledger.exists() else ()
    )
    before = [event for event in events if event["to_step"] < step]
    if not before:
        return sizes.before(step - 1)
    cursor, to_step = before[-1]["last"], before[-1]["to_step"]
    return (
        cursor["epoch"] * order.epoch_windows
        + cursor["index"]
        + sizes.before(step - 1)
        - sizes.before(to_step)
    )


cli = command(main, __name__)
