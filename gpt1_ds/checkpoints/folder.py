"""The folder of a checkpoint: file names, integrity, the search for the newest valid one."""

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from gpt1_ds.base.errors import DataError
from gpt1_ds.base.files import file_sha256
from gpt1_ds.checkpoints.state import CheckpointManifest, CheckpointState

MANIFEST, STATE, LATEST = "MANIFEST.json", "state.json", "latest"
WEIGHTS = "model.safetensors"
"""The only tensors of a checkpoint that `save_weights` made."""
STEP_FOLDER = re.compile(r"step-\d{8,12}")


def step_folder(root: Path, step: int) -> Path:
    return root / f"step-{step:08d}"


def rng_file(rank: int) -> str:
    """Name of the file with the state of one rank's random generators."""
    return f"rng-rank-{rank:05d}.safetensors"


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def checkpoint_folders(root: Path) -> list[Path]:
    """Committed checkpoints in `root`, newest first."""
    if not root.is_dir():
        return []
    folders = []
    for path in root.iterdir():
        if STEP_FOLDER.fullmatch(path.name) and not path.is_symlink():
            folders.append(path)
    return sorted(folders, key=step_of, reverse=True)


def has_checkpoint(run_dir: Path) -> bool:
    """Whether this run has checkpoints, so that its next start resumes."""
    return bool(checkpoint_folders(run_dir / "checkpoints"))


def find_checkpoint(path: Path | str, faults_of: Callable[[Path], list[str]] | None = None) -> Path:
    """The checkpoint `path` itself, or the newest one that verifies if `path` is a run folder.

    A run's folder checkpoints/ stands for the run. DataError if there is none. `faults_of`, by
    default `find_faults`, says what is wrong with a folder.
    """
    path = Path(path)
    if (path / MANIFEST).exists():
        candidates = [path]
    else:
        candidates = checkpoint_folders(path / "checkpoints") or checkpoint_folders(path)
    for folder in candidates:
        faults = (faults_of or find_faults)(folder)
        if not faults:
            # The run's tokenizer is looked for in the folder above the one above.
            above = folder.parts[-3:-1]
            return (
                folder if len(above) == 2 and ".." not in above else Path(os.path.abspath(folder))
            )
        print(f"{folder}: {faults[0]}; trying the checkpoint before it", file=sys.stderr)
    valid = "valid " if candidates else ""
    raise DataError(
        f"{path}: no {valid}checkpoint here; "
        "give a run folder (runs/NAME) or one of its checkpoints/step-*"
    )


def find_faults(folder: Path, part: int = 0, parts: int = 1) -> list[str]:
    """What is wrong with the files of a checkpoint; with `parts`, only every `parts`-th file.

    Ranks share the work: each passes its rank and the number of ranks.
    """
    try:
        files = read_checkpoint_manifest(folder).files
    except DataError as error:
        return [str(error)]
    faults = []
    for name in sorted(files)[part::parts]:
        path, seal = folder / name, files[name]
        if Path(name).name != name or path.is_symlink() or not path.is_file():
            faults.append(f"{name} is missing")
        elif path.stat().st_size != seal.bytes or file_sha256(path) != seal.sha256:
            faults.append(f"{name} differs from its sha256")
    return faults


def read_checkpoint_manifest(folder: Path) -> CheckpointManifest:
    """DataError if it is missing or its own hash does not hold."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return CheckpointManifest.from_json(content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{MANIFEST} is missing or damaged") from error


def checkpoint_sha256(folder: Path) -> str:
    """The hash of the manifest of a checkpoint, which holds the hashes of all its files."""
    content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return str(content["sha256"])


def read_state(folder: Path) -> CheckpointState:
    """The state saved with the checkpoint in `folder`; DataError if it cannot be read."""
    path = folder / STATE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {error}; take another checkpoint") from error
    return CheckpointState.from_json(content, path)
