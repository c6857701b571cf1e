"""Lists the documents of a training step.

    python -m data_prep.trace runs/gpt1 --step 1000

It prints which documents, and which of their tokens, were in step N of a pre-training run: one line
for each document in a window, with the window (its place in the step), corpus, first and last token
in the document, document, shard and sample. The order is a pure function of the run's
configuration, its shards, the place and the batch size of each start (metrics.jsonl), and the
batches that were skipped after loss spikes (skipped.jsonl). Steps are counted as in metrics.jsonl,
from 1.
"""

import sys
from pathlib import Path

import numpy as np

from data_prep.inspect_shards import document_spans
from gpt1_ds.base.errors import ConfigError, command
from gpt1_ds.base.options import RUN_HELP, Parser, path, run_path
from gpt1_ds.base.records import MOST_STEPS, SKIPPED_FILE, read_metrics, read_object, read_skipped
from gpt1_ds.data.batches import SETTINGS_OF_SIZES, BatchSizes
from gpt1_ds.data.manifest import read_manifest
from gpt1_ds.data.opening import local_shards, open_streams, sound_manifest
from gpt1_ds.data.order import GROUPED_1, Cursor, WindowOrder
from gpt1_ds.data.token_stream import TokenStream
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import PretrainConfig

START_FACTS = ("windows", *SETTINGS_OF_SIZES)


def main(argv: list[str]) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("run", type=run_path, metavar="RUN", help=f"of gpt1_ds.train: {RUN_HELP}")
    option = parser.add_argument_group("options").add_argument
    option("--step", type=int, required=True, metavar="N", help="optimizer step, from 1")
    option(
        "--shards",
        type=path,
        metavar="DIR",
        help="where the run's shards are now (default: where they were)",
    )
    args = parser.parse_args(argv)
    if args.step < 1:
        raise ConfigError(f"--step {args.step}: steps are counted from 1")
    if args.step >= MOST_STEPS:
        raise ConfigError(f"--step {args.step}: no run has so many steps; give one that it did")
    overrides = [f"data.shards={args.shards}"] if args.shards else []
    config = load(PretrainConfig, args.run / "config.yaml", overrides)
    _refuse_untrained(args.run, args.step)
    manifest = read_manifest(local_shards(config.data))
    if config.data.quarantine:
        manifest = sound_manifest(config.data, manifest)
    streams = open_streams(config.data, manifest, "train")
    tokens = {name: stream.tokens for name, stream in streams.items()}
    n_ctx = config.model.n_ctx
    assert n_ctx  # `load` takes it from the preset.
    kind = config.data.order or GROUPED_1  # which early versions did not record
    order = WindowOrder(tokens, n_ctx, config.run.seed, config.data.weights, kind)
    first, size = windows_of(args.run, args.step, BatchSizes.of(config.train), order)
    corpora, starts = order.locate(first + np.arange(size))
    print("window\tcorpus\tfirst\tlast\tdocument\tshard\tsample")
    for window, (number, start) in enumerate(zip(corpora.tolist(), starts.tolist(), strict=True)):
        corpus = order.corpora[number]
        for line in documents_in(streams[corpus], start, n_ctx + 1):
            print(f"{window}\t{corpus}\t{line}")


def _refuse_untrained(run: Path, step: int) -> None:
    """ConfigError for a step that the run did not train, as far as its files say."""
    records = read_metrics(run)
    checkpoints = (run / "checkpoints").glob("step-*")
    known = [int(record["step"]) for record in records]
    known += [int(path.name[5:]) for path in checkpoints if path.name[5:].isdecimal()]
    reported = read_object(run / "status.json").get("step")
    known += [reported] if isinstance(reported, int) else []
    if not known:
        print(
            f"warning: {run}: no record says which steps were trained; step {step} is traced as if"
            " it was",
            file=sys.stderr,
        )
    last = max(known, default=MOST_STEPS)
    if step > last:
        fix = f"choose one from 1 to {last}" if last else "train it first"
        raise ConfigError(f"--step {step}: {run} was trained up to step {last}; {fix}")
    first = min(records, key=lambda record: float(record["step"]), default=None)
    if first and first["split"] == "start" and step <= first["step"]:
        raise ConfigError(
            f"--step {step}: the records of {run} begin after step {first['step']:g}; choose a"
            " later step"
        )


def documents_in(stream: TokenStream, start: int, length: int) -> list[str]:
    """A line for each document of a window: first and last token, document, shard, sample."""
    lines = []
    for number, sample, first, count in stream.spans(start, length):
        shard = stream.shards[number]
        for span in document_spans(stream.path(number), shard, sample, stream.dtype.itemsize):
            begin = max(first, span.first)
            end = min(first + count, span.first + span.tokens)
            if begin < end:
                offset = span.offset - span.first  # from the sample's to the document's count
                place = f"{offset + begin}\t{offset + end - 1}\t{span.document}"
                lines.append(f"{place}\t{shard.file}\t{sample}")
    return lines


def windows_of(run: Path, step: int, sizes: BatchSizes, order: WindowOrder) -> tuple[int, int]:
    """The first window of `step`, which is counted from 1, and the number of its windows.

    A start of an earlier version did not record its place and batches: `sizes` are taken for it.
    """
    windows, before = 0, 0
    starts = [record for record in read_metrics(run, "start") if record["step"] < step]
    if starts and all(isinstance(starts[-1].get(name), int) for name in START_FACTS):
        windows, before = starts[-1]["windows"], starts[-1]["step"]
        sizes = BatchSizes.from_dict(starts[-1])
    for event in read_skipped(run / SKIPPED_FILE):
        last = order.index_of(Cursor(**event["last"]))
        # A rollback before the last start is part of the place where that one began.
        if before <= event["to_step"] < step and last > windows:
            windows, before = last, event["to_step"]
    return windows + sizes.before(step - 1) - sizes.before(before), sizes.at(step - 1)


cli = command(main, __name__)
