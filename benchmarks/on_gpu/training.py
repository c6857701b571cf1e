"""Checks of whole steps: compiled blocks, CUDA graphs, the reduction, resuming, offload."""

import tempfile
from dataclasses import fields
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from gpt1_ds.base.protocols import Engine
from gpt1_ds.checkpoints.loading import resume
from gpt1_ds.checkpoints.saving import save_checkpoint
from gpt1_ds.checkpoints.state import CheckpointState
from gpt1_ds.distributed import rendezvous
from gpt1_ds.engine.counting import fake_group
from gpt1_ds.engine.determinism import choose_algorithms
from gpt1_ds.engine.start import initialize
from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.settings.deepspeed_json import resolve
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import CheckpointConfig, PretrainConfig, TrainConfig

DS_CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"
ON_GPU = torch.cuda.is_available()
VOCAB_SIZE, N_CTX = 600, 512
WINDOWS, WIDTH = (4, 384) if ON_GPU else (1, 48)
"""On a GPU heads of 64 and 512 tokens, as in GPT-1: the same kernels of attention."""
SHAPE = ("model.n_layer=2", "model.n_head=6", f"model.n_embd={WIDTH}")
NO_DROPOUT = ("model.embd_pdrop=0", "model.attn_pdrop=0", "model.resid_pdrop=0")
FLOAT32_BOUND, BF16_BOUND = 1e-4, 0.05
FLOAT32, BF16 = "zero0_fp32", "zero1_bf16"


def is_option(name: str) -> bool:
    """Whether the section `train` has this setting in this version."""
    return name in {field.name for field in fields(TrainConfig)}


def engine_with(ds: str, *options: str, windows: int = WINDOWS, **zero: object) -> Engine:
    """An engine around a small GPT; weights and dropout come from seed 0.

    It is of one rank, or of the group that is there. `zero` are keys of `zero_optimization`.
    """
    if not dist.is_initialized():
        rendezvous.join_process_group(60.0)
    ranks = dist.get_world_size()
    batch = [f"train.global_batch={windows * ranks}", f"train.micro_batch={windows}"]
    config = load(PretrainConfig, None, [*batch, *SHAPE, *options])
    choose_algorithms(config)
    torch.manual_seed(0)
    model = config.model
    shape = GPTConfig(
        VOCAB_SIZE,
        n_layer=model.n_layer,
        n_head=model.n_head,
        n_embd=model.n_embd,
        n_ctx=N_CTX,
        embd_pdrop=model.embd_pdrop,
        attn_pdrop=model.attn_pdrop,
        resid_pdrop=model.resid_pdrop,
    )
    json = resolve(DS_CONFIGS / f"{ds}.json", config, ranks)
    json["zero_optimization"] = json.get("zero_optimization", {}) | zero
    return initialize(GPT(shape), config, json)


def batches(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    size = (WINDOWS, N_CTX + 1)
    return [torch.randint(0, VOCAB_SIZE, size, generator=generator) for _ in range(count)]


def losses_of(engine: Engine, ids: list[Tensor]) -> list[float]:
    losses = []
    for ids_BT in (part.to(engine.device) for part in ids):
        loss = engine(ids_BT[:, :-1], ids_BT[:, 1:])[1].mean()
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    return losses


def equal_with(option: str) -> dict:
    """Losses of steps with an option of the section `train` beside those without it.

    In float32 without dropout step by step; in bfloat16 with dropout, whose masks may be others,
    the mean of the losses.
    """
    if not is_option(option):
        return {"untried": "not in this version"}
    if option == "cuda_graphs" and not ON_GPU:
        return {"untried": "CUDA graphs need a GPU"}
    sides = []
    for extra in ((), (f"train.{option}=true",)):
        exact = engine_with(FLOAT32, *NO_DROPOUT, *extra)
        single = losses_of(exact, batches(4))
        exact.destroy()
        engine = engine_with(BF16, *extra)
        half = losses_of(engine, batches(8))
        engine.destroy()
        sides.append((single, sum(half) / len(half)))
    (plain, mean_plain), (changed, mean_changed) = sides
    difference = max(abs(a - b) for a, b in zip(plain, changed, strict=True))
    of_means = abs(mean_plain - mean_changed)
    found = (
        f"float32 losses of 4 steps within {difference:.1e}; bfloat16 with dropout, mean of 8 "
        f"steps: {mean_changed:.4f} and {mean_plain:.4f}"
    )
    passed = difference < FLOAT32_BOUND and of_means < BF16_BOUND
    return {"passed": passed, "found": found, "difference": difference}


def reduce_beside(stage: int, compiled: bool) -> dict:
    """Losses of steps whose gradients are reduced in small buckets beside the backward pass, in a
    stream of their own, and those of one bucket after it: bit for bit.

    The second of two ranks is not there: a reduction divides the gradients, and adds nothing.
    """
    if not is_option("deterministic"):
        return {"untried": "not in this version"}
    options = ("train.deterministic=true", f"train.compile={str(compiled).lower()}")
    losses = []
    with fake_group(2):
        for beside, size in ((True, 300_000), (False, 50_000_000)):
            buckets = {"stage": stage, "reduce_bucket_size": size, "overlap_comm": beside}
            engine = engine_with(BF16, *options, **buckets)
            losses.append(losses_of(engine, batches(8)))
            engine.destroy()
    apart = max(abs(a - b) for a, b in zip(*losses, strict=True))
    found = f"losses of 8 steps within {apart:.1e}"
    return {"passed": apart == 0, "found": found, "difference": apart}


def resume_exactly(deterministic: bool) -> dict:
    """Three steps, a checkpoint, three steps; and these again from the checkpoint, bit for bit.

    512 tokens are several blocks of keys: flash attention adds up the gradient of its queries in
    any order there. So without `train.deterministic` the result is told, and is no fault.
    """
    options = ("train.deterministic=true",) if deterministic else ()
    if deterministic and not is_option("deterministic"):
        return {"untried": "not in this version"}
    ids, runs = batches(6), []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(2):
            engine = engine_with(BF16, *options)
            if turn == 0:
                losses_of(engine, ids[:3])
                state = CheckpointState(step=3, model={}, tokenizer_sha256="")
                save_checkpoint(engine, Path(folder), 3, state, CheckpointConfig(keep=1))
            else:
                torch.manual_seed(7)  # a resume must restore the generator
                resume(engine, Path(folder))
            runs.append(losses_of(engine, ids[3:]))
            engine.destroy()
    apart = max(abs(a - b) for a, b in zip(*runs, strict=True))
    found = "bit for bit" if runs[0] == runs[1] else f"losses apart by up to {apart:.1e}"
    passed = runs[0] == runs[1] or not (deterministic or apart > FLOAT32_BOUND * 100)
    return {"passed": passed, "found": found, "difference": apart, "runs": runs}


def pinned_offload() -> dict:
    """Whether the optimizer's state in the memory of the host is pinned, as fast copies need it."""
    if not ON_GPU:
        return {"untried": "only copies to a GPU are pinned"}
    engine = engine_with("zero2_offload")
    losses_of(engine, batches(2))
    weights = engine.optimizer.single_partition_of_fp32_groups
    pinned = [part.is_pinned() for part in weights]
    places = sorted({part.device.type for part in weights})
    return {
        "passed": all(pinned) and places == ["cpu"],
        "found": f"{sum(pinned)} of {len(pinned)} groups pinned, on {' and '.join(places)}",
    }
