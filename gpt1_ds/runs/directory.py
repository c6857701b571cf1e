"""The run directory: one writer at a time, the resolved configuration, a copy of the tokenizer.

`runs/NAME/` is claimed at start. A second start of the same run finds its own configuration there and resumes; one
whose model or data section changed is refused with the difference shown.
"""

import fcntl
import itertools
import json
import time
from pathlib import Path
from typing import Any

import yaml

from gpt1_ds.base.errors import ConfigError, DataError
from gpt1_ds.base.files import write_atomically
from gpt1_ds.data.tokenizer import Tokenizer, load_tokenizer
from gpt1_ds.distributed import collectives
from gpt1_ds.distributed.console import say
from gpt1_ds.settings.loading import run_folder, to_dict
from gpt1_ds.settings.sections import PretrainConfig

LOCK_WAIT_SECONDS = 60.0
FIXED_SECTIONS = ("model", "data", "task")
FREE_KEYS = ("verify", "cache", "cache_bytes")
_locks = []  # open for the life of the process: closing a lock file releases it


def claim_folder(
    config: PretrainConfig, ds: dict[str, Any], tokenizer: Tokenizer, from_scratch: bool
) -> Path:
    """Make or re-enter the run's folder and write config.yaml, deepspeed.json and tokenizer/ there; all ranks call.

    With `from_scratch` an earlier run of that name is set aside as NAME.1, NAME.2, ..: nothing is lost.
    """
    folder = run_folder(config)
    collectives.on_main(lambda: _claim(folder, config, ds, tokenizer, from_scratch))
    return folder


def _claim(
    folder: Path,
    config: PretrainConfig,
    ds: dict[str, Any],
    tokenizer: Tokenizer,
    from_scratch: bool,
) -> None:
    try:
        if from_scratch and (folder / "config.yaml").exists():
            aside = next(
                path
                for n in itertools.count(1)
                if not (path := folder.with_name(f"{folder.name}.{n}")).exists()
            )
            folder.rename(aside)
            say(f"--from-scratch: the earlier run is now {aside}")
        folder.mkdir(parents=True, exist_ok=True)
        _lock(folder)
        _refuse_changes(folder, config, tokenizer)
        write_atomically(folder / "config.yaml", yaml.safe_dump(to_dict(config), sort_keys=False))
        write_atomically(folder / "deepspeed.json", json.dumps(ds, indent=2) + "\n")
        tokenizer.copy_to(folder / "tokenizer")
    except OSError as error:
        raise ConfigError(
            f"{error.filename or folder}: {error.strerror}; choose another run.dir"
        ) from error


def _lock(folder: Path) -> None:
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
        changes = [
            f"{section}.{key} was {before.get(section, {}).get(key)!r}, is {value!r}"
            for section, keys in to_dict(config).items()
            if section in FIXED_SECTIONS
            for key, value in keys.items()
            if key not in FREE_KEYS and before.get(section, {}).get(key, value) != value
        ]
    except (yaml.YAMLError, AttributeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not the configuration of a run; move {folder} away") from error
    copy = folder / "tokenizer"
    if copy.exists() and load_tokenizer(copy).sha256 != tokenizer.sha256:
        changes.append(f"the tokenizer is another than {copy}")
    if changes:
        raise ConfigError(
            f"{folder} holds a run of another kind: {'; '.join(changes)}; change run.name, or start over "
            "with --from-scratch"
        )
