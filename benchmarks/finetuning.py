"""Compares fine-tuning speed in examples a second with transformers' Trainer.

    python benchmarks/finetuning.py [--data tasks/SST-2] [--model small]
        [--tokenizer quickstart/tok] [--bf16]

Both use the same examples, batches of 32 and the same random decoder, with dropout 0.1, AdamW and
clipping. The Trainer trains OpenAIGPTForSequenceClassification, which has no auxiliary objective.
So lm_coef=0 is the same work here; lm_coef=0.5, the value of the paper, is more work. The Trainer
is measured in three ways: with its default collator (a random batch, padded to its longest
example), grouped by length, and padded to 128 tokens, the default of its published examples. All
variants take turns in one process with the threads and the allocator of our training. Tokenising is
not timed. About 2 minutes for the small model on 2 CPU cores.
"""

import argparse
import dataclasses
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from gpt1_ds import finetune, tasks
from gpt1_ds.base.errors import guard
from gpt1_ds.data.tokenizer import load_tokenizer
from gpt1_ds.distributed import rendezvous
from gpt1_ds.engine.start import initialize
from gpt1_ds.interchange.weights import to_theirs
from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.runs.task_data import TaskData, read_task_data
from gpt1_ds.settings.deepspeed_json import resolve
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import FinetuneConfig
from gpt1_ds.tasks.base import Encoded
from gpt1_ds.tasks.batches import epoch_batches
from gpt1_ds.tasks.heads import TaskModel

ROOT = Path(__file__).resolve().parents[1]
SHAPES = {
    "tiny": (2, 4, 128, 128),
    "small": (4, 4, 256, 256),
    "gpt1": (12, 12, 768, 512),
}  # layers, heads, width, n_ctx
BATCH, FIXED_TOKENS = 32, 128
Way = Callable[[list[Encoded]], float]
"""Trains once on the examples; returns the seconds."""


def ours(data: TaskData, config: FinetuneConfig, trainer, lm_coef: float) -> Way:
    config = dataclasses.replace(config, task=dataclasses.replace(config.task, lm_coef=lm_coef))

    def train(examples: list[Encoded]) -> float:
        started = time.perf_counter()
        mine = dataclasses.replace(data, train=examples)
        for step, batch in enumerate(
            epoch_batches([example.length for example in examples], BATCH, 0, 0)
        ):
            loss = finetune.train_step(trainer, mine, config, batch, step)
        loss.tolist()  # waits for the device
        return time.perf_counter() - started

    return train


def theirs(gpt: GPT, pad: int, bf16: bool, strategy: str, fixed: bool) -> Way:
    from transformers import (
        OpenAIGPTConfig,
        OpenAIGPTForSequenceClassification,
        PrinterCallback,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        default_data_collator,
        logging,
    )

    logging.set_verbosity_error()

    shape = gpt.config
    model = OpenAIGPTForSequenceClassification(
        OpenAIGPTConfig(
            vocab_size=shape.vocab_size,
            n_layer=shape.n_layer,
            n_head=shape.n_head,
            n_embd=shape.n_embd,
            n_positions=shape.n_ctx,
            num_labels=2,
            pad_token_id=pad,
        )
    )
    weights = dict(
        to_theirs(name, tensor.clone(), shape) for name, tensor in gpt.state_dict().items()
    )
    unfilled = model.load_state_dict(weights, strict=False).missing_keys
    assert all(name == "score.weight" or name.endswith(".attn.bias") for name in unfilled), unfilled

    def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
        """Does the same as DataCollatorWithPadding, which would need a tokenizer object."""
        T = FIXED_TOKENS if fixed else max(len(row["input_ids"]) for row in rows)
        padded = [
            {
                "input_ids": row["input_ids"] + [pad] * (T - len(row["input_ids"])),
                "attention_mask": [1] * len(row["input_ids"]) + [0] * (T - len(row["input_ids"])),
                "labels": row["labels"],
            }
            for row in rows
        ]
        return default_data_collator(padded)

    class Clock(TrainerCallback):
        def on_train_begin(self, *_, **__):
            self.started = time.perf_counter()

        def on_train_end(self, *_, **__):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seconds = time.perf_counter() - self.started

    def train(examples: list[Encoded]) -> float:
        rows = [
            {
                "input_ids": example.sequences[0][:FIXED_TOKENS],
                "labels": int(example.target[1]),
                "length": len(example.sequences[0]),
            }
            for example in examples
        ]
        with tempfile.TemporaryDirectory() as folder:
            options = TrainingArguments(
                folder,
                per_device_train_batch_size=BATCH,
                num_train_epochs=1,
                learning_rate=6.25e-5,
                max_grad_norm=1.0,
                train_sampling_strategy=strategy,
                bf16=bf16,
                use_cpu=not torch.cuda.is_available(),
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                remove_unused_columns=False,
            )
            clock = Clock()
            trainer = Trainer(
                model, options, data_collator=collate, train_dataset=rows, callbacks=[clock]
            )
            trainer.remove_callback(PrinterCallback)
            assert trainer.accelerator.distributed_type.value == "NO"
            trainer.train()
        return clock.seconds

    return train


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/finetuning.py", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "--data", default="tasks/SST-2", help="folder of SST-2 (default: %(default)s)"
    )
    parser.add_argument(
        "--model",
        choices=SHAPES,
        default="small",
        help="shape of the decoder (default: %(default)s)",
    )
    parser.add_argument(
        "--tokenizer", default="quickstart/tok", help="its folder (default: %(default)s)"
    )
    parser.add_argument(
        "--examples", type=int, default=1024, help="of a round (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument(
        "--bf16", action="store_true", help="ours: bf16 weights, float32 masters; theirs: autocast"
    )
    args = parser.parse_args(argv)

    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    tokenizer = load_tokenizer(Path(args.tokenizer))
    n_layer, n_head, n_embd, n_ctx = SHAPES[args.model]
    shape = GPTConfig(
        tokenizer.vocab_size, n_layer=n_layer, n_head=n_head, n_embd=n_embd, n_ctx=n_ctx
    )
    config = load(
        FinetuneConfig, None, [f"task.data={args.data}", f"train.micro_batch={BATCH}", "run.seed=0"]
    )
    task = tasks.build_task(config.task)
    data = read_task_data(config, task, tokenizer, n_ctx)
    rendezvous.join_process_group(600.0)
    torch.manual_seed(0)
    gpt = GPT(shape)
    pad = tokenizer.special_ids["pad"]
    ways: dict[str, Way] = {
        name: theirs(gpt, pad, args.bf16, strategy, fixed)
        for name, strategy, fixed in (
            ("Trainer, default collator", "random", False),
            ("Trainer, grouped by length", "group_by_length", False),
            (f"Trainer, padded to {FIXED_TOKENS}", "random", True),
        )
    }
    json = ROOT / "ds_configs" / ("zero2_bf16.json" if args.bf16 else "zero0_fp32.json")
    module = TaskModel(gpt, task.kind, task.n_outputs, "last", 0.1)
    trainer = initialize(module, config, resolve(json, config, 1))
    del os.environ[
        "LOCAL_RANK"
    ]  # seeing it, the Trainer would wrap its model for several processes
    ways = {
        f"gpt1_ds, lm_coef={coef}": ours(data, config, trainer, coef) for coef in (0.0, 0.5)
    } | ways
    generator = torch.Generator().manual_seed(0)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(args.rounds + 1):
        n = args.examples if number else 2 * BATCH  # the first round allocates and is not counted
        examples = [data.train[i] for i in torch.randperm(len(data.train), generator=generator)[:n]]
        for name, train in ways.items():
            spent = train(examples)
            if number:
                seconds[name].append(spent)
    own, paper = seconds["gpt1_ds, lm_coef=0.0"], seconds["gpt1_ds, lm_coef=0.5"]
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{torch.get_num_threads()} CPU threads"
    )
    print(
        f"{args.model}, {'bf16' if args.bf16 else 'float32'}, {device}; {args.rounds} x "
        f"{args.examples} examples"
    )
    print(
        f"{'':30}{'examples/s':>11}   same work   with the auxiliary objective (medians of the "
        "rounds' ratios)"
    )
    for name, times in seconds.items():
        ratios = [
            statistics.median(a / b for a, b in zip(times, base, strict=True))
            for base in (own, paper)
        ]
        print(
            f"{name:30}{args.examples / statistics.median(times):11.1f}{ratios[0]:10.2f} "
            f"x{ratios[1]:10.2f} x"
        )


if __name__ == "__main__":
    guard(main)
