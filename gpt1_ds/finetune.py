"""Fine-tune a pre-trained GPT-1 on one labelled task; run again, it resumes by itself.

    deepspeed --num_accelerators 2 gpt1_ds/finetune.py --deepspeed_config ds_configs/cpu.json \\
        --config gpt1_ds/configs/finetune_sst2.yaml init.checkpoint=runs/gpt1 task.data=glue/SST-2

`init.checkpoint=none` starts from random weights of the `model` section, with the tokenizer of data.shards. The run
folder gets result.json (the best score on dev and what it took), predictions-SPLIT.tsv and, in best/, the weights of
that score; from GLUE's test files also glue/NAME.tsv, as its site takes them. Exit codes: 0 done, 2 usage, 3 data or
checkpoint, 4 diverged, 5 a peer died, 75 stopped with a checkpoint.
"""

import dataclasses
import json
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the launcher put this file's own folder there

import torch
from torch import Tensor

from gpt1_ds import checkpoint, deepspeed_config, distributed, engine, evaluation, metrics, optim, run_directory, tasks
from gpt1_ds.command_line import arguments
from gpt1_ds.config import FinetuneConfig, run_folder
from gpt1_ds.dataloader import Cursor, local_shards, mix
from gpt1_ds.errors import ConfigError, DataError, DivergedError, StopRequested, guard
from gpt1_ds.files import write_atomically
from gpt1_ds.heads import Counts, TaskModel, objective, predict, rebuild
from gpt1_ds.model import GPT, GPTConfig
from gpt1_ds.preemption import StopFlag
from gpt1_ds.profiling import Throughput
from gpt1_ds.resize import place_weights
from gpt1_ds.tasks import LABELLED, Encoded, Example, Task
from gpt1_ds.tasks.batches import collate, epoch_batches, micro_batches, n_lm_targets, n_targets, subset
from gpt1_ds.tokenizer import Tokenizer, load_tokenizer


@dataclass
class Run:
    """What the loop needs beside the engine."""

    config: FinetuneConfig
    folder: Path
    task: Task
    tokenizer: Tokenizer
    train: list[Encoded]
    dev: list[Encoded]
    gold: list[Any]
    """Answers of the dev examples, as the task's metrics take them."""
    others: dict[str, list[Example]]
    """Every further split whose file is there: test, MNLI's mismatched half. Predicted at the end."""
    majority: float
    """The score on dev of the training set's commonest answer."""
    facts: dict
    """Model shape, tokenizer hash, task and initial weights, saved in every checkpoint."""

    @property
    def cut(self) -> dict[str, dict[str, int]]:
        """For each split: examples that were too long for the context, and the tokens they lost, in all and at most."""
        lost = {"train": [e.cut for e in self.train if e.cut], "dev": [e.cut for e in self.dev if e.cut]}
        return {split: {"examples": len(cuts), "tokens": sum(cuts), "most": max(cuts, default=0)}
                for split, cuts in lost.items()}  # fmt: skip

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.train) // self.config.train.global_batch)

    @property
    def total_steps(self) -> int:
        """`train.max_steps`, or the steps of `train.epochs` (the last batch of an epoch may be a partial one)."""
        train = self.config.train
        by_epochs = math.ceil(train.epochs * self.steps_per_epoch) if train.epochs is not None else None
        return min(steps for steps in (by_epochs, train.max_steps) if steps is not None)


def main(argv: list[str]) -> int | None:
    args, config = arguments(FinetuneConfig, argv, __doc__, None)
    world_size = distributed.rank_environment(os.environ).world_size
    ds = deepspeed_config.resolve(args.deepspeed_config, config, world_size)
    task = tasks.build(config.task)
    resumes = checkpoint.committed(run_folder(config)) and not args.from_scratch
    model_config, tokenizer, source = starting_point(config, resumes)
    tokenizer.check_choice(**vars(config.tokenizer))
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **shape_of(model_config)))
    run = prepare(config, task, tokenizer, model_config)
    run.facts["init"] = checkpoint.read_state(source)["init"] if resumes and source else str(source or "none")

    env = distributed.start(config.distributed.timeout_seconds)
    stop = StopFlag()
    with distributed.peer_faults():
        torch.manual_seed(config.run.seed)  # the same draw on every rank
        gpt = GPT(model_config)
        weights = load_weights(gpt, source, config.task.n_transfer) if source and not resumes else {}
        run.folder = run_directory.claim(config, ds, tokenizer, args.from_scratch)
        module = TaskModel(gpt, task.kind, task.n_outputs, config.task.pool, config.task.clf_pdrop)
        trainer = engine.initialize(module, config, ds)
        if weights:
            place_weights(trainer, ((f"gpt.{name}", weight) for name, weight in weights.items()), source)
            weights.clear()
        torch.manual_seed(int(mix(config.run.seed, 4, env.rank) >> 1))  # dropout differs by rank
        fresh = {"step": 0, "cursor": Cursor().to_dict(), "best": None}
        state = checkpoint.resume(trainer, run.folder) or fresh
        announce(run, ds, state["step"])
        log = metrics.RunLog(run.folder, state["step"])
        bar = metrics.progress_bar(run.total_steps, state["step"], "step", config.task.name)
        saves = checkpoint.Saves(run.folder, config.checkpoint.keep, config.checkpoint.keep_every,
                                 lambda step, **saved: log.log(step, "checkpoint", **saved))  # fmt: skip
        with log.outcome(lambda: trainer.global_steps), bar, distributed.peer_faults(), saves:
            best = train(run, trainer, log, saves, bar, stop, state)
            splits = finish(run, trainer, stop)
            distributed.on_main(lambda: write_result(run, best, trainer.global_steps, splits))


def train(run: Run, engine, log: metrics.RunLog, saves: checkpoint.Saves, bar, stop: StopFlag, state: dict) -> dict:
    """The loop: read, step, log, score, commit; from `state` to the last step. Returns the best score's record."""
    config, step, start, best = run.config, state["step"], Cursor(**state["cursor"]), state["best"]
    losses, skipped, tokens, scored = [], 0, 0, True
    throughput = Throughput(GPTConfig(**run.facts["model"]).flops_per_token, "fp32")
    if step and score_due(run, step, start) and not log.has(step, "task"):
        best, scored = score(run, engine, log, step, start, best, stop)
    last = scored and (step == run.total_steps or given_up(run, best))
    for batch, cursor in batches(run, start) if scored and not last else ():
        lr = optim.set_lr(engine, config, step, run.total_steps)
        skipped_before = engine.skipped_steps
        losses.append(train_step(run, engine, batch))
        tokens += sum(len(sequence) for index in batch for sequence in run.train[index].sequences)
        step += 1
        bar.update()
        skipped = skipped + 1 if engine.skipped_steps > skipped_before else 0
        stopping, scored, last = stop.agreed(), True, step == run.total_steps
        if step % config.log.every == 0 or last or stopping:
            loss, task_loss, lm_loss = mean_losses(run, losses, step, skipped)
            speed = throughput.read(tokens)["tokens_per_second"]
            norm = engine.get_global_grad_norm()  # None in plain float32
            epoch = round(cursor.epoch + cursor.index / run.steps_per_epoch, 6)
            log.log(step, "train", loss=loss, task_loss=task_loss, lm_loss=lm_loss, lr=lr, epoch=epoch,
                    grad_norm=None if norm is None else float(norm), tokens_per_second=speed,
                    skipped_steps=engine.skipped_steps)  # fmt: skip
            log.progress(step, run.total_steps, loss)
            bar.set_postfix(loss=f"{loss:.3f}", task=f"{task_loss:.3f}", lr=f"{lr:.1e}", tok_s=f"{speed:.0f}")
            losses, tokens = [], 0
        if score_due(run, step, cursor):
            with throughput.paused():
                best, scored = score(run, engine, log, step, cursor, best, stop)
            stopping, last = stopping or not scored, scored and (last or given_up(run, best))
        if step % config.checkpoint.every == 0 or last or stopping:
            state = {"step": step, "cursor": cursor.to_dict(), "best": best, **run.facts}
            with throughput.paused():
                saves.save(engine, step, state, must=last or stopping)
        saves.poll()
        if last or stopping:
            break
    if not last:
        raise stopped(run, step)
    return best


def stopped(run: Run, step: int) -> StopRequested:
    return StopRequested(f"step {step} of {run.total_steps} is committed in {run.folder}/checkpoints; the same command "
                         "continues")  # fmt: skip


def score_due(run: Run, step: int, cursor: Cursor) -> bool:
    """Whether dev is scored after `step`: at the end of an epoch or every `eval.every` steps, and after the last."""
    every = run.config.eval.every
    return step == run.total_steps or (cursor.index == 0 if every is None else step % every == 0)


def given_up(run: Run, best: dict | None) -> bool:
    """Whether the last `task.patience` scores brought nothing better."""
    return None not in (best, run.config.task.patience) and best["stale"] >= run.config.task.patience


def batches(run: Run, cursor: Cursor) -> Iterator[tuple[list[int], Cursor]]:
    """Global batches (indices of `run.train`) from `cursor` on, epoch after epoch, and the cursor after each.

    The cursor's index counts batches of the epoch.
    """
    lengths = [example.length for example in run.train]
    epoch, index = cursor.epoch, cursor.index
    while True:
        for batch in epoch_batches(lengths, run.config.train.global_batch, run.config.run.seed, epoch)[index:]:
            index += 1
            yield batch, Cursor(epoch, index) if index < run.steps_per_epoch else Cursor(epoch + 1, 0)
        epoch, index = epoch + 1, 0


def train_step(run: Run, engine, batch: list[int]) -> Tensor:
    """One optimizer step on a global batch; this rank's parts of (L2, L1), which sum over ranks to the means."""
    examples, config = [run.train[index] for index in batch], run.config.task
    counts = Counts(sum(map(n_targets, examples)), sum(map(n_lm_targets, examples)))
    accumulation, world_size = engine.gradient_accumulation_steps(), distributed.world_size()
    shares = micro_batches([example.length for example in examples], engine.train_micro_batch_size_per_gpu(),
                           accumulation, distributed.rank(), world_size)  # fmt: skip
    parts = []
    for share in shares:
        micro = collate([examples[index] for index in share], run.tokenizer.special_ids, examples[0]).to(engine.device)
        lm_targets_BST = micro.lm_targets_BST if config.lm_coef else None
        task_loss, lm_loss, _ = engine(micro.ids_BST, micro.end_BS, micro.targets, lm_targets_BST)
        # DeepSpeed takes the mean over micro-steps and ranks where this is a sum.
        engine.backward(objective(task_loss, lm_loss, counts, config) * (accumulation * world_size))
        engine.step()
        parts.append(torch.stack([task_loss.detach() / counts.targets, lm_loss.detach() / counts.lm_targets]))
    return torch.stack(parts).sum(0)


def mean_losses(run: Run, losses: list[Tensor], step: int, skipped: int) -> tuple[float, float, float]:
    """(L3, L2, L1), mean over the steps since the last log line; waits for the device."""
    task_loss, lm_loss = distributed.all_sum(torch.stack(losses).mean(0)).tolist()
    loss = run.config.task.task_coef * task_loss + run.config.task.lm_coef * lm_loss
    if skipped >= run.config.train.max_skipped or (not skipped and not math.isfinite(loss)):
        raise DivergedError(f"loss is {loss} at step {step}, {skipped} steps skipped in a row; the last checkpoint is "
                            "kept: lower optim.lr")  # fmt: skip
    return loss, task_loss, lm_loss


def score(
    run: Run, engine, log: metrics.RunLog, step: int, cursor: Cursor, best: dict | None, stop: StopFlag
) -> tuple[dict | None, bool]:
    """Score the dev set; where it is the best so far, keep its predictions and, in best/, its weights.

    Returns the best score's record, and False where a stop request cut the scoring short: the next start does it.
    """
    micro_batch = engine.train_micro_batch_size_per_gpu()
    predictions = predict(engine, run.task, run.dev, run.tokenizer.special_ids, micro_batch, "dev", stop.agreed)
    if predictions is None:
        return best, False
    values = evaluation.task_metrics(run.task.metrics, run.gold, predictions)
    metric = run.task.metrics[0]
    log.log(step, "task", **{name: round(value, 6) for name, value in values.items()})
    confusion = evaluation.confusion(run.task.classes, run.gold, predictions)
    if confusion and log.board:
        log.board.add_figure("task/confusion", evaluation.confusion_figure(run.task.classes, confusion), step)
    listed = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
    metrics.note(f"step {step}: dev {listed} (majority {run.majority:.4f})")
    if best is not None and values[metric] <= best["metrics"][metric]:
        return best | {"stale": best["stale"] + 1}, True
    best = {"step": step, "metrics": values, "confusion": confusion, "stale": 0}
    distributed.on_main(lambda: write_predictions(run, "dev", run.gold, predictions))
    distributed.on_main(lambda: run.tokenizer.copy_to(run.folder / "best" / "tokenizer"))
    state = {"step": step, "cursor": cursor.to_dict(), "best": best, **run.facts}
    checkpoint.save(engine, run.folder / "best", step, state, keep=1)
    return best, True


def finish(run: Run, engine, stop: StopFlag) -> dict[str, dict[str, float]]:
    """Predict every further split with the best weights; the metrics of those that have labels."""
    scores = {}
    if run.others:
        model, _ = rebuild(*checkpoint.load_weights(run.folder / "best"), run.folder / "best")
    for split, examples in run.others.items():
        encoded = run.task.encode(examples, run.tokenizer, model.gpt.config.n_ctx)
        micro_batch = engine.train_micro_batch_size_per_gpu()
        predictions = predict(model, run.task, encoded, run.tokenizer.special_ids, micro_batch, split, stop.agreed)
        if predictions is None:
            raise stopped(run, engine.global_steps)
        gold = [example.label for example in examples]
        distributed.on_main(partial(write_predictions, run, split, gold, predictions))
        if None not in gold:
            scores[split] = evaluation.task_metrics(run.task.metrics, gold, predictions)
    return scores


def prepare(config: FinetuneConfig, task: Task, tokenizer: Tokenizer, model_config: GPTConfig) -> Run:
    """Both splits of the task, encoded; says how many examples had to be cut."""
    if not config.task.data:
        raise ConfigError(f"task.data is not set; give the folder of {config.task.name}'s files")
    others = {split for split in task.files if split not in LABELLED and task.path(config.task.data, split)}
    train, dev, *rest = (task.read(config.task.data, split) for split in (*LABELLED, *sorted(others)))
    train = [train[index] for index in subset(len(train), config.task.max_examples, config.run.seed)]
    if config.eval.batches is not None:
        dev = [dev[i] for i in subset(len(dev), config.eval.batches * config.train.global_batch, config.run.seed)]
    gold = [example.label for example in dev]
    evaluation.task_metrics(task.metrics, gold, gold)  # an unknown metric is told before training, not after an epoch
    majority = evaluation.majority_score(task.metrics[0], [example.label for example in train], gold)
    facts = {"model": asdict(model_config), "tokenizer_sha256": tokenizer.sha256, "seed": config.run.seed,
             "task": {"name": config.task.name, "kind": task.kind, "classes": list(task.classes),
                      "config": asdict(config.task)}}  # fmt: skip
    train, dev = (task.encode(examples, tokenizer, model_config.n_ctx) for examples in (train, dev))
    rest = dict(zip(sorted(others), rest, strict=True))
    return Run(config, Path(), task, tokenizer, train, dev, gold, rest, majority, facts)


def starting_point(config: FinetuneConfig, resumes: bool) -> tuple[GPTConfig, Tokenizer, Path | None]:
    """Shape of the decoder, its tokenizer, and the checkpoint that holds its weights (None: from scratch).

    A run that resumes reads its own: what it once started from may be gone.
    """
    if config.init.checkpoint is None:
        tokenizer = load_tokenizer(local_shards(config.data) / "tokenizer")
        return GPTConfig(tokenizer.vocab_size, **shape_of(config.model)), tokenizer, None
    folder = checkpoint.find(run_folder(config) if resumes else config.init.checkpoint)
    state = checkpoint.read_state(folder)
    tokenizer = load_tokenizer(folder.parents[1] / "tokenizer")
    if tokenizer.sha256 != state.get("tokenizer_sha256"):
        raise DataError(f"{folder.parents[1] / 'tokenizer'}: not the tokenizer of {folder}; restore the run's own")
    kind = state["model"].get("kind", "transformer")
    if config.model.kind not in ("transformer", kind):
        raise ConfigError(f"model.kind is {config.model.kind}, but {folder} holds a {kind}; set init.checkpoint=none")
    pdrops = {name: value for name, value in shape_of(config.model).items() if name.endswith("_pdrop")}
    return GPTConfig(**state["model"] | pdrops), tokenizer, folder


def shape_of(model: Any) -> dict[str, Any]:
    """What `ModelConfig` and `GPTConfig` have in common."""
    return {key: value for key, value in asdict(model).items() if key not in ("preset", "vocab_size")}


def load_weights(gpt: GPT, source: Path, n_transfer: int | None) -> dict[str, Tensor]:
    """Fill the decoder from a checkpoint and return its weights in float32; every name and shape must be met.

    With `n_transfer`, blocks from that one on (0: all but the embeddings) keep their random weights.
    """
    weights, _ = checkpoint.load_weights(source)
    wanted = gpt.state_dict()
    for name in sorted(weights.keys() | wanted.keys()):
        there, here = (tuple(side[name].shape) if name in side else "nothing" for side in (weights, wanted))
        if there != here:
            raise DataError(f"{source}: checkpoint of another model: {name} is {there} there, {here} here; give a "
                            "pre-training run")  # fmt: skip
    if not 0 <= (n_transfer or 0) <= len(gpt.blocks):
        raise ConfigError(f"task.n_transfer is {n_transfer}; {source} has {len(gpt.blocks)} blocks")
    for name in weights:
        layer = int(name.split(".")[1]) if name.startswith("blocks.") else -1 if name in ("wte", "wpe") else 0
        if n_transfer is not None and layer >= n_transfer:
            weights[name] = wanted[name].clone()
    gpt.load_state_dict(weights)
    return weights


def write_predictions(run: Run, split: str, gold: list[Any], predictions: list[Any]) -> None:
    """predictions-SPLIT.tsv; for a test file of GLUE also the file that its site takes."""
    shown = list(map(run.task.show, predictions))
    labels = ("" if label is None else run.task.show(label) for label in gold)
    rows = [f"{index}\t{label}\t{mine}\n" for index, (label, mine) in enumerate(zip(labels, shown, strict=True))]
    write_atomically(run.folder / f"predictions-{split}.tsv", "index\tgold\tprediction\n" + "".join(rows))
    if split in run.task.glue:
        (run.folder / "glue").mkdir(exist_ok=True)
        rows = [f"{index}\t{mine}\n" for index, mine in enumerate(shown)]
        write_atomically(run.folder / "glue" / f"{run.task.glue[split]}.tsv", "index\tprediction\n" + "".join(rows))


def write_result(run: Run, best: dict, steps: int, splits: dict[str, dict[str, float]]) -> None:
    config, metric = run.config, run.task.metrics[0]
    result = {
        "task": config.task.name,
        "metric": metric,
        "score": best["metrics"][metric],
        "metrics": best["metrics"],
        "majority": run.majority,
        "seed": config.run.seed,
        "epochs": round(steps / run.steps_per_epoch, 3),
        "examples": {"train": len(run.train), "dev": len(run.dev)},
        "init": run.facts["init"],
        "best_step": best["step"],
        "cut": run.cut,
        "splits": splits,
        "confusion": best["confusion"] and {"classes": list(run.task.classes), "counts": best["confusion"]},
    }
    write_atomically(run.folder / "result.json", json.dumps(result, indent=2) + "\n")
    distributed.say(f"{config.task.name}: {metric} {result['score']:.4f} on {len(run.dev)} dev examples at step "
                    f"{best['step']} (majority {run.majority:.4f}); see {run.folder}/result.json")  # fmt: skip


def announce(run: Run, ds: dict, step: int) -> None:
    config, shape = run.config, GPTConfig(**run.facts["model"])
    precision = f"ZeRO-{deepspeed_config.zero_stage(ds)}, {deepspeed_config.precision(ds)}"
    n_cut, most = sum(cut["examples"] for cut in run.cut.values()), max(cut["most"] for cut in run.cut.values())
    shortened = f"; {n_cut} cut to {shape.n_ctx} tokens a sequence, by {most} at most" if n_cut else ""
    distributed.say(
        f"run      {run.folder}\n"
        f"model    {shape.n_layer} layers x {shape.n_embd}, initial weights: {run.facts['init']}\n"
        f"task     {config.task.name} ({run.task.kind}): {len(run.train):,} training, {len(run.dev):,} dev "
        f"examples{shortened}\n"
        f"batch    {config.train.global_batch} examples a step on {distributed.world_size()} ranks, micro-batch "
        f"{ds['train_micro_batch_size_per_gpu']}, {precision}\n"
        f"steps    {step} of {run.total_steps} done"
    )
    if config.task.pool == "first":
        distributed.say("warning: task.pool=first reads the state at <s>, which sees no other token; use last")


def cli() -> None:
    guard(main)


if __name__ == "__main__":
    cli()
