"""Checkpoints: verify, resume exactly, and read weights. `saving` is the other half, which writes and commits them.

DeepSpeed alone loads a flipped byte in silence. Loading here verifies every hash first, on all ranks, and falls back to
the newest step that passes. Nothing read is executed: unpickling is weights-only with DeepSpeed's four harmless classes
allowed.
"""

import json
import os
import pickle
import sys
import time
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from gpt1_ds import distributed, resize, swapped
from gpt1_ds.dataloader import mix
from gpt1_ds.errors import DataError
from gpt1_ds.files import file_sha256, flush, write_atomically
from gpt1_ds.model import GPT, GPTConfig
from gpt1_ds.saving import MANIFEST, STATE, digest, steps
from gpt1_ds.tokenizer import Tokenizer, load_tokenizer

WEIGHTS = "model.safetensors"
MAPPED_BYTES = 1 << 26


def resume(engine, run_dir: Path) -> dict[str, Any] | None:
    """Load the newest checkpoint whose every hash holds, on all ranks, and return its `state`; None on a fresh run.

    Newer ones that fail are set aside as step-N.damaged. DataError if checkpoints are there but none verifies.
    """
    root = run_dir / "checkpoints"
    # Rank 0's view, for all. A run that died before its first checkpoint just starts anew.
    log = run_dir / "metrics.jsonl"
    logged = log.exists() and '"split": "checkpoint"' in log.read_text(encoding="utf-8")
    folders, logged = distributed.gather_json([[f.name for f in steps(root)], logged])[0]
    if not folders and logged:
        raise DataError(f"{root}: no checkpoint although {log} tells of one; restore it, or "
                        "start over with --from-scratch")  # fmt: skip
    for name in folders:
        faults = [fault for report in distributed.gather_json(_faults(root / name)) for fault in report]
        if not faults:
            state = _load(engine, root / name)
            for damaged in folders[: folders.index(name)] if distributed.is_main() else ():
                # Else a later save of that step would take it for its own, committed before.
                (root / damaged).rename(root / f"{damaged}.damaged-{time.time_ns()}")
            return state
        distributed.say(f"{root / name}: {faults[0]}; falling back to the checkpoint before it")
    if folders:
        raise DataError(f"{root}: no checkpoint passes its manifest; restore one, or start over with --from-scratch")
    return None


def committed(run_dir: Path) -> bool:
    """Whether this run has checkpoints, so that its next start resumes."""
    return bool(steps(run_dir / "checkpoints"))


def find(path: Path | str) -> Path:
    """The committed checkpoint that `path` means: itself, or the newest that verifies of a run folder."""
    path = Path(path)
    if (path / MANIFEST).exists():
        candidates = [path]
    else:
        candidates = steps(path / "checkpoints")
    for folder in candidates:
        faults = _faults(folder, share=1, of=1)
        if not faults:
            return folder
        print(f"{folder}: {faults[0]}; trying the checkpoint before it", file=sys.stderr)
    valid = "valid " if candidates else ""
    raise DataError(
        f"{path}: no {valid}checkpoint here; give a run folder (runs/NAME) or one of its checkpoints/step-*"
    )


def read_state(folder: Path) -> dict[str, Any]:
    """The plain state saved with the checkpoint in `folder`: step, cursor, model shape, tokenizer hash."""
    try:
        return json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / STATE}: {error}; take another checkpoint") from error


@torch.no_grad()  # some flat tensors require gradients: a graph would hold them, and so their maps
def load_weights(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Float32 weights by parameter name, whole and on the CPU, and the state, of any ZeRO stage and world size."""
    folder = find(path)
    manifest, weights = _read_manifest(folder), {}
    if manifest["zero_stage"] is None:
        return safetensors.torch.load_file(folder / WEIGHTS), read_state(folder)
    _allow_known_classes()
    try:
        spans = list(resize.Shards(folder, manifest).spans.items())
        while len(weights) < len(spans):
            # Mapped anew for every few parameters: what was read of a map stays in memory as long as the map.
            shards, left = resize.Shards(folder, manifest), MAPPED_BYTES
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


def save_weights(run_dir: Path, weights: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Commit float32 weights alone as step 0 of `run_dir`, for runs to start from; zero_stage is null there."""
    folder = run_dir / "checkpoints" / "step-00000000"
    folder.mkdir(parents=True)
    safetensors.torch.save_file(weights, folder / WEIGHTS)
    (folder / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
    files = {path.name: _seal(path) for path in sorted(folder.iterdir())}
    manifest = {"step": 0, "world_size": 1, "zero_stage": None, "config_hash": digest(state), "files": files}
    write_atomically(folder / MANIFEST, json.dumps({**manifest, "sha256": digest(manifest)}, indent=1))


def load_gpt(path: Path | str) -> tuple[GPT, dict[str, Any], Path]:
    """The model of a pre-training run, float32, in eval mode; its state; and the checkpoint it came from."""
    folder = find(path)
    weights, state = load_weights(folder)
    return build_gpt(weights, state, folder), state, folder


def run_tokenizer(folder: Path, state: dict[str, Any]) -> Tokenizer:
    """The tokenizer that lies beside the checkpoints of the run of `folder`; DataError where it is not theirs."""
    tokenizer = load_tokenizer(folder.parents[1] / "tokenizer")
    if state.get("tokenizer_sha256") != tokenizer.sha256:
        raise DataError(f"{folder.parents[1] / 'tokenizer'}: not the tokenizer of {folder}; restore the run's own")
    return tokenizer


def build_gpt(weights: dict[str, Tensor], state: dict[str, Any], source: Path) -> GPT:
    """The decoder around these very tensors, which are not copied, in eval mode."""
    try:
        with torch.device("meta"):
            model = GPT(GPTConfig(**state["model"])).eval()
        model.load_state_dict(weights, assign=True)
    except (KeyError, TypeError, RuntimeError) as error:
        raise DataError(f"{source}: not the weights of a pre-training run ({str(error).splitlines()[0]})") from error
    return model


def _load(engine, folder: Path) -> dict[str, Any]:
    """DeepSpeed's own load where its shards lie as here, so that the resume is exact; otherwise `resize`."""
    manifest, here = _read_manifest(folder), resize.layout(engine)
    _allow_known_classes()
    _refuse_untrusted(folder)
    differing = [name for name, value in here.items() if manifest.get(name, value) != value]
    if not differing and not swapped.used(engine):
        if engine.load_checkpoint(str(folder.parent), tag=folder.name)[0] is None:
            raise DataError(f"{folder}: DeepSpeed loaded nothing; take another checkpoint")
    else:
        shards = resize.Shards(folder, manifest)
        resize.place_weights(engine, shards.weights(), folder)
        resize.place_state(engine, shards)
        if differing:
            then, now = (", ".join(f"{name} {side.get(name)}" for name in differing if name != "places")
                         or "other groups" for side in (manifest, here))  # fmt: skip
            distributed.say(f"resuming {folder} ({then}) with {now}: weights, moments and the place in the data carry "
                            "over")  # fmt: skip
    if manifest["world_size"] == here["world_size"]:
        _load_generators(folder)
    else:  # each rank's own, anew from (seed, rank, step)
        torch.manual_seed(int(mix(torch.initial_seed(), manifest["step"], 6) >> 1))
    return read_state(folder)


def _refuse_untrusted(folder: Path) -> None:
    """Unpickle this rank's share of the files, mapped, before any rank loads: a refusal must be everyone's."""
    fault = None
    for path in sorted(folder.iterdir())[distributed.rank() :: distributed.world_size()]:
        try:
            if path.suffix == ".safetensors":
                safetensors.safe_open(path, "pt")
            elif path.suffix == ".pt":
                torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (pickle.UnpicklingError, RuntimeError, safetensors.SafetensorError) as error:
            fault = f"{path}: untrusted content ({str(error).splitlines()[0]}); take another checkpoint"
    if faults := [fault for fault in distributed.gather_json(fault) if fault]:
        raise DataError(faults[0])


def _allow_known_classes() -> None:
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    distributed.import_deepspeed()
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    torch.serialization.add_safe_globals([LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address])


def _load_generators(folder: Path) -> None:
    states = safetensors.torch.load_file(folder / f"rng-rank-{distributed.rank():05d}.safetensors")
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def _seal(path: Path) -> dict[str, Any]:
    """Flush `path` to the disk and take its size and sha256."""
    flush(path)
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def _faults(folder: Path, share: int | None = None, of: int | None = None) -> list[str]:
    """What is wrong with this rank's share of the files of a checkpoint; all ranks together see them all."""
    share, of = (distributed.rank(), distributed.world_size()) if of is None else (share, of)
    try:
        files = _read_manifest(folder)["files"]
    except DataError as error:
        return [str(error)]
    faults = []
    for name in sorted(files)[share % of :: of]:
        path = folder / name
        if Path(name).name != name or path.is_symlink() or not path.is_file():
            faults.append(f"{name} is missing")
        elif path.stat().st_size != files[name]["bytes"] or file_sha256(path) != files[name]["sha256"]:
            faults.append(f"{name} differs from its sha256")
    return faults


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest.pop("sha256") == digest(manifest):
            return manifest
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    raise DataError(f"{MANIFEST} is missing or damaged")
