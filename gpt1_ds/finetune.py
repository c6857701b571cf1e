"""Fine-tune a pre-trained GPT-1 on one labelled task; run again, it resumes by itself.

    deepspeed --num_accelerators 2 gpt1_ds/finetune.py --deepspeed_config ds_configs/cpu.json \\
        --config gpt1_ds/configs/finetune_sst2.yaml init.checkpoint=runs/gpt1 task.data=glue/SST-2

`init.checkpoint=none` starts from random weights of the `model` section, with the tokenizer of data.shards. The run
folder gets result.json (the best score on dev and what it took), predictions-SPLIT.tsv and, in best/, the weights of
that score; from GLUE's test files also glue/NAME.tsv, as its site takes them. Exit codes: 0 done, 2 usage, 3 data or
checkpoint, 4 diverged, 5 a peer died, 75 stopped with a checkpoint.
"""

import dataclasses
import math
import os
import sys
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(
        Path(__file__).resolve().parents[1]
    )  # the launcher put this file's own folder there

import torch
from torch import Tensor

from gpt1_ds import tasks
from gpt1_ds.base.errors import DivergedError, StopRequested, command
from gpt1_ds.checkpoints import loading
from gpt1_ds.checkpoints.by_parameter import place_weights
from gpt1_ds.checkpoints.folder import has_checkpoint, read_state
from gpt1_ds.checkpoints.loading import resume
from gpt1_ds.checkpoints.saving import Saves, save_checkpoint
from gpt1_ds.data.order import Cursor, mix
from gpt1_ds.distributed import collectives, environment, rendezvous
from gpt1_ds.distributed.console import note, progress_bar, say
from gpt1_ds.distributed.preemption import StopFlag
from gpt1_ds.engine.internals import require_async_io
from gpt1_ds.engine.optimizer import set_lr
from gpt1_ds.engine.start import initialize
from gpt1_ds.engine.timing import Throughput
from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.reports.figures import confusion_figure
from gpt1_ds.runs.directory import claim_folder
from gpt1_ds.runs.fine_tuning import (
    Run,
    TaskData,
    load_transferred_weights,
    read_task_data,
    shape_of,
    starting_point,
    total_steps,
    write_predictions,
    write_result,
)
from gpt1_ds.runs.log import RunLog
from gpt1_ds.runs.trained import rebuild
from gpt1_ds.settings import deepspeed_json
from gpt1_ds.settings.command_line import arguments
from gpt1_ds.settings.deepspeed_json import resolve, zero_stage
from gpt1_ds.settings.loading import run_folder
from gpt1_ds.settings.sections import FinetuneConfig
from gpt1_ds.tasks.batches import collate, micro_batches, n_lm_targets, n_targets
from gpt1_ds.tasks.heads import Counts, TaskModel, dropout_keys, objective
from gpt1_ds.tasks.predicting import predict
from gpt1_ds.tasks.scores import confusion_matrix, scores_by_part, task_metrics


def main(argv: list[str]) -> int | None:
    args, config = arguments(FinetuneConfig, argv, __doc__, None)
    world_size = environment.rank_environment(os.environ).world_size
    ds = resolve(args.deepspeed_config, config, world_size)
    require_async_io(args.deepspeed_config, ds)
    task = tasks.build(config.task)
    resumes = has_checkpoint(run_folder(config)) and not args.from_scratch
    model_config, tokenizer, source = starting_point(config, resumes)
    tokenizer.check_choice(**vars(config.tokenizer))
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, **shape_of(model_config))
    )
    data = read_task_data(config, task, tokenizer, model_config.n_ctx)
    init = str(source or "none") if config.task.n_transfer != -1 else "none"
    init = read_state(source)["init"] if resumes and source else init
    facts = {
        "model": asdict(model_config),
        "tokenizer_sha256": tokenizer.sha256,
        "seed": config.run.seed,
        "init": init,
        "task": {
            "name": config.task.name,
            "kind": task.kind,
            "classes": list(task.classes),
            "config": asdict(config.task),
        },
    }

    env = rendezvous.join_process_group(config.distributed.timeout_seconds)
    stop = StopFlag()
    with collectives.peer_faults():
        torch.manual_seed(config.run.seed)  # the same draw on every rank
        gpt = GPT(model_config)
        weights = (
            load_transferred_weights(gpt, source, config.task.n_transfer)
            if source and not resumes
            else {}
        )
        folder = claim_folder(config, ds, tokenizer, args.from_scratch)
        module = TaskModel(gpt, task.kind, task.n_outputs, config.task.pool, config.task.clf_pdrop)
        trainer = initialize(module, config, ds)
        if weights:
            place_weights(
                trainer, ((f"gpt.{name}", weight) for name, weight in weights.items()), source
            )
            weights.clear()
        torch.manual_seed(
            int(mix(config.run.seed, 4, env.rank) >> 1)
        )  # dropout on a GPU differs by rank
        fresh = {"step": 0, "cursor": Cursor().to_dict(), "best": None}
        state = resume(trainer, folder) or fresh
        bar = progress_bar(total_steps(config, data), state["step"], "step", config.task.name)
        log = RunLog(folder, state["step"], engine=trainer)
        saves = Saves(
            folder,
            config.checkpoint.keep,
            config.checkpoint.keep_every,
            lambda step, **saved: log.log(step, "checkpoint", **saved),
        )
        throughput = Throughput(model_config.flops_per_token, deepspeed_json.precision(ds))
        run = Run(config, folder, data, facts, stop, throughput, log, saves, bar)
        announce(run, ds, env.world_size, state["step"])
        with log.outcome(lambda: trainer.global_steps), bar, collectives.peer_faults(), saves:
            best = train(run, trainer, state)
            splits = finish(run, trainer)
            collectives.on_main(lambda: write_result(run, best, trainer.global_steps, splits))


def train(run: Run, engine, state: dict) -> dict:
    """The loop: read, step, log, score, commit; from `state` to the last step. Returns the best score's record."""
    config, step, start, best = run.config, state["step"], Cursor(**state["cursor"]), state["best"]
    losses, scored = Losses(), True
    if step and run.score_due(step, start) and not run.log.has(step, "task"):
        best, scored = score(run, engine, step, start, best)
    last = scored and (step == run.total_steps or run.given_up(best))
    for batch, cursor in run.batches(start) if scored and not last else ():
        lr = set_lr(engine, config, step, run.total_steps)
        skipped_before = engine.skipped_steps
        parts = train_step(engine, run.data, config, batch, step)
        losses.add(parts, run.data.tokens(batch), engine.skipped_steps > skipped_before)
        step += 1
        run.bar.update()
        stopping, last = run.stop.agreed(), step == run.total_steps
        if step % config.log.every == 0 or last or stopping:
            tell(run, engine, losses, step, cursor, lr)
        if run.score_due(step, cursor):
            with run.throughput.paused():
                best, scored = score(run, engine, step, cursor, best)
            stopping, last = stopping or not scored, scored and (last or run.given_up(best))
        if step % config.checkpoint.every == 0 or last or stopping:
            commit(run, engine, step, cursor, best, must=last or stopping)
        run.saves.poll()
        if last or stopping:
            break
    if not last:
        raise stopped(run, step)
    return best


@dataclass
class Losses:
    """This rank's parts of (L2, L1) and the tokens of the steps since the last log line; steps skipped in a row."""

    parts: list[Tensor] = field(default_factory=list)
    tokens: int = 0
    skipped: int = 0

    def add(self, parts: Tensor, tokens: int, skipped: bool) -> None:
        self.parts.append(parts)
        self.tokens += tokens
        self.skipped = self.skipped + 1 if skipped else 0

    def read(self) -> tuple[float, float, int]:
        """(L2, L1, tokens), losses as means over the steps; waits for the device, and begins anew."""
        task_loss, lm_loss = collectives.all_sum(torch.stack(self.parts).mean(0)).tolist()
        tokens, self.parts, self.tokens = self.tokens, [], 0
        return task_loss, lm_loss, tokens


def train_step(
    engine, data: TaskData, config: FinetuneConfig, batch: list[int], step: int
) -> Tensor:
    """One optimizer step on a global batch; this rank's parts of (L2, L1), which sum over ranks to the means."""
    examples, special = [data.train[index] for index in batch], data.tokenizer.special_ids
    counts = Counts(sum(map(n_targets, examples)), sum(map(n_lm_targets, examples)))
    accumulation, world_size = engine.gradient_accumulation_steps(), collectives.world_size()
    lengths = [example.length for example in examples]
    shares = micro_batches(
        lengths,
        engine.train_micro_batch_size_per_gpu(),
        accumulation,
        collectives.rank(),
        world_size,
    )
    # Keyed dropout, a CPU's, depends on the width, which then is the whole batch's on any number of ranks.
    device, parts = collectives.device(), []
    width = max(lengths) if device.type == "cpu" else None
    for share in shares:
        micro = collate([examples[i] for i in share], special, examples[0], width).to(device)
        keys_BS2 = dropout_keys(
            config.run.seed, step, [batch[i] for i in share], micro.ids_BST.shape[1]
        )
        lm_targets_BST = micro.lm_targets_BST if config.task.lm_coef else None
        task_loss, lm_loss, _ = engine(
            micro.ids_BST, micro.end_BS, micro.targets, lm_targets_BST, keys_BS2.to(device)
        )
        # DeepSpeed takes the mean over micro-steps and ranks where this is a sum.
        engine.backward(
            objective(task_loss, lm_loss, counts, config.task) * (accumulation * world_size)
        )
        engine.step()
        parts.append(
            torch.stack([task_loss.detach() / counts.targets, lm_loss.detach() / counts.lm_targets])
        )
    return torch.stack(parts).sum(0)


def tell(run: Run, engine, losses: Losses, step: int, cursor: Cursor, lr: float) -> None:
    """A line of the log on the steps since the last one; DivergedError where they went wrong."""
    config = run.config
    task_loss, lm_loss, tokens = losses.read()
    loss = config.task.task_coef * task_loss + config.task.lm_coef * lm_loss
    if losses.skipped >= config.train.max_skipped or (
        not losses.skipped and not math.isfinite(loss)
    ):
        raise DivergedError(
            f"loss is {loss} at step {step}, {losses.skipped} steps skipped in a row; the last "
            "checkpoint is kept: lower optim.lr"
        )
    speed, norm = run.throughput.read(tokens)["tokens_per_second"], engine.get_global_grad_norm()
    run.log.log(
        step,
        "train",
        loss=loss,
        task_loss=task_loss,
        lm_loss=lm_loss,
        lr=lr,
        epoch=round(cursor.epoch + cursor.index / run.steps_per_epoch, 6),
        grad_norm=None if norm is None else float(norm),  # None in plain float32
        tokens_per_second=speed,
        skipped_steps=engine.skipped_steps,
    )
    run.log.progress(step, run.total_steps, loss)
    rendezvous.give_back_memory()
    run.bar.set_postfix(
        loss=f"{loss:.3f}", task=f"{task_loss:.3f}", lr=f"{lr:.1e}", tok_s=f"{speed:.0f}"
    )


def score(
    run: Run, engine, step: int, cursor: Cursor, best: dict | None
) -> tuple[dict | None, bool]:
    """Score the dev set; where it is the best so far, keep its predictions and, in best/, its weights.

    Returns the best score's record, and False where a stop request cut the scoring short: the next start does it.
    """
    data, task = run.data, run.data.task
    micro_batch = engine.train_micro_batch_size_per_gpu()
    predictions = predict(
        engine, task, data.dev, data.tokenizer.special_ids, micro_batch, "dev", run.stop.agreed
    )
    if predictions is None:
        return best, False
    values, metric = task_metrics(task.metrics, data.gold, predictions), task.metrics[0]
    run.log.log(step, "task", **{name: round(value, 6) for name, value in values.items()})
    confusion = confusion_matrix(task.classes, data.gold, predictions)
    if confusion and run.log.board:
        run.log.board.add_figure("task/confusion", confusion_figure(task.classes, confusion), step)
    listed = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
    note(f"step {step}: dev {listed} (majority {data.majority:.4f})")
    if best is not None and values[metric] <= best["metrics"][metric]:
        return best | {"stale": best["stale"] + 1}, True
    parts = scores_by_part(task.metrics, "dev", data.parts, data.gold, predictions)
    best = {"step": step, "metrics": values, "parts": parts, "confusion": confusion, "stale": 0}
    collectives.on_main(lambda: write_predictions(run.folder, task, "dev", data.gold, predictions))
    collectives.on_main(lambda: data.tokenizer.copy_to(run.folder / "best" / "tokenizer"))
    state = {"step": step, "cursor": cursor.to_dict(), "best": best, **run.facts}
    save_checkpoint(engine, run.folder / "best", step, state, keep=1)
    return best, True


def commit(run: Run, engine, step: int, cursor: Cursor, best: dict | None, must: bool) -> None:
    state = {"step": step, "cursor": cursor.to_dict(), "best": best, **run.facts}
    with run.throughput.paused():
        run.saves.save(engine, step, state, must)


def stopped(run: Run, step: int) -> StopRequested:
    return StopRequested(
        f"step {step} of {run.total_steps} is committed in {run.folder}/checkpoints; the same command "
        "continues"
    )


def finish(run: Run, engine) -> dict[str, dict[str, float]]:
    """Predict every further split with the best weights; the metrics of those that have labels."""
    scores, data, task = {}, run.data, run.data.task
    if data.others:
        model, _ = rebuild(*loading.load_weights(run.folder / "best"), run.folder / "best")
    for split, examples in data.others.items():
        encoded = task.encode(examples, data.tokenizer, model.gpt.config.n_ctx)
        micro_batch = engine.train_micro_batch_size_per_gpu()
        predictions = predict(
            model, task, encoded, data.tokenizer.special_ids, micro_batch, split, run.stop.agreed
        )
        if predictions is None:
            raise stopped(run, engine.global_steps)
        gold = [example.label for example in examples]
        collectives.on_main(partial(write_predictions, run.folder, task, split, gold, predictions))
        if None not in gold:
            scores[split] = task_metrics(task.metrics, gold, predictions)
            parts = [example.part for example in examples]
            scores |= scores_by_part(task.metrics, split, parts, gold, predictions)
    return scores


def announce(run: Run, ds: dict, world_size: int, step: int) -> None:
    config, data, shape = run.config, run.data, GPTConfig(**run.facts["model"])
    precision = f"ZeRO-{zero_stage(ds)}, {deepspeed_json.precision(ds)}"
    n_cut, most = (
        sum(cut["examples"] for cut in data.cut.values()),
        max(cut["most"] for cut in data.cut.values()),
    )
    shortened = (
        f"; {n_cut} cut to {shape.n_ctx} tokens a sequence, by {most} at most" if n_cut else ""
    )
    say(
        f"run      {run.folder}\n"
        f"model    {shape.n_layer} layers x {shape.n_embd}, initial weights: {run.facts['init']}\n"
        f"task     {config.task.name} ({data.task.kind}): {len(data.train):,} training, {len(data.dev):,} dev "
        f"examples{shortened}\n"
        f"batch    {config.train.global_batch} examples a step on {world_size} ranks, micro-batch "
        f"{ds['train_micro_batch_size_per_gpu']}, {precision}\n"
        f"steps    {step} of {run.total_steps} done"
    )
    if config.task.pool == "first":
        say("warning: task.pool=first reads the state at <s>, which sees no other token; use last")


cli = command(main, __name__)
