"""Verify checkpoints, resume a run exactly, and read weights.

DeepSpeed alone loads a file with a flipped byte without an error. Here all ranks verify every hash
first, and fall back to the newest step that passes. Nothing that is read is executed: unpickling
is weights-only, with DeepSpeed's four harmless classes allowed.
"""

import time
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from gpt1_ds.base.errors import DataError
from gpt1_ds.base.protocols import Engine
from gpt1_ds.base.records import METRICS_FILE, read_metrics
from gpt1_ds.checkpoints.by_parameter import Source, WholeWeights, place_state, place_weights
from gpt1_ds.checkpoints.deepspeed_files import allow_known_classes, refuse_untrusted
from gpt1_ds.checkpoints.flat_tensors import layout
from gpt1_ds.checkpoints.folder import (
    WEIGHTS,
    checkpoint_folders,
    find_checkpoint,
    find_faults,
    read_checkpoint_manifest,
    read_state,
    rng_file,
)
from gpt1_ds.checkpoints.saved_parameters import SavedParameters, read_weights
from gpt1_ds.checkpoints.state import CheckpointState, Layout
from gpt1_ds.checkpoints.swap_files import uses_swap_files
from gpt1_ds.data.order import mix
from gpt1_ds.distributed import collectives
from gpt1_ds.distributed.console import say
from gpt1_ds.engine.internals import keep_settings
from gpt1_ds.engine.update import skipped_steps


def resume(engine: Engine, run_dir: Path) -> CheckpointState | None:
    """Load the newest checkpoint whose every hash holds; its state, or None on a fresh run.

    All ranks call this. Newer checkpoints that fail are set aside as step-N.damaged. DataError if
    there are checkpoints but none verifies, or if there were and they are gone.
    """
    root = run_dir / "checkpoints"
    names = _checkpoints_of_rank_0(run_dir)
    for number, name in enumerate(names):
        faults = faults_on_all_ranks(root / name)
        if not faults:
            state = load_checkpoint(engine, root / name)
            if collectives.is_main():
                # Else a later save of that step would leave it as it is.
                for damaged in names[:number]:
                    (root / damaged).rename(root / f"{damaged}.damaged-{time.time_ns()}")
            return state
        say(f"{root / name}: {faults[0]}; falling back to the checkpoint before it")
    if names:
        raise DataError(
            f"{root}: no checkpoint passes its manifest; "
            "restore one, or start over with --from-scratch"
        )
    return None


def _checkpoints_of_rank_0(run_dir: Path) -> list[str]:
    """Folder names, newest first, as rank 0 sees them; DataError if they have disappeared.

    A run that died before its first checkpoint has logged none, and starts anew.
    """
    root = run_dir / "checkpoints"
    seen = None
    if collectives.is_main():
        logged = bool(read_metrics(run_dir, "checkpoint"))
        seen = [[folder.name for folder in checkpoint_folders(root)], logged]
    names, logged = collectives.from_main(seen)
    if logged and not names:
        raise DataError(
            f"{root}: no checkpoint although {run_dir / METRICS_FILE} tells of one; "
            "restore it, or start over with --from-scratch"
        )
    return list(names)


def faults_on_all_ranks(folder: Path) -> list[str]:
    """What is wrong with the files of a checkpoint; each rank reads its share of them."""
    own = find_faults(folder, collectives.rank(), collectives.world_size())
    return sum(collectives.gather_json(own), [])


def load_weights(path: Path | str) -> tuple[dict[str, Tensor], CheckpointState]:
    """Weights by parameter name, float32, whole and on the CPU; and the state.

    `path` is a run or a checkpoint, of any ZeRO stage and number of ranks.
    """
    folder = find_checkpoint(path)
    manifest = read_checkpoint_manifest(folder)
    if manifest.layout.zero_stage is None:
        return safetensors.torch.load_file(folder / WEIGHTS), read_state(folder)
    return read_weights(folder, manifest), read_state(folder)


def open_weights(path: Path | str) -> tuple[Source, CheckpointState]:
    """The weights of a run or checkpoint, of which each rank reads what it holds; and the state.

    All ranks call, and share the verification.
    """
    folder = find_checkpoint(path, faults_on_all_ranks)
    allow_known_classes()
    refuse_untrusted(folder, read_checkpoint_manifest(folder))
    return source_in(folder), read_state(folder)


def source_in(folder: Path) -> Source:
    """The weights in the folder of a checkpoint that was verified, with its files mapped.

    Call `allow_known_classes` before.
    """
    manifest = read_checkpoint_manifest(folder)
    if manifest.layout.zero_stage is None:
        tensors = safetensors.torch.load_file(folder / WEIGHTS)  # mapped
        return WholeWeights(tensors.items())
    return SavedParameters(folder, manifest)


def load_checkpoint(engine: Engine, folder: Path) -> CheckpointState:
    """Load a verified checkpoint into `engine`, and this rank's generators; the state.

    DeepSpeed itself loads a checkpoint of this very layout, so that the resume is exact in every
    detail. Any other comes parameter by parameter.
    """
    skipped_steps(engine)  # those that are not counted yet belong to the state that goes
    manifest, here = read_checkpoint_manifest(folder), layout(engine)
    allow_known_classes()
    refuse_untrusted(folder, manifest)
    differing = _differing(manifest.layout, here)
    if differing or uses_swap_files(engine):
        saved = SavedParameters(folder, manifest)
        place_weights(engine, saved, folder)
        place_state(engine, saved)
    else:
        with keep_settings(engine):
            loaded, _ = engine.load_checkpoint(str(folder.parent), tag=folder.name)
        if loaded is None:
            raise DataError(f"{folder}: DeepSpeed loaded nothing; take another checkpoint")
    if differing:
        then, now = _listed(manifest.layout, differing), _listed(here, differing)
        say(
            f"resuming {folder} ({then}) with {now}: "
            "weights, moments and the place in the data carry over"
        )
    if manifest.layout.world_size == here.world_size:
        _load_generators(folder)
    else:  # Each rank's own, anew from (seed, rank, step).
        torch.manual_seed(int(mix(torch.initial_seed(), manifest.step, 6) >> 1))
    return read_state(folder)


def _differing(there: Layout, here: Layout) -> list[str]:
    """Names of the fields that differ; a manifest of an early version lacks some."""
    names = []
    for name, value in here._asdict().items():
        if getattr(there, name) not in (None, value):
            names.append(name)
    return names


def _listed(side: Layout, names: list[str]) -> str:
    values = [f"{name} {getattr(side, name)}" for name in names if name != "places"]
    return ", ".join(values) or "other groups"


def _load_generators(folder: Path) -> None:
    states = safetensors.torch.load_file(folder / rng_file(collectives.rank()))
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
