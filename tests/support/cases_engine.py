"""What the ranks of the pool do for test_engine.py, test_checkpoint.py, test_distributed.py and test_evaluation.py."""

import importlib
from pathlib import Path

import torch

from gpt1_ds.base.errors import DataError
from gpt1_ds.checkpoints.flat_tensors import pieces
from gpt1_ds.checkpoints.loading import resume
from gpt1_ds.checkpoints.saving import save_checkpoint
from gpt1_ds.data.batches import Batches
from gpt1_ds.data.manifest import read_manifest
from gpt1_ds.data.opening import open_streams
from gpt1_ds.data.order import Cursor, WindowOrder
from gpt1_ds.distributed import collectives
from gpt1_ds.engine.internals import loss_scale
from gpt1_ds.engine.optimizer import set_lr
from gpt1_ds.engine.start import initialize
from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.model.perplexity import validation_loss
from gpt1_ds.settings import deepspeed_json
from gpt1_ds.settings.deepspeed_json import resolve
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import PretrainConfig
from gpt1_ds.train import train_step

TINY = [
    "model.n_layer=2",
    "model.n_head=2",
    "model.n_embd=32",
    "model.n_ctx=32",
    "train.global_batch=8",
    "optim.lr=3e-3",
    "schedule.warmup_steps=2",
    "distributed.timeout_seconds=60",
]


def gathered(name: str) -> list:
    """Plain values and arrays of every rank."""
    return collectives.gather_json(name)


def wrong_on_main(shards: str) -> None:
    def action():
        raise DataError(f"{shards}: wrong")

    collectives.on_main(action)


def sums() -> tuple[float, int]:
    total = collectives.all_sum(torch.tensor([collectives.rank() + 1.0]))
    return total.item(), collectives.world_size()


class Trainer:
    """A tiny run: the parts of train.py, a step at a time."""

    def __init__(self, ds_path: str, shards: str, overrides: list[str], seed: int = 0):
        self.config = load(PretrainConfig, None, [*TINY, f"data.shards={shards}", *overrides])
        self.ds = resolve(ds_path, self.config, collectives.world_size())
        manifest = read_manifest(shards)
        self.streams = open_streams(self.config.data, manifest, "train")
        self.valid = open_streams(self.config.data, manifest, "valid")
        model = self.config.model
        self.shape = GPTConfig(
            manifest.tokenizer["vocab_size"],
            model.n_layer,
            model.n_head,
            model.n_embd,
            model.n_ctx,
            model.embd_pdrop,
            model.attn_pdrop,
            model.resid_pdrop,
        )
        torch.manual_seed(seed)
        self.engine = initialize(GPT(self.shape), self.config, self.ds)
        torch.manual_seed(100 * seed + collectives.rank())
        tokens = {name: stream.tokens for name, stream in self.streams.items()}
        self.order = WindowOrder(tokens, model.n_ctx, 1, {})

    def run(self, first: int, last: int, window: int | None = None) -> list[float]:
        """Losses of the steps from `first` to `last`, their windows from `window` (None: where `first` begins) on."""
        window = first * self.config.train.global_batch if window is None else window
        cursor = Cursor(*divmod(window, self.order.epoch_windows))
        micro_batch, place = (
            self.engine.train_micro_batch_size_per_gpu(),
            (collectives.rank(), collectives.world_size()),
        )
        batches = Batches(
            self.streams, self.order, cursor, self.config.train.global_batch, micro_batch, *place
        )
        losses = []
        for step, (micro_batches, cursor) in zip(range(first, last), batches, strict=False):
            set_lr(self.engine, self.config, step, 100)
            loss = collectives.all_sum(
                train_step(self.engine, micro_batches, batches.dropout_keys(cursor, step))
            )
            losses.append(loss.item() / collectives.world_size())
        return losses

    def loss(self, batches: int | None = 2) -> float:
        (stream,) = self.valid.values()
        return validation_loss(
            self.engine, stream, self.config.model.n_ctx, self.config.train.global_batch, batches
        )

    def close(self) -> None:
        self.engine.destroy()


def trained(
    ds_path: str, shards: str, overrides: list[str], steps: int
) -> tuple[list[float], float]:
    trainer = Trainer(ds_path, shards, overrides)
    losses = trainer.run(0, steps)
    loss = trainer.loss()
    trainer.close()
    return losses, loss


def fingerprint(trainer: Trainer) -> list:
    """This rank's fp32 master weights and Adam moments as exact sums of bits: equal only if bitwise equal."""
    inner = trainer.engine.optimizer
    inner = getattr(inner, "optimizer", inner)
    tensors = [p.detach() for group in inner.param_groups for p in group["params"]]
    tensors += [
        value
        for state in inner.state.values()
        for value in state.values()
        if torch.is_tensor(value)
    ]
    scale = [loss_scale(trainer.engine), trainer.engine.skipped_steps]
    return [
        int(t.float().contiguous().view(torch.int32).to(torch.int64).sum()) for t in tensors
    ] + scale


def exact_resume(ds_path: str, shards: str, folder: str, overrides: list[str]) -> tuple:
    """Six steps at one go, and three + a save + a new engine + three: losses and fingerprints of both."""
    whole = Trainer(ds_path, shards, overrides)
    losses = whole.run(0, 3)
    save_checkpoint(whole.engine, Path(folder), 3, {"step": 3, "model": vars(whole.shape)}, 2)
    losses += whole.run(3, 6)
    prints, loss = fingerprint(whole), whole.loss()
    whole.close()
    again = Trainer(ds_path, shards, overrides, seed=9)
    state = resume(again.engine, Path(folder))
    resumed = again.run(state["step"], 6)
    result = losses[3:], resumed, prints, fingerprint(again), loss, again.loss()
    again.close()
    return result


def save_steps(ds_path: str, shards: str, folder: str, steps: list[int], keep: int) -> float:
    """Train and save at each step; the validation loss at the end, its dropout off."""
    trainer = Trainer(ds_path, shards, [])
    done = 0
    for step in steps:
        trainer.run(done, step)
        done = step
        save_checkpoint(
            trainer.engine, Path(folder), step, {"step": step, "model": vars(trainer.shape)}, keep
        )
    loss = trainer.loss()
    trainer.close()
    return loss


def resumed_step(ds_path: str, shards: str, folder: str) -> int | None:
    trainer = Trainer(ds_path, shards, [], seed=5)
    try:
        state = resume(trainer.engine, Path(folder))
    finally:
        trainer.close()
    return state and state["step"]


def all_windows_loss(ds_path: str, shards: str) -> tuple[float, float]:
    """Validation loss over the whole stream by the engine, and by one plain pass over its windows."""
    trainer = Trainer(ds_path, shards, [])
    ours = trainer.loss(batches=None)
    model = trainer.engine.module.eval()
    (stream,) = trainer.valid.values()
    n_ctx, total = trainer.config.model.n_ctx, 0.0
    ids = torch.from_numpy(stream.read([0], stream.tokens))
    with torch.no_grad():
        for first in range(0, stream.tokens - 1, n_ctx):
            window = ids[:, first : first + n_ctx + 1]
            total += model(window[:, :-1], window[:, 1:])[1].double().sum().item()
    trainer.close()
    return ours, total / (stream.tokens - 1)


def in_float16(target: str, *arguments):
    """Another case in float16: DeepSpeed does not list it for this CPU, but torch computes it there all the same."""
    from deepspeed.accelerator import get_accelerator

    accelerator, module, _, function = get_accelerator(), *target.partition(":")
    offered, machine = accelerator.is_fp16_supported, deepspeed_json._machine
    accelerator.is_fp16_supported, deepspeed_json._machine = lambda: True, lambda *_: None
    try:
        return getattr(importlib.import_module(module), function)(*arguments)
    finally:
        accelerator.is_fp16_supported, deepspeed_json._machine = offered, machine


def rates_and_moments(
    ds_path: str, shards: str, overrides: list[str], steps: int
) -> tuple[dict, list[list[float]]]:
    """What keeps each parameter's moments, `momentum_buffer` or `exp_avg`, and the rates of the groups at each step."""
    trainer, rates = Trainer(ds_path, shards, overrides), []
    for step in range(steps):
        trainer.run(step, step + 1)
        rates.append([group["lr"] for group in trainer.engine.optimizer.param_groups])
    state = trainer.engine.basic_optimizer.state
    kept = {
        piece.name: sorted(
            key for key, value in state[piece.flat].items() if torch.is_tensor(value)
        )
        for piece in pieces(trainer.engine)
    }
    trainer.close()
    return {
        name: keys for part in collectives.gather_json(kept) for name, keys in part.items()
    }, rates
