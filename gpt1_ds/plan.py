"""Plan a run: memory, time and cost.

    python -m gpt1_ds.plan --nodes 2 --gpus-per-node 8 model.preset=1.3b
    python -m gpt1_ds.plan --sweep
    python -m gpt1_ds.plan --nodes 64 --deepspeed_config zero1_bf16 --rehearse

The first shows every ZeRO stage, the second compares the presets on 8 to 4,096 GPUs; both are
computed, nothing is started. The third runs the real engine here, for three steps, as one rank of
512 that are not there, and prints memory, collectives and host time beside the plan's.

Memory is what this project's model saves for the backward pass and what DeepSpeed keeps. Time is
that of the matrix products at a stated share of the peak, and of what DeepSpeed sends that they
cannot hide; but never less than the host needs to launch a step.
"""

import argparse
import dataclasses
import itertools
import math
import sys
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt1_ds.base.arguments import numeric
from gpt1_ds.base.bounds import COUNT, POSITIVE, Bounds
from gpt1_ds.base.errors import ConfigError, command
from gpt1_ds.base.options import Parser
from gpt1_ds.base.protocols import Json
from gpt1_ds.data.batches import total_steps
from gpt1_ds.data.manifest import read_manifest
from gpt1_ds.data.order import WindowOrder
from gpt1_ds.engine.defaults import buckets
from gpt1_ds.engine.host_time import MEASURED_LAYERS, MEASURED_ON
from gpt1_ds.engine.traffic import parts_of, quantized
from gpt1_ds.model.gpt import GPTConfig
from gpt1_ds.runs.estimate import (
    BYTES_OF_A_TOKEN,
    GB,
    UNKNOWN_VOCAB_SIZE,
    ZERO_VARIANTS,
    Cluster,
    Estimate,
    Job,
    best,
    check_seconds,
    estimate,
)
from gpt1_ds.runs.setup import shape_of
from gpt1_ds.settings import deepspeed_json
from gpt1_ds.settings.command_line import add_config, add_deepspeed_config, field_docs
from gpt1_ds.settings.deepspeed_json import resolve
from gpt1_ds.settings.json_check import read
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import PRESETS, PretrainConfig
from gpt1_ds.settings.shipped import DEFAULT_CONFIG, config_path, ds_config_path
from gpt1_ds.settings.spelling import spelling_for

BOOKS_CORPUS_TOKENS = 1_430_000_000
"""BPE tokens an epoch, as one reproduction counted; used where no shards are at hand."""
MACHINES = Bounds(high=1_000_000, open_low=True)
SWEEP_GPUS = (8, 64, 512, 4096)
DOMAINS = {
    "nodes": MACHINES,
    "gpus_per_node": MACHINES,
    "utilization": Bounds(high=1, open_low=True),
}
"""Of the numbers of a cluster; all others are above 0."""
DEFAULT_DS_CONFIG = "zero2_bf16"


def main(argv: list[str]) -> int | None:
    args = _parser().parse_intermixed_args(argv)
    names = [field.name for field in dataclasses.fields(Cluster)]
    cluster = Cluster(**{name: getattr(args, name) for name in names})
    yaml_path = args.config or config_path(False)(DEFAULT_CONFIG)
    config = load(PretrainConfig, yaml_path, args.overrides)
    json = args.deepspeed_config or ds_config_path(DEFAULT_DS_CONFIG)
    if args.rehearse_layers is not None and not args.rehearse:
        raise ConfigError("--rehearse-layers is given without --rehearse; add it")
    for name, given in (("--sweep", args.sweep), ("--tokens", args.tokens is not None)):
        if args.rehearse and given:
            raise ConfigError(f"--rehearse does not go with {name}; leave one out")
    if args.sweep:
        sweep(config, cluster, json)
    elif args.rehearse:
        rehearsal(config, cluster, json, args.rehearse_layers)
    else:
        table(config, cluster, json, args.tokens)
    return None


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__)
    parser.spelling = spelling_for(PretrainConfig)
    run = parser.add_argument_group("the run").add_argument
    add_config(run, False, DEFAULT_CONFIG)
    add_deepspeed_config(run, DEFAULT_DS_CONFIG)
    run(
        "--tokens",
        metavar="N",
        type=numeric("--tokens", int, COUNT),
        help="training tokens an epoch (default: those of data.shards, or "
        f"BooksCorpus's {BOOKS_CORPUS_TOKENS:,})",
    )
    run(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="settings of the run, as for gpt1_ds.train",
    )
    cluster = parser.add_argument_group("the cluster").add_argument
    docs = field_docs(Cluster)
    for field in dataclasses.fields(Cluster):
        option = f"--{field.name.replace('_', '-')}"
        kind = int if isinstance(field.default, int) else float
        cluster(
            option,
            metavar="N",
            type=numeric(option, kind, DOMAINS.get(field.name, POSITIVE)),
            default=field.default,
            help=f"{docs[field.name]} (default: %(default)s)",
        )
    cluster(
        "--sweep", action="store_true", help="compare presets and cluster sizes up to 4,096 GPUs"
    )
    rehearse = parser.add_argument_group("a rehearsal on this machine").add_argument
    rehearse(
        "--rehearse",
        action="store_true",
        help="run the real engine for three steps as one of the cluster's ranks",
    )
    rehearse(
        "--rehearse-layers",
        metavar="N",
        type=numeric("--rehearse-layers", int, COUNT),
        help="only so many blocks of the model, where memory has no room for more (default: all)",
    )
    return parser


def rehearsal(
    config: PretrainConfig, cluster: Cluster, deepspeed_config: str, layers: int | None
) -> None:
    """The real engine as rank 0 of the cluster, beside the plan."""
    # These import DeepSpeed's and the checkpoints' code, which the other plans do not need.
    from gpt1_ds.runs.rehearsal import prepare, rehearse
    from gpt1_ds.runs.rehearsal_host import rehearse_host
    from gpt1_ds.runs.rehearsal_table import print_heading, print_table

    run = prepare(config, deepspeed_config, cluster.gpus, layers)
    all_layers = shape_of(config.model)["n_layer"]
    print_heading(run, cluster, all_layers)
    found = rehearse(run)
    host = rehearse_host(run.with_layers(all_layers))
    print_table(run, all_layers, found, host)


def table(
    config: PretrainConfig, cluster: Cluster, deepspeed_config: str, tokens: int | None
) -> None:
    """One run on one cluster: a line for every ZeRO variant."""
    ds = resolve(deepspeed_config, config, cluster.gpus, on_this_machine=False)
    for line in deepspeed_json.warnings(deepspeed_config, ds, config):
        print(line, file=sys.stderr)
    precision, micro_batch = deepspeed_json.precision(ds), ds["train_micro_batch_size_per_gpu"]
    corpus = _corpus(config, tokens)
    shape = GPTConfig(corpus.vocab_size, **shape_of(config.model))
    batch = config.train.global_batch
    order = WindowOrder({"all": corpus.tokens}, shape.n_ctx, config.run.seed, {})
    steps = total_steps(order, config.train, shape.flops_per_token)
    checking = check_seconds(corpus.shard_bytes, cluster) if config.data.verify else 0.0
    zero = ds.get("zero_optimization", {})
    print(
        f"model    {shape.parameters:,} parameters, "
        f"{shape.flops_per_token / 1e9:.3f} GFLOP a token\n"
        f"data     {corpus.tokens:,} tokens an epoch; "
        f"{steps:,} updates of {batch * shape.n_ctx:,} tokens\n"
        f"cluster  {cluster.nodes} x {cluster.gpus_per_node} GPUs of {cluster.gpu_memory:.0f} GB, "
        f"{precision}, micro-batch {micro_batch}, "
        f"{cluster.utilization:.0%} of {cluster.tflops:.0f} TFLOP/s (your figure)\n"
        f"network  {buckets_text(ds, shape)}\n"
        f"start    {corpus.shard_bytes / GB:.1f} GB of shards checked in {checking:.0f} s "
        "(data.verify)\n"
        f"host     {HOST_NOTE}\n"
    )
    print(HEADS.format(*COLUMNS))
    job = Job(
        shape,
        precision,
        batch,
        zero,
        config.train.activation_checkpointing,
        config.checkpoint.every,
    )
    for variant in ZERO_VARIANTS:
        found = estimate(job, cluster, variant, micro_batch)
        waits = checking + steps // job.checkpoint_every * found.save_seconds
        print(_row(found, (steps * found.seconds.step + waits) / 3600))
    print(LEGEND)


COLUMNS = (
    *("ZeRO", "states", "activ.", "GPU", "node", "products", "network", "hidden"),
    *("launch", "step", "save", "hours", "cost", " fits"),
)
HEADS = "{:9}{:>7}{:>7}{:>7}{:>6}{:>9}{:>8}{:>7}{:>8}{:>8}{:>6}{:>9}{:>10} {}"
HOST_NOTE = (
    f"launch times are those of {MEASURED_ON}, at {MEASURED_LAYERS} layers; untried beside a GPU"
)
LEGEND = """
A step takes its products, the communication that they do not hide, and offload; but never less than
the host needs to launch it. `save` is what training waits for a checkpoint. Times are in seconds,
memory in GB: of a GPU, and of a node for offload. No GPU has been measured yet."""


def buckets_text(ds: Json, shape: GPTConfig) -> str:
    """How the reductions of the JSON are cut, and whether they overlap."""
    elements = sum(part.elements for part in parts_of(shape))
    chosen = buckets(ds, elements, on_gpu=True)
    if not chosen.elements:
        return f"gradients of {elements:,} elements, reduced after the backward pass"
    count = math.ceil(elements / chosen.elements)
    pieces = "one bucket, which nothing hides" if count == 1 else f"{count} buckets"
    overlap = "sent during the backward pass" if chosen.overlap else "without overlap_comm"
    text = f"gradients of {elements:,} elements in {pieces}, {overlap}"
    if keys := quantized(ds.get("zero_optimization", {})):
        text += f"\n         not counted: {' and '.join(keys)}, with which ZeRO-3 sends fewer bytes"
    return text


def _row(found: Estimate, hours: float) -> str:
    seconds = found.seconds
    hidden = 1 - seconds.exposed / seconds.network if seconds.network else 0.0
    bound = " (host-bound)" if seconds.host >= seconds.step else ""
    fits = f"no: {found.misfit}" if found.misfit else f"yes{bound}"
    cost = hours * found.cluster.gpus * found.cluster.price
    memory = (found.states, found.activations, found.gpu_bytes)
    cells = (
        found.zero_variant,
        *(f"{size / GB:.1f}" for size in memory),
        f"{found.host / GB:.0f}",
        f"{seconds.products:.4f}",
        f"{seconds.network:.4f}",
        f"{max(0.0, hidden):.0%}",
        f"{seconds.host:.4f}",
        f"{seconds.step:.4f}",
        f"{found.save_seconds:.1f}",
        f"{hours:,.1f}",
        f"{cost:,.0f}",
        f" {fits}",
    )
    return HEADS.format(*cells)


def sweep(config: PretrainConfig, cluster: Cluster, deepspeed_config: str) -> None:
    """Every preset on `SWEEP_GPUS`: the fastest estimate that fits, in bf16.

    The batch is the run's, rounded up to a multiple of the GPUs. Buckets are those of the JSON.
    """
    zero = read(deepspeed_config).get("zero_optimization", {})
    heads = ("preset", "GPUs", "batch", "ZeRO", "micro", "GPU", "step", "tokens/s", "exposed")
    print("{:11}{:>6}{:>7}  {:10}{:>6}{:>9}{:>10}{:>14}{:>9}  bound by".format(*heads))
    for (name, numbers), gpus in itertools.product(PRESETS.items(), SWEEP_GPUS):
        shape = GPTConfig(UNKNOWN_VOCAB_SIZE + 5, **numbers)
        batch = math.ceil(config.train.global_batch / gpus) * gpus
        sized = dataclasses.replace(cluster, nodes=math.ceil(gpus / cluster.gpus_per_node))
        found = best(Job(shape, "bf16", batch, zero), sized)
        text = "does not fit" if found is None else _sweep_row(found, batch * shape.n_ctx)
        print(f"{name:11}{sized.gpus:6}{batch:7}  {text}")
    print(f"\n{HOST_NOTE}")


def _sweep_row(found: Estimate, tokens: int) -> str:
    seconds = found.seconds
    causes = {
        "host": seconds.host if seconds.host >= seconds.step else 0.0,
        "products": seconds.products,
        "network": seconds.exposed,
        "offload": seconds.offload,
    }
    exposed = seconds.exposed / (seconds.step if seconds.host < seconds.step else math.inf)
    return (
        f"{found.zero_variant:10}{found.micro_batch:6}{found.gpu_bytes / GB:7.1f}GB"
        f"{seconds.step:9.3f}s{tokens / seconds.step:14,.0f}{exposed:9.0%}"
        f"  {max(causes, key=lambda cause: causes[cause])}"
    )


class Corpus(NamedTuple):
    tokens: int
    """Training tokens an epoch."""
    vocab_size: int
    shard_bytes: float


def _corpus(config: PretrainConfig, tokens: int | None) -> Corpus:
    """That of the shards, if there are any and `tokens` is not given."""
    if tokens is None and Path(config.data.shards, "manifest.json").exists():
        manifest = read_manifest(config.data.shards)
        found = sum(entry.tokens for entry in manifest.splits["train"].values())
        size = sum(shard.bytes for shard in manifest.shards())
        return Corpus(found, manifest.tokenizer["vocab_size"], size)
    tokens = tokens or BOOKS_CORPUS_TOKENS
    return Corpus(tokens, UNKNOWN_VOCAB_SIZE, tokens * BYTES_OF_A_TOKEN)


cli = command(main, __name__)
