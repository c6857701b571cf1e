"""Compiled blocks (`train.compile`) and blocks as CUDA graphs (`train.cuda_graphs`).

Both give the model `spans`, which run its blocks, or (ZeRO-3) the blocks another `forward`. They
change nothing else, so that hooks, checkpoints and the rest of the model stay as they are.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from gpt1_ds.base.memory import is_shortage
from gpt1_ds.base.protocols import Engine
from gpt1_ds.distributed import collectives
from gpt1_ds.distributed.console import say
from gpt1_ds.model.gpt import GPT, SITES, Block, DropoutKeys, KeysValues, Span
from gpt1_ds.model.kernels import keys_of_places
from gpt1_ds.settings.sections import FinetuneConfig, PretrainConfig

EQUAL_ON_GPU = False
"""Whether `benchmarks/gpu.py` has found the results of compiled blocks equal to those of others on
a GPU. Until then `train.compile=auto` compiles nothing."""
Backend = Callable[[torch.fx.GraphModule, list[Tensor]], Callable[..., object]]
"""What makes something to run of a graph and its sample inputs, as `torch.compile` takes it."""
BlockForward = Callable[[Tensor, KeysValues | None, DropoutKeys], tuple[Tensor, KeysValues]]
Run = Callable[[Tensor, DropoutKeys], Tensor]
"""See `Span.run`."""
TRIAL = 5, 23
"""Sequences and tokens of the trial call where batches differ in shape: equal to no other size of a
block, or the compiler would take the two for the same size."""
MOST_BLOCKS = 12
"""Of a graph: the time to compile it grows with them."""


def prepare_blocks(engine: Engine, config: PretrainConfig) -> None:
    """Compile the blocks of a new engine and capture them in CUDA graphs, as `config` asks.

    Where compilation fails, the blocks run uncompiled.
    """
    model = next((part for part in engine.module.modules() if isinstance(part, GPT)), None)
    if model is None or not all(isinstance(block, Block) for block in model.blocks):
        return  # the LSTM has no blocks
    tuning = isinstance(config, FinetuneConfig)
    micro_batch = engine.train_micro_batch_size_per_gpu()
    if _is_compiled(str(config.train.compile).lower(), engine, tuning):
        shape = TRIAL if tuning else (micro_batch, model.config.n_ctx)
        if engine.zero_optimization_stage() == 3:
            compile_gathered_blocks(model, shape, dynamic=tuning)
        else:
            compile_blocks(model, blocks_of_a_graph(engine, model), shape, dynamic=tuning)
    if config.train.cuda_graphs:
        capture(model, micro_batch)


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


def blocks_of_a_graph(engine: Engine, model: GPT) -> int:
    """How many blocks a graph has: a divisor of all, so that one graph serves all spans.

    The more blocks, the less Python between them. But all gradients of a graph are ready at its
    end: where ranks send each other full buckets during the backward pass, a graph has no more
    blocks than fill one. With activation checkpointing, whose unit is a span, it has one.
    """
    most = MOST_BLOCKS
    if model.activation_checkpointing:
        most = 1
    elif collectives.world_size() > 1 and engine.zero_optimization_stage():
        block = sum(parameter.numel() for parameter in model.blocks[0].parameters())
        most = min(most, engine.zero_reduce_bucket_size() // block)
    layers = len(model.blocks)
    return max((count for count in range(1, most + 1) if layers % count == 0), default=1)


def compile_blocks(
    model: GPT,
    count: int,
    shape: tuple[int, int],
    dynamic: bool,
    backend: str | Backend = "inductor",
) -> None:
    """Compile all blocks, `count` to a graph, and try that with a batch of `shape`.

    The blocks have the same code, and one graph serves all spans. `dynamic`: batches differ in
    shape, and one graph serves these, too. If it fails, the model stays as it was.
    """

    def compiled(run: Run) -> Run:
        return torch.compile(run, dynamic=dynamic or None, backend=backend)

    spans = [replace(span, run=compiled(span.run)) for span in plain_spans(model, count)]
    if _works(spans[0].run, model.blocks[:count], sample_inputs(model, count, *shape)):
        model.spans = spans


def take_whole_blocks(module: nn.Module) -> None:
    """Let DeepSpeed gather the weights of a block before its `forward`, and not inside it.

    For ZeRO-3 with compiled blocks, before the engine is made.
    """
    from deepspeed.utils import set_z3_leaf_modules

    if any(isinstance(part, Block) for part in module.modules()):
        set_z3_leaf_modules(module, [Block])


def compile_gathered_blocks(
    model: GPT, shape: tuple[int, int], dynamic: bool, backend: str | Backend = "inductor"
) -> None:
    """`compile_blocks` under ZeRO-3: the `forward` of each block, between DeepSpeed's hooks.

    The trial is of a block of its own, since the hooks belong to the steps of the engine. Calls
    with a past run uncompiled: each has a shape of its own.
    """

    def compiled(block: Block) -> BlockForward:
        plain = block.forward
        fast = torch.compile(plain, dynamic=dynamic or None, backend=backend)

        def forward(
            x_BTC: Tensor, past: KeysValues | None, keys_PB2: DropoutKeys
        ) -> tuple[Tensor, KeysValues]:
            return (fast if past is None else plain)(x_BTC, past, keys_PB2)

        return forward

    states_BTC, keys_PB2 = sample_inputs(model, 1, *shape)
    trial = Block(model.config).to(states_BTC.device, states_BTC.dtype)
    run = compiled(trial)
    if _works(lambda x, keys: run(x, None, keys)[0], [trial], (states_BTC, keys_PB2)):
        for block in cast(Sequence[Block], model.blocks):
            block.forward = compiled(block)  # type: ignore[method-assign,assignment]


def _works(run: Run, blocks: Iterable[nn.Module], inputs: tuple[Tensor, Tensor]) -> bool:
    """Whether forward and backward of the compiled `blocks` run; a line says why not."""
    try:
        weights = nn.ModuleList(blocks).parameters()
        with warnings.catch_warnings():
            # The cached tensors of the kernels are computed in the graph: slower, but right.
            warnings.filterwarnings("ignore", message=".*functools.lru_cache")
            torch.autograd.grad(run(*inputs).sum(), [inputs[0], *weights])
        return True
    except Exception as error:  # whatever a compiler, or the lack of one, may raise
        if is_shortage(error):
            raise
        say(
            f"train.compile: the blocks run uncompiled, as that failed: {_reason(error)}; it needs "
            "a compiler such as g++, and on a GPU gcc and triton"
        )
        return False


def plain_spans(model: GPT, count: int) -> list[Span]:
    """All blocks, `count` to a span, as they are."""
    spans = []
    for first in range(0, len(model.blocks), count):
        keys = slice(1 + SITES * first, 1 + SITES * (first + count))
        blocks = cast(Sequence[Block], model.blocks[first : first + count])
        spans.append(Span(keys, _in_a_row(blocks)))
    return spans


def _in_a_row(blocks: Sequence[Block]) -> Run:
    def run(x_BTC: Tensor, keys_PB2: DropoutKeys) -> Tensor:
        for number, block in enumerate(blocks):
            x_BTC = block(x_BTC, None, keys_PB2[SITES * number : SITES * (number + 1)])[0]
        return x_BTC

    return run


def _reason(error: Exception) -> str:
    """The first line of the exception that began it."""
    first: BaseException = error
    while first.__cause__ is not None:
        first = first.__cause__
    lines = str(first).split("\n")
    return lines[0] or type(first).__name__


def sample_inputs(model: GPT, count: int, sequences: int, tokens: int) -> tuple[Tensor, Tensor]:
    """States (B, T, C) and dropout keys such as a span of `count` blocks gets in training."""
    weight, shape = model.wte, (sequences, tokens, model.config.n_embd)
    states_BTC = torch.zeros(shape, dtype=weight.dtype, device=weight.device, requires_grad=True)
    keys_B2 = torch.zeros(sequences, 2, dtype=torch.int32)
    return states_BTC, keys_of_places(keys_B2, SITES * count, weight.device)


class TrainingSpan(nn.Module):
    """Blocks in a training step: tensors in, one tensor out, as CUDA graphs need it."""

    def __init__(self, blocks: nn.ModuleList, run: Run):
        super().__init__()
        self.blocks = blocks  # whose parameters get gradients
        self.run = run

    def forward(self, x_BTC: Tensor, keys_PB2: Tensor) -> Tensor:
        return self.run(x_BTC, keys_PB2)


def capture(model: GPT, sequences: int) -> None:
    """Record forward and backward of each span as CUDA graphs, for micro-batches of one shape.

    A span is a block, or the blocks that are compiled together. A step then launches two graphs for
    each. All graphs share their memory, so they run in the order of the blocks. The gradients of
    the weights are written to the same memory at each backward pass: `settings.deepspeed_json`
    refuses to accumulate them.
    """
    spans = model.spans or plain_spans(model, 1)
    count = len(model.blocks) // len(spans)
    samples = tuple(sample_inputs(model, count, sequences, model.config.n_ctx) for _ in spans)
    parts = tuple(
        TrainingSpan(model.blocks[number * count : (number + 1) * count], span.run)
        for number, span in enumerate(spans)
    )
    recorded = torch.cuda.make_graphed_callables(parts, samples)
    take_recorded(model, spans, cast(tuple[Run, ...], recorded), samples[0][0].shape)


def take_recorded(
    model: GPT, spans: list[Span], recorded: Sequence[Run], shape: torch.Size
) -> None:
    """Let `recorded` compute training steps of `shape`, and `spans` all else without a cache."""

    def chosen(plain: Run, fast: Run) -> Run:
        def run(x_BTC: Tensor, keys_PB2: DropoutKeys) -> Tensor:
            trains = torch.is_grad_enabled() and isinstance(keys_PB2, Tensor)
            return (fast if trains and x_BTC.shape == shape else plain)(x_BTC, keys_PB2)

        return run

    pairs = zip(spans, recorded, strict=True)
    model.spans = [replace(span, run=chosen(span.run, fast)) for span, fast in pairs]
