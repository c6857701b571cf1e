"""One rank of many, rehearsed: the real engine makes some steps as rank 0 of N ranks.

The others are not there (`engine.counting.fake_group`), but all else is that of the run: its
model, its DeepSpeed JSON, its batches. So what this rank holds, computes and sends is what it would
among N: memory, collectives, and the bytes of a checkpoint. The time of the host is measured with a
narrower model (`rehearsal_host.py`).

A collective takes the tensors of this rank for those of all others. So losses are those of a real
run only where N is 1, and at the first step under ZeRO-0 to 2.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from gpt1_ds.base.errors import ConfigError
from gpt1_ds.base.memory import GB, memory_left
from gpt1_ds.base.protocols import Engine, Json
from gpt1_ds.checkpoints.deepspeed_files import write_deepspeed_files
from gpt1_ds.checkpoints.writing import FileWriter, MemoryFile, WriteContent
from gpt1_ds.data.batches import Batch, Batches, Share, total_steps
from gpt1_ds.data.manifest import MANIFEST, Manifest, read_manifest
from gpt1_ds.data.opening import open_streams, order_kind
from gpt1_ds.data.order import Cursor, WindowOrder
from gpt1_ds.data.token_stream import TokenStream
from gpt1_ds.engine.building import without_memory
from gpt1_ds.engine.counting import Sent, counted, fake_group
from gpt1_ds.engine.defaults import with_defaults
from gpt1_ds.engine.internals import import_deepspeed
from gpt1_ds.engine.memory import (
    activation_bytes,
    model_states,
    value_bytes,
)
from gpt1_ds.engine.optimizer import set_lr
from gpt1_ds.engine.peak import has_bfloat16_instructions
from gpt1_ds.engine.start import initialize
from gpt1_ds.engine.traffic import parts_of, quantized
from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.runs.estimate import UNKNOWN_VOCAB_SIZE
from gpt1_ds.runs.held_memory import Around, Held, Watch
from gpt1_ds.runs.setup import shape_of
from gpt1_ds.settings import deepspeed_json
from gpt1_ds.settings.sections import PretrainConfig

PARTS = ("forward", "backward", "step")
STEPS = 3
"""Of the run's engine: the first allocates, the second shows memory, the third what is sent."""
FLOP_BUDGET = 1e12
"""Of a step; windows are cut to fit it. It takes a core some 10 s."""
EMULATED_SHARE = 0.02
"""What is left of it where the CPU has to emulate bfloat16."""
SHORTEST_WINDOW = 16


@lru_cache
def _flop_budget(precision: str) -> float:
    fast = precision == "fp32" or has_bfloat16_instructions()
    return FLOP_BUDGET * (1 if fast else EMULATED_SHARE)


class Rehearsed(NamedTuple):
    """What is rehearsed."""

    config: PretrainConfig
    ds: Json
    """Resolved for `ranks`."""
    shape: GPTConfig
    ranks: int
    manifest: Manifest | None
    """Of the run's shards; None: random ids."""
    total_steps: int
    """Of the run, for the rates of its first steps."""

    @property
    def tokens(self) -> int:
        """Of each window, so that a step is not much more than `FLOP_BUDGET`."""
        windows = self.config.train.global_batch / self.ranks
        budget = _flop_budget(deepspeed_json.precision(self.ds))
        most = budget / self.shape.flops_per_token / windows
        return max(min(SHORTEST_WINDOW, self.shape.n_ctx), min(self.shape.n_ctx, int(most)))

    @property
    def needed(self) -> float:
        """Bytes that it takes here; ZeRO-1 and 2 begin with two copies of the weights."""
        precision = deepspeed_json.precision(self.ds)
        parameters = self.shape.parameters
        states = model_states(self.shape, self.ds, precision, self.ranks)
        windows = self.ds["train_micro_batch_size_per_gpu"]
        short = replace(self.shape, n_ctx=self.tokens)
        checkpointing = self.config.train.activation_checkpointing
        activations = activation_bytes(short, windows, precision, checkpointing, flash=False)
        copy = parameters * value_bytes(precision) if deepspeed_json.zero_stage(self.ds) < 3 else 0
        return max(copy, activations) + states.total

    def with_layers(self, layers: int) -> "Rehearsed":
        return self._replace(shape=replace(self.shape, n_layer=layers))


def prepare(
    config: PretrainConfig, deepspeed_config: str, ranks: int, layers: int | None
) -> Rehearsed:
    """The run of `config` among `ranks`, cut to `layers`.

    ConfigError if it does not fit this machine's memory, or asks for what it cannot do: offload to
    nvme, and quantized messages.
    """
    ds = deepspeed_json.resolve(deepspeed_config, config, ranks, on_this_machine=False)
    if sections := deepspeed_json.nvme_sections(ds):
        raise ConfigError(
            f"{deepspeed_config}: {sections[0]} to nvme is not rehearsed; take device cpu"
        )
    if keys := quantized(ds.get("zero_optimization", {})):
        raise ConfigError(
            f"{deepspeed_config}: zero_optimization.{keys[0]} needs a GPU and is not rehearsed; "
            "remove it for the rehearsal: the run sends fewer bytes than that"
        )
    for section in ("offload_optimizer", "offload_param"):
        if offload := ds.get("zero_optimization", {}).get(section):
            offload["pin_memory"] = False  # this machine has no GPU to copy to
    if deepspeed_json.precision(ds) == "fp16":
        # A step that overflows at a large scale would be left out.
        ds["fp16"]["initial_scale_power"] = 8
    path = Path(config.data.shards, MANIFEST)
    manifest = read_manifest(config.data.shards) if path.exists() else None
    vocabulary = manifest.tokenizer["vocab_size"] if manifest else UNKNOWN_VOCAB_SIZE
    shape = GPTConfig(vocabulary, **shape_of(config.model))
    if layers is not None and layers > shape.n_layer:
        raise ConfigError(
            f"--rehearse-layers is {layers}; the model has {shape.n_layer}: give at most these"
        )
    elements = sum(part.elements for part in parts_of(shape))
    ds = with_defaults(ds, elements, on_gpu=True)  # else the engine takes those of a CPU
    plan = Rehearsed(config, ds, shape, ranks, manifest, config.train.max_steps or STEPS)
    if manifest is not None:
        steps = total_steps(_order(plan), config.train, shape.flops_per_token)
        plan = plan._replace(total_steps=steps)
    if layers is not None:
        plan = plan.with_layers(layers)
    free = memory_left()
    if plan.needed > free:
        raise ConfigError(_too_large(plan, free))
    return plan


def _too_large(plan: Rehearsed, free: float) -> str:
    here = f"about {plan.needed / GB:.0f} GB, and {free / GB:.0f} GB are free here"
    text = f"--rehearse of {plan.shape.n_layer} layers needs {here}"
    fitting = [n for n in range(1, plan.shape.n_layer) if plan.with_layers(n).needed < 0.8 * free]
    if not fitting:
        return f"{text}; a single layer does not fit either: take more ranks or a machine with more"
    return f"{text}; give --rehearse-layers {max(fitting)}, and its ratios hold for all layers"


class Figures(NamedTuple):
    """What the rehearsal found."""

    losses: list[float]
    watch: Watch
    held: Held
    sent: "SentCount"
    saved: dict[str, int]
    """Bytes of the files of a checkpoint, by name."""


def rehearse(plan: Rehearsed) -> Figures:
    """Build the run's engine, make `STEPS` steps and a save, and take it down."""
    import_deepspeed()
    with fake_group(plan.ranks):
        watch = Watch()
        torch.manual_seed(plan.config.run.seed)
        with without_memory():
            module = GPT(plan.shape)
        engine = initialize(module, plan.config, plan.ds)
        watch.begin(engine)
        batches = batches_of(plan)
        count = SentCount()
        losses = [make_step(plan, engine, 0, next(batches))]
        with watch.updates():
            losses.append(make_step(plan, engine, 1, next(batches), watch.around))
        losses.append(make_step(plan, engine, 2, next(batches), count.around))
        held, saved = watch.held(), _saved_bytes(engine)
        watch.end()
        engine.destroy()
    return Figures(losses, watch, held, count, saved)


def make_step(
    plan: Rehearsed,
    engine: Engine,
    step: int,
    batch: Batch,
    around: Around = lambda name, part: part(),
) -> float:
    """An optimizer step as `train.train_step` makes it; its mean loss."""
    set_lr(engine, plan.config, step, plan.total_steps)
    losses: list[Tensor] = []
    keys = batch.dropout_keys.split(len(batch.micro_batches[0]))
    for ids_bT, keys_b2 in zip(batch.micro_batches, keys, strict=True):

        def forward(ids_bT: Tensor = ids_bT, keys_b2: Tensor = keys_b2) -> None:
            nll_bT = engine(ids_bT[:, :-1], ids_bT[:, 1:], dropout_keys_B2=keys_b2)[1]
            losses.append(nll_bT.mean())

        def backward() -> None:
            engine.backward(losses[-1])
            losses[-1] = losses[-1].detach()

        around("forward", forward)
        around("backward", backward)
        around("step", engine.step)
    return float(torch.stack(losses).mean())


class SentCount:
    """Counts what a step sends: run its parts by `around`."""

    def __init__(self) -> None:
        self.by_part: dict[str, dict[str, Sent]] = {name: {} for name in PARTS}
        """By part of the step, then by kind of collective."""
        self.small = 0
        """Messages of norms and flags, which `by_part` has not."""

    def around(self, name: str, part: Callable[[], None]) -> None:
        with counted() as counts:
            part()
        _add(self.by_part[name], counts.sent)
        self.small += counts.small_messages

    def whole(self) -> dict[str, Sent]:
        total: dict[str, Sent] = {}
        for sent in self.by_part.values():
            _add(total, sent)
        return total


def _add(total: dict[str, Sent], more: dict[str, Sent]) -> None:
    for kind, (messages, size) in more.items():
        before = total.get(kind, Sent(0, 0))
        total[kind] = Sent(before.messages + messages, before.bytes + size)


def batches_of(plan: Rehearsed) -> Iterator[Batch]:
    """The run's first batches of this rank, or random ones, in windows of `plan.tokens`."""
    train, length = plan.config.train, plan.tokens + 1
    micro_batch = plan.ds["train_micro_batch_size_per_gpu"]
    if plan.manifest is None:
        windows = train.global_batch // plan.ranks
        generator = torch.Generator().manual_seed(plan.config.run.seed)
        high = plan.shape.vocab_size
        while True:
            ids_BT = torch.randint(0, high, (windows, length), generator=generator)
            keys_B2 = torch.randint(0, 2**31, (windows, 2), generator=generator).int()
            yield Batch(list(ids_BT.split(micro_batch)), Cursor(0, 0), keys_B2)
    streams = _streams(plan)
    share = Share(0, plan.ranks)
    batch = train.global_batch
    for read in Batches(streams, _order(plan), Cursor(0, 0), batch, micro_batch, share):
        yield read._replace(micro_batches=[ids[:, :length] for ids in read.micro_batches])


def _streams(plan: Rehearsed) -> dict[str, TokenStream]:
    assert plan.manifest is not None
    return open_streams(plan.config.data, plan.manifest, "train")


def _order(plan: Rehearsed) -> WindowOrder:
    tokens = {name: stream.tokens for name, stream in _streams(plan).items()}
    config = plan.config
    kind = order_kind(config.data)
    return WindowOrder(tokens, plan.shape.n_ctx, config.run.seed, config.data.weights, kind)


class SizesOnly(FileWriter):
    """Keeps of each file its length alone."""

    def __init__(self, folder: Path):
        super().__init__(folder, in_background=True)
        self.sizes: dict[str, int] = {}

    def add(self, name: str, write_content: WriteContent) -> None:
        file = MemoryFile()
        file.on_block = lambda block, length: self._count(name, length)
        write_content(file)
        file.end()

    def _count(self, name: str, length: int) -> None:
        self.sizes[name] = self.sizes.get(name, 0) + length


def _saved_bytes(engine: Engine) -> dict[str, int]:
    """What this rank writes of a checkpoint: DeepSpeed's files."""
    with tempfile.TemporaryDirectory() as folder:
        writer = SizesOnly(Path(folder, "step-00000003.tmp"))
        write_deepspeed_files(engine, writer)
    return writer.sizes
