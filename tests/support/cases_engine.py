"""Functions that ranks of the pool run for tests of the engine and other tests of tiny runs."""

import importlib
from dataclasses import asdict
from pathlib import Path

import torch
from pytest import MonkeyPatch

from gpt1_ds.base.errors import ConfigError, DataError
from gpt1_ds.checkpoints.flat_tensors import flat_slices
from gpt1_ds.checkpoints.loading import resume
from gpt1_ds.checkpoints.saving import save_checkpoint
from gpt1_ds.checkpoints.state import CheckpointState
from gpt1_ds.data.batches import Batches, Share
from gpt1_ds.data.manifest import read_manifest
from gpt1_ds.data.opening import open_streams, order_kind
from gpt1_ds.data.order import Cursor, WindowOrder
from gpt1_ds.data.tokenizer import load_tokenizer
from gpt1_ds.distributed import collectives
from gpt1_ds.engine.internals import import_deepspeed
from gpt1_ds.engine.optimizer import set_lr
from gpt1_ds.engine.readings import loss_scale
from gpt1_ds.engine.start import initialize
from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.model.perplexity import validation_loss
from gpt1_ds.model.sampling import sample_text
from gpt1_ds.settings import deepspeed_json
from gpt1_ds.settings.deepspeed_json import resolve
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import CheckpointConfig, PretrainConfig
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
    """A tiny run from the parts of train.py, which a test can run step by step."""

    def __init__(self, ds_path: str, shards: str, overrides: list[str], seed: int = 0):
        self.config = load(PretrainConfig, None, [*TINY, f"data.shards={shards}", *overrides])
        self.ds = resolve(ds_path, self.config, collectives.world_size())
        self.manifest = read_manifest(shards)
        self.streams = open_streams(self.config.data, self.manifest, "train")
        self.valid = open_streams(self.config.data, self.manifest, "valid")
        numbers = asdict(self.config.model)
        del numbers["preset"]
        self.shape = GPTConfig(self.manifest.tokenizer["vocab_size"], **numbers)
        torch.manual_seed(seed)
        self.engine = initialize(GPT(self.shape), self.config, self.ds)
        torch.manual_seed(100 * seed + collectives.rank())
        tokens = {name: stream.tokens for name, stream in self.streams.items()}
        kind = order_kind(self.config.data)
        self.order = WindowOrder(tokens, self.shape.n_ctx, 1, {}, kind)

    def run(self, first: int, last: int, window: int | None = None) -> list[float]:
        """Losses of the steps from `first` to `last`.

        Their windows begin with number `window` of the order; None: where step `first` begins.
        """
        global_batch = self.config.train.global_batch
        window = first * global_batch if window is None else window
        cursor = Cursor(*divmod(window, self.order.epoch_windows))
        micro_batch = self.engine.train_micro_batch_size_per_gpu()
        share = Share(collectives.rank(), collectives.world_size())
        batches = Batches(self.streams, self.order, cursor, global_batch, micro_batch, share)
        losses = []
        for step, batch in zip(range(first, last), batches, strict=False):
            set_lr(self.engine, self.config, step, 100)
            loss = train_step(self.engine, batch.micro_batches, batch.dropout_keys)
            losses.append(collectives.all_sum(loss).item() / collectives.world_size())
        return losses

    def loss(self, batches: int | None = 2) -> float:
        """The validation loss over this number of global batches (None: all)."""
        (stream,) = self.valid.values()
        global_batch = self.config.train.global_batch
        return validation_loss(self.engine, stream, self.shape.n_ctx, global_batch, batches)

    def state(self, step: int) -> CheckpointState:
        """The state that a checkpoint of `step` stores about this run."""
        sha256 = self.manifest.tokenizer["sha256"]
        return CheckpointState(step=step, model=asdict(self.shape), tokenizer_sha256=sha256)

    def close(self) -> None:
        self.engine.destroy()


def buckets(ds_path: str, shards: str) -> tuple[int, int, bool]:
    """Elements of a bucket, of the model, and whether checkpoints repeat the JSON as resolved."""
    trainer = Trainer(ds_path, shards, [])
    size = trainer.engine.optimizer.reduce_bucket_size
    return size, trainer.shape.parameters, trainer.engine.config == trainer.ds


def devices_set(ds_path: str, shards: str) -> list[int]:
    """Numbers of the devices that DeepSpeed takes for rank 3 of a machine that sees one device."""
    taken = []
    accelerator = import_deepspeed().accelerator.get_accelerator()
    with MonkeyPatch.context() as patched:
        patched.setenv("LOCAL_RANK", "3")
        patched.setattr(accelerator, "set_device", taken.append)
        Trainer(ds_path, shards, []).close()
    return taken


def refused(ds_path: str, shards: str) -> str:
    try:
        Trainer(ds_path, shards, [])
    except ConfigError as error:
        return str(error)
    return ""


def trained(
    ds_path: str, shards: str, overrides: list[str], steps: int
) -> tuple[list[float], float]:
    trainer = Trainer(ds_path, shards, overrides)
    losses = trainer.run(0, steps)
    loss = trainer.loss()
    trainer.close()
    return losses, loss


def trained_with_a_sample(ds_path: str, shards: str) -> tuple[list[float], str]:
    """Losses of four steps, and a text that is sampled after the second one."""
    trainer = Trainer(ds_path, shards, [])
    losses = trainer.run(0, 2)
    text = sample_text(trainer.engine, load_tokenizer(Path(shards) / "tokenizer"), "the", 3)
    losses += trainer.run(2, 4)
    trainer.close()
    return losses, text


def fingerprint(trainer: Trainer) -> list:
    """This rank's fp32 master weights and Adam moments as sums of their bits.

    They are equal only if all are bitwise equal. The last entries are the loss scale and
    the number of skipped steps.
    """
    inner = trainer.engine.optimizer
    inner = getattr(inner, "optimizer", inner)
    tensors = []
    for group in inner.param_groups:
        tensors += [parameter.detach() for parameter in group["params"]]
    for state in inner.state.values():
        tensors += [value for value in state.values() if torch.is_tensor(value)]
    sums = [int(t.float().contiguous().view(torch.int32).to(torch.int64).sum()) for t in tensors]
    return [*sums, loss_scale(trainer.engine), trainer.engine.skipped_steps]


def exact_resume(ds_path: str, shards: str, folder: str, overrides: list[str]) -> tuple:
    """Six steps in one run, and three steps, a save, a new engine and three steps.

    Returns losses and fingerprints of both.
    """
    whole = Trainer(ds_path, shards, overrides)
    losses = whole.run(0, 3)
    save_checkpoint(whole.engine, Path(folder), 3, whole.state(3), CheckpointConfig(keep=2))
    losses += whole.run(3, 6)
    prints, loss = fingerprint(whole), whole.loss()
    whole.close()
    again = Trainer(ds_path, shards, overrides, seed=9)
    state = resume(again.engine, Path(folder))
    resumed = again.run(state.step, 6)
    result = losses[3:], resumed, prints, fingerprint(again), loss, again.loss()
    again.close()
    return result


def save_steps(ds_path: str, shards: str, folder: str, steps: list[int], keep: int) -> float:
    """Train and save at each step; returns the final validation loss, without dropout."""
    trainer = Trainer(ds_path, shards, [])
    done = 0
    for step in steps:
        trainer.run(done, step)
        done = step
        save_checkpoint(
            trainer.engine, Path(folder), step, trainer.state(step), CheckpointConfig(keep=keep)
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
    return state and state.step


def all_windows_loss(ds_path: str, shards: str) -> tuple[float, float]:
    """The validation loss over the whole stream: from the engine, and from one plain pass."""
    trainer = Trainer(ds_path, shards, [])
    ours = trainer.loss(batches=None)
    model = trainer.engine.module.eval()
    (stream,) = trainer.valid.values()
    n_ctx, total = trainer.shape.n_ctx, 0.0
    ids = torch.from_numpy(stream.read([0], stream.tokens))
    with torch.no_grad():
        for first in range(0, stream.tokens - 1, n_ctx):
            window = ids[:, first : first + n_ctx + 1]
            total += model(window[:, :-1], window[:, 1:])[1].double().sum().item()
    trainer.close()
    return ours, total / (stream.tokens - 1)


def in_float16(target: str, *arguments):
    """Run another case in float16.

    DeepSpeed and this project do not support float16 on this CPU, but torch can compute in it.
    """
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    module, _, function = target.partition(":")
    supported, check_machine = accelerator.is_fp16_supported, deepspeed_json._check_machine
    accelerator.is_fp16_supported = lambda: True
    deepspeed_json._check_machine = lambda *_: None
    try:
        return getattr(importlib.import_module(module), function)(*arguments)
    finally:
        accelerator.is_fp16_supported = supported
        deepspeed_json._check_machine = check_machine


def rates_and_moments(
    ds_path: str, shards: str, overrides: list[str], steps: int
) -> tuple[dict, list[list[float]]]:
    """The keys of each parameter's optimizer state (`momentum_buffer` or `exp_avg`, ..), and the
    rates of the parameter groups at each step."""
    trainer = Trainer(ds_path, shards, overrides)
    rates = []
    for step in range(steps):
        trainer.run(step, step + 1)
        rates.append([group["lr"] for group in trainer.engine.optimizer.param_groups])
    own = {}
    for part in flat_slices(trainer.engine):
        state = trainer.engine.basic_optimizer.state[part.flat]
        own[part.name] = sorted(key for key, value in state.items() if torch.is_tensor(value))
    trainer.close()
    kept = {}
    for keys_by_name in collectives.gather_json(own):
        kept |= keys_by_name
    return kept, rates
