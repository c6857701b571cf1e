"""Functions for tests of ZeRO-3's buckets.

python -m tests.support.cases_partitions DEEPSPEED.json RANKS ..

prints, for each number of ranks, the operators of a forward and backward pass of one of so many
ranks, with those that only make views; torch's fake process group stands for the other ranks.
"""

import json
import os
import sys
from collections import Counter

import torch
from pytest import MonkeyPatch
from torch.utils._python_dispatch import TorchDispatchMode

from gpt1_ds.engine import start
from gpt1_ds.engine.counting import join_fake_group
from gpt1_ds.engine.internals import import_deepspeed
from gpt1_ds.engine.partitions import wait
from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.settings.deepspeed_json import resolve
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import PretrainConfig
from tests.support.cases_engine import Trainer
from tests.support.cases_update import trained_by

SHAPE = GPTConfig(300, 2, 2, 64, 32)


class Operators(TorchDispatchMode):
    """Counts every operator, views too."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, operator, _types, args=(), kwargs=None):
        self.counts[str(operator)] += 1
        return operator(*args, **(kwargs or {}))


def count_passes(ds_path: str, ranks: int) -> int:
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE=str(ranks))
    torch.set_num_threads(1)
    join_fake_group(ranks)
    config = load(PretrainConfig, None, [f"train.global_batch={ranks}", "train.micro_batch=1"])
    engine = start.initialize(GPT(SHAPE), config, resolve(ds_path, config, ranks))
    ids_BT = torch.arange(33).view(1, 33)
    for _ in range(3):
        with Operators() as seen:
            engine.backward(engine(ids_BT[:, :-1], ids_BT[:, 1:])[1].mean())
        engine.step()
    return seen.counts.total()


def trained(ds: str, shards: str, overrides: list[str]) -> list:
    """What `trained_by` finds by our layout and by theirs."""
    import_deepspeed()
    from deepspeed.runtime.zero.partition_parameters import AllGatherCoalescedHandle

    results = []
    for ours in (True, False):
        with MonkeyPatch.context() as patched:
            if not ours:
                patched.setattr(start, "quicken_partitions", lambda engine: None)
                patched.setattr(
                    AllGatherCoalescedHandle, "wait", AllGatherCoalescedHandle.wait_by_rank
                )
            trainer = Trainer(ds, shards, overrides)
            assert (AllGatherCoalescedHandle.wait is wait) == ours
            results.append(trained_by(trainer))
    return results


def main(ds_path: str, *worlds: str) -> None:
    import_deepspeed()
    for ranks in map(int, worlds):
        if (child := os.fork()) == 0:
            try:
                print(json.dumps(count_passes(ds_path, ranks)), flush=True)
                os._exit(0)
            finally:
                os._exit(1)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
