"""What two safeguards of a long run cost its steps: the slow ranks' line, and the mirror's copies.

    python benchmarks/safeguards.py ranks
    python benchmarks/safeguards.py mirror --to file:///other/disk/mirror

`ranks`: two processes exchange their seconds, as for each line of the log: seconds of one exchange,
and what share that is of the lines of a run whose steps take --step-ms. Ten seconds.
`mirror`: a checkpoint of GPT-1's size (1.4 GB) is copied while one thread multiplies matrices, in
turns with the same without a copy. Two minutes, 3 GB in --to and in a temporary folder.
"""

import argparse
import importlib
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    importlib.import_module("gpt1_ds")

import torch

from benchmarks.scale import write_checkpoint
from gpt1_ds.checkpoints.folder import step_folder
from gpt1_ds.checkpoints.mirror import Mirror, Store
from gpt1_ds.distributed import rendezvous
from gpt1_ds.distributed.environment import free_port
from gpt1_ds.model.gpt import GPTConfig
from gpt1_ds.runs.slow_ranks import SlowRanks

SHAPE = GPTConfig(40_000, 12, 12, 768, 512)
LINES, LOG_EVERY = 2_000, 10
ROUNDS, ROUND_SECONDS = 3, 8.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["ranks", "mirror"])
    parser.add_argument("--step-ms", type=float, default=100.0, help="milliseconds of a step")
    parser.add_argument("--to", help="URL of the mirror; default: a temporary folder")
    args = parser.parse_args()
    if args.what == "ranks":
        ranks(args.step_ms)
    else:
        with tempfile.TemporaryDirectory() as folder:
            mirror(Path(folder), args.to or f"file://{folder}/mirror")


def ranks(step_ms: float) -> None:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    port = free_port()
    processes = [
        context.Process(target=exchange_lines, args=(rank, port, answers)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    milliseconds = max(answers.get(timeout=300) for _ in processes)
    for process in processes:
        process.join(60)
    share = milliseconds / (LOG_EVERY * step_ms)
    print(f"a line of the log: {milliseconds:.3f} ms of a rank's processor time; of a step of")
    print(f"{step_ms:g} ms, with a line every {LOG_EVERY} steps: {share:.4%}")


def exchange_lines(rank: int, port: int, answers: "multiprocessing.Queue[float]") -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    rendezvous.join_process_group(60)
    slow_ranks = SlowRanks(slow_ratio=1e9)
    slow_ranks.exchange(0, 1.0)
    began = time.process_time()
    for step in range(LINES):
        slow_ranks.exchange(step, 1.0)
    answers.put(1000 * (time.process_time() - began) / LINES)


def mirror(folder: Path, url: str) -> None:
    run = folder / "run"
    for step in range(1, ROUNDS + 1):
        write_checkpoint(step_folder(run / "checkpoints", step), SHAPE, stage=1, ranks=1)
    (run / "config.yaml").write_text("run:\n  name: run\n")
    torch.set_num_threads(1)
    copies, ratios, seconds = Mirror(url, 1, run), [], []
    for step in range(1, ROUNDS + 1):
        alone = products(lambda: False)
        began = time.monotonic()
        checkpoint = step_folder(run / "checkpoints", step)
        copies.add(checkpoint)
        beside = products(lambda folder=checkpoint: not copies.holds(folder))
        if not copies.finish(600):
            raise SystemExit(f"error: {url}: not copied")
        seconds.append(time.monotonic() - began)
        ratios.append(alone / beside)
    size = sum(path.stat().st_size for path in checkpoint.iterdir()) / 1e9
    spread = f"{min(ratios):.2f}x to {max(ratios):.2f}x"
    print(f"a copy of {size:.2f} GB to {Store(url).shown} takes {median(seconds):.1f} s; beside it")
    print(f"a product of matrices takes {median(ratios):.2f}x its time alone ({spread})")


def products(ended: Callable[[], bool]) -> float:
    """Products of matrices a second, for `ROUND_SECONDS` or until `ended`."""
    left, count, began = torch.randn(512, 512), 0, time.monotonic()
    while time.monotonic() - began < ROUND_SECONDS and not ended():
        left @ left
        count += 1
    return count / (time.monotonic() - began)


if __name__ == "__main__":
    main()
