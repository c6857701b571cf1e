"""Checks of processes: the device that DeepSpeed takes, and the end of a run whose peer hangs."""

import os
import signal
import subprocess
import sys
import tempfile
import time

import torch

from benchmarks.on_gpu.running import end, start
from gpt1_ds.base.errors import PeerError, command
from gpt1_ds.distributed import collectives, rendezvous
from gpt1_ds.distributed.environment import free_port

TIMEOUT_SECONDS = 10
"""Of a collective, in the run whose peer hangs."""
LONGEST_SECONDS = 60


def chosen_device() -> dict:
    """The device of an engine whose rank sees one GPU only and has LOCAL_RANK=3."""
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="3")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    from benchmarks.on_gpu.training import BF16, engine_with

    engine = engine_with(BF16)
    wanted = "cuda:0" if torch.cuda.is_available() else "cpu"
    return {"passed": str(engine.device) == wanted, "found": f"{engine.device}, LOCAL_RANK=3"}


def hung_peer() -> dict:
    """The exit code of a rank whose only peer stops before their first collective.

    Both ranks may share a GPU: NCCL meets the peer before it looks at the devices, and hangs there
    as it would later. Rank 0 must end with exit code 5 and name rank 1, before any abort by NCCL.
    """
    port, processes = str(free_port()), []
    environment = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    environment |= {"MASTER_PORT": port, "LOCAL_RANK": "0", "LOCAL_SIZE": "2"}
    program = [sys.executable, "-m", "benchmarks.on_gpu.ranks"]
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        try:
            for rank in range(2):
                words = output if rank == 0 else subprocess.DEVNULL
                processes.append(start(program, environment | {"RANK": f"{rank}"}, words))
            code = processes[0].wait(LONGEST_SECONDS)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            for process in processes:
                end(process)
        output.seek(0)
        words = (output.read().strip().splitlines() or ["no word"])[-1]
    seconds = time.monotonic() - began
    found = f"exit code {code} after {seconds:.0f} s: {words[:200]}"
    return {"passed": code == PeerError.exit_code, "found": found}


def meet_and_hang(_: list[str]) -> None:
    """One of the two ranks of `hung_peer`."""
    env = rendezvous.join_process_group(float(TIMEOUT_SECONDS))
    if env.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    with collectives.peer_faults():
        total = collectives.all_sum(torch.ones(1, device=collectives.device()))
        print(f"the sum of both ranks is {total.item()}")


if __name__ == "__main__":
    command(meet_and_hang, __name__)
