"""The folder of a checkpoint: its names, its manifest, and the search for the newest one that verifies."""

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

from gpt1_ds.base.errors import DataError
from gpt1_ds.base.files import file_sha256
from gpt1_ds.distributed import collectives

MANIFEST, STATE, LATEST = "MANIFEST.json", "state.json", "latest"
WEIGHTS = "model.safetensors"
"""Weights alone, in a checkpoint without DeepSpeed's files (`save_weights`)."""
STEP_FOLDER = re.compile(r"step-\d{8,12}")


def checkpoint_folders(root: Path) -> list[Path]:
    """Committed checkpoints, newest first."""
    if not root.is_dir():
        return []
    folders = (
        path
        for path in root.iterdir()
        if STEP_FOLDER.fullmatch(path.name) and not path.is_symlink()
    )
    return sorted(folders, key=lambda path: int(path.name[5:]), reverse=True)


def digest(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def has_checkpoint(run_dir: Path) -> bool:
    """Whether this run has checkpoints, so that its next start resumes."""
    return bool(checkpoint_folders(run_dir / "checkpoints"))


def find_checkpoint(path: Path | str) -> Path:
    """The committed checkpoint that `path` means: itself, or the newest that verifies of a run folder."""
    path = Path(path)
    if (path / MANIFEST).exists():
        candidates = [path]
    else:
        candidates = checkpoint_folders(path / "checkpoints")
    for folder in candidates:
        faults = faults_of(folder, share=1, of=1)
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


def faults_of(folder: Path, share: int | None = None, of: int | None = None) -> list[str]:
    """What is wrong with this rank's share of the files of a checkpoint; all ranks together see them all."""
    share, of = (collectives.rank(), collectives.world_size()) if of is None else (share, of)
    try:
        files = read_manifest_file(folder)["files"]
    except DataError as error:
        return [str(error)]
    faults = []
    for name in sorted(files)[share % of :: of]:
        path = folder / name
        if Path(name).name != name or path.is_symlink() or not path.is_file():
            faults.append(f"{name} is missing")
        elif (
            path.stat().st_size != files[name]["bytes"]
            or file_sha256(path) != files[name]["sha256"]
        ):
            faults.append(f"{name} differs from its sha256")
    return faults


def read_manifest_file(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest.pop("sha256") == digest(manifest):
            return manifest
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    raise DataError(f"{MANIFEST} is missing or damaged")
