"""Tiny Shakespeare beside nanoGPT's recipe for a CPU: bits a byte after the same processor time.

    python benchmarks/shakespeare.py TEXT [--nanogpt PATH] [--rounds 2] [--seconds 120]

TEXT is char-rnn's tinyshakespeare/input.txt, PATH a checkout of nanoGPT. The peer is the command of
nanoGPT's README for a laptop (4 layers x 128, 64 characters of context, 2,000 steps; 1.88 nats a
character), with its own preparation of the data. Ours trains a model of the same layers and width
on pieces of text, as GPT-1 does, for as much processor time as the peer took (or for --seconds of
it without a peer). They take turns. About 6 minutes for 2 rounds on 2 idle CPU cores.

Both train on the first 90 % of the characters. Both are scored on all of the rest, in windows of
their own context end to end. For pieces of text, line ends are written as words of their own, which
loses nothing, so both predict the same bytes.
"""

import argparse
import math
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch

from gpt1_ds.base.errors import DataError, guard
from gpt1_ds.model.perplexity import token_nll
from gpt1_ds.runs.trained import load_gpt, run_tokenizer

ROOT = Path(__file__).resolve().parents[1]
RECIPE = (
    "--device=cpu --compile=False --eval_iters=20 --log_interval=1 --block_size=64 --batch_size=12 "
    "--n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
)
PIECES = 1024
OURS = [
    "model.n_layer=4",
    "model.n_head=4",
    "model.n_embd=128",
    "model.n_ctx=64",
    "model.embd_pdrop=0",
    "model.attn_pdrop=0",
    "model.resid_pdrop=0",
    "train.epochs=null",
    "train.global_batch=16",
    "optim.lr=2e-3",
    "schedule.warmup_steps=300",
    "eval.every=null",
    "eval.batches=1",
    "checkpoint.every=1000000",
    "log.every=100",
]
PILOT_STEPS = 60
NEWLINE, SPACE = "/", "_"
"""Words that stand for white space; neither is in the text."""


class Trained(NamedTuple):
    seconds: float
    """Of the clock."""
    processor: float
    """Of all cores, start-up included."""
    bits: float
    """A byte of the validation text."""


def visible(text: str) -> str:
    """The text as words between single spaces; line ends, and all spaces but single ones between
    words, are words too. `hidden` is the inverse."""
    words: list[str] = []
    parts = re.split(r"([ \n]+)", text)  # words and white space in turns, words at both ends
    for number, part in enumerate(parts):
        if number % 2 == 0:
            words += [part] if part else []
        elif part != " " or not (parts[number - 1] and parts[number + 1]):
            words += [NEWLINE if character == "\n" else SPACE for character in part]
    return " ".join(words)


def hidden(words: str) -> str:
    """The text that `visible` wrote as words."""
    text, after_word = "", False
    for word in words.split(" "):
        is_word = word not in (NEWLINE, SPACE, "")
        text += " " if is_word and after_word else ""
        text += {NEWLINE: "\n", SPACE: " "}.get(word, word)
        after_word = is_word
    return text


def timed(command: list[str], folder: Path) -> tuple[float, float]:
    """Run a command in `folder`; its seconds and its processor time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    with (folder / "log").open("a") as log:
        done = subprocess.run(command, cwd=folder, stdout=log, stderr=log, env=environment)
    if done.returncode:
        raise DataError(
            f"{command[1]}: ended with {done.returncode}: {(folder / 'log').read_text()}"
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return time.perf_counter() - began, processor


class Ours:
    """This project: data prepared once, then a training of any processor time."""

    def __init__(self, text: str, folder: Path):
        self.folder = folder
        folder.mkdir()
        cut = int(len(text) * 0.9)
        self.valid, self.runs = text[cut:], 0
        for name, part in (("train", text[:cut]), ("valid", self.valid)):
            (folder / f"{name}.txt").write_text(visible(part), encoding="utf-8")
        python, corpus = [sys.executable, "-m"], ["--corpus", "plays=train.txt"]
        learn = [*python, "data_prep.train_tokenizer", *corpus, "--case", "keep"]
        timed([*learn, "--vocab-size", str(PIECES), "--out", "tok"], folder)
        build = [*python, "data_prep.build_shards", *corpus, "--validation", "plays=valid.txt"]
        timed(
            [*build, "--tokenizer", "tok", "--duplicate-paragraphs", "0", "--out", "shards"], folder
        )

    def train(self, steps: int) -> tuple[Path, float, float]:
        """The run of so many steps, its seconds and its processor time."""
        self.runs += 1
        name = f"run-{self.runs}"
        command = [sys.executable, "-m", "gpt1_ds.train", "--deepspeed_config", "cpu_fp32"]
        settings = [f"train.max_steps={steps}", f"run.name={name}", "data.shards=shards", *OURS]
        return self.folder / "runs" / name, *timed([*command, *settings], self.folder)

    def result(self, processor: float) -> Trained:
        """A run of about this processor time: the rate is that of two short ones just before."""
        short, long = (self.train(steps)[2] for steps in (PILOT_STEPS, 4 * PILOT_STEPS))
        step = max(1e-4, (long - short) / (3 * PILOT_STEPS))
        steps = max(PILOT_STEPS, round((processor - short) / step) + PILOT_STEPS)
        run, seconds, taken = self.train(steps)
        return Trained(seconds, taken, self.bits(run))

    def bits(self, run: Path) -> float:
        model, state, checkpoint = load_gpt(run)
        tokenizer = run_tokenizer(checkpoint, state)
        ids = [tokenizer.special_ids["eot"], *tokenizer.encode(visible(self.valid))]
        nll_T = token_nll(model, [np.array(ids)], model.config.n_ctx, "scoring")
        return float(nll_T.sum(dtype=np.float64)) / math.log(2) / len(self.valid.encode())


def nanogpt(text: Path, checkout: Path, folder: Path) -> Trained:
    """nanoGPT's README recipe, by its own programs, in a copy of its checkout."""
    shutil.copytree(checkout, folder, ignore=shutil.ignore_patterns(".git"))
    data = folder / "data" / "shakespeare_char"
    shutil.copy(text, data / "input.txt")
    timed([sys.executable, str(data / "prepare.py")], folder)
    recipe = ["train.py", "config/train_shakespeare_char.py", *RECIPE.split()]
    seconds, processor = timed([sys.executable, *recipe], folder)
    score = [sys.executable, str(Path(__file__).resolve()), "--score", str(checkout), str(folder)]
    scored = subprocess.run(score, capture_output=True, text=True, check=True)
    bits = float(scored.stdout.splitlines()[-1])  # nanoGPT prints lines of its own before
    return Trained(seconds, processor, bits)


@torch.no_grad()
def score_nanogpt(checkout: Path, folder: Path) -> float:
    """Bits a character of its validation text, in windows of its context end to end.

    In a process of its own, since its module is called `model`.
    """
    sys.path.insert(0, str(checkout))
    import model as nano

    saved = torch.load(folder / "out-shakespeare-char" / "ckpt.pt", weights_only=False)
    model = nano.GPT(nano.GPTConfig(**saved["model_args"])).eval()
    model.load_state_dict(saved["model"])
    ids_T = np.fromfile(folder / "data" / "shakespeare_char" / "val.bin", np.uint16).astype(
        np.int64
    )
    size, nats = saved["model_args"]["block_size"], 0.0
    for first in range(0, len(ids_T) - 1, size):
        window_T = torch.from_numpy(ids_T[first : first + size + 1])[None]
        loss = model(window_T[:, :-1], window_T[:, 1:].contiguous())[1]
        nats += loss.item() * (window_T.shape[1] - 1)
    return nats / math.log(2) / (len(ids_T) - 1)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", type=Path, metavar="TEXT")
    parser.add_argument("--nanogpt", type=Path, metavar="PATH", help="checkout of nanoGPT")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each, in turns (default: 2)")
    parser.add_argument(
        "--seconds", type=float, default=120, help="processor time of ours without a peer"
    )
    if argv[:1] == ["--score"]:
        print(score_nanogpt(Path(argv[1]), Path(argv[2])))
        return
    args = parser.parse_args(argv)
    if not args.text.is_file():
        raise DataError(f"{args.text}: not there; give char-rnn's tinyshakespeare/input.txt")
    text = args.text.read_text(encoding="utf-8")
    if {NEWLINE, SPACE} & set(text) or hidden(visible(text)) != text:
        raise DataError(
            f"{args.text}: holds / or _, which stand for white space here; give another"
        )
    print(f"{'':8}{'bits/byte':>10}{'seconds':>9}{'of all cores':>14}")
    with tempfile.TemporaryDirectory(prefix="shakespeare-") as place:
        ours, processor = Ours(text, Path(place) / "ours"), args.seconds
        for number in range(args.rounds):
            if args.nanogpt:
                peer = nanogpt(args.text, args.nanogpt.resolve(), Path(place) / f"nano-{number}")
                processor = peer.processor
                _show("nanoGPT", peer)
            _show("ours", ours.result(processor))


def _show(name: str, result: Trained) -> None:
    bits, seconds, processor = result.bits, result.seconds, result.processor
    print(f"{name:8}{bits:10.3f}{seconds:9.0f}{processor:14.0f}", flush=True)


if __name__ == "__main__":
    guard(main)
