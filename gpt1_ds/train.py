"""Pre-train GPT-1 on a shard directory; run again, it resumes by itself.

    deepspeed gpt1_ds/train.py --deepspeed_config ds_configs/zero2_bf16.json
    deepspeed --num_accelerators 2 gpt1_ds/train.py --deepspeed_config ds_configs/cpu.json \\
        --config gpt1_ds/configs/pretrain_small.yaml data.shards=shards/

Without --config it is the paper's run (gpt1_ds/configs/pretrain_gpt1.yaml): 100 epochs, 64 x 512 tokens a step.
Exit codes: 0 done, 2 usage, 3 data or checkpoint, 4 diverged, 5 a peer died, 75 stopped with a checkpoint.
"""

import math
import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(
        Path(__file__).resolve().parents[1]
    )  # the launcher put this file's own folder there

import torch

from gpt1_ds.base.errors import DivergedError, StopRequested, command
from gpt1_ds.base.formatting import duration
from gpt1_ds.checkpoints.by_parameter import place_weights
from gpt1_ds.checkpoints.folder import has_checkpoint
from gpt1_ds.checkpoints.loading import resume
from gpt1_ds.checkpoints.saving import Saves
from gpt1_ds.data.batches import Batches, BatchSizes, total_steps
from gpt1_ds.data.manifest import read_manifest
from gpt1_ds.data.opening import fingerprint, local_shards, open_streams, sound_manifest
from gpt1_ds.data.order import Cursor, WindowOrder, mix
from gpt1_ds.data.token_stream import TokenStream
from gpt1_ds.data.tokenizer import load_tokenizer
from gpt1_ds.distributed import collectives, environment, rendezvous
from gpt1_ds.distributed.console import note, progress_bar, say
from gpt1_ds.distributed.preemption import StopFlag
from gpt1_ds.engine.internals import layer_norms, loss_scale, require_async_io, set_batch
from gpt1_ds.engine.memory import activation_bytes, state_bytes, zero_variant
from gpt1_ds.engine.optimizer import set_lr
from gpt1_ds.engine.start import initialize
from gpt1_ds.engine.timing import StepTimer, Throughput, profiled
from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.model.perplexity import validation_loss
from gpt1_ds.model.sampling import sample_text
from gpt1_ds.runs.directory import claim_folder
from gpt1_ds.runs.log import RunLog
from gpt1_ds.runs.losses import LEDGER, REMEDY, LossHistory, Spike, record_skipped
from gpt1_ds.runs.setup import check_data, check_state, check_tokenizer, load_initial_weights
from gpt1_ds.settings import deepspeed_json
from gpt1_ds.settings.command_line import arguments
from gpt1_ds.settings.deepspeed_json import resolve
from gpt1_ds.settings.loading import run_folder
from gpt1_ds.settings.sections import PretrainConfig

WARM_STEPS = 10
"""Steps of a start after which its speed tells how long it will take."""
DEFAULT_CONFIG = str(Path(__file__).parent / "configs" / "pretrain_gpt1.yaml")


@dataclass
class Run:
    """What the loop needs beside the engine."""

    config: PretrainConfig
    folder: Path
    valid: dict[str, TokenStream]
    order: WindowOrder
    sizes: BatchSizes
    total_steps: int
    facts: dict
    """Model shape, tokenizer hash and shards, saved in every checkpoint."""
    stop: StopFlag
    throughput: Throughput
    log: RunLog
    saves: Saves
    bar: Any
    timer: StepTimer = field(default_factory=StepTimer)
    told: bool = False
    """Whether this start has said how long it will take."""


def main(argv: list[str]) -> int | None:
    args, config = arguments(PretrainConfig, argv, __doc__, DEFAULT_CONFIG)
    world_size = environment.rank_environment(os.environ).world_size
    ds = resolve(args.deepspeed_config, config, world_size)
    require_async_io(args.deepspeed_config, ds)
    root = local_shards(config.data)
    manifest = read_manifest(root)
    tokenizer = check_tokenizer(config, root / "tokenizer", manifest)

    env = rendezvous.join_process_group(config.distributed.timeout_seconds)
    stop = StopFlag()
    with collectives.peer_faults():
        manifest = sound_manifest(config.data, manifest)
        streams, valid = (
            open_streams(config.data, manifest, split) for split in ("train", "valid")
        )
        order = WindowOrder(
            {name: stream.tokens for name, stream in streams.items()},
            config.model.n_ctx,
            config.run.seed,
            config.data.weights,
        )
        steps = total_steps(order, config.train)
        shape = {key: value for key, value in asdict(config.model).items() if key != "preset"}
        model_config = GPTConfig(tokenizer.vocab_size, **shape)
        facts = {
            "model": asdict(model_config),
            "tokenizer_sha256": tokenizer.sha256,
            "seed": config.run.seed,
            "data": fingerprint(manifest),
        }
        torch.manual_seed(config.run.seed)  # the same draw on every rank
        module = GPT(model_config)
        # A run that has checkpoints goes on from them: what it once started from may be gone.
        fresh = args.from_scratch or not has_checkpoint(run_folder(config))
        weights = (
            load_initial_weights(module, config, facts) if config.init.checkpoint and fresh else {}
        )
        folder = claim_folder(config, ds, tokenizer, args.from_scratch)
        trainer = initialize(module, config, ds)
        if weights:
            place_weights(trainer, weights.items(), config.init.checkpoint)
            weights.clear()
        torch.manual_seed(int(mix(config.run.seed, 4, env.rank) >> 1))  # dropout differs by rank
        state = resume(trainer, folder) or {"step": 0, "cursor": Cursor().to_dict(), **facts}
        check_state(state, facts, folder)
        check_data(state, facts, folder)
        bar = progress_bar(steps, state["step"], "step", "pre-training")
        saves = Saves(
            folder,
            config.checkpoint.keep,
            config.checkpoint.keep_every,
            lambda step, **saved: run.log.log(step, "checkpoint", **saved),
        )
        run = Run(
            config,
            folder,
            valid,
            order,
            BatchSizes.of(config.train),
            steps,
            facts,
            stop,
            Throughput(model_config.flops_per_token, deepspeed_json.precision(ds)),
            RunLog(folder, state["step"], engine=trainer),
            saves,
            bar,
        )
        announce(run, ds, env.world_size, state["step"])
        outcome = run.log.outcome(lambda: trainer.global_steps)
        with outcome, bar, run.timer.communication(), collectives.peer_faults(), saves:
            while True:
                batches = Batches(
                    streams,
                    order,
                    Cursor(**state["cursor"]),
                    run.sizes,
                    trainer.train_micro_batch_size_per_gpu(),
                    env.rank,
                    env.world_size,
                    state["step"],
                )
                losses = LossHistory(config.train, state.get("losses", {}))
                try:
                    return train(run, trainer, batches, losses)
                except Spike as spike:
                    saves.settle()
                    state = roll_back(run, trainer, losses, spike)
                run.log.close()
                run.log = RunLog(
                    folder, state["step"], False, trainer
                )  # drops what the undone steps logged
                bar.update(state["step"] - bar.n)


def train(run: Run, engine, batches: Batches, losses: LossHistory) -> None:
    """The loop: read, step, log, validate, commit; from step `batches.step` to the last, a stop request or a spike."""
    config, step, cursor = run.config, batches.step, batches.cursor
    validated, last = True, step == run.total_steps
    if (step % config.eval.every == 0 or last) and not run.log.has(step, "valid"):
        validated = validate(run, engine, step)
    run.throughput.restart()
    for micro_batches, after in (
        run.timer.waiting(batches.until(run.stop.requested)) if validated and not last else ()
    ):
        if run.stop.agreed():
            break
        lr = set_lr(engine, config, step, run.total_steps)
        set_batch(engine, run.sizes.at(step))
        skipped_before = engine.skipped_steps
        norms = {} if config.log.layer_norms and (step + 1) % config.log.every == 0 else None
        with profiled(run.folder, step + 1, config.log.profile):
            loss = train_step(
                engine, micro_batches, batches.dropout_keys(after, step), run.timer, norms
            )
        cursor, step = after, step + 1
        losses.add(loss, step, engine.skipped_steps > skipped_before)
        run.bar.update()
        last = step == run.total_steps
        if step % config.log.every == 0 or last:
            tell(run, engine, losses, step, cursor, lr, norms or {})
        if step % config.eval.every == 0 or last:
            with run.throughput.paused():
                validated = validate(run, engine, step)
        if not validated:
            break
        if step % config.checkpoint.every == 0 or last:
            commit(run, engine, losses, step, cursor, must=last)
        run.saves.poll()
        if last:
            break
    if not (last and validated):
        if step:
            commit(run, engine, losses, step, cursor, must=True)
        done = (
            f"is committed in {run.folder}/checkpoints"
            if step
            else "was the first: nothing is trained yet"
        )
        raise StopRequested(f"step {step} of {run.total_steps} {done}; the same command continues")


def tell(
    run: Run, engine, losses: LossHistory, step: int, cursor: Cursor, lr: float, norms: dict
) -> None:
    """A line of the log on the steps since the last one; raises Spike or DivergedError where they went wrong."""
    n_ctx, since = run.config.model.n_ctx, max(step - len(losses.steps), run.log.resume_step)
    loss, norm = (
        losses.check(step, cursor),
        engine.get_global_grad_norm(),
    )  # norm: None in plain float32
    tokens = run.sizes.before(step) * n_ctx
    speed = run.throughput.read(tokens - run.sizes.before(since) * n_ctx)
    run.log.log(
        step,
        "train",
        loss=loss if math.isfinite(loss) else None,
        lr=lr,
        grad_norm=None if norm is None else float(norm),
        **speed,
        tokens=tokens,
        skipped_steps=engine.skipped_steps,
        **loss_scale(engine),
        **norms,
        **run.timer.read(max(1, step - since)),
        epoch=round(cursor.epoch + cursor.index / run.order.epoch_windows, 6),
    )
    run.log.progress(step, run.total_steps, loss)
    rate = speed["tokens_per_second"]
    run.bar.set_postfix(loss=f"{loss:.3f}", lr=f"{lr:.1e}", tok_s=f"{rate:.0f}")
    if not run.told and step - run.log.resume_step >= WARM_STEPS:
        run.told, left = True, run.sizes.before(run.total_steps) * n_ctx - tokens
        note(
            f"about {duration(left / rate)} to go, at {rate:,.0f} tokens/s ({speed['mfu']:.0%} MFU)"
        )
    losses.line(loss)


def roll_back(run: Run, engine, losses: LossHistory, spike: Spike) -> dict:
    """Undo a loss spike: load the last checkpoint; its state, with the place in the data after the spike.

    Until the next commit nothing of this is saved: a kill before it replays the same spike, and the same rollback.
    """
    train = run.config.train
    if losses.rollbacks >= train.max_rollbacks:
        raise DivergedError(
            f"{spike}: a spike after {losses.rollbacks} of train.max_rollbacks {train.max_rollbacks}; "
            f"{REMEDY}"
        )
    if (state := resume(engine, run.folder)) is None:
        raise DivergedError(
            f"{spike}: a spike, and no checkpoint to go back to: lower optim.lr or checkpoint.every, "
            "lengthen schedule.warmup_steps, or set train.spike_nats=null"
        )
    record_skipped(
        run.folder,
        {
            "to_step": state["step"],
            "from_step": spike.step,
            "first": state["cursor"],
            "last": spike.cursor.to_dict(),
            "loss": spike.loss,
            "recent": spike.median,
        },
    )
    note(
        f"step {spike.step}: {spike}; back to step {state['step']}, past the batches since (rollback "
        f"{losses.rollbacks + 1} of {train.max_rollbacks}, see {run.folder / LEDGER})"
    )
    saved = state.get("losses", {})
    return {
        **state,
        "cursor": spike.cursor.to_dict(),
        "losses": {**saved, "rollbacks": losses.rollbacks + 1},
    }


def commit(run: Run, engine, losses: LossHistory, step: int, cursor: Cursor, must: bool) -> None:
    """A checkpoint of `step`, with the place in the data after it; never of a step whose loss spiked."""
    losses.check(step, cursor)
    state = {"step": step, "cursor": cursor.to_dict(), "losses": losses.to_dict(), **run.facts}
    with run.throughput.paused():
        run.saves.save(engine, step, state, must)


def train_step(
    engine,
    micro_batches: list[torch.Tensor],
    keys_B2: torch.Tensor,
    timer: StepTimer | None = None,
    norms: dict[str, float] | None = None,
) -> torch.Tensor:
    """One optimizer step over this rank's micro-batches (micro_batch, n_ctx + 1); their mean loss, on the device."""
    losses, timer = [], timer or StepTimer()
    for ids_BT, keys_b2 in zip(micro_batches, keys_B2.split(len(micro_batches[0])), strict=True):
        ids_BT, keys_b2 = (
            tensor.to(engine.device, non_blocking=True) for tensor in (ids_BT, keys_b2)
        )
        with timer.part("forward"):
            _, nll_BT = engine(ids_BT[:, :-1], ids_BT[:, 1:], dropout_keys_B2=keys_b2)
            loss = nll_BT.mean()
        with timer.part("backward"):
            engine.backward(loss)
        if norms is not None and engine.is_gradient_accumulation_boundary():
            norms |= layer_norms(engine)
        with timer.part("optimizer"):
            engine.step()
        losses.append(loss.detach())
    return torch.stack(losses).mean()


def validate(run: Run, engine, step: int) -> bool:
    """Log the loss on each corpus; False, and no record, where a stop request cut it short: the next start does."""
    config, losses = run.config, {}
    for corpus, stream in run.valid.items():
        losses[corpus] = validation_loss(
            engine,
            stream,
            config.model.n_ctx,
            config.train.global_batch,
            config.eval.batches,
            run.stop.agreed,
        )
        if losses[corpus] is None:
            return False
    if config.log.samples_every and step % config.log.samples_every == 0:
        run.log.sample(
            step, sample_text(engine, load_tokenizer(run.folder / "tokenizer"), config.log.prompt)
        )
    for corpus, loss in losses.items():
        perplexity = math.exp(min(loss, 100.0))
        run.log.log(step, "valid", corpus, loss=round(loss, 6), perplexity=round(perplexity, 4))
        note(f"step {step}: validation loss {loss:.4f}, perplexity {perplexity:.2f} on {corpus}")
    return True


def announce(run: Run, ds: dict, world_size: int, step: int) -> None:
    config, shape = run.config, GPTConfig(**run.facts["model"])
    corpora = ", ".join(
        f"{name} {count:,}" for name, count in zip(run.order.corpora, run.order.tokens, strict=True)
    )
    epochs = run.sizes.before(run.total_steps) / run.order.epoch_windows
    ramp = f"{run.sizes.start} to " if run.sizes.ramp else ""
    precision, micro_batch, way = (
        deepspeed_json.precision(ds),
        ds["train_micro_batch_size_per_gpu"],
        zero_variant(ds),
    )
    states, moved = state_bytes(shape.parameters, way, precision, world_size)
    activations = activation_bytes(
        shape,
        micro_batch,
        precision,
        config.train.activation_checkpointing,
        flash=torch.cuda.is_available(),
    )
    host = f", and {moved / 1e9:.1f} GB on the host" if moved else ""
    say(
        f"run      {run.folder}\n"
        f"model    {shape.n_layer} layers x {shape.n_embd}, context {shape.n_ctx}, {shape.parameters:,} parameters\n"
        f"data     {corpora} tokens; {epochs:.2f} epochs\n"
        f"batch    {ramp}{config.train.global_batch} windows a step on {world_size} ranks, micro-batch "
        f"{micro_batch}, ZeRO-{way}, {precision}\n"
        f"memory   about {states / 1e9:.1f} GB a rank for weights, gradients and moments{host}, and "
        f"{activations / 1e9:.1f} GB for activations\n"
        f"steps    {step} of {run.total_steps} done"
    )


cli = command(main, __name__)
