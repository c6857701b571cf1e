"""Functions that ranks of the pool run for the fine-tuning tests."""

import json
import os
import signal
import threading
import time
from pathlib import Path

from gpt1_ds import finetune
from gpt1_ds.distributed import collectives
from gpt1_ds.runs import directory
from tests.support.cases_losses import end_of_process


def start_and_end(argv: list[str]) -> None:
    """Fine-tune, and give up the lock of the run's folder, as the end of a process does."""
    try:
        finetune.main(argv)
    finally:
        directory._locks.clear()


def stop_after(step: int, metrics_file: str, argv: list[str], number: int = signal.SIGUSR1) -> None:
    """Fine-tune; once `step` is logged, send signal `number` only to the last rank.

    The default is the signal that a cluster sends.
    """
    finished = threading.Event()

    def watch() -> None:
        path = Path(metrics_file)
        while not finished.is_set():
            lines = path.read_text().splitlines() if path.exists() else []
            if lines and json.loads(lines[-1])["step"] >= step:
                os.kill(os.getpid(), number)
                return
            time.sleep(0.01)

    if collectives.rank() == collectives.world_size() - 1:
        threading.Thread(target=watch, daemon=True).start()
    try:
        finetune.main(argv)
    finally:
        finished.set()


def tuned(argv: list[str]) -> None:
    """Fine-tune, so that this process can start the same run once more."""
    with end_of_process():
        finetune.main(argv)
