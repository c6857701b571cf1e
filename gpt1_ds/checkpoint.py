"""Checkpoints: DeepSpeed's sharded files under a commit protocol of our own.

    checkpoints/step-00001000.tmp/  every rank writes, fsyncs, hashes, reports
    checkpoints/step-00001000/      all agreed: MANIFEST.json written, folder renamed
    checkpoints/latest              text file with the folder's name, replaced atomically

DeepSpeed alone publishes `latest` before its peers have written, and loads a flipped byte in silence. Loading here
verifies every hash first, on all ranks, and falls back to the newest step that passes. Nothing read is executed:
unpickling is weights-only with DeepSpeed's four harmless classes allowed.
"""

import hashlib
import json
import os
import pickle
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from gpt1_ds import distributed
from gpt1_ds.errors import DataError
from gpt1_ds.files import file_sha256, flush, write_atomically
from gpt1_ds.model import GPT, GPTConfig

MANIFEST, STATE, LATEST = "MANIFEST.json", "state.json", "latest"
STEP_FOLDER = re.compile(r"step-\d{8,}")
RANK_FILE = re.compile(r"(?:zero_pp_rank_|rng-rank-)(\d+)")


def save(engine, run_dir: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Commit a checkpoint of `engine` and the plain `state`; every rank calls. Returns its folder.

    Nothing committed is ever overwritten: a step that exists is left as it is.
    """
    root = run_dir / "checkpoints"
    final, temporary = root / f"step-{step:08d}", root / f"step-{step:08d}.tmp"
    if _agreed_exists(final):
        return final
    if distributed.is_main():
        root.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
    distributed.barrier()
    engine.save_checkpoint(str(root), tag=temporary.name, client_state={}, save_latest=False)
    _save_generators(temporary)
    if distributed.is_main():
        (temporary / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
    distributed.barrier()
    reports = distributed.gather_json({path.name: _seal(path) for path in _own_files(temporary)})
    if distributed.is_main():
        manifest = {
            "step": step,
            "world_size": distributed.world_size(),
            "zero_stage": engine.zero_optimization_stage(),
            "config_hash": _digest(state),
            "files": {name: entry for report in reports for name, entry in sorted(report.items())},
        }
        manifest["sha256"] = _digest(manifest)
        write_atomically(temporary / MANIFEST, json.dumps(manifest, indent=1))
        flush(temporary)
        os.rename(temporary, final)
        flush(root)
        write_atomically(root / LATEST, final.name + "\n")
        for old in _steps(root)[keep:]:
            shutil.rmtree(old)
    distributed.barrier()
    return final


def resume(engine, run_dir: Path) -> dict[str, Any] | None:
    """Load the newest checkpoint whose every hash holds, on all ranks, and return its `state`; None on a fresh run.

    DataError if checkpoints are there but none verifies, or if they were written by another number of ranks.
    """
    root = run_dir / "checkpoints"
    # Rank 0's view, taken before any rank goes on: its log of this very start would look like a past run.
    folders, logged = distributed.gather_json([[f.name for f in _steps(root)], (run_dir / "metrics.jsonl").exists()])[0]
    if not folders and logged:
        raise DataError(f"{root}: no checkpoint although {run_dir}/metrics.jsonl shows a past run; restore one, or "
                        "start over with --from-scratch")  # fmt: skip
    if not folders:
        return None
    for name in folders:
        faults = [fault for report in distributed.gather_json(_faults(root / name)) for fault in report]
        if not faults:
            return _load(engine, root / name)
        distributed.say(f"{root / name}: {faults[0]}; falling back to the checkpoint before it")
    raise DataError(f"{root}: no checkpoint passes its manifest; restore one, or start over with --from-scratch")


def find(path: Path | str) -> Path:
    """The committed checkpoint that `path` means: itself, or the newest that verifies of a run folder."""
    path = Path(path)
    if (path / MANIFEST).exists():
        candidates = [path]
    else:
        candidates = _steps(path / "checkpoints")
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


def load_weights(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Float32 weights by parameter name, whole and on the CPU, and the state, of any ZeRO stage and world size."""
    folder = find(path)
    _allow_known_classes()
    manifest = _read_manifest(folder)
    try:
        if manifest["zero_stage"] == 0:
            weights = torch.load(folder / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=True)["module"]
        else:
            from deepspeed.utils import zero_to_fp32

            # It prints to stdout, which belongs to the caller, and draws a bar on every rank.
            zero_to_fp32.print = lambda *_, **__: None
            zero_to_fp32.tqdm = lambda files, **_: files
            weights = zero_to_fp32.get_fp32_state_dict_from_zero_checkpoint(str(folder.parent), tag=folder.name)
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{folder}: untrusted content ({str(error).splitlines()[0]}); take another checkpoint"
        ) from error
    return {name: tensor.float() for name, tensor in weights.items()}, read_state(folder)


def load_gpt(path: Path | str) -> tuple[GPT, dict[str, Any], Path]:
    """The model of a pre-training run, float32, in eval mode; its state; and the checkpoint it came from."""
    folder = find(path)
    weights, state = load_weights(folder)
    try:
        model = GPT(GPTConfig(**state["model"])).eval()
        model.load_state_dict(weights)
    except (KeyError, TypeError, RuntimeError) as error:
        raise DataError(f"{folder}: not the weights of a pre-training run ({str(error).splitlines()[0]})") from error
    return model, state, folder


def _load(engine, folder: Path) -> dict[str, Any]:
    manifest = _read_manifest(folder)
    for name, now in (("world_size", distributed.world_size()), ("zero_stage", engine.zero_optimization_stage())):
        if manifest[name] != now:
            raise DataError(f"{folder}: written with {name} {manifest[name]}, this start has {now}; start it with "
                            f"{manifest[name]}, or a new run with init.checkpoint={folder}")  # fmt: skip
    _allow_known_classes()
    try:
        loaded, _ = engine.load_checkpoint(str(folder.parent), tag=folder.name)
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{folder}: untrusted content ({str(error).splitlines()[0]}); take another checkpoint"
        ) from error
    if loaded is None:
        raise DataError(f"{folder}: DeepSpeed loaded nothing; take another checkpoint")
    _load_generators(folder)
    return read_state(folder)


def _allow_known_classes() -> None:
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    distributed.import_deepspeed()
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    torch.serialization.add_safe_globals([LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address])


def _save_generators(folder: Path) -> None:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    safetensors.torch.save_file(states, folder / f"rng-rank-{distributed.rank():05d}.safetensors")


def _load_generators(folder: Path) -> None:
    states = safetensors.torch.load_file(folder / f"rng-rank-{distributed.rank():05d}.safetensors")
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def _own_files(folder: Path) -> list[Path]:
    """The files this rank wrote, told by the rank in their names; rank 0 has those without one."""
    matches = {path: RANK_FILE.search(path.name) for path in folder.iterdir()}
    return sorted(path for path, match in matches.items() if int(match[1] if match else 0) == distributed.rank())


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
        if manifest.pop("sha256") == _digest(manifest):
            return manifest
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    raise DataError(f"{MANIFEST} is missing or damaged")


def _digest(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _steps(root: Path) -> list[Path]:
    """Committed checkpoints, newest first."""
    if not root.is_dir():
        return []
    return sorted((path for path in root.iterdir() if STEP_FOLDER.fullmatch(path.name)), reverse=True)


def _agreed_exists(path: Path) -> bool:
    return distributed.gather_json(path.exists())[0]
