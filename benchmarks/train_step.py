"""Compares GPT-1's training step on this CPU with other code, in tokens a second.

    python benchmarks/train_step.py [--rounds 5] [--windows 4] [--layers 12] [--nanogpt PATH]

Every variant trains GPT-1 on the same random tokens, with dropout 0.1, bf16 weights, float32 master
weights and moments, gradient clipping and the optimizer. Each variant has its own process. They
take turns, so that other load on the machine affects all of them. At most two others run in turns
with this project's. `limit` is the time of the matrix products only. About 9 minutes, 16 GB of
memory.
"""

import argparse
import ctypes
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from gpt1_ds.distributed import collectives, environment, rendezvous
from gpt1_ds.engine.determinism import choose_algorithms
from gpt1_ds.engine.internals import import_deepspeed
from gpt1_ds.engine.start import initialize
from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.settings.deepspeed_json import resolve
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import PretrainConfig

N_CTX = 512
LR, CLIP = 2.5e-4, 1.0
ROOT = Path(__file__).resolve().parents[1]
Step = Callable[[torch.Tensor], None]


class Size(NamedTuple):
    """What is trained: GPT-1, or a smaller model to try a script with."""

    layers: int = 12
    windows: int = 4
    """Windows of 512 tokens in a step."""
    width: int = 768
    vocab_size: int = 40_478

    def shape(self) -> GPTConfig:
        return GPTConfig(self.vocab_size, n_layer=self.layers, n_embd=self.width)

    def windows_of_ids(self) -> torch.Tensor:
        return torch.randint(0, self.vocab_size, (self.windows, N_CTX + 1))


def ours(size: Size, *overrides: str, ds: str = "zero1_bf16.json") -> Step:
    options = [
        f"model.n_layer={size.layers}",
        f"model.n_embd={size.width}",
        f"train.global_batch={size.windows}",
        f"train.micro_batch={size.windows}",
        *overrides,
    ]
    config = load(PretrainConfig, None, options)
    choose_algorithms(config)
    rendezvous.join_process_group(600.0)
    trainer = initialize(
        GPT(size.shape()),
        config,
        resolve(ROOT / "ds_configs" / ds, config, 1),
    )

    def step(ids_BT: torch.Tensor) -> None:
        trainer.backward(trainer(ids_BT[:, :-1], ids_BT[:, 1:])[1].mean())
        trainer.step()

    return step


def compiled(size: Size) -> Step:
    return ours(size, "train.compile=true")


def transformers_model(size: Size) -> torch.nn.Module:
    from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

    config = OpenAIGPTConfig(vocab_size=size.vocab_size, n_layer=size.layers, n_embd=size.width)
    return OpenAIGPTLMHeadModel(config).bfloat16().train()


def transformers_deepspeed(size: Size) -> Step:
    """transformers under DeepSpeed, with torch's Adam: DeepSpeed's needs minutes to compile."""
    os.environ.update(
        RANK="0",
        WORLD_SIZE="1",
        LOCAL_RANK="0",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(environment.free_port()),
    )
    deepspeed = import_deepspeed()
    ds = {
        "train_batch_size": size.windows,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 1},
        "gradient_clipping": CLIP,
        "steps_per_print": 2**31 - 1,
        "optimizer": {"type": "AdamW", "params": {"lr": LR, "torch_adam": True}},
    }
    model = transformers_model(size)
    trainer, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=ds)

    def step(ids_BT: torch.Tensor) -> None:
        trainer.backward(trainer(ids_BT[:, :-1], labels=ids_BT[:, :-1]).loss)
        trainer.step()

    return step


def plain_loop(model: torch.nn.Module, loss: Callable[[torch.Tensor], torch.Tensor]) -> Step:
    """A plain loop with bf16 weights, float32 master weights, clipping and fused AdamW."""
    weights = [p for p in model.bfloat16().to(collectives.device()).parameters() if p.requires_grad]
    masters = [p.detach().float().requires_grad_() for p in weights]
    optimizer = torch.optim.AdamW(masters, lr=LR, fused=True)

    def step(ids_BT: torch.Tensor) -> None:
        loss(ids_BT).backward()
        for master, weight in zip(masters, weights, strict=True):
            master.grad, weight.grad = weight.grad.float(), None
        torch.nn.utils.clip_grad_norm_(masters, CLIP)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(weights, masters)

    return step


def transformers_plain(size: Size) -> Step:
    best_allocator()
    model = transformers_model(size)
    return plain_loop(model, lambda ids_BT: model(ids_BT[:, :-1], labels=ids_BT[:, :-1]).loss)


def nanogpt(size: Size) -> Step:
    """nanoGPT, compiled, from the folder NANOGPT (a checkout with its model.py)."""
    best_allocator()
    sys.path.insert(0, os.environ["NANOGPT"])
    import model as nano

    shape = nano.GPTConfig(
        block_size=N_CTX,
        vocab_size=size.vocab_size,
        n_layer=size.layers,
        n_head=12,
        n_embd=size.width,
        dropout=0.1,
    )
    model = nano.GPT(shape).train()
    forward = torch.compile(model)
    return plain_loop(model, lambda ids_BT: forward(ids_BT[:, :-1], ids_BT[:, 1:].contiguous())[1])


def limit(size: Size) -> Step:
    """Only the bf16 matrix products of a step, forward and backward. Attention computes only the
    half that the causal mask keeps."""
    best_allocator()
    rows, width = size.windows * N_CTX, size.width
    x = {
        columns: torch.randn(rows, columns).bfloat16()
        for columns in (width, 3 * width, 4 * width, size.vocab_size)
    }
    of_a_block = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
    shapes = of_a_block * size.layers + [(width, size.vocab_size)]
    weights = {shape: torch.randn(shape).bfloat16() for shape in shapes}
    heads = torch.randn(size.windows * 12, N_CTX, width // 12).bfloat16()
    half = torch.randn(size.windows * 12, N_CTX, N_CTX // 2).bfloat16()

    def step(_: torch.Tensor) -> None:
        for a, b in shapes:
            x[a] @ weights[a, b], x[b] @ weights[a, b].T, x[a].T @ x[b]
        for _ in range(size.layers):
            for _ in range(3):  # forward, and two products a product in backward
                heads @ heads[:, : N_CTX // 2].transpose(1, 2), half @ heads[:, : N_CTX // 2]

    return step


def best_allocator() -> None:
    """Let glibc keep freed memory, as `distributed.rendezvous` does for our training."""
    libc = ctypes.CDLL(None)
    for option, value in (
        (-4, 0),
        (-1, 2**31 - 1),
        (-2, 1 << 28),
    ):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
        libc.mallopt(option, value)


WAYS = {
    "gpt1_ds": ours,
    "gpt1_ds, train.compile": compiled,
    "transformers, DeepSpeed ZeRO-1": transformers_deepspeed,
    "transformers, plain loop, best allocator": transformers_plain,
    "nanoGPT compiled, best allocator": nanogpt,
    "limit: matrix products alone": limit,
}
OWN = "gpt1_ds"
TOGETHER = 2
"""Number of others that run in turns with ours: each variant needs about 5 GB."""


def work(name: str, size: Size, pipe) -> None:
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    step = WAYS[name](size)
    while pipe.recv():
        ids_BT = size.windows_of_ids()
        start = time.perf_counter()
        step(ids_BT)
        pipe.send(time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="timed steps of each way, taken in turn"
    )
    parser.add_argument("--windows", type=int, default=4, help="windows of 512 tokens a step")
    parser.add_argument("--layers", type=int, default=12, help="blocks")
    parser.add_argument(
        "--nanogpt", metavar="PATH", help="checkout of nanoGPT; left out without it"
    )
    args = parser.parse_args()
    os.environ["DS_ACCELERATOR"] = "cpu"
    if args.nanogpt:
        os.environ["NANOGPT"] = args.nanogpt
    peers = [name for name in WAYS if name != OWN and (WAYS[name] is not nanogpt or args.nanogpt)]
    print(
        f"{'way to train GPT-1, ' + str(args.windows) + ' x 512':44}{'tokens/s':>9}{'min':>7}"
        f"{'max':>7}   {OWN} is"
    )
    for first in range(0, len(peers), TOGETHER):
        names = [OWN, *peers[first : first + TOGETHER]]
        seconds = in_turns(names, args)
        tokens, own = args.windows * N_CTX, statistics.median(seconds[OWN])
        for name, times in seconds.items():
            median = statistics.median(times)
            print(
                f"{name:44}{tokens / median:9.0f}{tokens / max(times):7.0f}"
                f"{tokens / min(times):7.0f}"
                f"{median / own:10.2f} x",
                flush=True,
            )


def in_turns(names: list[str], args: argparse.Namespace) -> dict[str, list[float]]:
    """The seconds of `args.rounds` steps of each variant; the variants take turns."""
    context, workers = multiprocessing.get_context("spawn"), {}
    for name in names:
        here, there = context.Pipe()
        process = context.Process(
            target=work, args=(name, Size(args.layers, args.windows), there), daemon=True
        )
        process.start()
        there.close()  # otherwise `recv` would wait for ever if the worker fails
        here.send(True)
        here.recv()  # the first step compiles and allocates: not counted
        workers[name] = process, here
        print(f"ready: {name}", file=sys.stderr, flush=True)
    seconds = {name: [] for name in workers}
    for _ in range(args.rounds):
        for name, (_, pipe) in workers.items():
            pipe.send(True)
            seconds[name].append(pipe.recv())
    for process, pipe in workers.values():
        pipe.send(False)
        process.join()
    return seconds


if __name__ == "__main__":
    main()
