"""A start whose run folder is gone, or older than its mirror: the newest checkpoint comes back."""

import os
import shutil
from functools import partial
from pathlib import Path

import yaml

from gpt1_ds.base.errors import ConfigError, DataError
from gpt1_ds.base.files import flush, lock_file, write_atomically
from gpt1_ds.base.protocols import Json
from gpt1_ds.checkpoints.folder import (
    LATEST,
    MANIFEST,
    checkpoint_folders,
    find_faults,
    read_checkpoint_manifest,
    step_of,
)
from gpt1_ds.checkpoints.mirror import RUN_FILES, SETTING, Store, attempted
from gpt1_ds.distributed.console import say, warn
from gpt1_ds.runs.directory import ALONE, CONFIG, LOCK
from gpt1_ds.settings.loading import run_folder
from gpt1_ds.settings.sections import PretrainConfig


def restore_from_mirror(config: PretrainConfig, from_scratch: bool) -> None:
    """Fetch the newest checkpoint of `checkpoint.mirror` if the run's folder has none as new.

    One process calls, before anything reads the folder. ConfigError if the mirror is that of
    another run, or if it has checkpoints and the run is to begin `from_scratch`. DataError if the
    mirror cannot be reached, or no checkpoint in it verifies, and the folder has none either.
    """
    if config.checkpoint.mirror is None:
        return
    store, folder = Store(config.checkpoint.mirror), run_folder(config)
    own = checkpoint_folders(folder / "checkpoints")
    try:
        _refuse_another_run(store, config.run.name)
        steps = attempted(store.steps, store)
        if steps and from_scratch:
            raise ConfigError(
                f"--from-scratch: {SETTING} {store.shown} holds {steps[0]} of the earlier run; "
                "give another URL, or remove them"
            )
        newer = [name for name in steps if not own or step_of(Path(name)) > step_of(own[0])]
        if newer:
            _restore_alone(store, folder, newer, bool(own))
    except DataError as error:
        if not own:
            raise
        warn(f"{error}; the run goes on from {own[0]}")


def _refuse_another_run(store: Store, name: str) -> None:
    content = attempted(lambda: store.read(CONFIG), store)
    try:
        settings: Json = yaml.safe_load(content or b"") or {}
        there = settings.get("run", {}).get("name", name)
    except (yaml.YAMLError, AttributeError):
        return  # the checkpoints say whether they belong to the run
    if there != name:
        raise ConfigError(
            f"{SETTING} {store.shown}: holds the run {there}, and run.name is {name}; give each "
            "run a URL of its own"
        )


def _restore_alone(store: Store, folder: Path, names: list[str], has_own: bool) -> None:
    """Restore under the lock of the run: an ending start may still commit a newer one."""
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        lock = lock_file(folder / LOCK, ALONE)
        if lock is None:
            return
        with lock:
            _restore_newest(store, folder, names, has_own)
    except OSError as error:
        raise ConfigError(
            f"{error.filename or folder}: {error.strerror}; choose another run.dir"
        ) from error


def _restore_newest(store: Store, folder: Path, names: list[str], has_own: bool) -> None:
    damaged = False
    for name in names:
        if attempted(partial(store.read, f"checkpoints/{name}/{MANIFEST}"), store) is None:
            continue  # a copy that was cut off
        say(f"{SETTING}: restoring {name} from {store.shown}")
        fault = _fetch_checkpoint(store, folder, name)
        if not fault:
            _fetch_run_files(store, folder)
            return
        damaged = True
        warn(f"{SETTING} {store.shown}: {name}: {fault}; trying the checkpoint before it")
    if damaged and not has_own:
        raise DataError(
            f"{SETTING} {store.shown}: no checkpoint there passes its manifest; restore one, or "
            f"set {SETTING}=null to begin anew"
        )


def _fetch_checkpoint(store: Store, folder: Path, name: str) -> str:
    """Fetch a checkpoint, and commit it once every hash holds; what is wrong with it, if it is."""
    root = folder / "checkpoints"
    temporary = root / f"{name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    remote = f"checkpoints/{name}"
    attempted(lambda: store.fetch(f"{remote}/{MANIFEST}", temporary / MANIFEST), store)
    try:
        files = read_checkpoint_manifest(temporary).files
        for file in sorted(files):
            if Path(file).name != file:
                return f"{MANIFEST} names a file elsewhere, {file}"
            attempted(partial(_fetch_file, store, f"{remote}/{file}", temporary / file), store)
        faults = find_faults(temporary)
    except DataError as error:
        return str(error)
    if faults:
        return faults[0]
    flush(temporary)
    os.rename(temporary, root / name)
    flush(root)
    write_atomically(root / LATEST, f"{name}\n")
    return ""


def _fetch_file(store: Store, name: str, path: Path) -> None:
    try:
        store.fetch(name, path)
    except FileNotFoundError as error:
        raise DataError(f"{path.name} is not there") from error
    flush(path)


def _fetch_run_files(store: Store, folder: Path) -> None:
    """The records and the tokenizer of the run, where the folder has none."""
    names = [*RUN_FILES]
    names += [f"tokenizer/{name}" for name in attempted(lambda: store.names("tokenizer"), store)]
    for name in names:
        path = folder / name
        if path.exists():
            continue
        content = attempted(partial(store.read, name), store)
        if content is not None:
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, content)
