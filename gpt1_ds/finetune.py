"""Fine-tune a pre-trained GPT-1 on one labelled task; run again, it resumes by itself.

    deepspeed --num_accelerators 2 gpt1_ds/finetune.py --deepspeed_config cpu \\
        --config finetune_sst2 init.checkpoint=runs/gpt1 task.data=glue/SST-2

An installed package is started with `deepspeed --module gpt1_ds.finetune`, one process with
`gpt1-finetune`. Your own data: --config finetune_own, and its columns and labels.

`init.checkpoint=none` starts from random weights of the `model` section, with the tokenizer of
data.shards. The run folder gets result.json (the best score on dev and what it took),
predictions-SPLIT.tsv and, in best/, the weights of that score; from GLUE's test files also
glue/NAME.tsv, as its site takes them. Exit codes: 0 done, 2 usage, 3 data or checkpoint,
4 diverged, 5 a peer died, 75 stopped with a checkpoint.
"""

# Two things that pre-training does are left out. Loss spikes are not rolled back: a run has a few
# epochs of few steps, so batches left out would be examples never seen, and best/ keeps the best
# weights anyway. No samples of text: the decoder is a part of the module here, and under ZeRO-3
# only a forward pass of the whole module gathers its weights.

import importlib
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the launcher put this file's folder
    importlib.import_module("gpt1_ds")  # before torch, so that Ctrl-C ends with one line

import torch
from torch import Tensor

from gpt1_ds import tasks
from gpt1_ds.base.errors import LAUNCHER_RANKS, DivergedError, command
from gpt1_ds.base.protocols import Engine, Json
from gpt1_ds.base.streams import keep_going_without_output
from gpt1_ds.checkpoints.flat_tensors import whole_weights
from gpt1_ds.checkpoints.folder import checkpoint_sha256, read_state
from gpt1_ds.checkpoints.loading import load_weights
from gpt1_ds.checkpoints.saving import save_checkpoint
from gpt1_ds.checkpoints.state import CheckpointState
from gpt1_ds.data.order import Cursor
from gpt1_ds.distributed import collectives, rendezvous
from gpt1_ds.distributed.console import say
from gpt1_ds.distributed.preemption import StopFlag
from gpt1_ds.engine.building import without_memory
from gpt1_ds.engine.optimizer import set_lr
from gpt1_ds.engine.readings import grad_norm
from gpt1_ds.engine.timing import StepTimer, profiled
from gpt1_ds.engine.update import skipped_steps, was_skipped
from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.reports.figures import confusion_figure
from gpt1_ds.runs.directory import claim_folder
from gpt1_ds.runs.ending import after_fine_tuning, fine_tuning_is_done, say_done
from gpt1_ds.runs.fine_tuning import FineTuning, settle_best, starting_point, write_result
from gpt1_ds.runs.losses import TaskLosses
from gpt1_ds.runs.memory_need import MemoryNeed
from gpt1_ds.runs.predictions import write_predictions
from gpt1_ds.runs.provenance import facts_of_run
from gpt1_ds.runs.setup import read_settings, shape_of, start_engine
from gpt1_ds.runs.task_data import TaskData, read_task_data, texts_of
from gpt1_ds.runs.trained import build_task_model
from gpt1_ds.runs.transfer import open_transferred_weights
from gpt1_ds.runs.wall_time import VALIDATION
from gpt1_ds.settings.deepspeed_json import zero_stage
from gpt1_ds.settings.loading import run_folder
from gpt1_ds.settings.sections import FinetuneConfig
from gpt1_ds.tasks.batches import collate, micro_batches, n_lm_targets, n_targets
from gpt1_ds.tasks.examples import Label
from gpt1_ds.tasks.heads import Counts, TaskModel, dropout_keys, objective
from gpt1_ds.tasks.predicting import predict
from gpt1_ds.tasks.scores import confusion_matrix, scores_by_part, task_metrics


def main(argv: list[str]) -> None:
    keep_going_without_output()
    with rendezvous.joining() as meeting:
        settings = read_settings(meeting, FinetuneConfig, argv, __doc__)
        config = settings.config
        task = tasks.build_task(config.task)
        resumes = settings.resumes()
        shape, tokenizer, source = starting_point(config, resumes)
        tokenizer.check_choice(**vars(config.tokenizer))
        # The run's config.yaml shows the shape that is trained, which may be the checkpoint's.
        config = replace(config, model=replace(config.model, **shape_of(shape)))
        settings = replace(settings, config=config)
        data = read_task_data(config, task, tokenizer, shape.n_ctx)
        meeting.facts["the examples in task.data"] = data.digests
        facts = facts_of(config, data, shape, source, resumes)
        before = facts_of_run(run_folder(config)) if resumes else None

    stop = StopFlag()
    memory = MemoryNeed(settings)
    with collectives.peer_faults(), memory.explained():
        torch.manual_seed(config.run.seed)  # the same draw on every rank
        folder = claim_folder(config, tokenizer, settings.from_scratch)
        if fine_tuning_is_done(settings, folder, data, facts):
            return
        memory.tell(shape, *data.largest)
        with without_memory():
            gpt, chosen = GPT(shape), config.task
            module = TaskModel(gpt, task.kind, task.n_outputs, chosen.pool, chosen.clf_pdrop)
        if shape.position_logits:
            gpt.position_rows = data.longest_sequence(shape.n_ctx)
        module.class_weights, module.lm_mean = data.class_weights, chosen.lm_mean
        initial = None if resumes else open_transferred_weights(gpt, source, chosen.n_transfer)
        started = start_engine(settings, folder, module, initial, facts)
        run = FineTuning(settings, started, stop, data)
        earlier = before if run.is_done(run.state) else None
        announce(run, started.state.step)
        with run.watched():
            best = train(run, run.state)
            with run.aside(VALIDATION):
                splits = finish(run)
            collectives.on_main(lambda: write_result(run, best, splits, earlier))
        say_done(folder, folder / "best", after_fine_tuning(config, folder))


def facts_of(
    config: FinetuneConfig, data: TaskData, shape: GPTConfig, source: Path | None, resumes: bool
) -> CheckpointState:
    """Step 0 of the run, with what every checkpoint says of its model, tokenizer and task."""
    init, init_sha256 = None, None
    if resumes and source:
        began = read_state(source)
        init, init_sha256 = began.init, began.init_sha256
    elif source and config.task.n_transfer != -1:
        init, init_sha256 = str(source), checkpoint_sha256(source)
    task = {
        "name": config.task.name,
        "kind": data.task.kind,
        "classes": list(data.task.classes),
        "config": asdict(config.task),
    }
    return CheckpointState(
        step=0,
        model=shape.to_dict(),
        tokenizer_sha256=data.tokenizer.sha256,
        seed=config.run.seed,
        data=data.digests,
        init=init or "none",
        init_sha256=init_sha256,
        task=task,
    )


def train(run: FineTuning, state: CheckpointState) -> Json:
    """The loop: read, step, log, score, commit; from `state` to the last step.

    Returns the record of the best score. Raises StopRequested after a stop request, once a
    checkpoint is committed.
    """
    config, engine = run.config, run.engine
    step, cursor, best = state.step, state.cursor, state.best
    losses = TaskLosses()
    if not run.is_done(state):
        best = settle_best(run.folder, best)
    is_scored = best is not None and run.log.has(step, "task")
    if step and run.score_due(step, cursor) and not is_scored:
        best = score(run, step, cursor, best)
        if best is None:
            raise run.stopped(step)
    done = step >= run.total_steps or run.given_up(best)
    run.throughput.restart()
    for batch, after in () if done else run.waiting(run.batches(cursor)):
        lr = set_lr(engine, config, step, run.total_steps)
        skipped_before = engine.skipped_steps
        with profiled(run.folder, step + 1, config.log.profile):
            parts = train_step(engine, run.data, config, batch, step, run.timer)
        step, cursor = step + 1, after
        losses.add(parts, step, was_skipped(engine, skipped_before))
        losses.tokens += run.data.tokens(batch)
        run.bar.update()
        stopping = run.stop.agreed()
        done = step >= run.total_steps
        if step % config.log.every == 0 or done or stopping:
            log_step(run, losses, step, cursor, lr)
        if done:
            say(f"step {step}: the last step is done; scoring dev, then saving the checkpoint")
        if run.score_due(step, cursor):
            scored = score(run, step, cursor, best)
            best = scored or best
            stopping = stopping or scored is None
            done = scored is not None and (done or run.given_up(best))
        if step % config.checkpoint.every == 0 or done or stopping:
            state = replace(run.facts, step=step, cursor=cursor, best=best)
            run.commit(state, must=done or stopping, stopping=stopping and not done)
        run.poll()
        if done or stopping:
            break
    if best is None or not done:
        raise run.stopped(step)
    return best


def train_step(
    engine: Engine,
    data: TaskData,
    config: FinetuneConfig,
    batch: list[int],
    step: int,
    timer: StepTimer | None = None,
) -> Tensor:
    """One optimizer step on a global batch of training examples.

    Returns this rank's parts of (L2, L1), on the device; over all ranks they add up to the means.
    """
    timer = timer or StepTimer()
    examples = [data.train[index] for index in batch]
    lengths = [example.length for example in examples]
    n_labels = sum(n_targets(example, data.class_weights) for example in examples)
    counts = Counts(n_labels, sum(n_lm_targets(one, config.task.lm_mean) for one in examples))
    accumulation, world_size = engine.gradient_accumulation_steps(), collectives.world_size()
    micro_batch = engine.train_micro_batch_size_per_gpu()
    shares = micro_batches(lengths, micro_batch, accumulation, collectives.rank(), world_size)
    device = collectives.device()
    # On a CPU, dropout depends on the width of a batch: the whole batch's, on any number of ranks.
    width = max(lengths) if device.type == "cpu" else None
    parts = []
    for share in shares:
        with timer.part("data"):
            mine = [examples[index] for index in share]
            micro = collate(mine, data.tokenizer.special_ids, examples[0], width).to(device)
            numbers, n_sequences = [batch[index] for index in share], micro.ids_BST.shape[1]
            keys_BS2 = dropout_keys(config.run.seed, step, numbers, n_sequences)
        lm_targets_BST = micro.lm_targets_BST if config.task.lm_coef else None
        with timer.part("forward"):
            task_loss, lm_loss, _ = engine(
                micro.ids_BST, micro.end_BS, micro.targets, lm_targets_BST, keys_BS2
            )
            loss = objective(task_loss, lm_loss, counts, config.task)
        with timer.part("backward"):
            # DeepSpeed takes a mean over micro-steps and ranks; ours is a sum.
            engine.backward(loss * (accumulation * world_size))
        with timer.part("optimizer"):
            engine.step()
        means = [task_loss.detach() / counts.divisor, lm_loss.detach() / counts.lm_targets]
        parts.append(torch.stack(means))
    return torch.stack(parts).sum(0)


def log_step(run: FineTuning, losses: TaskLosses, step: int, cursor: Cursor, lr: float) -> None:
    """A line of the log about the steps since the last one; DivergedError if they went wrong."""
    config, engine, steps = run.config, run.engine, len(losses.steps)
    task_loss, lm_loss, tokens = losses.read()
    loss = config.task.task_coef * task_loss + config.task.lm_coef * lm_loss
    too_many = losses.in_a_row >= config.train.max_skipped
    if too_many or (not losses.in_a_row and not math.isfinite(loss)):
        raise DivergedError(
            f"loss is {loss} at step {step}, {losses.in_a_row} steps skipped in a row; the last "
            "checkpoint is kept: lower optim.lr"
        )
    speed = run.throughput.read(tokens)["tokens_per_second"]
    run.log.log(
        step,
        "train",
        loss=loss,
        task_loss=task_loss,
        lm_loss=lm_loss,
        lr=lr,
        epoch=round(cursor.epoch + cursor.index / run.steps_per_epoch, 6),
        grad_norm=grad_norm(engine),
        tokens_per_second=speed,
        skipped_steps=skipped_steps(engine),
        **run.read_timer(step, steps),
    )
    run.log.progress(step, run.total_steps, loss)
    rendezvous.give_back_memory()
    run.bar.show(
        f"loss {loss:.3f}", f"task {task_loss:.3f}", f"lr {lr:.1e}", f"{speed:,.0f} tokens/s"
    )


def score(run: FineTuning, step: int, cursor: Cursor, best: Json | None) -> Json | None:
    """Score the dev set; keep predictions and, in best/, weights if the score is the best so far.

    Returns the record of the best score. None if a stop request cut the scoring short: the next
    start does it.
    """
    with run.aside(VALIDATION):
        data, task = run.data, run.data.task
        predictions = predict_split(run, scoring_model(run), data.dev, "dev")
        if predictions is None:
            return None
        values = task_metrics(task.metrics, data.gold, predictions, len(task.classes))
        run.log.log(step, "task", **{name: round(value, 6) for name, value in values.items()})
        confusion = confusion_matrix(task.classes, data.gold, predictions)
        if confusion:
            draw = partial(confusion_figure, task.classes, confusion)
            run.log.figure("task/confusion", draw, step)
        listed = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        say(f"step {step}: dev {listed} (majority {data.majority:.4f})")
        metric = task.metrics[0]
        # An earlier version did not use task.metrics for a published task.
        if best is not None and values[metric] <= best["metrics"].get(metric, -math.inf):
            return {**best, "stale": best["stale"] + 1}
        n_classes = len(task.classes)
        parts = scores_by_part(task.metrics, "dev", data.parts, data.gold, predictions, n_classes)
        record = {"metrics": values, "parts": parts, "confusion": confusion, "stale": 0}
        best = {"step": step, **record}
        save_best(run, replace(run.facts, step=step, cursor=cursor, best=best), predictions)
    return best


def save_best(run: FineTuning, state: CheckpointState, predictions: Sequence[Label]) -> None:
    """Predictions on dev in the run's folder; weights and tokenizer in best/."""
    data, folder = run.data, run.folder / "best"
    collectives.on_main(lambda: data.tokenizer.copy_to(folder / "tokenizer"))
    kept = replace(run.config.checkpoint, keep=1, keep_every=None)
    save_checkpoint(run.engine, folder, state.step, state, kept)
    collectives.on_main(
        lambda: write_predictions(
            run.folder, data.task, "dev", data.gold, predictions, data.dev_texts
        )
    )


def scoring_model(run: FineTuning) -> TaskModel:
    """The model in float32, as a checkpoint of this moment would be loaded; all ranks call.

    So every score of a run is what `eval` gives, whatever precision it is trained in.
    """
    task = run.config.task
    with torch.device("meta"):
        model = TaskModel(
            GPT(run.shape), run.data.task.kind, run.data.task.n_outputs, task.pool, task.clf_pdrop
        )
    model.load_state_dict(whole_weights(run.engine), assign=True)
    return model.eval()


def predict_split(
    run: FineTuning, model: TaskModel, examples: Sequence[tasks.Encoded], split: str
) -> list[Label] | None:
    """Predictions for all examples, on every rank; None if a stop request cut it short."""
    data = run.data
    special = data.tokenizer.special_ids
    return predict(model, data.task, examples, special, split, run.stop.agreed)


def finish(run: FineTuning) -> dict[str, dict[str, float]]:
    """Predict every further split with the best weights; the metrics of those with labels."""
    data, task = run.data, run.data.task
    scores: dict[str, dict[str, float]] = {}
    if not data.others:
        return scores
    folder = run.folder / "best"
    model, _ = build_task_model(*load_weights(folder), folder)
    for split, examples in data.others.items():
        encoded = task.encode(examples, data.tokenizer, run.shape.n_ctx)
        predictions = predict_split(run, model, encoded, split)
        if predictions is None:
            raise run.stopped(run.engine.global_steps)
        gold = [example.label for example in examples]
        texts = texts_of(run.config.task, examples)
        collectives.on_main(
            partial(write_predictions, run.folder, task, split, gold, predictions, texts)
        )
        if None not in gold:
            parts = [example.part for example in examples]
            n_classes = len(task.classes)
            scores[split] = task_metrics(task.metrics, gold, predictions, n_classes)
            scores |= scores_by_part(task.metrics, split, parts, gold, predictions, n_classes)
    return scores


def announce(run: FineTuning, step: int) -> None:
    config, data, shape = run.config, run.data, run.shape
    n_cut = sum(cut["examples"] for cut in data.cut.values())
    most = max(cut["most"] for cut in data.cut.values())
    shortened = f"; {n_cut} cut to {shape.n_ctx} tokens a sequence, by {most} at most"
    run.announce(
        step,
        {
            "model": f"{shape.n_layer} layers x {shape.n_embd}, initial weights: {run.facts.init}",
            "task": f"{config.task.name} ({data.task.kind}): {len(data.train):,} training, "
            f"{len(data.dev):,} dev examples{shortened if n_cut else ''}",
            "batch": f"{config.train.global_batch} examples a step on "
            f"{collectives.world_size()} ranks, micro-batch "
            f"{run.ds['train_micro_batch_size_per_gpu']}, ZeRO-{zero_stage(run.ds)}, "
            f"{run.precision}",
        },
    )
    for line in data.warnings:
        say(f"warning: {line}")
    if config.task.pool == "first":
        say("warning: task.pool=first reads the state at <s>, which sees no other token; use last")


cli = command(main, __name__, "the same command resumes the run", LAUNCHER_RANKS)
