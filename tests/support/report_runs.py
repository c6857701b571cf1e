"""Runs written by hand, for tests of reports."""

import json
from pathlib import Path

SAMPLE = 'He said <b>"&"</b>\n<script>alert(1)</script> @@BODY@@'


def lines(*records: dict) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def make_run(folder: Path) -> Path:
    """A run of 20 steps, started twice, with a file of each kind; one loss is NaN and the last line
    is torn."""
    (folder / "samples").mkdir(parents=True)
    (folder / "checkpoints" / "step-00000020").mkdir(parents=True)
    train = [
        {
            "step": step,
            "split": "train",
            "loss": 5 - step / 10 if step != 4 else float("nan"),
            "lr": 1e-3,
            "tokens": 100 * step,
            "tokens_per_second": 50.0,
            "elapsed_seconds": 3600.0 * step,
        }
        for step in range(2, 21, 2)
    ]
    valid = [
        {
            "step": step,
            "split": "valid",
            "corpus": "bo<ks",
            "loss": 6 - step / 10,
            "perplexity": 2.0,
            "elapsed_seconds": 3600.0 * step,
        }
        for step in (0, 10, 20)
    ]
    starts = [
        {
            "step": step,
            "split": "start",
            "time": 1e9,
            "world_size": ranks,
            "elapsed_seconds": 3600.0 * step,
        }
        for step, ranks in ((0, 1), (10, 2))
    ]
    saved = {
        "step": 20,
        "split": "checkpoint",
        "seconds": 1.5,
        "elapsed_seconds": 72000.0,
        "bytes": 2_000_000,
    }
    (folder / "metrics.jsonl").write_text(
        lines(*starts, *train, *valid, saved) + '{"step": 22, "spl'
    )
    (folder / "skipped.jsonl").write_text(
        lines({"to_step": 6, "from_step": 8, "loss": 9.5, "last": {"epoch": 0}})
    )
    (folder / "status.json").write_text('{"state": "done", "step": 20, "exit_code": 0}')
    (folder / "config.yaml").write_text("run: {seed: 7}\noptim: {lr: 0.001}\ndata: {shards: s}\n")
    (folder / "deepspeed.json").write_text('{"zero_optimization": {"stage": 2}}')
    (folder / "samples" / "step-00000020.txt").write_text(SAMPLE)
    model = {"vocab_size": 512, "n_layer": 2, "n_head": 2, "n_embd": 32, "n_ctx": 32}
    (folder / "checkpoints" / "step-00000020" / "state.json").write_text(
        json.dumps({"model": model, "data": {"train/bo<ks": "123456 tokens, sha256 abc"}})
    )
    return folder


PARTS = ("data", "forward", "backward", "optimizer", "communication")


def make_fine_tuning(folder: Path, steps: int = 20) -> Path:
    """A fine-tuning run, which counts no tokens, resumed at half with another learning rate."""
    folder.mkdir(parents=True)
    train = []
    for step in range(1, steps + 1):
        losses = {"task_loss": 1 / step, "lm_loss": 2 / step, "loss": 2 / step}
        seconds = {f"{part}_seconds": 0.01 * (i + 1) for i, part in enumerate(PARTS)}
        record = {"step": step, "split": "train", **losses, "lr": 1e-3 / step, "epoch": step / 10}
        train.append(record | seconds | {"elapsed_seconds": 10.0 * step})
    scores = [
        {"step": step, "split": "task", "accuracy": 0.7, "elapsed_seconds": 10.0 * step}
        for step in range(10, steps + 1, 10)
    ]
    starts = [
        {"step": 0, "split": "start", "elapsed_seconds": 0.0},
        {"step": 10, "split": "start", "elapsed_seconds": 100.0, "changed": CHANGED},
    ]
    (folder / "metrics.jsonl").write_text(lines(*starts, *train, *scores))
    result = {
        "task": "sst2",
        "metric": "accuracy",
        "score": 0.7,
        "metrics": {"accuracy": 0.7},
        "majority": 0.5,
        "examples": {"train": 8, "dev": 8},
        "init": "runs/a",
    }
    (folder / "result.json").write_text(json.dumps(result))
    return folder


CHANGED = {"optim.lr": [0.001, 0.05], "log.prompt": ["", "<b>"]}
