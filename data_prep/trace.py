"""Which documents, and which of their tokens, were in step N of a pre-training run.

    python -m data_prep.trace runs/gpt1 --step 1000

One line for each document in a window: window (its place in the step), corpus, first and last token in the document,
document, shard and sample. The order is a pure function of the run's configuration and its shards: nothing was logged.
Steps are counted as in metrics.jsonl, from 1, and train.global_batch must have been the same from the start.
"""

import argparse
from pathlib import Path

import numpy as np

from data_prep.inspect_shards import parts
from gpt1_ds.config import PretrainConfig, load
from gpt1_ds.dataloader import WindowOrder, local_shards, open_streams, sound_manifest
from gpt1_ds.errors import ConfigError, guard
from gpt1_ds.shards import read_manifest


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m data_prep.trace", description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="run folder (runs/NAME) of gpt1_ds.train")
    parser.add_argument("--step", type=int, required=True, metavar="N", help="optimizer step, from 1")
    parser.add_argument("--shards", metavar="DIR", help="where the run's shards are now (default: where they were)")
    args = parser.parse_args(argv)
    if args.step < 1:
        raise ConfigError(f"--step {args.step}: steps are counted from 1")
    config = load(PretrainConfig, args.run / "config.yaml", [f"data.shards={args.shards}"] if args.shards else [])
    manifest = read_manifest(local_shards(config.data))
    if config.data.quarantine:
        manifest = sound_manifest(config.data, manifest)
    streams = open_streams(config.data, manifest, "train")
    order = WindowOrder({name: stream.tokens for name, stream in streams.items()}, config.model.n_ctx,
                        config.run.seed, config.data.weights)  # fmt: skip
    batch = config.train.global_batch
    corpora, starts = order.locate((args.step - 1) * batch + np.arange(batch))
    print("window\tcorpus\tfirst\tlast\tdocument\tshard\tsample")
    for window, (corpus, start) in enumerate(zip(corpora.tolist(), starts.tolist(), strict=True)):
        stream = streams[order.corpora[corpus]]
        for number, sample, first, count in stream.spans(start, config.model.n_ctx + 1):
            shard = stream.shards[number]
            for part in parts(stream.path(number), manifest, shard, sample):
                begin, end = max(first, part.first), min(first + count, part.first + part.tokens)
                if begin < end:
                    offset = part.offset - part.first
                    print(f"{window}\t{order.corpora[corpus]}\t{offset + begin}\t{offset + end - 1}\t{part.document}\t"
                          f"{shard.file}\t{sample}")  # fmt: skip


def cli() -> None:
    guard(main)


if __name__ == "__main__":
    cli()
