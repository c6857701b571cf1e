"""Counts what the host does in a training step as rank 0 of many; prints it as JSON.

    python -m tests.support.host_work RANKS

Torch's fake process group stands for the other ranks. The update is that of a GPU: nothing waits.
"""

import json
import sys
from pathlib import Path

import torch
from pytest import MonkeyPatch

from gpt1_ds.distributed import rendezvous
from gpt1_ds.engine import start
from gpt1_ds.engine.counting import Counts, counted, join_fake_group
from gpt1_ds.engine.defaults import with_defaults
from gpt1_ds.engine.internals import import_deepspeed
from gpt1_ds.engine.update import Update
from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.settings.deepspeed_json import resolve
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import PretrainConfig

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ("zero0_fp32", "zero1_bf16", "zero2_bf16")
SHAPE = GPTConfig(1000, n_layer=12, n_head=2, n_embd=16, n_ctx=8)


def step_of(ds: str, ranks: int) -> dict[str, Counts]:
    """The counts of each part of the third step."""
    options = [f"train.global_batch={ranks}", "train.micro_batch=1"]
    config = load(PretrainConfig, None, options)
    settings = resolve(ROOT / "ds_configs" / f"{ds}.json", config, ranks)
    engine = start.initialize(GPT(SHAPE), config, settings)
    update = engine.optimizer.step
    if isinstance(update, Update):
        update.late = True
    ids_BT = torch.randint(0, SHAPE.vocab_size, (1, SHAPE.n_ctx + 1))
    parts = {}
    for _ in range(3):
        with counted() as parts["forward"]:
            loss = engine(ids_BT[:, :-1], ids_BT[:, 1:])[1].mean()
        with counted() as parts["backward"]:
            engine.backward(loss)
        with counted() as parts["step"]:
            engine.step()
    engine.destroy()
    return parts


def main() -> None:
    ranks = int(sys.argv[1])
    if ranks > 1:
        join_fake_group(ranks)
        import_deepspeed()
    else:
        rendezvous.join_process_group(60.0)
    found = {}
    with MonkeyPatch.context() as patched:
        patched.setattr(start, "with_defaults", lambda ds, size, _: with_defaults(ds, size, True))
        for ds in CONFIGS:
            found[ds] = {
                part: {
                    "operators": counts.operators.total(),
                    "waits": dict(counts.waits),
                    "messages": counts.messages,
                    "bytes": counts.message_bytes,
                }
                for part, counts in step_of(ds, ranks).items()
            }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
