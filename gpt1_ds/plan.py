"""Plan a run: memory, time and cost.

    python -m gpt1_ds.plan --nodes 2 --gpus-per-node 8 model.preset=1.3b
    python -m gpt1_ds.plan --sweep

The first shows every ZeRO stage, the second compares the presets on 8 to 4,096 GPUs. All of it is
computed, nothing is started.

Memory is what this project's model saves for the backward pass and what DeepSpeed keeps
(`engine/memory.py`). Time is that of the matrix products at a stated share of the peak, and of the
communication that they cannot hide. Source: Rajbhandari et al. 2020 (ZeRO), sections 5 and 7.
"""

import argparse
import dataclasses
import itertools
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt1_ds.base.arguments import numeric
from gpt1_ds.base.bounds import COUNT, POSITIVE, Bounds
from gpt1_ds.base.errors import command
from gpt1_ds.base.options import Parser
from gpt1_ds.data.batches import total_steps
from gpt1_ds.data.manifest import read_manifest
from gpt1_ds.data.order import WindowOrder
from gpt1_ds.engine.memory import activation_bytes, gpu_bytes, state_bytes
from gpt1_ds.model.gpt import GPTConfig
from gpt1_ds.settings import deepspeed_json
from gpt1_ds.settings.command_line import add_config, add_deepspeed_config, field_docs
from gpt1_ds.settings.deepspeed_json import resolve
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import PRESETS, PretrainConfig
from gpt1_ds.settings.shipped import DEFAULT_CONFIG, config_path, ds_config_path
from gpt1_ds.settings.spelling import spelling_for

GB = 1e9
PCIE = 25 * GB
"""Bytes a second between a GPU and its host, for offload."""
HOST_MEMORY = 100 * GB
"""Bytes a second of a node's memory, for the Adam on its CPUs."""
HIDDEN_SHARE = 2 / 3
"""Share of the compute time (the backward pass) during which communication can run unseen."""
BOOKS_CORPUS_TOKENS = 1_430_000_000
"""BPE tokens an epoch, as one reproduction counted; used where no shards are at hand."""
UNKNOWN_VOCAB_SIZE = 40_000
"""The paper's, where no shards are at hand."""
ZERO_VARIANTS = ("0", "1", "2", "2+offload", "3", "3+offload")
MACHINES = Bounds(high=1_000_000, open_low=True)
SWEEP_GPUS = (8, 64, 512, 4096)
DOMAINS = {
    "nodes": MACHINES,
    "gpus_per_node": MACHINES,
    "utilization": Bounds(high=1, open_low=True),
}
"""Of the numbers of a cluster; all others are above 0."""
DEFAULT_DS_CONFIG = "zero2_bf16"


@dataclass(frozen=True)
class Cluster:
    """Machines to plan for. Each field is an option; the text under it is its help."""

    nodes: int = 2
    """nodes"""
    gpus_per_node: int = 8
    """GPUs (ranks) a node"""
    gpu_memory: float = 80.0
    """memory of a GPU, GB"""
    host_memory: float = 1000.0
    """memory of a node, GB"""
    tflops: float = 989.0
    """dense bf16 peak of a GPU, TFLOP/s"""
    utilization: float = 0.4
    """share of that peak which training reaches, as your own runs show (train/mfu)"""
    network: float = 50.0
    """bandwidth between nodes, GB/s a GPU"""
    nvlink: float = 450.0
    """bandwidth inside a node, GB/s a GPU"""
    price: float = 2.5
    """price of a GPU-hour"""

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def bandwidth(self) -> float:
        """Bytes a second of a GPU on the slowest link between ranks."""
        return (self.network if self.nodes > 1 else self.nvlink) * GB


@dataclass(frozen=True)
class Estimate:
    """Memory and time of one way to run: bytes, and seconds of an optimizer step."""

    zero_variant: str
    micro_batch: int
    states: float
    """Bytes a GPU of weights, gradients and optimizer states."""
    activations: float
    """Bytes a GPU."""
    host: float
    """Bytes a node, moved there by offload."""
    compute_seconds: float
    exposed_seconds: float
    """Communication and offload that computation does not hide."""
    cluster: Cluster

    @property
    def gpu_bytes(self) -> float:
        return gpu_bytes(self.states, self.activations)

    @property
    def step_seconds(self) -> float:
        return self.compute_seconds + self.exposed_seconds

    @property
    def misfit(self) -> str:
        """Why it does not fit the cluster; empty if it does."""
        reasons = []
        memory = self.cluster.gpu_memory
        if self.gpu_bytes > memory * GB:
            larger = "activations: a smaller train.micro_batch helps"
            if self.states > self.activations:
                larger = "model states"
            reasons.append(f"{self.gpu_bytes / GB:.0f} of {memory:.0f} GB a GPU, mostly {larger}")
        if self.host > self.cluster.host_memory * GB:
            reasons.append(f"{self.host / GB:.0f} of {self.cluster.host_memory:.0f} GB a host")
        return "; ".join(reasons)


def estimate(
    shape: GPTConfig,
    cluster: Cluster,
    zero_variant: str,
    precision: str,
    global_batch: int,
    micro_batch: int,
    checkpointing: bool,
) -> Estimate:
    """Memory and time of a step of `global_batch` windows, in micro-batches of `micro_batch` a GPU.

    Activation checkpointing computes the forward pass twice: 4 units of work where there were 3.
    Offload sends a quarter of the moved bytes over PCIe, and Adam on the CPUs reads all of them.
    """
    stage, gpus = int(zero_variant[0]), cluster.gpus
    states, moved = state_bytes(shape.parameters, zero_variant, precision, gpus)
    flops = shape.flops_per_token * global_batch * shape.n_ctx * (4 / 3 if checkpointing else 1)
    peak = cluster.tflops * 1e12 * (0.5 if precision == "fp32" else 1.0)
    compute = flops / (gpus * peak * cluster.utilization)
    value_bytes = 4 if precision == "fp32" else 2
    passes = _model_transfers(stage, global_batch / gpus / micro_batch)
    traffic = passes * shape.parameters * value_bytes * (gpus - 1) / gpus / cluster.bandwidth
    exposed = max(0.0, traffic - HIDDEN_SHARE * compute)
    if moved:
        exposed += moved / PCIE / 4 + moved * cluster.gpus_per_node / HOST_MEMORY
    return Estimate(
        zero_variant=zero_variant,
        micro_batch=micro_batch,
        states=states,
        activations=activation_bytes(shape, micro_batch, precision, checkpointing),
        host=moved * cluster.gpus_per_node,
        compute_seconds=compute,
        exposed_seconds=exposed,
        cluster=cluster,
    )


def _model_transfers(stage: int, micro_steps: float) -> float:
    """How often a step sends the model's size through the network (Rajbhandari et al., section 7).

    An all-reduce counts twice, a reduce-scatter and an all-gather once each.
    """
    if stage == 0:
        return 2
    if stage == 1:
        return 1
    if stage == 2:
        return 1 + micro_steps
    return 3 * micro_steps


def best(shape: GPTConfig, cluster: Cluster, precision: str, global_batch: int) -> Estimate | None:
    """The fastest estimate that fits, over ZeRO variants, micro-batches and checkpointing.

    Among equally fast ones the simplest: the lower variant, then no checkpointing, then the larger
    micro-batch.
    """
    share = global_batch // cluster.gpus
    sizes = [2**power for power in range(8) if share % 2**power == 0]
    fitting = []
    for order, variant in enumerate(ZERO_VARIANTS):
        for size, checkpointing in itertools.product(sizes, (False, True)):
            found = estimate(shape, cluster, variant, precision, global_batch, size, checkpointing)
            if not found.misfit:
                rank = (round(found.step_seconds, 4), order, checkpointing, -size)
                fitting.append((rank, found))
    if not fitting:
        return None
    return min(fitting, key=lambda pair: pair[0])[1]


def main(argv: list[str]) -> int | None:
    args = _parser().parse_intermixed_args(argv)
    names = [field.name for field in dataclasses.fields(Cluster)]
    cluster = Cluster(**{name: getattr(args, name) for name in names})
    yaml_path = args.config or config_path(False)(DEFAULT_CONFIG)
    config = load(PretrainConfig, yaml_path, args.overrides)
    if args.sweep:
        sweep(config, cluster)
    else:
        json = args.deepspeed_config or ds_config_path(DEFAULT_DS_CONFIG)
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
    return parser


def table(
    config: PretrainConfig, cluster: Cluster, deepspeed_config: str, tokens: int | None
) -> None:
    """One run on one cluster: a line for every ZeRO variant."""
    ds = resolve(deepspeed_config, config, cluster.gpus, on_this_machine=False)
    for line in deepspeed_json.warnings(deepspeed_config, ds, config):
        print(line, file=sys.stderr)
    precision, micro_batch = deepspeed_json.precision(ds), ds["train_micro_batch_size_per_gpu"]
    corpus = _corpus(config, tokens)
    numbers = dataclasses.asdict(config.model)
    del numbers["preset"]
    shape = GPTConfig(corpus.vocab_size, **numbers)
    batch = config.train.global_batch
    order = WindowOrder({"all": corpus.tokens}, shape.n_ctx, config.run.seed, {})
    steps = total_steps(order, config.train)
    print(
        f"model    {shape.parameters:,} parameters, "
        f"{shape.flops_per_token / 1e9:.3f} GFLOP a token\n"
        f"data     {corpus.tokens:,} tokens an epoch; "
        f"{steps:,} updates of {batch * shape.n_ctx:,} tokens\n"
        f"cluster  {cluster.nodes} x {cluster.gpus_per_node} GPUs of {cluster.gpu_memory:.0f} GB, "
        f"{precision}, micro-batch {micro_batch}, "
        f"{cluster.utilization:.0%} of {cluster.tflops:.0f} TFLOP/s\n"
    )
    print(
        f"{'ZeRO':10}{'states':>9}{'activ.':>9}{'GPU':>9}{'host':>9}"
        f"{'step':>10}{'hours':>10}{'cost':>12}  fits"
    )
    checkpointing = config.train.activation_checkpointing
    for variant in ZERO_VARIANTS:
        found = estimate(shape, cluster, variant, precision, batch, micro_batch, checkpointing)
        print(_row(found, steps))


def _row(found: Estimate, steps: int) -> str:
    hours = steps * found.step_seconds / 3600
    cost = hours * found.cluster.gpus * found.cluster.price
    fits = f"no: {found.misfit}" if found.misfit else "yes"
    return (
        f"{found.zero_variant:10}{found.states / GB:7.1f}GB{found.activations / GB:7.1f}GB"
        f"{found.gpu_bytes / GB:7.1f}GB{found.host / GB:7.0f}GB"
        f"{found.step_seconds:9.3f}s{hours:10,.1f}{cost:12,.0f}  {fits}"
    )


def sweep(config: PretrainConfig, cluster: Cluster) -> None:
    """Every preset on `SWEEP_GPUS`: the fastest estimate that fits, in bf16.

    The batch is the run's, rounded up to a multiple of the GPUs.
    """
    heads = ("preset", "GPUs", "batch", "ZeRO", "micro", "GPU", "step", "tokens/s", "exposed")
    print("{:11}{:>6}{:>7}  {:10}{:>6}{:>9}{:>10}{:>14}{:>9}".format(*heads))
    for (name, numbers), gpus in itertools.product(PRESETS.items(), SWEEP_GPUS):
        shape = GPTConfig(UNKNOWN_VOCAB_SIZE + 5, **numbers)
        batch = math.ceil(config.train.global_batch / gpus) * gpus
        sized = dataclasses.replace(cluster, nodes=math.ceil(gpus / cluster.gpus_per_node))
        found = best(shape, sized, "bf16", batch)
        text = "does not fit" if found is None else _sweep_row(found, batch * shape.n_ctx)
        print(f"{name:11}{sized.gpus:6}{batch:7}  {text}")


def _sweep_row(found: Estimate, tokens: int) -> str:
    speed = tokens / found.step_seconds
    exposed = found.exposed_seconds / found.step_seconds
    return (
        f"{found.zero_variant:10}{found.micro_batch:6}{found.gpu_bytes / GB:7.1f}GB"
        f"{found.step_seconds:9.3f}s{speed:14,.0f}{exposed:9.0%}"
    )


class Corpus(NamedTuple):
    tokens: int
    """Training tokens an epoch."""
    vocab_size: int


def _corpus(config: PretrainConfig, tokens: int | None) -> Corpus:
    """That of the shards, if there are any and `tokens` is not given."""
    if tokens is None and Path(config.data.shards, "manifest.json").exists():
        manifest = read_manifest(config.data.shards)
        found = sum(entry.tokens for entry in manifest.splits["train"].values())
        return Corpus(found, manifest.tokenizer["vocab_size"])
    return Corpus(tokens or BOOKS_CORPUS_TOKENS, UNKNOWN_VOCAB_SIZE)


cli = command(main, __name__)
