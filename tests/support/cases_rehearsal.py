"""Rehearsals of tiny runs as one rank of many, and the same runs among real ranks. Prints JSON.

    python -m tests.support.cases_rehearsal < cases.json

A case is [path of the DeepSpeed JSON, shard directory, number of ranks, overrides].
"""

import json
import sys

import torch

from gpt1_ds.base.protocols import Json
from gpt1_ds.engine.counting import counted
from gpt1_ds.engine.traffic import parts_of, traffic_of
from gpt1_ds.runs.rehearsal import STEPS, prepare, rehearse
from gpt1_ds.runs.rehearsal_table import planned_parts, planned_traffic
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import PretrainConfig
from tests.support.cases_engine import TINY, Trainer


def rehearsed(ds_path: str, shards: str, ranks: int, overrides: list[str]) -> Json:
    config = load(PretrainConfig, None, [*TINY, f"data.shards={shards}", *overrides])
    plan = prepare(config, ds_path, ranks, None)
    found = rehearse(plan)
    return {
        "losses": found.losses,
        "held": found.held._asdict(),
        "elements": sum(part.elements for part in parts_of(plan.shape)),
        "planned": planned_traffic(plan),
        "most": planned_parts(plan).passing,
        "sent": found.sent.whole(),
        "small": found.sent.small,
        "traffic": traffic_of(found.sent.whole()),
        "saved": found.saved,
        "activations": found.watch.activations,
    }


def real(ds_path: str, shards: str, overrides: list[str]) -> Json:
    """The same of the real ranks of this pool; losses are those of rank 0."""
    trainer = Trainer(ds_path, shards, overrides, seed=1)
    losses = trainer.run(0, STEPS - 1)
    with counted() as counts:
        trainer.run(STEPS - 1, STEPS)
    trainer.close()
    return {
        "losses": losses,
        "sent": counts.sent,
        "small": counts.messages - sum(sent.messages for sent in counts.sent.values()),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps([rehearsed(*case) for case in json.load(sys.stdin)]))
