"""What a run will take before it is started: memory, time and cost for every ZeRO stage, and what fits.

    python -m gpt1_ds.plan --nodes 2 --gpus-per-node 8 --gpu-memory 80 model.preset=1.3b
    python -m gpt1_ds.plan --sweep                      # the presets on 8 to 4,096 GPUs, on paper

Memory counts what this project's model saves for backward and what DeepSpeed keeps; time is matrix products at a stated
share of the peak, and the communication that they cannot hide. Sources: Rajbhandari et al. 2020 (ZeRO), sections 5, 7.
"""

import argparse
import dataclasses
import itertools
import math
import sys
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt1_ds.base.errors import ConfigError, command
from gpt1_ds.data.batches import total_steps
from gpt1_ds.data.manifest import read_manifest
from gpt1_ds.data.order import WindowOrder
from gpt1_ds.engine.memory import activation_bytes, state_bytes
from gpt1_ds.model.gpt import GPTConfig
from gpt1_ds.settings import deepspeed_json
from gpt1_ds.settings.command_line import field_docs
from gpt1_ds.settings.deepspeed_json import resolve
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import PRESETS, PretrainConfig

GB = 1e9
FRAMEWORK_GB = 1.5  # context, kernels and communication buffers of a GPU process
ALLOCATOR = 1.05  # fragmentation
PCIE, HOST_MEMORY = (
    25 * GB,
    100 * GB,
)  # bytes/s a GPU for offload, bytes/s a node for the Adam on its CPUs
HIDDEN_SHARE = 2 / 3  # of the compute time, the backward, behind which communication can run
BOOKS_CORPUS_TOKENS = 1_430_000_000
"""BPE tokens an epoch, as one reproduction counted; used where no shards are at hand."""
WAYS = ("0", "1", "2", "2+offload", "3", "3+offload")
PROJECT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Cluster:
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


@dataclass(frozen=True)
class Estimate:
    """One way to run: bytes of each GPU and each node's host, seconds of a step, and why it does not fit, if so."""

    way: str
    micro_batch: int
    states: float
    activations: float
    host: float
    compute_seconds: float
    exposed_seconds: float
    cluster: Cluster

    @property
    def gpu_bytes(self) -> float:
        return (self.states + self.activations) * ALLOCATOR + FRAMEWORK_GB * GB

    @property
    def step_seconds(self) -> float:
        return self.compute_seconds + self.exposed_seconds

    @property
    def misfit(self) -> str:
        reasons = []
        if self.gpu_bytes > self.cluster.gpu_memory * GB:
            states, batch = "model states", "activations: a smaller train.micro_batch helps"
            larger = states if self.states > self.activations else batch
            reasons.append(
                f"{self.gpu_bytes / GB:.0f} of {self.cluster.gpu_memory:.0f} GB a GPU, mostly {larger}"
            )
        if self.host > self.cluster.host_memory * GB:
            reasons.append(f"{self.host / GB:.0f} of {self.cluster.host_memory:.0f} GB a host")
        return "; ".join(reasons)


def estimate(
    shape: GPTConfig,
    cluster: Cluster,
    way: str,
    precision: str,
    global_batch: int,
    micro_batch: int,
    checkpointing: bool,
) -> Estimate:
    stage, gpus = int(way[0]), cluster.gpus
    states, moved = state_bytes(shape.parameters, way, precision, gpus)
    activations = activation_bytes(shape, micro_batch, precision, checkpointing)
    micro_steps = global_batch / gpus / micro_batch
    flops = shape.flops_per_token * global_batch * shape.n_ctx * (4 / 3 if checkpointing else 1)
    peak = cluster.tflops * 1e12 * (0.5 if precision == "fp32" else 1.0)
    compute = flops / (gpus * peak * cluster.utilization)
    low = 4 if precision == "fp32" else 2
    bandwidth = (cluster.network if cluster.nodes > 1 else cluster.nvlink) * GB
    passes = 3 * micro_steps if stage == 3 else 1 + micro_steps * (stage == 2) if stage else 2
    traffic = passes * shape.parameters * low * (gpus - 1) / gpus / bandwidth
    exposed = max(0.0, traffic - HIDDEN_SHARE * compute)
    if moved:
        exposed += moved / PCIE / 4 + moved * cluster.gpus_per_node / HOST_MEMORY
    return Estimate(
        way,
        micro_batch,
        states,
        activations,
        moved * cluster.gpus_per_node,
        compute,
        exposed,
        cluster,
    )


def best(shape: GPTConfig, cluster: Cluster, precision: str, global_batch: int) -> Estimate | None:
    """The fastest way that fits, over stages, micro-batches and activation checkpointing; the simplest among equals."""
    share = global_batch // cluster.gpus
    fitting = [
        (round(found.step_seconds, 4), order, checkpointing, -size, found)
        for order, way in enumerate(WAYS)
        for size in (2**k for k in range(8) if share % 2**k == 0)
        for checkpointing in (False, True)
        if not (
            found := estimate(shape, cluster, way, precision, global_batch, size, checkpointing)
        ).misfit
    ]
    return min(fitting, key=lambda row: row[:4])[4] if fitting else None


def main(argv: list[str]) -> int | None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config",
        metavar="YAML",
        default=str(Path(__file__).parent / "configs/pretrain_gpt1.yaml"),
        help="meaning of the run (default: the paper's)",
    )
    parser.add_argument(
        "--deepspeed_config",
        metavar="JSON",
        default=str(PROJECT / "ds_configs/zero2_bf16.json"),
        help="mechanics: precision and micro-batch (default: zero2_bf16.json)",
    )
    parser.add_argument(
        "--tokens",
        type=int,
        help="training tokens an epoch (default: those of data.shards, or "
        f"BooksCorpus's {BOOKS_CORPUS_TOKENS:,})",
    )
    for field in dataclasses.fields(Cluster):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=field.type,
            default=field.default,
            help=f"{field_docs(Cluster)[field.name]} (default: %(default)s)",
        )
    parser.add_argument(
        "--sweep", action="store_true", help="compare presets and cluster sizes up to 4,096 GPUs"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="as in gpt1_ds/train.py"
    )
    args = parser.parse_intermixed_args(argv)
    cluster = Cluster(
        **{field.name: getattr(args, field.name) for field in dataclasses.fields(Cluster)}
    )
    if min(dataclasses.astuple(cluster)) <= 0 or cluster.utilization > 1:
        raise ConfigError(
            "nodes, GPUs, memory, TFLOP/s, bandwidth and price must be above 0, --utilization at most 1"
        )
    config = load(PretrainConfig, args.config, args.overrides)
    sweep(config, cluster) if args.sweep else table(config, cluster, args)


def table(config: PretrainConfig, cluster: Cluster, args: argparse.Namespace) -> None:
    """One run on one cluster: a line for every stage."""
    ds = resolve(args.deepspeed_config, config, cluster.gpus, on_this_machine=False)
    precision, micro_batch = deepspeed_json.precision(ds), ds["train_micro_batch_size_per_gpu"]
    tokens, vocab_size = corpus(config, args.tokens)
    shape = GPTConfig(
        vocab_size, **{key: value for key, value in vars(config.model).items() if key != "preset"}
    )
    batch = config.train.global_batch
    order = WindowOrder({"all": tokens}, shape.n_ctx, config.run.seed, {})
    steps = total_steps(order, config.train)
    print(
        f"model    {shape.parameters:,} parameters, {shape.flops_per_token / 1e9:.3f} GFLOP a token\n"
        f"data     {tokens:,} tokens an epoch; {steps:,} updates of {batch * shape.n_ctx:,} tokens\n"
        f"cluster  {cluster.nodes} x {cluster.gpus_per_node} GPUs of {cluster.gpu_memory:.0f} GB, {precision}, "
        f"micro-batch {micro_batch}, {cluster.utilization:.0%} of {cluster.tflops:.0f} TFLOP/s\n"
    )
    print(
        f"{'ZeRO':10}{'states':>9}{'activ.':>9}{'GPU':>9}{'host':>9}{'step':>10}{'hours':>10}{'cost':>12}  fits"
    )
    for way in WAYS:
        e = estimate(
            shape,
            cluster,
            way,
            precision,
            batch,
            micro_batch,
            config.train.activation_checkpointing,
        )
        hours = steps * e.step_seconds / 3600
        print(
            f"{way:10}{e.states / GB:7.1f}GB{e.activations / GB:7.1f}GB{e.gpu_bytes / GB:7.1f}GB{e.host / GB:7.0f}GB"
            f"{e.step_seconds:9.3f}s{hours:10,.1f}{hours * cluster.gpus * cluster.price:12,.0f}  "
            f"{'no: ' + e.misfit if e.misfit else 'yes'}"
        )


def sweep(config: PretrainConfig, cluster: Cluster) -> None:
    """Every preset on 8 to 4,096 GPUs: the fastest way that fits, for a batch of at least one window a GPU."""
    heads = ("preset", "GPUs", "batch", "ZeRO", "micro", "GPU", "step", "tokens/s", "exposed")
    print("{:11}{:>6}{:>7}  {:10}{:>6}{:>9}{:>10}{:>14}{:>9}".format(*heads))
    for (name, numbers), gpus in itertools.product(PRESETS.items(), (8, 64, 512, 4096)):
        shape = GPTConfig(40_005, **numbers)
        batch = math.ceil(config.train.global_batch / gpus) * gpus
        sized = dataclasses.replace(cluster, nodes=math.ceil(gpus / cluster.gpus_per_node))
        found = "does not fit"
        if e := best(shape, sized, "bf16", batch):
            speed, exposed = (
                batch * shape.n_ctx / e.step_seconds,
                e.exposed_seconds / e.step_seconds,
            )
            found = (
                f"{e.way:10}{e.micro_batch:6}{e.gpu_bytes / GB:7.1f}GB{e.step_seconds:9.3f}s"
                f"{speed:14,.0f}{exposed:9.0%}"
            )
        print(f"{name:11}{sized.gpus:6}{batch:7}  {found}")


def corpus(config: PretrainConfig, tokens: int | None) -> tuple[int, int]:
    """Training tokens an epoch and the vocabulary's size: of the shards, where there are any."""
    if tokens is None and Path(config.data.shards, "manifest.json").exists():
        manifest = read_manifest(config.data.shards)
        return sum(entry.tokens for entry in manifest.splits["train"].values()), manifest.tokenizer[
            "vocab_size"
        ]
    return tokens or BOOKS_CORPUS_TOKENS, 40_000


cli = command(main, __name__)
