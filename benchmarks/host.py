"""Host time of a training step: what Python, torch and DeepSpeed cost besides the arithmetic.

    python benchmarks/host.py [--rounds 7] [--steps 10] [--ranks 1 8 64 512 4096]

The model has the paper's 12 layers at a width of 16, so that its arithmetic takes no time to speak
of. On a GPU this work is done by the host while the device computes, and it is the shortest time
that a step can take. Our model takes the branches of a GPU (`like_a_gpu`) except in the last way.
Each way has a process of its own with one thread; the ways take turns. Times are process times in
milliseconds, each the least of the rounds: other load only adds to them. `operators` launch a
kernel on a GPU, and `waits` are those of the host for the device; on a CPU, the update has one that
a GPU has not, and the head another.

The second table is of one rank of many, over torch's fake process group, with as many buckets as
GPT-1 has on a GPU. Its figures are the constants of `gpt1_ds/engine/host_time.py`:

    python benchmarks/host.py --only --configs zero0_fp32 zero1_bf16 zero2_bf16 zero3_bf16

About 3 minutes, and 3 for each JSON of `--configs`.
"""

import argparse
import contextlib
import itertools
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from gpt1_ds.distributed import rendezvous
from gpt1_ds.engine.counting import counted, join_fake_group
from gpt1_ds.engine.defaults import with_defaults
from gpt1_ds.engine.internals import import_deepspeed, replaced
from gpt1_ds.engine.start import initialize
from gpt1_ds.model import loss
from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.runs.rehearsal_host import branches_of_a_gpu, narrow_json
from gpt1_ds.settings.deepspeed_json import resolve
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import PretrainConfig

ROOT = Path(__file__).resolve().parents[1]
LAYERS, HEADS, N_CTX, VOCAB_SIZE, WINDOWS = 12, 4, 16, 1_000, 2
LR, CLIP = 2.5e-4, 1.0
PARTS = ("forward", "backward", "step")
Part = Callable[[], object]
CONTEXTS = contextlib.ExitStack()
"""Those of a process, which are left with it."""
Ways = dict[str, Callable[[int], list[Part]]]


def random_ids() -> torch.Tensor:
    return torch.randint(0, VOCAB_SIZE, (WINDOWS, N_CTX + 1))


def like_a_gpu() -> None:
    """Let our model take the branches of a GPU in this process, also that of the head's rows."""
    CONTEXTS.enter_context(branches_of_a_gpu())
    loss.CACHED_ROWS = loss.HEAD_ROWS


class Done:
    """A collective that has ended, for ZeRO-3, which waits for its gathers."""

    def wait(self) -> None:
        pass


def without_fake_gather() -> None:
    """torch's fake group copies the input of an all-gather once for each rank, which none does."""
    from deepspeed.comm import comm

    nothing = replaced(comm.cdb, "all_gather_into_tensor", lambda *_args, **_options: Done())
    CONTEXTS.enter_context(nothing)


def ours(
    ds: str, ranks: int = 1, compiled: bool = False, gpu: bool = True, of_gpt1: bool = False
) -> Callable[[int], list[Part]]:
    """The run's engine: forward, backward and step as `train.train_step` calls them.

    With `of_gpt1` it has GPT-1's buckets and overlap on a GPU, in this model's size.
    """

    def build(width: int) -> list[Part]:
        if gpu:
            like_a_gpu()
        if ranks > 1:
            join_fake_group(ranks)
            import_deepspeed()
        else:
            rendezvous.join_process_group(600.0)
        torch.set_num_threads(1)
        windows = f"train.global_batch={WINDOWS * ranks}"
        options = [windows, f"train.micro_batch={WINDOWS}", f"train.compile={compiled}".lower()]
        config = load(PretrainConfig, None, options)
        shape = GPTConfig(VOCAB_SIZE, LAYERS, HEADS, width, N_CTX)
        settings = resolve(ROOT / "ds_configs" / f"{ds}.json", config, ranks)
        if of_gpt1:
            paper = GPTConfig(40_005)
            settings = with_defaults(settings, paper.parameters, on_gpu=True)
            settings = narrow_json(settings, paper, shape)
        engine = initialize(GPT(shape), config, settings)
        if ranks > 1:
            without_fake_gather()
        loss = [torch.zeros(())]
        keys_B2 = torch.arange(2 * WINDOWS, dtype=torch.int32).view(WINDOWS, 2)

        def forward() -> None:
            ids_BT = random_ids()
            loss[0] = engine(ids_BT[:, :-1], ids_BT[:, 1:], dropout_keys_B2=keys_B2)[1].mean()

        return [forward, lambda: engine.backward(loss[0]), engine.step]

    return build


def plain_loop(
    model: torch.nn.Module, loss_of: Callable[[torch.Tensor], torch.Tensor], masters: bool
) -> list[Part]:
    """A plain loop: bf16 weights, clipping, fused AdamW; with `masters` on float32 copies."""
    weights = [p for p in model.bfloat16().parameters() if p.requires_grad]
    updated = [p.detach().float().requires_grad_() for p in weights] if masters else weights
    optimizer = torch.optim.AdamW(updated, lr=LR, fused=True)
    loss = [torch.zeros(())]

    def forward() -> None:
        loss[0] = loss_of(random_ids())

    def step() -> None:
        if masters:
            for master, weight in zip(updated, weights, strict=True):
                master.grad, weight.grad = weight.grad.float(), None
        torch.nn.utils.clip_grad_norm_(updated, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        if masters:
            with torch.no_grad():
                torch._foreach_copy_(weights, updated)

    return [forward, lambda: loss[0].backward(), step]


def transformers_loop(masters: bool) -> Callable[[int], list[Part]]:
    def build(width: int) -> list[Part]:
        from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

        torch.set_num_threads(1)
        shape = OpenAIGPTConfig(
            vocab_size=VOCAB_SIZE, n_positions=N_CTX, n_embd=width, n_layer=LAYERS, n_head=HEADS
        )
        model = OpenAIGPTLMHeadModel(shape).train()
        return plain_loop(
            model, lambda ids_BT: model(ids_BT[:, :-1], labels=ids_BT[:, :-1]).loss, masters
        )

    return build


def own_model_loop(masters: bool) -> Callable[[int], list[Part]]:
    def build(width: int) -> list[Part]:
        like_a_gpu()
        torch.set_num_threads(1)
        model = GPT(GPTConfig(VOCAB_SIZE, LAYERS, HEADS, width, N_CTX)).train()
        return plain_loop(
            model, lambda ids_BT: model(ids_BT[:, :-1], ids_BT[:, 1:])[1].mean(), masters
        )

    return build


PEER = "transformers, plain loop"
WAYS: Ways = {
    PEER: transformers_loop(masters=False),
    f"{PEER}, float32 masters": transformers_loop(masters=True),
    "our model, plain loop": own_model_loop(masters=False),
    "our model, plain loop, float32 masters": own_model_loop(masters=True),
    "gpt1_ds, ZeRO-0, float32": ours("zero0_fp32"),
    "gpt1_ds, ZeRO-1, bf16": ours("zero1_bf16"),
    "gpt1_ds, ZeRO-2, bf16": ours("zero2_bf16"),
    "gpt1_ds, ZeRO-1, bf16, train.compile": ours("zero1_bf16", compiled=True),
    "gpt1_ds, ZeRO-1, bf16, kernels of a CPU": ours("zero1_bf16", gpu=False),
}


def work(build: Callable[[int], list[Part]], width: int, pipe) -> None:
    """In a process of its own: times of `n` steps for each `n` received, then counts, for 0."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    warnings.filterwarnings("ignore", message="Set timeout is now only supported")
    torch.manual_seed(0)
    parts = build(width)
    while (steps := pipe.recv()) >= 0:
        seconds = dict.fromkeys(PARTS, 0.0)
        operators, waits = {}, {}
        for _ in range(max(1, steps)):
            for name, part in zip(PARTS, parts, strict=True):
                with contextlib.ExitStack() as stack:
                    counts = None if steps else stack.enter_context(counted())
                    began = time.process_time()
                    part()
                    seconds[name] += (time.process_time() - began) / max(1, steps)
                if counts is not None:
                    operators[name] = counts.operators.total()
                    waits[name] = counts.waits.total()
        pipe.send((seconds, operators, waits))


Figures = dict[str, tuple[dict[str, float], dict[str, int], dict[str, int]]]


def in_turns(ways: dict, rounds: int, steps: int, width: int) -> Figures:
    """For each way: the least seconds of each part, its operators and its waits."""
    context, workers = multiprocessing.get_context("fork"), {}
    for name, build in ways.items():
        here, there = context.Pipe()
        process = context.Process(target=work, args=(build, width, there), daemon=True)
        process.start()
        there.close()  # otherwise `recv` would wait for ever if the worker fails
        here.send(3)
        here.recv()  # the first steps compile and allocate: not counted
        workers[name] = process, here
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
    for _ in range(rounds):
        for name, (_, pipe) in workers.items():
            pipe.send(steps)
            seconds[name].append(pipe.recv()[0])
    figures = {}
    for name, (process, pipe) in workers.items():
        pipe.send(0)
        _, operators, waits = pipe.recv()
        least = {part: min(times[part] for times in seconds[name]) for part in PARTS}
        figures[name] = least, operators, waits
        pipe.send(-1)
        process.join()
    return figures


def print_ways(figures: Figures) -> None:
    peer = sum(figures[PEER][0].values())
    print(f"{'ms of process time':45}{'step':>8}{'forward':>9}{'backward':>9}{'update':>8}", end="")
    print(f"{'of peer':>9}  operators (forward, backward, update)  waits")
    for name, (seconds, operators, waits) in figures.items():
        total = sum(seconds.values())
        times = "".join(f"{1e3 * seconds[part]:9.2f}" for part in PARTS)
        counts = ", ".join(str(operators[part]) for part in PARTS)
        print(
            f"{name:45}{1e3 * total:8.2f}{times}{total / peer:8.2f} x  {counts:20}"
            f"{sum(waits.values()):6}",
            flush=True,
        )


def print_ranks(figures: Figures) -> None:
    print("\nrank 0 of many, ms of process time; HOST_TIME of gpt1_ds/engine/host_time.py:")
    for name, (seconds, operators, waits) in figures.items():
        times = ", ".join(f"{part}={1e3 * seconds[part]:.1f}e-3" for part in PARTS)
        counts = ", ".join(str(operators[part]) for part in PARTS)
        whole = 1e3 * sum(seconds.values())
        print(
            f"    {name:17} HostTime({times}),  # {whole:.1f} ms, operators {counts}; "
            f"waits {sum(waits.values())}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7, help="of each way, taken in turn")
    parser.add_argument("--steps", type=int, default=10, help="in each round")
    parser.add_argument("--width", type=int, default=16, help="of the model (default: 16)")
    parser.add_argument(
        "--ranks", type=int, nargs="*", default=[1, 8, 64, 512, 4096], help="of the second table"
    )
    parser.add_argument(
        "--configs", nargs="*", default=["zero1_bf16"], metavar="NAME", help="of the second table"
    )
    parser.add_argument("--only", nargs="*", help="ways of the first table by words in their name")
    args = parser.parse_args()
    os.environ["DS_ACCELERATOR"] = "cpu"
    if args.only != []:
        chosen = {
            name: way
            for name, way in WAYS.items()
            if not args.only or name == PEER or any(word in name for word in args.only)
        }
        print_ways(in_turns(chosen, args.rounds, args.steps, args.width))
    ways = {
        f"{ds}, {count}": ours(ds, count, of_gpt1=True)
        for count, ds in itertools.product(args.ranks, args.configs)
    }
    print_ranks(in_turns(ways, args.rounds, args.steps, args.width))


if __name__ == "__main__":
    main()
