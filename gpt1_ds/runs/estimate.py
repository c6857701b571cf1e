"""Memory and time of a run on a cluster, computed: the numbers of `gpt1_ds.plan`.

A step takes as long as its matrix products at a stated share of the peak, the communication that
they cannot hide, and what offload moves; but never less than the host needs to launch it
(`engine/host_time.py`). Beside the steps, training waits for the copies of checkpoints and, at the
start, for the check of the shards.
"""

import itertools
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

from gpt1_ds.base.protocols import Json
from gpt1_ds.engine.defaults import buckets
from gpt1_ds.engine.host_time import host_seconds
from gpt1_ds.engine.memory import (
    activation_bytes,
    gpu_bytes,
    hpz_ranks,
    model_states,
    saved_bytes,
    state_bytes,
)
from gpt1_ds.engine.traffic import (
    Link,
    exposed_gathers,
    exposed_reduction,
    gathered_nearby,
    step_traffic,
)
from gpt1_ds.model.gpt import GPTConfig
from gpt1_ds.settings.deepspeed_json import zero_stage

GB = 1e9
PCIE = 25 * GB
"""Bytes a second between a GPU and its host, for offload."""
HOST_MEMORY = 100 * GB
"""Bytes a second of a node's memory, for the Adam on its CPUs."""
CHECKPOINT_COPY = 2.1 * GB
"""Bytes a second from a GPU to pageable memory, for a checkpoint. An estimate, untried on a GPU;
on the CPU of `HASHING` it is 3.2 GB/s."""
HASHING = 1.5 * GB
"""Bytes of SHA-256 a second and rank, measured on one core of an AMD EPYC with AVX2."""
BYTES_OF_A_TOKEN = 2
"""In the shards, for vocabularies up to 65,536."""
UNKNOWN_VOCAB_SIZE = 40_000
"""The paper's, where no shards are at hand."""
ZERO_VARIANTS = ("0", "1", "2", "2+offload", "3", "3+offload")


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
    storage: float = 2.0
    """bandwidth of a node to shards and checkpoints, GB/s"""
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
class Job:
    """What is trained, and how."""

    shape: GPTConfig
    precision: str
    global_batch: int
    zero: Json = field(default_factory=dict)
    """The section `zero_optimization` of the DeepSpeed JSON: buckets and overlap."""
    checkpointing: bool = False
    """Whether activations are computed twice."""
    checkpoint_every: int = 1000
    """Steps between checkpoints."""

    def json(self, zero_variant: str) -> Json:
        """A DeepSpeed JSON with the section of the job, under another ZeRO variant."""
        zero = {**self.zero, "stage": int(zero_variant[0])}
        for section in ("offload_optimizer", "offload_param"):
            zero.pop(section, None)
        if zero_variant.endswith("offload"):
            zero["offload_optimizer"] = {"device": "cpu"}
        return {"zero_optimization": zero}


class Seconds(NamedTuple):
    """Where the time of an optimizer step goes."""

    products: float
    """Matrix products."""
    network: float
    """All communication, hidden or not."""
    exposed: float
    """The part of it that computation does not hide."""
    offload: float
    host: float
    """The host's time to launch all of it, which is beside the device's."""

    @property
    def step(self) -> float:
        return max(self.host, self.products + self.exposed + self.offload)


@dataclass(frozen=True)
class Estimate:
    """Memory (bytes) and time of one way to run."""

    zero_variant: str
    micro_batch: int
    states: float
    """Of weights, gradients and optimizer states, for a GPU."""
    activations: float
    """For a GPU."""
    host: float
    """Moved to the memory of a node by offload."""
    seconds: Seconds
    save_seconds: float
    """Time that training stands still for a checkpoint."""
    cluster: Cluster

    @property
    def gpu_bytes(self) -> float:
        return gpu_bytes(self.states, self.activations)

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


def estimate(job: Job, cluster: Cluster, zero_variant: str, micro_batch: int) -> Estimate:
    """Memory and time under a ZeRO variant, in micro-batches of `micro_batch` windows a GPU."""
    stage, shape = int(zero_variant[0]), job.shape
    ds = job.json(zero_variant)
    parts = model_states(shape, ds, job.precision, cluster.gpus, on_gpu=True)
    states, moved = state_bytes(parts, zero_variant)
    seconds = _step_seconds(job, cluster, ds, micro_batch, moved)
    return Estimate(
        zero_variant=zero_variant,
        micro_batch=micro_batch,
        states=states,
        activations=activation_bytes(shape, micro_batch, job.precision, job.checkpointing),
        host=moved * cluster.gpus_per_node,
        seconds=seconds,
        save_seconds=_save_seconds(job, cluster, stage, seconds.step),
        cluster=cluster,
    )


def _step_seconds(job: Job, cluster: Cluster, ds: Json, micro_batch: int, moved: float) -> Seconds:
    """Activation checkpointing computes the forward pass twice: 4 units of work where there were 3.

    Offload sends a quarter of the `moved` bytes over PCIe, and Adam on the CPUs reads all of them.
    """
    shape, gpus, precision = job.shape, cluster.gpus, job.precision
    zero, stage = ds["zero_optimization"], zero_stage(ds)
    micro_steps = job.global_batch / gpus / micro_batch
    flops = shape.flops_per_token * job.global_batch * shape.n_ctx
    peak = cluster.tflops * 1e12 * (0.5 if precision == "fp32" else 1.0)
    forward = flops / 3 / (gpus * peak * cluster.utilization)
    backward = (3 if job.checkpointing else 2) * forward
    traffic = step_traffic(shape, zero, stage, precision, gpus, micro_steps)
    network = traffic.sent(gpus) / cluster.bandwidth
    exposed = 0.0
    if gpus > 1:
        per_byte = (gpus - 1) / gpus / cluster.bandwidth
        link = Link(per_byte, backward / micro_steps)
        chosen = buckets(ds, shape.parameters, on_gpu=True)
        reductions = exposed_reduction(shape, chosen, stage, precision, link)
        exposed = reductions * (micro_steps if stage >= 2 else 1)
        if stage == 3:
            near = _near_link(cluster, hpz_ranks(zero, gpus), link)
            ahead = forward / micro_steps
            gathers = partial(exposed_gathers, shape, zero, precision, forward_seconds=ahead)
            exposed += gathers(link, again_link=near) + gathers(near) * (micro_steps - 1)
            nearby = gathered_nearby(shape, zero, precision, micro_steps)
            network += nearby * (near.seconds_per_byte - per_byte)
        else:
            exposed += traffic.gathered * per_byte
    offload = 0.0
    if moved:
        offload = moved / PCIE / 4 + moved * cluster.gpus_per_node / HOST_MEMORY
    return Seconds(
        products=forward + backward,
        network=network,
        exposed=exposed,
        offload=offload,
        host=host_seconds(gpus, shape.n_layer, micro_steps, stage),
    )


def _near_link(cluster: Cluster, group: int, link: Link) -> Link:
    """That of the gathers within a `group` of ZeRO++; `link` without one."""
    if group == 1:
        return link
    inside = group <= cluster.gpus_per_node
    bandwidth = cluster.nvlink * GB if inside else cluster.bandwidth
    return link._replace(seconds_per_byte=(group - 1) / group / bandwidth)


def _save_seconds(job: Job, cluster: Cluster, stage: int, step_seconds: float) -> float:
    """Seconds that training waits for a checkpoint: rank 0's copy, and a disk that is too slow.

    A copy is written while training goes on; the next one waits until that is done.
    """
    first, others = saved_bytes(job.shape.parameters, stage, job.precision, cluster.gpus)
    on_node = first + others * (cluster.gpus_per_node - 1)
    writing = max(on_node / (cluster.storage * GB), first / HASHING)
    late = writing - job.checkpoint_every * step_seconds
    return first / CHECKPOINT_COPY + max(0.0, late)


def check_seconds(shard_bytes: float, cluster: Cluster) -> float:
    """Seconds at the start for the hashes of all shards, which the ranks share out."""
    hashing = shard_bytes / cluster.gpus / HASHING
    return max(hashing, shard_bytes / cluster.nodes / (cluster.storage * GB))


def best(job: Job, cluster: Cluster) -> Estimate | None:
    """The fastest way that fits, over ZeRO variants, micro-batches and checkpointing.

    Among equally fast ones the simplest: the lower variant, then no checkpointing, then the larger
    micro-batch.
    """
    share = job.global_batch // cluster.gpus
    sizes = [2**power for power in range(8) if share % 2**power == 0]
    fitting = []
    jobs = [replace(job, checkpointing=checkpointing) for checkpointing in (False, True)]
    for order, variant in enumerate(ZERO_VARIANTS):
        for size, tried in itertools.product(sizes, jobs):
            found = estimate(tried, cluster, variant, size)
            if not found.misfit:
                rank = (round(found.seconds.step, 4), order, tried.checkpointing, -size)
                fitting.append((rank, found))
    if not fitting:
        return None
    return min(fitting, key=lambda pair: pair[0])[1]
