"""What the comparison of the ranks' copies costs a save: seconds to hash them, seconds of the save.

    python benchmarks/replicas.py zero0_fp32
    python benchmarks/replicas.py zero1_bf16

GPT-1 on one rank, on the device at hand: half a minute, 5 GB of memory, 2 GB in a temporary folder.
The copies are hashed as if there were other ranks: the numbers go with a gather that is there.
"""

import argparse
import importlib
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    importlib.import_module("gpt1_ds")

import torch

from gpt1_ds.base.protocols import Engine
from gpt1_ds.checkpoints.flat_tensors import replicated
from gpt1_ds.checkpoints.replicas import Replicas
from gpt1_ds.checkpoints.saving import save_checkpoint
from gpt1_ds.checkpoints.state import CheckpointState
from gpt1_ds.distributed import collectives, rendezvous
from gpt1_ds.distributed.environment import free_port
from gpt1_ds.engine.start import initialize
from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.settings.deepspeed_json import resolve
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import CheckpointConfig, PretrainConfig
from gpt1_ds.settings.shipped import ds_config_path

SHAPE = GPTConfig(40_000, 12, 12, 768, 512)
TIMES = 3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="of a shipped DeepSpeed JSON, such as zero1_bf16")
    name = parser.parse_args().name
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    rendezvous.join_process_group(60)
    config = load(PretrainConfig, None, ["train.global_batch=1", "train.micro_batch=1"])
    engine = initialize(GPT(SHAPE), config, resolve(ds_config_path(name), config, 1))
    train_step(engine)
    replicas = Replicas(CheckpointConfig())
    replicas.is_on = True
    compared = sum(copy.nbytes for copy in replicated(engine).values())
    hashing = least_seconds(lambda: replicas.numbers(engine, 1))
    state = CheckpointState(step=1, model=asdict(SHAPE), tokenizer_sha256="ab" * 32)
    facts = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(TIMES):
            run = Path(folder) / str(number)
            facts.append(save_checkpoint(engine, run, 1, state, CheckpointConfig(), must=False))
    save = min((saved for saved in facts if saved), key=lambda saved: saved["seconds"])
    looks = 2 if engine.zero_optimization_stage() else 1
    print(f"{name}: {compared / 1e9:.2f} GB hashed in {hashing:.3f} s, {looks} times a checkpoint;")
    print(f"a save takes {save['seconds']:.1f} s, {save['write_seconds']:.1f} of it in the thread")


def train_step(engine: Engine) -> None:
    """So that there are moments."""
    ids_BT = torch.randint(5, SHAPE.vocab_size, (1, 33)).to(engine.device)
    keys_B2 = torch.zeros(1, 2, dtype=torch.int32).to(engine.device)
    _, nll_BT = engine(ids_BT[:, :-1], ids_BT[:, 1:], dropout_keys_B2=keys_B2)
    engine.backward(nll_BT.mean())
    engine.step()


def least_seconds(action: Callable[[], object]) -> float:
    """Of some calls; each ends with a number on the host, so that a GPU has ended too."""
    seconds = []
    for _ in range(TIMES):
        collectives.barrier()
        began = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


if __name__ == "__main__":
    main()
