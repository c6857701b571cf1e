"""Pre-train GPT-1 on a shard directory; run again, it resumes by itself.

    deepspeed gpt1_ds/train.py --deepspeed_config zero2_bf16
    deepspeed --num_accelerators 2 gpt1_ds/train.py --deepspeed_config cpu \\
        --config pretrain_small data.shards=shards

An installed package is started with `deepspeed --module gpt1_ds.train`, one process with
`gpt1-train`. Without --config it is the paper's run (pretrain_gpt1): 100 epochs, 64 x 512 tokens a
step. Exit codes: 0 done, 2 usage, 3 data or checkpoint, 4 diverged, 5 a peer died,
75 stopped with a checkpoint.
"""

import importlib
import math
import sys
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the launcher put this file's folder
    importlib.import_module("gpt1_ds")  # before torch, so that Ctrl-C ends with one line

import torch
from torch import Tensor

from gpt1_ds.base.errors import LAUNCHER_RANKS, DivergedError, StopRequested, command
from gpt1_ds.base.protocols import Engine
from gpt1_ds.base.records import SKIPPED_FILE
from gpt1_ds.base.streams import keep_going_without_output
from gpt1_ds.checkpoints.loading import resume
from gpt1_ds.checkpoints.state import CheckpointState
from gpt1_ds.data.batches import Batches
from gpt1_ds.data.manifest import read_manifest
from gpt1_ds.data.opening import local_shards, sound_manifest, tell_of_line_breaks
from gpt1_ds.data.order import Cursor
from gpt1_ds.data.tokenizer import load_tokenizer
from gpt1_ds.distributed import collectives, rendezvous
from gpt1_ds.distributed.console import say
from gpt1_ds.distributed.preemption import StopFlag
from gpt1_ds.engine.building import without_memory
from gpt1_ds.engine.internals import set_batch
from gpt1_ds.engine.optimizer import set_lr
from gpt1_ds.engine.readings import grad_norm, layer_norms, loss_scale
from gpt1_ds.engine.timing import StepTimer, profiled
from gpt1_ds.engine.update import skipped_steps, was_skipped
from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.model.perplexity import validation_loss
from gpt1_ds.model.sampling import sample_text
from gpt1_ds.runs.data_order import with_order
from gpt1_ds.runs.directory import claim_folder
from gpt1_ds.runs.ending import (
    after_pretraining,
    newest_checkpoint,
    pretraining_is_done,
    say_done,
)
from gpt1_ds.runs.losses import REMEDY, LossHistory, Spike, record_skipped
from gpt1_ds.runs.memory_need import MemoryNeed
from gpt1_ds.runs.pre_training import (
    Pretraining,
    announce,
    facts_of,
    open_corpora,
    skipped_windows,
)
from gpt1_ds.runs.setup import (
    check_tokenizer,
    open_initial_weights,
    read_settings,
    shape_of,
    start_engine,
)
from gpt1_ds.runs.wall_time import CHECKPOINTS, VALIDATION
from gpt1_ds.runs.words import reached, words_of_corpora
from gpt1_ds.runs.zero_shot import SPLIT as ZERO_SHOT
from gpt1_ds.runs.zero_shot import open_benchmarks, score_benchmarks, zero_shot_due
from gpt1_ds.settings.sections import PretrainConfig


def main(argv: list[str]) -> None:
    keep_going_without_output()
    with rendezvous.joining() as meeting:
        settings = read_settings(meeting, PretrainConfig, argv, __doc__)
        config = settings.config
        root = local_shards(config.data)
        manifest = read_manifest(root)
        tokenizer = check_tokenizer(config, root / "tokenizer", manifest)

    stop = StopFlag()
    memory = MemoryNeed(settings)
    with collectives.peer_faults(), memory.explained():
        settings = with_order(settings)
        config = settings.config
        words = words_of_corpora(manifest)
        manifest = sound_manifest(config.data, manifest)
        tell_of_line_breaks(config.data.shards, manifest, tokenizer)
        shape = GPTConfig(tokenizer.vocab_size, **shape_of(config.model))
        data = open_corpora(config, shape, manifest, words)
        facts = facts_of(config, shape, tokenizer, manifest)
        torch.manual_seed(config.run.seed)  # the same draw on every rank
        folder = claim_folder(config, tokenizer, settings.from_scratch)
        if pretraining_is_done(settings, folder, data, facts):
            return
        benchmarks = open_benchmarks(config.eval, tokenizer, shape.n_ctx)
        memory.tell(shape)
        with without_memory():
            module = GPT(shape)
        initial = None
        if config.init.checkpoint and not settings.resumes():
            initial = open_initial_weights(config.init.checkpoint, facts)
        started = start_engine(settings, folder, module, initial, facts)
        del initial  # with its mapped files
        run = Pretraining(settings, started, stop, data, benchmarks)
        announce(run, started.state.step)
        with run.watched():
            train_past_spikes(run, started.state)
        say_done(folder, newest_checkpoint(folder), after_pretraining(config, folder))


def train_past_spikes(run: Pretraining, state: CheckpointState) -> None:
    """`train` from `state` to the end; after each loss spike, again from a checkpoint before it."""
    while True:
        losses = LossHistory(run.config.train, state.losses or {})
        try:
            return train(run, run.batches(state), losses)
        except Spike as spike:
            state = roll_back(run, losses, spike)


def train(run: Pretraining, batches: Batches, losses: LossHistory) -> None:
    """The loop: read, step, log, validate, commit.

    From step `batches.step` to the last one. Raises StopRequested after a stop request, once a
    checkpoint is committed, and Spike after a loss spike.
    """
    config, engine = run.config, run.engine
    step, cursor = batches.step, batches.cursor
    run.stop.is_sure = batches.has_next
    if not evaluate(run, step, at_start=True):
        raise stopped(run, losses, step, cursor)
    if step >= run.total_steps:
        return
    run.throughput.restart()
    for batch in run.waiting(batches.until(run.stop.requested)):
        if run.stop.agreed():
            break
        lr = set_lr(engine, config, step, run.total_steps)
        set_batch(engine, run.data.sizes.at(step))
        skipped_before = engine.skipped_steps
        norms: dict[str, float] | None = {} if norms_due(config, step + 1) else None
        with profiled(run.folder, step + 1, config.log.profile):
            loss = train_step(engine, batch.micro_batches, batch.dropout_keys, run.timer, norms)
        run.plateau.count(batch.micro_batches)
        step, cursor = step + 1, batch.after
        losses.add(loss, step, was_skipped(engine, skipped_before))
        run.bar.update()
        last = step >= run.total_steps
        if step % config.log.every == 0 or last:
            log_step(run, losses, step, cursor, lr, norms or {})
        if last:
            say(f"step {step}: the last step is done; validating, then saving the checkpoint")
        if not evaluate(run, step):
            break
        if step % config.checkpoint.every == 0 or last or words_reached(run, step):
            commit(run, losses, step, cursor, must=last)
        run.poll()
        if last:
            return
    raise stopped(run, losses, step, cursor)


def train_step(
    engine: Engine,
    micro_batches: list[Tensor],
    keys_B2: Tensor,
    timer: StepTimer | None = None,
    norms: dict[str, float] | None = None,
) -> Tensor:
    """One optimizer step over this rank's micro-batches; their mean loss, on the device.

    A micro-batch is ids (micro_batch, n_ctx + 1); `keys_B2` are the dropout keys of all windows.
    `norms`, if given, is filled with the norms of the layers.
    """
    timer = timer or StepTimer()
    losses = []
    for ids_bT, keys_b2 in zip(micro_batches, keys_B2.split(len(micro_batches[0])), strict=True):
        ids_bT = collectives.upload(ids_bT, engine.device)
        with timer.part("forward"):
            _, nll_bT = engine(ids_bT[:, :-1], ids_bT[:, 1:], dropout_keys_B2=keys_b2)
            loss = nll_bT.mean()
        with timer.part("backward"):
            engine.backward(loss)
        if norms is not None and engine.is_gradient_accumulation_boundary():
            norms |= layer_norms(engine)
        with timer.part("optimizer"):
            engine.step()
        losses.append(loss.detach())
    return torch.stack(losses).mean()


def norms_due(config: PretrainConfig, step: int) -> bool:
    return config.log.layer_norms and step % config.log.every == 0


def validation_due(run: Pretraining, step: int) -> bool:
    every = run.config.eval.every or run.total_steps
    return step % every == 0 or step >= run.total_steps


def log_step(
    run: Pretraining,
    losses: LossHistory,
    step: int,
    cursor: Cursor,
    lr: float,
    norms: dict[str, float],
) -> None:
    """A line of the log about the steps since the last one; Spike or DivergedError if it is due."""
    engine, sizes, n_ctx = run.engine, run.data.sizes, run.shape.n_ctx
    since = max(step - len(losses.steps), run.log.resume_step)
    loss = losses.check(step, cursor)
    tokens = sizes.before(step) * n_ctx
    words = run.data.words_at(step)
    speed = run.throughput.read(tokens - sizes.before(since) * n_ctx)
    run.log.log(
        step,
        "train",
        loss=loss if math.isfinite(loss) else None,
        lr=lr,
        grad_norm=grad_norm(engine),
        **speed,
        tokens=tokens,
        **({} if words is None else {"words": round(words)}),
        skipped_steps=skipped_steps(engine),
        **loss_scale(engine),
        **norms,
        **run.read_timer(step, step - since),
        epoch=round(cursor.epoch + cursor.index / run.data.order.epoch_windows, 6),
    )
    run.log.progress(step, run.total_steps, loss)
    rate = speed["tokens_per_second"]
    run.bar.show(
        f"loss {loss:.3f}",
        f"lr {lr:.1e}",
        f"{rate:,.0f} tokens/s",
        f"{speed['mfu']:.0%} MFU",
        seconds_left=(sizes.before(run.total_steps) * n_ctx - tokens) / rate,
    )
    if stuck := run.plateau.check(step, loss):
        say(f"warning: {stuck}")
    losses.start_line(loss)


def words_reached(run: Pretraining, step: int) -> int:
    """The one of `checkpoint.at_words` that this step is the first to reach; 0: none."""
    words_at = run.data.words_at
    return reached(run.config.checkpoint.at_words, words_at(step - 1), words_at(step))


def evaluate(run: Pretraining, step: int, at_start: bool = False) -> bool:
    """Validate and score the benchmarks, whatever is due; False if a stop request cut it short.

    `at_start`: an earlier start may have done it already.
    """

    def is_open(due: bool, split: str) -> bool:
        return due and not (at_start and run.log.has(step, split))

    if is_open(validation_due(run, step), "valid") and not validate(run, step):
        return False
    if not is_open(zero_shot_due(run.config, step, run.total_steps), ZERO_SHOT):
        return True
    return score_benchmarks(run, run.benchmarks, step)


def validate(run: Pretraining, step: int) -> bool:
    """Log the loss on each corpus.

    False, and no record, if a stop request cut it short: the next start validates.
    """
    with run.aside(VALIDATION):
        losses = validation_losses(run)
        if losses is None:
            return False
        log = run.config.log
        if log.samples_every and step % log.samples_every == 0:
            tokenizer = load_tokenizer(run.folder / "tokenizer")
            run.log.sample(step, sample_text(run.engine, tokenizer, log.prompt))
        for corpus, loss in losses.items():
            perplexity = math.exp(min(loss, 100.0))
            rounded = {"loss": round(loss, 6), "perplexity": round(perplexity, 4)}
            run.log.log(step, "valid", corpus, **rounded)
            say(f"step {step}: validation loss {loss:.4f}, perplexity {perplexity:.2f} on {corpus}")
    return True


def validation_losses(run: Pretraining) -> dict[str, float] | None:
    """The loss on each corpus, nats a token; None if a stop request cut it short."""
    config = run.config
    losses = {}
    for corpus, stream in run.data.valid.items():
        loss = validation_loss(
            run.engine,
            stream,
            run.shape.n_ctx,
            config.train.global_batch,
            config.eval.batches,
            run.stop.agreed,
        )
        if loss is None:
            return None
        losses[corpus] = loss
    return losses


def commit(
    run: Pretraining,
    losses: LossHistory,
    step: int,
    cursor: Cursor,
    must: bool,
    stopping: bool = False,
) -> None:
    """A checkpoint of `step`, with the place in the data after it; Spike if its loss is one."""
    losses.check(step, cursor)
    state = replace(
        run.facts,
        step=step,
        cursor=cursor,
        losses=losses.to_dict(),
        at_words=words_reached(run, step) or None,
    )
    run.commit(state, must, stopping)


def stopped(run: Pretraining, losses: LossHistory, step: int, cursor: Cursor) -> StopRequested:
    """The error to raise after a stop request; `step` is committed first."""
    kept = "was the first: nothing is trained yet; the same command continues"
    if step:
        commit(run, losses, step, cursor, must=True, stopping=True)
        kept = run.kept()
    return StopRequested(f"step {step} of {run.total_steps} {kept}")


def roll_back(run: Pretraining, losses: LossHistory, spike: Spike) -> CheckpointState:
    """Undo a loss spike: load the last checkpoint; its state, with the place after the spike.

    Nothing of this is saved before the next commit: a run that is killed before it meets the same
    spike again, and rolls back in the same way.
    """
    with run.aside(CHECKPOINTS):
        run.saves.settle()
    budget = run.config.train.max_rollbacks
    if losses.rollbacks >= budget:
        raise DivergedError(
            f"{spike}: a spike after {losses.rollbacks} of train.max_rollbacks {budget}; {REMEDY}"
        )
    with run.aside(CHECKPOINTS):
        state = resume(run.engine, run.folder)
    if state is None:
        raise DivergedError(
            f"{spike}: a spike, and no checkpoint to go back to: lower optim.lr or "
            "checkpoint.every, lengthen schedule.warmup_steps, or set train.spike_nats=null"
        )
    event = {
        "to_step": state.step,
        "from_step": spike.step,
        "first": state.cursor.to_dict(),
        "last": spike.cursor.to_dict(),
        "loss": spike.loss,
        "recent": spike.median,
    }
    record_skipped(run.folder, event)
    say(
        f"step {spike.step}: {spike}; back to step {state.step}, past the batches since (rollback "
        f"{losses.rollbacks + 1} of {budget}, see {run.folder / SKIPPED_FILE})"
    )
    run.log.rewind(state.step)
    run.bar.update(state.step - run.bar.done)
    read = run.data.order.index_of(spike.cursor) - run.data.order.index_of(state.cursor)
    history = {
        **(state.losses or {}),
        "rollbacks": losses.rollbacks + 1,
        "skipped_windows": skipped_windows(run.data, state) + read,
    }
    return replace(state, cursor=spike.cursor, losses=history)


cli = command(main, __name__, "the same command resumes the run", LAUNCHER_RANKS)
