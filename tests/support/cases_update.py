"""Functions that ranks run for test_update.py: the update of the weights, old and new."""

import gc
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from pytest import MonkeyPatch

from gpt1_ds.base.protocols import Engine, Json
from gpt1_ds.distributed import collectives
from gpt1_ds.engine import start
from gpt1_ds.engine.internals import import_deepspeed
from gpt1_ds.engine.update import Update, skipped_steps, was_skipped
from tests.support.cases_engine import Trainer, fingerprint

STEPS = 4


def deepspeeds_own(engine: Engine) -> None:
    engine.late_skips = []


def deepspeeds_defaults(ds: Json, parameters: int, on_gpu: bool) -> Json:
    """As before: whole buckets, which DeepSpeed cuts by destination."""
    return {**ds, "timers": {"throughput": {"enabled": True}}}


def trained_by(trainer: Trainer) -> list:
    """Losses, norms of the gradients, and the bits of the final state after `STEPS` steps."""
    losses, norms = [], []
    for step in range(STEPS):
        losses += trainer.run(step, step + 1)
        norms.append(float(trainer.engine.get_global_grad_norm() or 0.0))
    found = [losses, norms, fingerprint(trainer)]
    trainer.close()
    return found


def trained(ds: str, shards: str, overrides: list[str]) -> list:
    """What `trained_by` finds by our update and by theirs."""
    results = []
    for ours in (True, False):
        with MonkeyPatch.context() as patched:
            if not ours:
                patched.setattr(start, "quicken_update", deepspeeds_own)
                patched.setattr(start, "quicken_reduction", lambda engine: None)
                patched.setattr(start, "with_defaults", deepspeeds_defaults)
            trainer = Trainer(ds, shards, overrides)
            quick = isinstance(trainer.engine.optimizer.step, Update)
            assert quick == ours, type(trainer.engine.optimizer)
            results.append(trained_by(trainer))
    return results


class Streams:
    """Stands for a device whose work goes on beside the host; on a CPU all is done at once.

    The gradients are computed in the streams `names`, by turns.
    """

    def __init__(self, accelerator: object, names: Sequence[str]):
        self.accelerator = accelerator
        self.names = names
        self.synchronized = 0
        self.ordered: list[tuple[str, str]] = []
        self.recorded = 0
        """Tensors whose memory is kept for another stream."""

    class Stream:
        def __init__(self, streams: "Streams", name: str):
            self.streams, self.name = streams, name

        def wait_stream(self, other: "Streams.Stream") -> None:
            self.streams.ordered.append((self.name, other.name))

    def patch(self, patched: MonkeyPatch) -> None:
        turns = itertools.cycle([Streams.Stream(self, name) for name in self.names])
        side = Streams.Stream(self, "side")
        kind = type(self.accelerator)
        patched.setattr(kind, "resolves_data_dependency", lambda _: False)
        patched.setattr(kind, "is_synchronized_device", lambda _: False)
        patched.setattr(kind, "Stream", property(lambda _: lambda *_args: side))
        patched.setattr(kind, "current_stream", lambda *_: next(turns))
        patched.setattr(kind, "stream", lambda *_: nullcontext())
        patched.setattr(kind, "synchronize", lambda *_: self._synchronize())
        patched.setattr(torch.Tensor, "record_stream", lambda *_: self._record())

    def _record(self) -> None:
        self.recorded += 1

    def _synchronize(self) -> None:
        self.synchronized += 1


def streams(
    ds: str, shards: str, names: Sequence[str] = ("main",)
) -> tuple[int, list[tuple[str, str]], int]:
    """Waits of the host for the device in two steps, which stream waits for which, and how many
    tensors are kept for another stream."""
    accelerator = import_deepspeed().accelerator.get_accelerator()
    seen = Streams(accelerator, names)
    with MonkeyPatch.context() as patched:
        seen.patch(patched)
        trainer = Trainer(ds, shards, [])
        gc.collect()  # an engine of an earlier case waits for the device when it is collected
        seen.synchronized = 0
        trainer.run(0, 2)
        found = seen.synchronized, seen.ordered, seen.recorded
        trainer.close()
    return found


@contextmanager
def bad_gradients(trainer: Trainer, bad: bool) -> Iterator[None]:
    """The loss of a step is NaN on the last rank."""
    victim = bad and collectives.rank() == collectives.world_size() - 1

    def spoil(_module: object, _inputs: object, outputs: tuple) -> tuple:
        hidden, nll = outputs
        return hidden, nll * (torch.nan if victim else 1)

    hook = trainer.engine.module.register_forward_hook(spoil)
    yield
    hook.remove()


def skipping(ds: str, shards: str, bad_steps: Sequence[int], late: bool) -> list:
    """The bits of the final state, and what is known of skipped steps after each step."""
    trainer = Trainer(ds, shards, [])
    engine = trainer.engine
    engine.optimizer.step.late = late
    known = []
    for step in range(STEPS + 2):
        before = engine.skipped_steps
        with bad_gradients(trainer, step in bad_steps):
            trainer.run(step, step + 1)
        known.append([bool(was_skipped(engine, before)), engine.skipped_steps])
    counted = skipped_steps(engine)
    result = [fingerprint(trainer), known, counted, len(engine.late_skips)]
    trainer.close()
    return result
