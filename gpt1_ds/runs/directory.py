"""The run directory: one writer at a time, the resolved configuration, a copy of the tokenizer.

`runs/NAME/` is claimed at start. A second start of the same run finds its own configuration there
and resumes. A start with other settings of the model, the data or the task is refused; the error
shows the difference. Any other changed setting takes effect, and is listed.
"""

import itertools
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import yaml

from gpt1_ds.base.errors import ConfigError, DataError
from gpt1_ds.base.files import lock_file, write_atomically
from gpt1_ds.base.formatting import setting_text
from gpt1_ds.base.protocols import Json
from gpt1_ds.data.tokenizer import Tokenizer, load_tokenizer
from gpt1_ds.distributed import collectives
from gpt1_ds.distributed.console import say
from gpt1_ds.settings.loading import run_folder, to_dict, to_yaml
from gpt1_ds.settings.sections import PretrainConfig

LOCK_WAIT_SECONDS = 60.0
LOCK = ".lock"
ALONE = "see that no other start writes to this run"
CONFIG, DEEPSPEED = "config.yaml", "deepspeed.json"
FIXED_SECTIONS = ("model", "data", "task")
FREE = (
    "model.preset",  # the numbers that it stands for are compared
    "data.shards",  # `setup.check_data` compares their hashes: they may lie elsewhere
    "data.order",  # `data_order.with_order` compares it with the checkpoint's
    "data.verify",
    "data.quarantine",
    "data.cache",
    "data.cache_bytes",
    "task.data",  # `setup.check_data` compares the hashes of its examples
)
"""Settings of these sections that may change."""
PLACE = ("run.dir", "run.name")
"""How the folder is spelled, which is no setting of the run."""
DERIVED = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
)
"""What the DeepSpeed JSON takes from the run's settings and the number of ranks."""
Changes = dict[str, tuple[Any, Any]]
"""The name of each changed setting, with its value before and now."""
_locks: list[TextIO] = []
"""Open for the life of the process: closing a lock file releases the lock."""


def claim_folder(config: PretrainConfig, tokenizer: Tokenizer, from_scratch: bool) -> Path:
    """Make or re-enter the run's folder, and hold its lock until this process ends.

    All ranks call. With `from_scratch` an earlier run of that name is set aside as NAME.1, NAME.2,
    ..: nothing is lost. ConfigError if another process holds the lock, or if the folder holds a run
    of another kind.
    """
    folder = run_folder(config)
    # The other ranks wait in a collective, whose time limit must not end first.
    wait_seconds = min(LOCK_WAIT_SECONDS, config.distributed.timeout_seconds / 2)

    def claim() -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = _lock(folder, wait_seconds)
            if from_scratch and (folder / CONFIG).exists():
                _set_aside(folder)
                folder.mkdir()
                lock.close()
                lock = _lock(folder, wait_seconds)
            _locks.append(lock)
            _refuse_changes(folder, config, tokenizer)
            tokenizer.copy_to(folder / "tokenizer")
        except OSError as error:
            raise ConfigError(
                f"{error.filename or folder}: {error.strerror}; choose another run.dir"
            ) from error

    collectives.on_main(claim)
    return folder


def _set_aside(folder: Path) -> None:
    """Rename `folder` to the first of NAME.1, NAME.2, .. that does not exist."""
    names = (folder.with_name(f"{folder.name}.{number}") for number in itertools.count(1))
    aside = next(path for path in names if not path.exists())
    folder.rename(aside)
    say(f"--from-scratch: the earlier run is now {aside}")


def _lock(folder: Path, wait_seconds: float) -> TextIO:
    """Hold `folder`/.lock, which names this process for others.

    An ending start may still commit its checkpoint, so another start waits for it.
    """
    path = folder / LOCK
    lock = lock_file(path, ALONE)
    if lock is None:
        tell_of_holder(folder, f" up to {wait_seconds:.0f} s")
        lock = lock_file(path, ALONE, wait_seconds)
    if lock is None:
        raise ConfigError(
            f"{folder}: {_holder(path)} trains this run; wait for it, stop it, or change run.name"
        )
    if not path.exists() or not os.path.samestat(os.fstat(lock.fileno()), path.stat()):
        raise ConfigError(
            f"{folder}: another start has just set this run aside; see what it does, and start "
            "again, or change run.name"
        )
    lock.truncate(0)
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    lock.write(f"process {os.getpid()} on {socket.gethostname()} (since {since})\n")
    lock.flush()
    return lock


def tell_of_holder(folder: Path, how_long: str = "") -> None:
    """Say whom this start waits for, if another one holds the lock of the run."""
    path = folder / LOCK
    if not path.exists():
        return
    lock = lock_file(path, ALONE)
    if lock is not None:
        lock.close()
        return
    print(
        f"{folder}: waiting{how_long} for {_holder(path)}, which trains this run",
        file=sys.stderr,
        flush=True,
    )


def _holder(lock: Path) -> str:
    try:
        text = " ".join(lock.read_text(encoding="utf-8", errors="replace").split())
    except OSError:
        text = ""
    return text or "another process"


def _refuse_changes(folder: Path, config: PretrainConfig, tokenizer: Tokenizer) -> None:
    before = _read_settings(folder)
    if before is None:
        return
    changes = []
    for name, (earlier, value) in changed_settings(before, to_dict(config)).items():
        if name.partition(".")[0] in FIXED_SECTIONS and name not in FREE:
            changes.append(f"{name} was {earlier!r}, is {value!r}")
    copy = folder / "tokenizer"
    if copy.exists() and load_tokenizer(copy).sha256 != tokenizer.sha256:
        changes.append(f"the tokenizer is another than {copy}")
    if changes:
        raise ConfigError(
            f"{folder} holds a run of another kind: {'; '.join(changes)}; change run.name, "
            "or start over with --from-scratch"
        )


def _read_settings(folder: Path) -> Json | None:
    """The run's config.yaml; None if it has none yet."""
    path = folder / CONFIG
    if not path.exists():
        return None
    try:
        before = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        before = None
    if not isinstance(before, dict):
        raise DataError(f"{path}: not the configuration of a run; move {folder} away")
    return before


def flat(values: Json) -> Json:
    """`{section: {key: value}}` as `{section.key: value}`; what is in no section stays."""
    named: Json = {}
    for section, content in values.items():
        if isinstance(content, dict):
            named |= {f"{section}.{key}": value for key, value in content.items()}
        else:
            named[section] = content
    return named


def changed_settings(before: Json, now: Json) -> Changes:
    """Each `section.key` whose value differs between two config.yaml: (before, now).

    A setting that an earlier version did not know is not changed.
    """
    earlier = flat(before)
    changes = {}
    for name, value in flat(now).items():
        if name not in PLACE and earlier.get(name, value) != value:
            changes[name] = (earlier[name], value)
    return changes


def record_settings(folder: Path, config: PretrainConfig, ds: Json, finished: bool) -> Changes:
    """Write config.yaml and deepspeed.json; list and return what changed since the last start.

    The earlier files stay as config.1.yaml and deepspeed.1.json, then .2, and so on. The files of a
    finished run stay as they are: they say how it was trained. All ranks call, and rank 0 alone
    gets the changes.
    """
    changes: Changes = {}
    collectives.on_main(lambda: changes.update(_record(folder, config, ds, finished)))
    return changes


def _record(folder: Path, config: PretrainConfig, ds: Json, finished: bool) -> Changes:
    before = _read_settings(folder)
    changes = changed_since(folder, before, config, ds) if before is not None else {}
    if finished and before is not None:
        if changes:
            say(f"this run is done, so these settings have no effect on it:{listed(changes)}")
        return {}
    try:
        if changes:
            kept = " and ".join(_keep_earlier(folder))
            say(
                f"changed since the last start ({kept} have the earlier settings):{listed(changes)}"
            )
        write_atomically(folder / CONFIG, to_yaml(config))
        write_atomically(folder / DEEPSPEED, json.dumps(ds, indent=2) + "\n")
    except OSError as error:
        raise ConfigError(
            f"{error.filename or folder}: {error.strerror}; choose another run.dir"
        ) from error
    return changes


def _keep_earlier(folder: Path) -> list[str]:
    """Copy config.yaml and deepspeed.json to the next free number; the names of the copies.

    A start that was killed in between has made the copies already.
    """
    numbers = [int(path.suffixes[0][1:]) for path in folder.glob("config.[0-9]*.yaml")]
    number = max(numbers, default=0)
    if not number or not _equal(folder / f"config.{number}.yaml", folder / CONFIG):
        number += 1
    names = []
    for name in (CONFIG, DEEPSPEED):
        if (folder / name).exists():
            stem, suffix = name.split(".")
            names.append(f"{stem}.{number}.{suffix}")
            write_atomically(folder / names[-1], (folder / name).read_bytes())
    return names


def _equal(one: Path, other: Path) -> bool:
    return one.read_bytes() == other.read_bytes()


def changed_since(folder: Path, before: Json, config: PretrainConfig, ds: Json) -> Changes:
    """Every setting that is not as in the last start, whose config.yaml is `before`."""
    changes = changed_settings(before, to_dict(config))
    try:
        earlier = flat(json.loads((folder / DEEPSPEED).read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError):
        earlier = flat(ds)  # damaged or not there: nothing to compare with
    now = flat(ds)
    for name in sorted(earlier.keys() | now.keys()):
        if name not in DERIVED and earlier.get(name) != now.get(name):
            changes[f"--deepspeed_config {name}"] = (earlier.get(name), now.get(name))
    return changes


def listed(changes: Changes) -> str:
    """A line `name before -> now` for each changed setting."""
    lines = []
    for name, (then, value) in changes.items():
        note = " (not used: the run goes on from its own)" if name == "init.checkpoint" else ""
        lines.append(f"\n  {name} {setting_text(then)} -> {setting_text(value)}{note}")
    return "".join(lines)
