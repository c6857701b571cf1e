"""The real training loop: `gpt1_ds/train.py` on shards, and its own figures."""

import json
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.on_gpu import corpus
from benchmarks.on_gpu.running import end, start
from benchmarks.train_step import Size

ROOT = Path(__file__).resolve().parents[2]
LOG_EVERY, STEADY_SHARE = 5, 0.4
"""The first steps, with the profiled one among them, are not counted."""
TOKENS = 1 << 21
NEVER = 1_000_000
PARTS = ("data", "forward", "backward", "optimizer", "communication")


def run(size: list[int], steps: int, options: list[str], keep: str | None) -> dict:
    """Tokens a second, MFU and parts of a step in `steps` steps of train.py, and the last save.

    `keep`: the table of kernels and the trace of one step are copied to KEEP-kernels.txt and
    KEEP-trace.json.gz.
    """
    with tempfile.TemporaryDirectory(prefix="gpu-loop-") as name:
        folder, of = Path(name), Size(*size)
        corpus.build(folder / "shards", TOKENS, of.vocab_size)
        fault = _train(folder, _options(of, steps) + options)
        if fault:
            return {"fault": fault}
        lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
        if keep:
            _keep_profile(folder / "run" / "profile", keep)
    return {"way": "train.py", "windows": of.windows, **_figures([json.loads(x) for x in lines])}


def _options(size: Size, steps: int) -> list[str]:
    return [
        f"model.n_layer={size.layers}",
        f"model.n_embd={size.width}",
        f"train.global_batch={size.windows}",
        f"train.micro_batch={size.windows}",
        f"train.max_steps={steps}",
        f"log.every={min(LOG_EVERY, max(1, steps // 4))}",
        f"log.profile={max(1, round(steps * STEADY_SHARE / 2))}",
        f"eval.every={NEVER}",
        "eval.batches=1",
        f"checkpoint.every={NEVER}",
        "run.name=run",
    ]


def _train(folder: Path, options: list[str]) -> str:
    """Run train.py; why it failed, or an empty text."""
    script = [sys.executable, str(ROOT / "gpt1_ds" / "train.py"), "--deepspeed_config"]
    script += ["zero1_bf16", f"run.dir={folder}", f"data.shards={folder / 'shards'}", *options]
    with (folder / "log").open("w+") as log:
        process = start(script, os.environ, log)
        try:
            code = process.wait()
        finally:
            end(process)
        log.seek(0)
        words = (log.read().strip().splitlines() or ["no word"])[-1]
    return f"train.py ended with {code}: {words[:200]}" if code else ""


def _figures(lines: list[dict]) -> dict:
    training = [line for line in lines if line["split"] == "train"]
    steady = [line for line in training if line["step"] > STEADY_SHARE * training[-1]["step"]]
    rates = [line["tokens_per_second"] for line in steady]
    # One rank communicates with nobody, and a line has only the parts that there were.
    parts = {
        part: statistics.median(line.get(f"{part}_seconds", 0.0) for line in steady)
        for part in PARTS
    }
    saves = [line for line in lines if line["split"] == "checkpoint"]
    return {
        "tokens_per_second": round(statistics.median(rates)),
        "slowest": round(min(rates)),
        "fastest": round(max(rates)),
        "mfu": statistics.median(line["mfu"] for line in steady),
        "parts_ms": {part: round(1000 * seconds, 2) for part, seconds in parts.items()},
        "checkpoint": {key: saves[-1][key] for key in ("bytes", "seconds", "write_seconds")},
        "first_loss": training[0]["loss"],
        "last_loss": training[-1]["loss"],
    }


def _keep_profile(profile: Path, keep: str) -> None:
    for path in profile.iterdir():
        ending = "kernels.txt" if path.suffix == ".txt" else "trace.json.gz"
        shutil.copyfile(path, f"{keep}-{ending}")
