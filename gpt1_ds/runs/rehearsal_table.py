"""What `plan --rehearse` prints: each figure that was rehearsed beside the plan's own.

The ratio is the rehearsed figure by the planned one.
"""

from collections.abc import Iterator
from dataclasses import replace

from gpt1_ds.base.memory import GB
from gpt1_ds.engine.host_time import MEASURED_ON, host_seconds
from gpt1_ds.engine.memory import (
    StateParts,
    activation_bytes,
    head_bytes,
    model_states,
    saved_bytes,
    zero_variant,
)
from gpt1_ds.engine.traffic import PASSES, Traffic, step_traffic, traffic_of
from gpt1_ds.runs.estimate import Cluster
from gpt1_ds.runs.rehearsal import PARTS, Figures, Rehearsed
from gpt1_ds.runs.rehearsal_host import HostFigures
from gpt1_ds.settings import deepspeed_json

ROW = "  {:42}{:>14}{:>14}{:>8}"
MEGA = 1e6


def print_heading(plan: Rehearsed, cluster: Cluster, layers: int) -> None:
    """What is rehearsed, before it begins."""
    shape, n_ctx = plan.shape, plan.shape.n_ctx
    cut = "" if shape.n_layer == layers else f" of {layers}"
    windows = "whole windows"
    if plan.tokens < n_ctx:
        windows = f"windows cut to {plan.tokens} of {n_ctx} tokens, so that a step takes seconds"
    data = f"{plan.config.data.shards}/" if plan.manifest else "random ids"
    print(
        f"rehearsal  rank 0 of {plan.ranks:,} ({cluster.nodes} x {cluster.gpus_per_node}), the "
        "others are not there\n"
        f"model      {shape.n_layer}{cut} layers x {shape.n_embd}, {shape.parameters:,} "
        f"parameters, ZeRO-{zero_variant(plan.ds)}, {deepspeed_json.precision(plan.ds)}\n"
        f"data       {data}, {windows}; micro-batch {plan.ds['train_micro_batch_size_per_gpu']}, "
        f"{plan.ds['gradient_accumulation_steps']} a step\n"
        f"memory     about {plan.needed / GB:.1f} GB here",
        flush=True,
    )


def print_table(plan: Rehearsed, layers: int, found: Figures, host: HostFigures) -> None:
    """`layers` are those of the run; the rehearsal may have fewer."""
    whole = plan.shape.n_layer == layers
    losses = ", ".join(f"{loss:.4f}" for loss in found.losses)
    print(f"losses     {losses}{_note_on_losses(plan)}\n")
    print(ROW.format("memory of the rank, MB", "rehearsed", "plan", "ratio"))
    for row in _memory_rows(plan, found):
        print(row)
    phases = ", ".join(f"{name} {size / GB:.2f}" for name, size in found.watch.resident.items())
    print(f"  the process, GB: {phases}\n")
    print(ROW.format("sent by a step, MB (messages)", "rehearsed", "plan", "ratio"))
    for row in _wire_rows(plan, found):
        print(row)
    print(f"  and {found.sent.small} messages of norms and flags\n")
    title = f"the host, {layers} layers (operators)"
    print(ROW.format(title, "ms here", "plan, ms", "ratio"))
    for row in _host_rows(plan, layers, host):
        print(row)
    print(f"  the plan's are of {MEASURED_ON}\n")
    stage = deepspeed_json.zero_stage(plan.ds)
    planned = saved_bytes(_elements(plan), stage, _precision(plan), plan.ranks).first
    saved = sum(found.saved.values())
    print(ROW.format("a checkpoint, MB written by the rank", "rehearsed", "plan", "ratio"))
    print(_row(f"{len(found.saved)} files", saved / MEGA, planned / MEGA))
    if not whole:
        print(
            f"\nmemory, bytes and files are of {plan.shape.n_layer} of {layers} layers: for the "
            "whole run, multiply its plan by the ratio"
        )


def _note_on_losses(plan: Rehearsed) -> str:
    if plan.ranks == 1:
        return ""
    if deepspeed_json.zero_stage(plan.ds) == 3:
        return " (not those of a run: rank 0's weights stand for all)"
    return " (the first is real; later, rank 0's weights stand for all)"


def _row(name: str, rehearsed: float, planned: float) -> str:
    ratio = f"{rehearsed / planned:.2f}" if planned else "-"
    return ROW.format(name, f"{rehearsed:,.1f}", f"{planned:,.1f}" if planned else "-", ratio)


def _precision(plan: Rehearsed) -> str:
    return deepspeed_json.precision(plan.ds)


def _elements(plan: Rehearsed) -> float:
    return plan.shape.parameters


def planned_parts(plan: Rehearsed) -> StateParts:
    """The model's state of this rank, as the plan has it."""
    return model_states(plan.shape, plan.ds, _precision(plan), plan.ranks, on_gpu=True)


def _memory_rows(plan: Rehearsed, found: Figures) -> Iterator[str]:
    """The activations are planned for the CPU's kernels and the windows that were rehearsed."""
    precision, stage = _precision(plan), deepspeed_json.zero_stage(plan.ds)
    planned = planned_parts(plan)
    held = found.held
    yield _row("weights", held.weights / MEGA, planned.weights / MEGA)
    yield _row("float32 weights and moments", held.optimizer / MEGA, planned.optimizer / MEGA)
    name = "gradients and buckets" + (", gathered weights" if stage == 3 else "")
    yield _row(f"{name}, at most", max(held.reduction, held.update) / MEGA, planned.passing / MEGA)
    train = plan.config.train
    shape = replace(plan.shape, n_ctx=plan.tokens)
    windows = plan.ds["train_micro_batch_size_per_gpu"]
    kept = activation_bytes(shape, windows, precision, train.activation_checkpointing, flash=False)
    kept -= head_bytes(shape, windows, flash=False)
    yield _row("activations, with the CPU's kernels", found.watch.activations / MEGA, kept / MEGA)


def planned_traffic(plan: Rehearsed) -> Traffic:
    return step_traffic(
        plan.shape,
        plan.ds.get("zero_optimization", {}),
        deepspeed_json.zero_stage(plan.ds),
        _precision(plan),
        plan.ranks,
        plan.ds["gradient_accumulation_steps"],
    )


def _wire_rows(plan: Rehearsed, found: Figures) -> Iterator[str]:
    """Bytes that the rank sends in rings, which are more than those of the tensors."""
    for part in PARTS:
        for kind, sent in sorted(found.sent.by_part[part].items()):
            name = f"{part}: {kind} ({sent.messages})"
            ring = PASSES[kind] * sent.bytes * (plan.ranks - 1) / plan.ranks
            yield ROW.format(name, f"{ring / MEGA:,.1f}", "", "")
    planned = planned_traffic(plan).sent(plan.ranks)
    messages = sum(sent.messages for sent in found.sent.whole().values())
    total = traffic_of(found.sent.whole()).sent(plan.ranks)
    yield _row(f"in all ({messages})", total / MEGA, planned / MEGA)


def _host_rows(plan: Rehearsed, layers: int, host: HostFigures) -> Iterator[str]:
    for part in PARTS:
        milliseconds = f"{1e3 * host.seconds[part]:.1f}"
        yield ROW.format(f"{part} ({host.operators[part]:,})", milliseconds, "", "")
    stage = deepspeed_json.zero_stage(plan.ds)
    planned = host_seconds(plan.ranks, layers, plan.ds["gradient_accumulation_steps"], stage)
    total = sum(host.operators.values())
    name = f"in all ({total:,}; {host.waits} waits for the device)"
    yield _row(name, 1e3 * sum(host.seconds.values()), 1e3 * planned)
