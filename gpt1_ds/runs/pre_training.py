"""What a pre-training run has besides: its corpora, the sizes of its batches, and where it ends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from gpt1_ds.checkpoints.state import CheckpointState
from gpt1_ds.data.batches import Batches, BatchSizes, Share, step_limits, total_steps
from gpt1_ds.data.manifest import Manifest
from gpt1_ds.data.opening import fingerprint, open_streams, order_kind
from gpt1_ds.data.order import WindowOrder
from gpt1_ds.data.token_stream import TokenStream
from gpt1_ds.data.tokenizer import Tokenizer
from gpt1_ds.distributed import collectives
from gpt1_ds.distributed.preemption import StopFlag
from gpt1_ds.engine.memory import zero_variant
from gpt1_ds.engine.optimizer import warmup_steps
from gpt1_ds.model.gpt import GPTConfig
from gpt1_ds.runs.budget import tell_schedule
from gpt1_ds.runs.data_order import check_cache, recorded_kind
from gpt1_ds.runs.plateau import Plateau
from gpt1_ds.runs.setup import Run, Settings, Started
from gpt1_ds.runs.words import words_a_token
from gpt1_ds.settings.sections import PretrainConfig, TrainConfig
from gpt1_ds.tasks.benchmarks import Benchmark


@dataclass
class Corpora:
    """The token streams of a run, by corpus, and the order in which their windows are trained."""

    train: dict[str, TokenStream]
    valid: dict[str, TokenStream]
    order: WindowOrder
    sizes: BatchSizes
    token_flops: int
    """FLOPs of a trained token, in which `train.flops` counts."""
    total_steps: int
    words_a_token: float | None = None
    """Words of text for each trained token; None if the manifest does not count them."""

    def words_at(self, step: int) -> float | None:
        """Words of text seen in the first `step` steps."""
        if self.words_a_token is None:
            return None
        return self.sizes.before(step) * self.order.n_ctx * self.words_a_token


class Pretraining(Run[PretrainConfig]):
    """A pre-training run in progress."""

    def __init__(
        self,
        settings: Settings[PretrainConfig],
        started: Started,
        stop: StopFlag,
        data: Corpora,
        benchmarks: Sequence[Benchmark] = (),
    ):
        config, state = settings.config, started.state
        self.benchmarks = benchmarks
        self.data = continued(data, config.train, state)
        check_cache(data.order, list(data.train.values()), config.data, state.cursor)

        def earlier_total(earlier: PretrainConfig) -> int:
            return continued(data, earlier.train, state).total_steps

        tell_schedule(started, config, self.data.total_steps, earlier_total)
        # `trace` finds the windows of a step by them.
        facts = {"windows": data.order.index_of(state.cursor), **data.sizes.to_dict()}
        super().__init__(settings, started, stop, self.data.total_steps, "pre-training", facts)
        schedule = config.schedule
        warmup = warmup_steps(schedule, schedule.total_steps or self.data.total_steps)
        self.plateau = Plateau(config, self.shape.vocab_size, warmup)

    def batches(self, state: CheckpointState) -> Batches:
        """This rank's batches from the place of `state` on."""
        data, micro_batch = self.data, self.engine.train_micro_batch_size_per_gpu()
        share = Share(collectives.rank(), collectives.world_size())
        return Batches(
            data.train, data.order, state.cursor, data.sizes, micro_batch, share, state.step
        )


def open_corpora(
    config: PretrainConfig,
    shape: GPTConfig,
    manifest: Manifest,
    words: Mapping[str, float] | None = None,
) -> Corpora:
    """The corpora of the sound shards in `manifest`; `words`: words a token of each corpus."""
    train, valid = (open_streams(config.data, manifest, split) for split in ("train", "valid"))
    tokens = {name: stream.tokens for name, stream in train.items()}
    kind = order_kind(config.data)
    order = WindowOrder(tokens, shape.n_ctx, config.run.seed, config.data.weights, kind)
    steps = total_steps(order, config.train, shape.flops_per_token)
    sizes = BatchSizes.of(config.train)
    ratio = words_a_token(order, words or {}, config)
    return Corpora(train, valid, order, sizes, shape.flops_per_token, steps, ratio)


def facts_of(
    config: PretrainConfig, shape: GPTConfig, tokenizer: Tokenizer, manifest: Manifest
) -> CheckpointState:
    """Step 0 of the run, with what every checkpoint says of its model, tokenizer and shards."""
    return CheckpointState(
        step=0,
        model=shape.to_dict(),
        tokenizer_sha256=tokenizer.sha256,
        seed=config.run.seed,
        data=fingerprint(manifest),
        order=recorded_kind(config.data),
    )


def continued(data: Corpora, train: TrainConfig, state: CheckpointState) -> Corpora:
    """The corpora for a run with the settings `train` that goes on from `state`.

    Its budget counts the windows that were trained, in steps of whatever size.
    """
    sizes = BatchSizes.of(train)
    trained = data.order.index_of(state.cursor) - skipped_windows(data, state)
    sizes = replace(sizes, more=trained - sizes.before(state.step))
    steps = total_steps(data.order, train, data.token_flops, sizes, state.step)
    return replace(data, sizes=sizes, total_steps=steps)


def skipped_windows(data: Corpora, state: CheckpointState) -> int:
    """Windows before the cursor that no step was trained on, after spikes.

    An early version counted only the rollbacks; its batches had one size.
    """
    losses = state.losses or {}
    if losses.get("rollbacks") and "skipped_windows" not in losses:
        return data.order.index_of(state.cursor) - data.sizes.before(state.step)
    return losses.get("skipped_windows", 0)


def announce(run: Pretraining, step: int) -> None:
    train, shape, order, sizes = run.config.train, run.shape, run.data.order, run.data.sizes
    ranks = collectives.world_size()
    counts = zip(order.corpora, order.tokens, strict=True)
    corpora = ", ".join(f"{name} {tokens:,}" for name, tokens in counts)
    epochs = sizes.before(run.total_steps) / order.epoch_windows
    limits = step_limits(order, train, run.data.token_flops, sizes)
    flops = sizes.before(run.total_steps) * order.n_ctx * run.data.token_flops
    ramp = f"{sizes.start} to " if sizes.ramp else ""
    micro_batch = run.ds["train_micro_batch_size_per_gpu"]
    variant = zero_variant(run.ds)
    run.announce(
        step,
        {
            "model": f"{shape.n_layer} layers x {shape.n_embd}, context {shape.n_ctx}, "
            f"{shape.parameters:,} parameters",
            "data": f"{corpora} tokens; {epochs:.2f} epochs{_words(run.data)}, order {order.kind}",
            "batch": f"{ramp}{train.global_batch} windows a step on {ranks} ranks, micro-batch "
            f"{micro_batch}, ZeRO-{variant}, {run.precision}",
            "budget": f"{_budget(train, limits)}; {flops:.3g} FLOPs at its end",
        },
    )


def _words(data: Corpora) -> str:
    words = data.words_at(data.total_steps)
    return "" if words is None else f", {words:,.0f} words seen at the end"


def _budget(train: TrainConfig, limits: dict[str, int]) -> str:
    """The budgets of a run, the one that ends it first."""
    first, *others = sorted(limits, key=limits.__getitem__)
    shown = f"train.{first}={getattr(train, first):g} ends it at step {limits[first]}"
    later = ", ".join(f"train.{name} at {limits[name]}" for name in others)
    return f"{shown} ({later})" if later else shown
