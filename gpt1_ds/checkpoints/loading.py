"""Checkpoints: verify, resume exactly, and read weights. `saving` is the other half, which writes and commits them.

DeepSpeed alone loads a flipped byte in silence. Loading here verifies every hash first, on all ranks, and falls back to
the newest step that passes. Nothing read is executed: unpickling is weights-only with DeepSpeed's four harmless classes
allowed.
"""

import pickle
import time
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from gpt1_ds.base.errors import DataError
from gpt1_ds.checkpoints.by_parameter import place_state, place_weights
from gpt1_ds.checkpoints.deepspeed_files import (
    SavedParameters,
    allow_known_classes,
    refuse_untrusted,
)
from gpt1_ds.checkpoints.flat_tensors import layout
from gpt1_ds.checkpoints.folder import (
    WEIGHTS,
    checkpoint_folders,
    faults_of,
    find_checkpoint,
    read_manifest_file,
    read_state,
)
from gpt1_ds.checkpoints.swap_files import uses_swap_files
from gpt1_ds.data.order import mix
from gpt1_ds.distributed import collectives
from gpt1_ds.distributed.console import say

MAPPED_BYTES = 1 << 26


def resume(engine, run_dir: Path) -> dict[str, Any] | None:
    """Load the newest checkpoint whose every hash holds, on all ranks, and return its `state`; None on a fresh run.

    Newer ones that fail are set aside as step-N.damaged. DataError if checkpoints are there but none verifies.
    """
    root = run_dir / "checkpoints"
    # Rank 0's view, for all. A run that died before its first checkpoint just starts anew.
    log = run_dir / "metrics.jsonl"
    logged = log.exists() and '"split": "checkpoint"' in log.read_text(encoding="utf-8")
    folders, logged = collectives.gather_json([[f.name for f in checkpoint_folders(root)], logged])[
        0
    ]
    if not folders and logged:
        raise DataError(
            f"{root}: no checkpoint although {log} tells of one; restore it, or "
            "start over with --from-scratch"
        )
    for name in folders:
        faults = [
            fault for report in collectives.gather_json(faults_of(root / name)) for fault in report
        ]
        if not faults:
            state = _load(engine, root / name)
            for damaged in folders[: folders.index(name)] if collectives.is_main() else ():
                # Else a later save of that step would take it for its own, committed before.
                (root / damaged).rename(root / f"{damaged}.damaged-{time.time_ns()}")
            return state
        say(f"{root / name}: {faults[0]}; falling back to the checkpoint before it")
    if folders:
        raise DataError(
            f"{root}: no checkpoint passes its manifest; restore one, or start over with --from-scratch"
        )
    return None


@torch.no_grad()  # some flat tensors require gradients: a graph would hold them, and so their maps
def load_weights(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Float32 weights by parameter name, whole and on the CPU, and the state, of any ZeRO stage and world size."""
    folder = find_checkpoint(path)
    manifest, weights = read_manifest_file(folder), {}
    if manifest["zero_stage"] is None:
        return safetensors.torch.load_file(folder / WEIGHTS), read_state(folder)
    allow_known_classes()
    try:
        spans = list(SavedParameters(folder, manifest).spans.items())
        while len(weights) < len(spans):
            # Mapped anew for every few parameters: what was read of a map stays in memory as long as the map.
            shards, left = SavedParameters(folder, manifest), MAPPED_BYTES
            shards.spans = dict(spans[len(weights) :])
            for name, tensor in shards.weights():
                weights[name], left = tensor, left - tensor.nbytes
                if left < 0:
                    break
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{folder}: untrusted content ({str(error).splitlines()[0]}); take another checkpoint"
        ) from error
    return weights, read_state(folder)


def _load(engine, folder: Path) -> dict[str, Any]:
    """DeepSpeed's own load where its shards lie as here, so that the resume is exact; otherwise `resize`."""
    manifest, here = read_manifest_file(folder), layout(engine)
    allow_known_classes()
    refuse_untrusted(folder)
    differing = [name for name, value in here.items() if manifest.get(name, value) != value]
    if not differing and not uses_swap_files(engine):
        if engine.load_checkpoint(str(folder.parent), tag=folder.name)[0] is None:
            raise DataError(f"{folder}: DeepSpeed loaded nothing; take another checkpoint")
    else:
        shards = SavedParameters(folder, manifest)
        place_weights(engine, shards.weights(), folder)
        place_state(engine, shards)
        if differing:
            then, now = (
                ", ".join(f"{name} {side.get(name)}" for name in differing if name != "places")
                or "other groups"
                for side in (manifest, here)
            )
            say(
                f"resuming {folder} ({then}) with {now}: weights, moments and the place in the data carry "
                "over"
            )
    if manifest["world_size"] == here["world_size"]:
        _load_generators(folder)
    else:  # each rank's own, anew from (seed, rank, step)
        torch.manual_seed(int(mix(torch.initial_seed(), manifest["step"], 6) >> 1))
    return read_state(folder)


def _load_generators(folder: Path) -> None:
    states = safetensors.torch.load_file(folder / f"rng-rank-{collectives.rank():05d}.safetensors")
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
