"""Compares GPT-1's training step on one GPU with transformers and nanoGPT.

    python benchmarks/gpu.py OUT [--nanogpt PATH] [--windows 32 64 128] [--steps 30]

It measures tokens/s, MFU, memory and hours for a model of 12 layers, width 768 and 512 tokens, with
random tokens, dropout 0.1, clipping and the optimizer. Each variant runs in its own process, one
after the other. The results go to OUT.json and, as a table, to OUT.md. MFU is relative to the dense
bf16 peak in the data sheet. Two checks run first: a few float32 steps have the same losses as on
the CPU, and a run resumes exactly with dropout. If a check fails, the script ends. About 10
minutes. Without a GPU it runs on the CPU; `--layers 1 --windows 1 --steps 2` tests the script
there.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from benchmarks import train_step
from gpt1_ds.checkpoints.loading import resume
from gpt1_ds.checkpoints.saving import save_checkpoint
from gpt1_ds.checkpoints.state import CheckpointState
from gpt1_ds.distributed import collectives, rendezvous
from gpt1_ds.engine.start import initialize
from gpt1_ds.engine.timing import Throughput
from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.plan import BOOKS_CORPUS_TOKENS
from gpt1_ds.settings.deepspeed_json import resolve
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import PretrainConfig

WARM_STEPS, TIMEOUT_SECONDS, EPOCHS = 5, 600, 100
ROOT = Path(__file__).resolve().parents[1]
OWN = {
    "ZeRO-1 bf16": "zero1_bf16.json",
    "ZeRO-2 bf16": "zero2_bf16.json",
    "ZeRO-3 bf16": "zero3_bf16.json",
    "ZeRO-2 fp16": "zero2_fp16.json",
    "ZeRO-2 offload": "zero2_offload.json",
}
WAYS = {f"gpt1_ds {name}": partial(train_step.ours, ds=ds) for name, ds in OWN.items()}
WAYS |= {
    "gpt1_ds ZeRO-1 bf16, compiled": train_step.compiled,
    "transformers, plain loop": train_step.transformers_plain,
    "transformers, DeepSpeed ZeRO-1": train_step.transformers_deepspeed,
    "nanoGPT compiled": train_step.nanogpt,
}


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def work(name: str, layers: int, windows: int, steps: int) -> dict:
    """Measure one variant in this process."""
    torch.manual_seed(0)
    step = WAYS[name](layers, windows)
    ids_BT = torch.randint(0, train_step.VOCAB_SIZE, (windows, train_step.N_CTX + 1)).to(
        collectives.device()
    )
    for _ in range(WARM_STEPS):
        step(ids_BT)
    wait()
    began = time.perf_counter()
    for _ in range(steps):
        step(ids_BT)
    wait()
    tokens_per_second = steps * windows * train_step.N_CTX / (time.perf_counter() - began)
    shape = GPTConfig(train_step.VOCAB_SIZE, n_layer=layers)
    mfu = (
        tokens_per_second
        * shape.flops_per_token
        / Throughput(shape.flops_per_token, "bf16").peak_flops
    )
    memory = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None
    hours = EPOCHS * BOOKS_CORPUS_TOKENS / tokens_per_second / 3600
    return {
        "tokens_per_second": round(tokens_per_second),
        "mfu": round(mfu, 4),
        "gigabytes": memory,
        "hours": hours,
    }


def check() -> dict:
    """Check this device: compare float32 losses with the CPU, and a resumed run with the run."""
    shape = GPTConfig(
        1000, n_layer=2, n_head=4, n_embd=128, n_ctx=64, embd_pdrop=0, attn_pdrop=0, resid_pdrop=0
    )
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randint(0, 1000, (4, 65), generator=generator) for _ in range(6)]
    sides = []
    for device in (torch.device("cpu"), collectives.device()):
        torch.manual_seed(0)
        model, losses = GPT(shape).to(device), []
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for ids_BT in (ids_BT.to(device) for ids_BT in batches):
            loss = model(ids_BT[:, :-1], ids_BT[:, 1:])[1].mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        sides.append(losses)
    difference = max(abs(ours - theirs) for ours, theirs in zip(*sides, strict=True))
    config = load(PretrainConfig, None, ["train.global_batch=4", "train.micro_batch=4"])
    rendezvous.join_process_group(600.0)
    config_ds = resolve(ROOT / "ds_configs" / "zero1_bf16.json", config, 1)
    with tempfile.TemporaryDirectory() as folder:
        runs = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            trainer = initialize(
                GPT(GPTConfig(1000, n_layer=2, n_head=4, n_embd=128, n_ctx=64)), config, config_ds
            )
            if seed == 0:
                train(trainer, batches[:3])
                state = CheckpointState(step=3, model={}, tokenizer_sha256="")
                save_checkpoint(trainer, Path(folder), 3, state, keep=1)
            else:
                resume(trainer, Path(folder))
            runs.append(train(trainer, batches[3:]))
            trainer.destroy()
    return {
        "difference_from_cpu": difference,
        "undisturbed": runs[0],
        "resumed": runs[1],
        "passed": difference < 1e-3 and runs[0] == runs[1],
    }


def train(trainer, batches: list[torch.Tensor]) -> list[float]:
    losses = []
    for ids_BT in (ids_BT.to(trainer.device) for ids_BT in batches):
        loss = trainer(ids_BT[:, :-1], ids_BT[:, 1:])[1].mean()
        trainer.backward(loss)
        trainer.step()
        losses.append(loss.item())
    return losses


def alone(*words: object) -> dict:
    """The result of this script in a new process, or the fault if it failed."""
    command = [sys.executable, str(Path(__file__).resolve()), "-", "--alone", *map(str, words)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        return {"fault": f"took more than {TIMEOUT_SECONDS} s"}
    if done.returncode:
        return {"fault": (done.stderr.strip().splitlines() or ["no word"])[-1][:200]}
    return json.loads(done.stdout.splitlines()[-1])


def table(device: str, checks: dict, rows: list[dict]) -> str:
    lines = [
        f"{device}, torch {torch.__version__}; losses within {checks['difference_from_cpu']:.1e} "
        "of the CPU's, "
        "resume exact",
        "",
        "| way to train GPT-1 | windows | tokens/s | MFU | GB | hours for 100 epochs of "
        "BooksCorpus |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        found = row.get("fault") or (
            f"{row['tokens_per_second']:,} | {row['mfu']:.1%} | "
            f"{row['gigabytes'] or 0:.1f} | {row['hours']:,.0f}"
        )
        lines.append(f"| {row['way']} | {row['windows']} | {found} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", metavar="OUT", help="the files OUT.json and OUT.md")
    parser.add_argument(
        "--nanogpt", metavar="PATH", help="checkout of nanoGPT; left out without it"
    )
    parser.add_argument(
        "--windows", type=int, nargs="+", default=[32, 64, 128], help="micro-batches"
    )
    parser.add_argument("--steps", type=int, default=30, help="timed steps of each")
    parser.add_argument("--layers", type=int, default=12, help="blocks")
    parser.add_argument("--alone", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        kind, *words = args.alone
        found = check() if kind == "check" else work(kind, *map(int, words))
        print("\n" + json.dumps(found))
        return
    if args.nanogpt:
        os.environ["NANOGPT"] = args.nanogpt
    checks = alone("check")
    if not checks.get("passed"):
        raise SystemExit(f"error: the checks failed: {checks}")
    device, rows = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU", []
    for name in WAYS:
        for windows in args.windows if name != "nanoGPT compiled" or args.nanogpt else ():
            found = alone(name, args.layers, windows, args.steps)
            rows.append({"way": name, "windows": windows, **found})
            print(rows[-1], file=sys.stderr, flush=True)
            found = {"device": device, "checks": checks, "rows": rows}
            Path(f"{args.out}.json").write_text(json.dumps(found, indent=1))
            Path(f"{args.out}.md").write_text(table(device, checks, rows))
    print(table(device, checks, rows))


if __name__ == "__main__":
    main()
