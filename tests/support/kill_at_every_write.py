"""Kill one rank in a save after its k-th write, flush or rename, for every k; every start resumes what was left.

    python -m tests.support.kill_at_every_write DEEPSPEED.json SHARDS RUNS RANKS [must]

One warm process, torch and DeepSpeed imported and no thread started, forks the ranks of every start. A start resumes
the run, trains one step and saves it, by a thread or, if it `must`, at once; the victim counts the calls of `CALLS`
that the save makes, in either thread, and takes SIGKILL after its k-th. The undisturbed run follows at one go. Every
line is JSON: victim, k, whether the victim outlived its save (which ends its turn), and of each rank the step it
resumed, that checkpoint's fingerprint, the next step's loss.
"""

import json
import os
import signal
import sys
import threading
from pathlib import Path

import torch

from gpt1_ds.checkpoints.loading import resume
from gpt1_ds.checkpoints.saving import Saves
from gpt1_ds.distributed import collectives, environment, rendezvous
from gpt1_ds.engine.internals import import_deepspeed
from tests.support.cases_checkpoint import read
from tests.support.cases_engine import Trainer

# Whatever changes the disk, as C functions named by the profiler; every file is written through Python's own.
CALLS = {"open", "write", "flush", "fsync", "mkdir", "rename", "replace", "unlink", "rmdir"}
ONE_BLOCK = ["model.n_layer=1", "distributed.timeout_seconds=30"]


def kill_after(k: int) -> None:
    """Arm this process: SIGKILL once the k-th of `CALLS` has returned."""
    left = k

    def count(_, event, function):
        nonlocal left
        if event == "c_return" and function.__name__ in CALLS:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)
    threading.setprofile(count)  # of the threads to come


def fingerprint(folder: Path) -> int:
    """The bits of a checkpoint's weights and moments, as one number."""
    tensors = [
        value
        for state in read(folder).values()
        for value in state.values()
        if torch.is_tensor(value)
    ]
    bits = [t.contiguous().flatten().view(torch.int32).long() for t in tensors]
    return sum(int((b * torch.arange(1, len(b) + 1)).sum()) for b in bits) % 2**61


def one_rank(
    ds_path: str, shards: str, run_dir: Path, must: bool, steps: int, victim: int, k: int, report
) -> None:
    rendezvous.join_process_group(30)
    trainer = Trainer(ds_path, shards, ONE_BLOCK)
    first = (resume(trainer.engine, run_dir) or {"step": 0})["step"]
    saves = Saves(run_dir, 1, None, lambda step, **_: None)
    for step in range(first, first + steps):
        bits = fingerprint(run_dir / "checkpoints" / f"step-{step:08d}") if step else 0
        print(json.dumps([step, bits, trainer.run(step, step + 1)[0]]), file=report, flush=True)
        if collectives.rank() == victim:
            kill_after(k)
        saves.save(trainer.engine, step + 1, {"step": step + 1}, must)
        assert (saves.pending is None) == must
        saves.settle()
        sys.setprofile(None)
    print("null", file=report, flush=True)


def start(ranks: int, *arguments) -> list[list]:
    """Fork the ranks, wait for their ends, and return what each reported."""
    reads, children, port = [], [], environment.free_port()
    for rank in range(ranks):
        read_end, write_end = os.pipe()
        if (child := os.fork()) == 0:
            os.close(read_end)
            os.environ.update(
                RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), MASTER_PORT=str(port)
            )
            try:
                with os.fdopen(write_end, "w") as report:
                    one_rank(*arguments, report)
            except BaseException as error:
                print(
                    f"rank {rank}: {type(error).__name__}: {str(error)[:200]}",
                    file=sys.stderr,
                    flush=True,
                )
            finally:
                os._exit(0)
        os.close(write_end)
        reads.append(os.fdopen(read_end))
        children.append(child)
    reports = [[json.loads(line) for line in pipe] for pipe in reads]
    for child in children:
        os.waitpid(child, 0)
    return reports


def main(ds_path: str, shards: str, runs: str, ranks: str, must: str = "") -> None:
    torch.set_num_threads(1)
    import_deepspeed()
    assert len(os.listdir("/proc/self/task")) == 1, "a fork would lose the other threads"
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    ranks, fixed, reports = int(ranks), (ds_path, shards, Path(runs) / "killed", bool(must)), []
    start(ranks, *fixed, 1, -1, 0)  # something to fall back to
    for victim in range(ranks):
        k, outlived = 0, False
        while not outlived:
            k += 1
            reports = start(ranks, *fixed, 1, victim, k)
            outlived = reports[victim][-1] is None
            print(json.dumps([victim, k, outlived, *(report[0] for report in reports)]), flush=True)
    steps = reports[0][0][0] + 1
    for line in start(ranks, ds_path, shards, Path(runs) / "undisturbed", True, steps, -1, 0)[0][
        :-1
    ]:
        print(json.dumps([-1, 0, True, line]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
