"""Measures memory and time of a real training step, in its own process. Prints JSON.

python -m tests.support.cases_plan LAYERS WIDTH ZERO_STAGE CONTEXT STEPS
"""

import json
import sys
import time
from pathlib import Path

import torch

from gpt1_ds.distributed import rendezvous
from gpt1_ds.engine.internals import import_deepspeed
from gpt1_ds.engine.start import initialize
from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.settings.deepspeed_json import resolve
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import PretrainConfig

VOCAB_SIZE, MICRO_BATCH = 8000, 4


def peak_bytes() -> int:
    """Peak resident memory of this program. (ru_maxrss would include that of its parent.)"""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def main(layers: int, width: int, stage: int, n_ctx: int, steps: int) -> None:
    torch.set_num_threads(1)
    overrides = [f"train.global_batch={MICRO_BATCH}", f"train.micro_batch={MICRO_BATCH}"]
    config = load(PretrainConfig, None, overrides)
    path = Path(__file__).parents[2] / "ds_configs" / f"zero{stage}_bf16.json"
    rendezvous.join_process_group(60.0)
    ds = resolve(path, config, 1)
    import_deepspeed()
    ids_BT = torch.randint(0, VOCAB_SIZE, (MICRO_BATCH, n_ctx + 1))
    before = peak_bytes()
    engine = initialize(GPT(GPTConfig(VOCAB_SIZE, layers, 8, width, n_ctx)), config, ds)
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        loss = engine(ids_BT[:, :-1], ids_BT[:, 1:])[1].mean()
        engine.backward(loss)
        engine.step()
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"bytes": peak_bytes() - before, "seconds": min(seconds)}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
