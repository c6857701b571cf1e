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
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from gpt1_ds import distributed, resize
from gpt1_ds.dataloader import mix
from gpt1_ds.errors import DataError
from gpt1_ds.files import file_sha256, flush, write_atomically
from gpt1_ds.model import GPT, GPTConfig
from gpt1_ds.tokenizer import Tokenizer, load_tokenizer

MANIFEST, STATE, LATEST, WEIGHTS = "MANIFEST.json", "state.json", "latest", "model.safetensors"
MAPPED_BYTES = 1 << 26
STEP_FOLDER = re.compile(r"step-\d{8,12}")
RANK_FILE = re.compile(r"(?:zero_pp_rank_|rng-rank-)(\d+)")


class SaveError(DataError):
    """A save that all ranks gave up together; the checkpoints before it stand."""


def save(
    engine, run_dir: Path, step: int, state: dict[str, Any], keep: int, keep_every: int | None = None, must: bool = True
) -> dict[str, float] | None:
    """Commit a checkpoint of `engine` and the plain `state`; every rank calls. Returns its seconds and bytes.

    Nothing committed is ever overwritten: a step that exists is left as it is (None). What goes wrong on one rank (a
    full disk, a file size limit) ends the save on all of them: SaveError, or without `must` a warning and None.
    """
    root = run_dir / "checkpoints"
    final, temporary = root / f"step-{step:08d}", root / f"step-{step:08d}.tmp"
    views = distributed.gather_json([final.name, final.exists()])
    if len({name for name, _ in views}) > 1:
        raise SaveError(
            f"{root}: the ranks are at different steps: {', '.join(name for name, _ in views)}; start again"
        )
    if views[0][1]:
        return None
    started = time.perf_counter()
    try:
        _agree(lambda: _prepare(engine, root, temporary) if distributed.is_main() else None)
        faults = _write_shards(engine, temporary)
        _agree(lambda: _write_rest(temporary, state, faults))
        reports = _agree(lambda: {path.name: _seal(path) for path in _own_files(temporary)})
        manifest = {
            "step": step,
            **resize.layout(engine),
            "order": None if engine.zero_optimization_stage() else [piece.name for piece in resize.pieces(engine)],
            "config_hash": _digest(state),
            "files": {name: entry for report in reports for name, entry in sorted(report.items())},
        }
        _agree(lambda: _commit(temporary, final, manifest, keep, keep_every) if distributed.is_main() else None)
    except SaveError as error:
        fault = f"{final}: not saved: {error}"
        if must:
            raise SaveError(f"{fault}; mend it, and the same command continues from the last checkpoint") from error
        distributed.say(f"warning: {fault}; training goes on, and the next save is due as always")
        return None
    size = sum(entry["bytes"] for entry in manifest["files"].values())
    return {"seconds": round(time.perf_counter() - started, 3), "bytes": size}


def resume(engine, run_dir: Path) -> dict[str, Any] | None:
    """Load the newest checkpoint whose every hash holds, on all ranks, and return its `state`; None on a fresh run.

    Newer ones that fail are set aside as step-N.damaged. DataError if checkpoints are there but none verifies.
    """
    root = run_dir / "checkpoints"
    # Rank 0's view, for all. A run that died before its first checkpoint just starts anew.
    log = run_dir / "metrics.jsonl"
    logged = log.exists() and '"split": "checkpoint"' in log.read_text(encoding="utf-8")
    folders, logged = distributed.gather_json([[f.name for f in _steps(root)], logged])[0]
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
    return bool(_steps(run_dir / "checkpoints"))


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
    manifest = {"step": 0, "world_size": 1, "zero_stage": None, "config_hash": _digest(state), "files": files}
    write_atomically(folder / MANIFEST, json.dumps({**manifest, "sha256": _digest(manifest)}, indent=1))


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
    if not differing:
        if engine.load_checkpoint(str(folder.parent), tag=folder.name)[0] is None:
            raise DataError(f"{folder}: DeepSpeed loaded nothing; take another checkpoint")
    else:
        shards = resize.Shards(folder, manifest)
        resize.place_weights(engine, shards.weights(), folder)
        resize.place_state(engine, shards)
        then, now = (", ".join(f"{name} {side.get(name)}" for name in differing if name != "places") or "other groups"
                     for side in (manifest, here))  # fmt: skip
        distributed.say(f"resuming {folder} ({then}) with {now}: weights, moments and the place in the data carry over")
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


def _agree(action: Callable[[], Any]) -> list[Any]:
    """Run `action` on every rank; what it returned, by rank. SaveError on all ranks if it failed on one."""
    try:
        report = [action(), None]
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        report = [None, f"rank {distributed.rank()}: {' '.join(str(error).split())[:300]}"]
    reports = distributed.gather_json(report)
    if faults := [fault for _, fault in reports if fault]:
        raise SaveError(faults[0])
    return [value for value, _ in reports]


def _prepare(engine, root: Path, temporary: Path) -> None:
    """An empty folder to write to, on a disk that can take it; what earlier saves left unfinished goes."""
    root.mkdir(parents=True, exist_ok=True)
    for leftover in root.glob("step-*.tmp"):
        shutil.rmtree(leftover)
    # Weights, two moments, and the module's own copy of the weights.
    needed = 16 * sum(getattr(p, "ds_numel", p.numel()) for p in engine.module.parameters())
    if (free := shutil.disk_usage(root).free) < needed:
        raise OSError(f"it takes up to {needed / 1e9:.3f} GB and the disk has {free / 1e9:.3f} GB free")
    temporary.mkdir()


def _write_shards(engine, temporary: Path) -> list[str]:
    """DeepSpeed's save; what fails in this rank's writes is returned, not raised: its peers wait in a barrier."""
    faults, write = [], engine.checkpoint_engine.save

    def guarded(state_dict, path):
        try:
            write(state_dict, path)
        except (OSError, RuntimeError) as error:
            faults.append(str(error))

    engine.checkpoint_engine.save = guarded
    engine._copy_recovery_script = lambda _: None  # a script that unpickles anything has no place in a run's folder
    try:
        engine.save_checkpoint(str(temporary.parent), tag=temporary.name, client_state={}, save_latest=False)
    finally:
        engine.checkpoint_engine.save = write
    return faults


def _write_rest(temporary: Path, state: dict[str, Any], faults: list[str]) -> None:
    if faults:
        raise OSError(faults[0])
    _save_generators(temporary)
    if distributed.is_main():
        (temporary / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")


def _commit(temporary: Path, final: Path, manifest: dict[str, Any], keep: int, keep_every: int | None) -> None:
    manifest["sha256"] = _digest(manifest)
    write_atomically(temporary / MANIFEST, json.dumps(manifest, indent=1))
    flush(temporary)
    os.rename(temporary, final)
    flush(final.parent)
    write_atomically(final.parent / LATEST, final.name + "\n")
    for old in _steps(final.parent)[keep:]:
        if not keep_every or int(old.name[5:]) % keep_every:
            shutil.rmtree(old.rename(old.with_suffix(".tmp")), ignore_errors=True)


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
    folders = (path for path in root.iterdir() if STEP_FOLDER.fullmatch(path.name) and not path.is_symlink())
    return sorted(folders, key=lambda path: int(path.name[5:]), reverse=True)
