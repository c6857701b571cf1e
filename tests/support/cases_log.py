"""Functions that ranks of the pool run for test_log.py and test_timing.py."""

from pathlib import Path

import torch

from gpt1_ds import train
from gpt1_ds.data.tokenizer import load_tokenizer
from gpt1_ds.distributed import collectives
from gpt1_ds.engine.internals import COLLECTIVES
from gpt1_ds.engine.readings import layer_norms
from gpt1_ds.engine.timing import StepTimer, profiled
from gpt1_ds.model.sampling import sample_text
from gpt1_ds.runs.log import RunLog
from tests.support.cases_engine import Trainer


def watched(
    ds_path: str, shards: str, tokenizer: str, clip: str
) -> tuple[dict[str, float], float, list[str], bool, bool]:
    """The gradient norms of a step, and the effects of sampling two texts.

    Returns the norms of the layers, the engine's own norm of all gradients, the two texts, whether
    the global generator stayed as it was, and whether the module is in training mode.
    """
    trainer = Trainer(ds_path, shards, [f"train.grad_clip={clip}", "train.micro_batch=4"])
    trainer.run(0, 1)
    engine, ids_BT = trainer.engine, torch.arange(4 * 33).view(4, 33)
    engine.set_gradient_accumulation_boundary(True)
    engine.backward(engine(ids_BT[:, :-1], ids_BT[:, 1:])[1].mean())
    norms = layer_norms(engine)
    engine.step()
    whole = engine.get_global_grad_norm()
    before = torch.get_rng_state()
    texts = [sample_text(engine, load_tokenizer(tokenizer), "He said", 12) for _ in range(2)]
    same = torch.equal(before, torch.get_rng_state())
    trainer.close()
    return norms, whole and float(whole), texts, same, engine.module.training


def monitored(ds_path: str, shards: str, folder: str) -> None:
    """Log three steps, also to the engine's monitor, and one more after its folder is deleted."""
    trainer = Trainer(ds_path, shards, [])
    log = RunLog(Path(folder), 0, engine=trainer.engine)
    for step in range(4):
        if step == 3 and collectives.is_main():
            (Path(folder) / "csv").rename(Path(folder) / "gone")
        log.log(step + 1, "train", loss=trainer.run(step, step + 1)[0])
    log.close()
    trainer.close()


def timed(ds_path: str, shards: str, folder: str) -> tuple[dict[str, float], bool]:
    """The seconds of the parts of two steps; the second step runs in the profiler.

    Also returns whether DeepSpeed has its original collectives again.
    """
    from deepspeed.comm import comm

    trainer, timer = Trainer(ds_path, shards, ["train.micro_batch=4"]), StepTimer()
    ids_BT = torch.arange(4 * 33).view(4, 33)
    keys_B2 = torch.ones(4, 2, dtype=torch.int32)
    with timer.communication():
        for step in (1, 2):
            with profiled(Path(folder), step, 2):
                train.train_step(trainer.engine, [ids_BT], keys_B2, timer)
    trainer.close()
    return timer.read(2), not set(COLLECTIVES) & set(vars(comm.cdb))
