"""Functions that ranks of the pool run for tests of models that are never built whole."""

from contextlib import nullcontext

import torch

from gpt1_ds.checkpoints.flat_tensors import flat_slices
from gpt1_ds.distributed import collectives
from gpt1_ds.engine.building import without_memory
from gpt1_ds.engine.start import initialize
from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.settings.deepspeed_json import resolve
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import PretrainConfig
from gpt1_ds.tasks.heads import TaskModel
from tests.support.cases_engine import TINY

STEPS = 2


def model_of(kind: str) -> torch.nn.Module:
    """A decoder of this kind, or one with a head: `task`."""
    shape = GPTConfig(300, 2, 2, 32, 32, kind="transformer" if kind == "task" else kind)
    gpt = GPT(shape)
    return TaskModel(gpt, "classification", 3, "last", 0.1) if kind == "task" else gpt


def built_both_ways(ds_path: str, shards: str, kind: str, more: list[str]) -> list[list]:
    """Of an engine around a whole module, and of one around a module without memory:

    what this rank's optimizer updates and the bits of it, the types of the module's parameters, the
    next random number, and the losses of some steps.
    """
    config = load(PretrainConfig, None, [*TINY, f"data.shards={shards}", *more])
    ds = resolve(ds_path, config, collectives.world_size())
    ids_BT = torch.arange(66).view(2, 33) % 300
    keys_B2 = torch.arange(4, dtype=torch.int32).view(2, 2)
    found = []
    for place in (nullcontext, without_memory):
        torch.manual_seed(3)
        with place():
            module = model_of(kind)
        # ZeRO-3 takes a first step with Muon, whose kernels would be compiled.
        with torch.compiler.set_stance("force_eager") if "optimizer" in ds else nullcontext():
            engine = initialize(module, config, ds)
        facts: list = [torch.rand(1).item()]
        for part in flat_slices(engine):
            bits = part.weights().contiguous().view(torch.int32).tolist()
            facts.append([part.name, part.start, part.length, part.part, part.offset, bits])
        facts.append([str(parameter.dtype) for parameter in engine.module.parameters()])
        decoder = engine.module if kind != "task" else None
        for _ in range(STEPS if decoder and "optimizer" not in ds else 0):
            _, nll_BT = engine(ids_BT[:, :-1], ids_BT[:, 1:], dropout_keys_B2=keys_B2)
            engine.backward(nll_BT.mean())
            engine.step()
            facts.append(nll_BT.mean().item())
        engine.destroy()
        found.append(facts)
    return found
