"""Functions that ranks run for test_compiling.py: compiled blocks under DeepSpeed."""

from functools import partial

import torch
from pytest import MonkeyPatch
from torch._dynamo import lookup_backend
from torch._dynamo.utils import counters

from gpt1_ds.engine import compiling
from tests.support.cases_engine import Trainer, fingerprint

STEPS = 3


class Graphs:
    """A compiler that counts graphs and runs them as they are."""

    def __init__(self) -> None:
        torch._dynamo.reset()
        counters.clear()
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        self.count += 1
        return self.compiled(graph, inputs)

    def compiled(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        return graph.forward

    def new(self) -> int:
        """Graphs since the last call. None has a break in it."""
        assert not counters["graph_break"] and not counters["unimplemented"]
        count, self.count = self.count, 0
        return count


class AutogradGraphs(Graphs):
    """The compiler's autograd without its kernels: the bits are those of uncompiled blocks."""

    def compiled(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        return lookup_backend("aot_eager")(graph, inputs)


def weights_held(trainer: Trainer) -> int:
    """Elements of the blocks' weights that this rank has, beyond its part."""
    return sum(parameter.numel() for parameter in trainer.engine.module.blocks.parameters())


def gathered_blocks(ds: str, shards: str, overrides: list[str]) -> tuple[list, list, list[int]]:
    """Of plain and of compiled blocks: losses, the final state's bits, and the validation loss.

    Then graphs after the trial, training, and validation; breaks; weights still held at the end.
    """
    results, counts = [], []
    for compiled in ("false", "true"):
        graphs = AutogradGraphs()
        with MonkeyPatch.context() as patched:
            gathered = partial(compiling.compile_gathered_blocks, backend=graphs)
            patched.setattr(compiling, "compile_gathered_blocks", gathered)
            trainer = Trainer(ds, shards, [*overrides, f"train.compile={compiled}"])
        counts = [graphs.count]
        losses = trainer.run(0, STEPS)
        counts.append(graphs.count)
        valid = trainer.loss()
        losses += trainer.run(STEPS, STEPS + 1)
        counts += [graphs.count, counters["graph_break"].total(), weights_held(trainer)]
        results.append([losses, fingerprint(trainer), valid])
        trainer.close()
    return results[0], results[1], counts
