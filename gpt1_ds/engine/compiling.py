"""Compiled blocks (`train.compile`) and blocks as CUDA graphs (`train.cuda_graphs`).

Both replace a block's `forward` and nothing else, so that hooks, checkpoints and the rest of the
model stay as they are.
"""

import warnings
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from gpt1_ds.base.memory import is_shortage
from gpt1_ds.base.protocols import Engine
from gpt1_ds.distributed.console import say
from gpt1_ds.model.gpt import SITES, Block, DropoutKeys, KeysValues
from gpt1_ds.model.kernels import keys_of_places
from gpt1_ds.settings.sections import FinetuneConfig, PretrainConfig

EQUAL_ON_GPU = False
"""Whether `benchmarks/gpu.py` has found the results of compiled blocks equal to those of others on
a GPU. Until then `train.compile=auto` compiles nothing."""
Backend = Callable[[torch.fx.GraphModule, list[Tensor]], Callable[..., object]]
"""What makes something to run of a graph and its sample inputs, as `torch.compile` takes it."""
Output = tuple[Tensor, KeysValues | None]
Forward = Callable[[Tensor, KeysValues | None, DropoutKeys], Output]
"""The `forward` of a block."""
Recorded = Callable[[Tensor, Tensor], Tensor]
"""The `forward` of a `TrainingBlock`."""
TRIAL = 5, 23
"""Sequences and tokens of the trial call where batches differ in shape: equal to no other size of a
block, or the compiler would take the two for the same size."""


def prepare_blocks(engine: Engine, config: PretrainConfig) -> None:
    """Compile the blocks of a new engine and capture them in CUDA graphs, as `config` asks.

    Where compilation fails, rank 0 says so and the blocks run uncompiled.
    """
    blocks = [part for part in engine.module.modules() if isinstance(part, Block)]
    tuning = isinstance(config, FinetuneConfig)
    if blocks and _is_compiled(str(config.train.compile).lower(), engine, tuning):
        shape = TRIAL
        if not tuning:
            shape = engine.train_micro_batch_size_per_gpu(), blocks[0].attn.config.n_ctx
        compile_blocks(blocks, shape, dynamic=tuning)
    if blocks and config.train.cuda_graphs:
        capture(blocks, engine.train_micro_batch_size_per_gpu())


def _is_compiled(wanted: str, engine: Engine, tuning: bool) -> bool:
    if wanted != "auto":
        per_length = tuning and engine.device.type == "cpu"
        if wanted == "true" and per_length:
            say(
                "train.compile: the blocks run uncompiled, as fine-tuning on a CPU would compile "
                "them anew for each length"
            )
        return wanted == "true" and not per_length
    possible = engine.device.type == "cuda" and engine.zero_optimization_stage() < 3
    if possible and not EQUAL_ON_GPU:
        say(
            "train.compile is auto: the blocks are not compiled, as their results are not yet "
            "compared on a GPU; train.compile=true is faster"
        )
    return possible and EQUAL_ON_GPU


def compile_blocks(
    blocks: list[Block], shape: tuple[int, int], dynamic: bool, backend: str | Backend = "inductor"
) -> None:
    """Compile all `blocks`, and call one of them forward and backward with a batch of `shape`.

    The blocks have the same code, and one graph serves them all. `dynamic`: batches differ in
    shape, and one graph serves these, too. If the call fails, the blocks stay as they were.
    """
    for block in blocks:
        compiled = torch.compile(block.forward, dynamic=dynamic or None, backend=backend)
        _replace(block, compiled, lambda x_BTC, keys_PB2: True)
    try:
        states_BTC, keys_PB2 = sample_inputs(blocks[0], *shape)
        with warnings.catch_warnings():
            # The cached tensors of the kernels are computed in the graph: slower, but right.
            warnings.filterwarnings("ignore", message=".*functools.lru_cache")
            output_BTC = blocks[0](states_BTC, None, keys_PB2)[0]
            torch.autograd.grad(output_BTC.sum(), [states_BTC, *blocks[0].parameters()])
    except Exception as error:  # whatever a compiler, or the lack of one, may raise
        if is_shortage(error):
            raise
        for block in blocks:
            del block.forward  # the method of the class shows again
        say(
            f"train.compile: the blocks run uncompiled, as that failed: {_reason(error)}; it needs "
            "a compiler such as g++, and on a GPU gcc and triton"
        )


def _replace(block: Block, fast: Forward, takes: Callable[[Tensor, DropoutKeys], bool]) -> None:
    """Let `fast` compute what it `takes` of the calls without a past, and the block the others.

    With a past, each new token has a shape of its own, and sampling is a small part of a run.
    """
    plain: Forward = block.forward

    def forward(x_BTC: Tensor, past: KeysValues | None, keys_PB2: DropoutKeys) -> Output:
        chosen = fast if past is None and takes(x_BTC, keys_PB2) else plain
        return chosen(x_BTC, past, keys_PB2)

    block.forward = forward  # type: ignore[method-assign, assignment]


def _reason(error: Exception) -> str:
    """The first line of the exception that began it."""
    first: BaseException = error
    while first.__cause__ is not None:
        first = first.__cause__
    lines = str(first).split("\n")
    return lines[0] or type(first).__name__


def sample_inputs(block: Block, sequences: int, tokens: int) -> tuple[Tensor, Tensor]:
    """States (B, T, C) and dropout keys (P, B, 2) such as a block gets in training."""
    weight = block.ln_1.weight
    states_BTC = torch.zeros(
        sequences, tokens, len(weight), dtype=weight.dtype, device=weight.device, requires_grad=True
    )
    keys_B2 = torch.zeros(sequences, 2, dtype=torch.int32)
    return states_BTC, keys_of_places(keys_B2, SITES, weight.device)


class TrainingBlock(nn.Module):
    """A block in a training step: tensors in, one tensor out, as CUDA graphs need it."""

    def __init__(self, block: Block):
        super().__init__()
        self.block = block

    def forward(self, x_BTC: Tensor, keys_PB2: Tensor) -> Tensor:
        output_BTC: Tensor = self.block(x_BTC, None, keys_PB2)[0]
        return output_BTC


def capture(blocks: list[Block], sequences: int) -> None:
    """Record forward and backward of each block as CUDA graphs, for micro-batches of one shape.

    A step then launches two graphs a block. The graphs of all blocks share their memory, so they
    run in the order of the blocks. The gradients of the weights are written to the same memory at
    each backward pass: `settings.deepspeed_json` refuses to accumulate them.
    """
    n_ctx = blocks[0].attn.config.n_ctx
    samples = tuple(sample_inputs(block, sequences, n_ctx) for block in blocks)
    parts = tuple(TrainingBlock(block) for block in blocks)
    recorded = torch.cuda.make_graphed_callables(parts, samples)
    for block, run in zip(blocks, recorded, strict=True):
        take_recorded(block, cast(Recorded, run), samples[0][0].shape)


def take_recorded(block: Block, run: Recorded, shape: torch.Size) -> None:
    """Let the recorded `run` compute training steps of `shape`, and the block everything else.

    Nobody reads the keys and values of a training step, so it returns none.
    """

    def fast(x_BTC: Tensor, past: KeysValues | None, keys_PB2: DropoutKeys) -> Output:
        assert isinstance(keys_PB2, Tensor)
        return run(x_BTC, keys_PB2), None

    def takes(x_BTC: Tensor, keys_PB2: DropoutKeys) -> bool:
        trains = torch.is_grad_enabled() and isinstance(keys_PB2, Tensor)
        return trains and x_BTC.shape == shape

    _replace(block, fast, takes)
