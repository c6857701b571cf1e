"""For every k, kill one rank in a save after its k-th write, flush or rename, and resume.

    python -m tests.support.kill_at_every_write DEEPSPEED.json SHARDS RUNS RANKS [must]

One process forks the ranks of every start. It has imported torch and DeepSpeed and has no other
threads. Each start resumes the run, trains one step and saves: in a thread, or in the main thread
with `must`; another thread deletes the checkpoint before. The rank to kill counts the calls of
`CALLS` that its save makes in all threads, and gets SIGKILL after the k-th call. If it survives its
save, all its k are done, and the next rank is killed. At the end, an undisturbed run trains the
same number of steps.

Each line of the output is JSON: the killed rank, k, whether it survived its save, and for each rank
the step of the resume, the fingerprint of that checkpoint, and the loss of the next step.
"""

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import NamedTuple, TextIO

import torch

from gpt1_ds.checkpoints.folder import step_folder
from gpt1_ds.checkpoints.loading import resume
from gpt1_ds.checkpoints.saving import Saves
from gpt1_ds.distributed import collectives, environment, rendezvous
from gpt1_ds.engine.internals import import_deepspeed
from gpt1_ds.settings.sections import CheckpointConfig
from tests.support.cases_checkpoint import read
from tests.support.cases_engine import Trainer

# All functions that change the disk: C functions, by their names in the profiler.
CALLS = {"open", "write", "flush", "fsync", "mkdir", "rename", "replace", "unlink", "rmdir"}
ONE_BLOCK = ["model.n_layer=1", "distributed.timeout_seconds=30"]


def kill_after(k: int) -> None:
    """Kill this process by SIGKILL after the k-th call of one of `CALLS`."""
    left = k

    def count(_, event, function):
        nonlocal left
        if event == "c_return" and function.__name__ in CALLS:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)
    threading.setprofile(count)  # for later threads


def fingerprint(folder: Path) -> int:
    """The bits of a checkpoint's weights and moments, as one number."""
    total = 0
    for state in read(folder).values():
        for value in state.values():
            if torch.is_tensor(value):
                bits = value.contiguous().flatten().view(torch.int32).long()
                total += int((bits * torch.arange(1, len(bits) + 1)).sum())
    return total % 2**61


class Start(NamedTuple):
    """What the ranks of one start do."""

    ds_path: str
    shards: str
    run_dir: Path
    must: bool
    steps: int = 1
    victim: int = -1
    k: int = 0


def one_rank(start: Start, report: TextIO) -> None:
    rendezvous.join_process_group(30)
    trainer = Trainer(start.ds_path, start.shards, ONE_BLOCK)
    state = resume(trainer.engine, start.run_dir)
    first = state.step if state else 0
    saves = Saves(start.run_dir, CheckpointConfig(keep=1), lambda step, **facts: None)
    for step in range(first, first + start.steps):
        bits = fingerprint(step_folder(start.run_dir / "checkpoints", step)) if step else 0
        print(json.dumps([step, bits, trainer.run(step, step + 1)[0]]), file=report, flush=True)
        saves.removal.wait()
        if collectives.rank() == start.victim:
            kill_after(start.k)
        saves.save(trainer.engine, step + 1, trainer.state(step + 1), start.must)
        assert (saves.pending is None) == start.must
        saves.settle()
        saves.removal.wait()
        sys.setprofile(None)
    print("null", file=report, flush=True)


def run(ranks: int, start: Start) -> list[list]:
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
                    one_rank(start, report)
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
    reports = [list(map(json.loads, pipe)) for pipe in reads]
    for child in children:
        os.waitpid(child, 0)
    return reports


def main(ds_path: str, shards: str, runs: str, ranks: str, must: str = "") -> None:
    torch.set_num_threads(1)
    import_deepspeed()
    assert len(os.listdir("/proc/self/task")) == 1, "a fork would lose the other threads"
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    n_ranks = int(ranks)
    start = Start(ds_path, shards, Path(runs) / "killed", bool(must))
    run(n_ranks, start)  # the checkpoint that a resume can fall back to
    reports: list[list] = []
    for victim in range(n_ranks):
        k, outlived = 0, False
        while not outlived:
            k += 1
            reports = run(n_ranks, start._replace(victim=victim, k=k))
            outlived = reports[victim][-1] is None
            firsts = [report[0] for report in reports]
            print(json.dumps([victim, k, outlived, *firsts]), flush=True)
    steps = reports[0][0][0] + 1
    undisturbed = Start(ds_path, shards, Path(runs) / "undisturbed", True, steps)
    for line in run(n_ranks, undisturbed)[0][:-1]:
        print(json.dumps([-1, 0, True, line]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
