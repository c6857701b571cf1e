"""The run directory: one writer at a time, the resolved configuration, a copy of the tokenizer.

`runs/NAME/` is claimed at start. A second start of the same run finds its own configuration there
and resumes. A start whose model or data section changed is refused; the error shows the difference.
"""

import fcntl
import itertools
import json
import time
from pathlib import Path
from typing import TextIO

import yaml

from gpt1_ds.base.errors import ConfigError, DataError
from gpt1_ds.base.files import write_atomically
from gpt1_ds.base.protocols import Json
from gpt1_ds.data.tokenizer import Tokenizer, load_tokenizer
from gpt1_ds.distributed import collectives
from gpt1_ds.distributed.console import say
from gpt1_ds.settings.loading import run_folder, to_dict, to_yaml
from gpt1_ds.settings.sections import PretrainConfig

LOCK_WAIT_SECONDS = 60.0
FIXED_SECTIONS = ("model", "data", "task")
FREE_KEYS = ("verify", "cache", "cache_bytes")
_locks: list[TextIO] = []
"""Open for the life of the process: closing a lock file releases the lock."""


def claim_folder(
    config: PretrainConfig, ds: Json, tokenizer: Tokenizer, from_scratch: bool
) -> Path:
    """Make or re-enter the run's folder; write config.yaml, deepspeed.json and tokenizer/ there.

    All ranks call. With `from_scratch` an earlier run of that name is set aside as NAME.1, NAME.2,
    ..: nothing is lost.
    """
    folder = run_folder(config)
    collectives.on_main(lambda: _claim(folder, config, ds, tokenizer, from_scratch))
    return folder


def _claim(
    folder: Path, config: PretrainConfig, ds: Json, tokenizer: Tokenizer, from_scratch: bool
) -> None:
    try:
        if from_scratch and (folder / "config.yaml").exists():
            aside = _free_name(folder)
            folder.rename(aside)
            say(f"--from-scratch: the earlier run is now {aside}")
        folder.mkdir(parents=True, exist_ok=True)
        _lock(folder)
        _refuse_changes(folder, config, tokenizer)
        write_atomically(folder / "config.yaml", to_yaml(config))
        write_atomically(folder / "deepspeed.json", json.dumps(ds, indent=2) + "\n")
        tokenizer.copy_to(folder / "tokenizer")
    except OSError as error:
        raise ConfigError(
            f"{error.filename or folder}: {error.strerror}; choose another run.dir"
        ) from error


def _free_name(folder: Path) -> Path:
    """The first of NAME.1, NAME.2, .. that does not exist."""
    names = (folder.with_name(f"{folder.name}.{number}") for number in itertools.count(1))
    return next(path for path in names if not path.exists())


def _lock(folder: Path) -> None:
    """Hold `folder`/.lock until this process ends; the kernel then releases it.

    By flock and not by the filelock package: where the file system has no flock, filelock falls
    back to a lock that survives the death of its process.
    """
    lock = (folder / ".lock").open("w")
    deadline = time.monotonic() + LOCK_WAIT_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"{folder}: another process trains this run; wait for it or change run.name"
                ) from None
            time.sleep(0.5)  # an ending start may still be committing its checkpoint
    _locks.append(lock)


def _refuse_changes(folder: Path, config: PretrainConfig, tokenizer: Tokenizer) -> None:
    path = folder / "config.yaml"
    if not path.exists():
        return
    try:
        before = yaml.safe_load(path.read_text(encoding="utf-8"))
        changes = _changes(before, to_dict(config))
    except (yaml.YAMLError, AttributeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not the configuration of a run; move {folder} away") from error
    copy = folder / "tokenizer"
    if copy.exists() and load_tokenizer(copy).sha256 != tokenizer.sha256:
        changes.append(f"the tokenizer is another than {copy}")
    if changes:
        raise ConfigError(
            f"{folder} holds a run of another kind: {'; '.join(changes)}; change run.name, "
            "or start over with --from-scratch"
        )


def _changes(before: Json, now: Json) -> list[str]:
    """What differs in the settings that a run may not change; a key that was not there is none."""
    changes = []
    for section in FIXED_SECTIONS:
        earlier = before.get(section, {})
        for key, value in now.get(section, {}).items():
            if key not in FREE_KEYS and earlier.get(key, value) != value:
                changes.append(f"{section}.{key} was {earlier.get(key)!r}, is {value!r}")
    return changes
