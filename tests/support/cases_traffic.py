"""Counts what a step sends, as rank 0 of many pretended ranks. Prints JSON.

    python -m tests.support.cases_traffic < cases.json

A case is [number of ranks, zero_optimization, precision, micro-batches a step]. For each of them it
prints [counted, planned]: bytes of the all-reduces, the all-gathers and the reduce-scatters.
"""

import json
import sys
import tempfile

import torch

from gpt1_ds.base.protocols import Json
from gpt1_ds.distributed import collectives
from gpt1_ds.engine.counting import counted, fake_group
from gpt1_ds.engine.start import initialize
from gpt1_ds.engine.traffic import Traffic, step_traffic, traffic_of
from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.settings.deepspeed_json import resolve, zero_stage
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import PretrainConfig

SHAPE = GPTConfig(vocab_size=1000, n_layer=4, n_head=4, n_embd=64, n_ctx=16)


def sent_by_a_step(zero: Json, precision: str, micro_steps: int) -> Traffic:
    """Of the third step, on the ranks of this process: the first ones also compare settings."""
    windows = micro_steps * collectives.world_size()
    config = load(PretrainConfig, None, [f"train.global_batch={windows}", "train.micro_batch=1"])
    section = {} if precision == "fp32" else {precision: {"enabled": True}}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(json.dumps({"zero_optimization": zero, **section}))
        file.flush()
        ranks = collectives.world_size()
        ds = resolve(file.name, config, ranks, on_this_machine=False)
    torch.manual_seed(0)
    engine = initialize(GPT(SHAPE), config, ds)
    ids_BT = torch.arange(SHAPE.n_ctx + 1)[None]
    for _ in range(3):
        with counted() as counts:
            for _ in range(micro_steps):
                engine.backward(engine(ids_BT[:, :-1], ids_BT[:, 1:])[1].mean())
                engine.step()
    engine.destroy()
    return traffic_of(counts.sent)


def counted_and_planned(ranks: int, zero: Json, precision: str, micro_steps: int) -> list[Traffic]:
    with fake_group(ranks):
        counted = sent_by_a_step(zero, precision, micro_steps)
    stage = zero_stage({"zero_optimization": zero})
    return [counted, step_traffic(SHAPE, zero, stage, precision, ranks, micro_steps)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps([counted_and_planned(*case) for case in json.load(sys.stdin)]))
