"""A DeepSpeed JSON held against `json_keys`: refused in one line, or what of it has no effect."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from gpt1_ds.base.errors import ConfigError, near
from gpt1_ds.base.protocols import Json
from gpt1_ds.settings.json_keys import NULL_SECTIONS, REFUSED, TABLE, Key, Table
from gpt1_ds.settings.written import DuplicateKeyError

NEVER = 2**31 - 1
"""`steps_per_print` of a run whose JSON does not say it."""
PATHS = (
    ("csv_monitor", "output_path"),
    ("tensorboard", "output_path"),
    ("flops_profiler", "output_file"),
)
"""Texts in which `~` is the home folder."""
EXPECTED = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "an object",
}


def read(path: Path | str) -> Json:
    """The JSON at `path`, checked key by key. A key that is "auto" or null may be dropped."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        ds = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except OSError as error:
        raise ConfigError(
            f"--deepspeed_config {path}: {error.strerror}; see ds_configs/ for ready ones"
        ) from error
    except DuplicateKeyError as error:
        raise ConfigError(f"{path}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(ds, dict):
        raise ConfigError(f"{path}: expected an object, found {type(ds).__name__}")
    if "scheduler" in ds:
        raise ConfigError(
            f"{path}: 'scheduler' belongs to the run; remove it and set schedule.kind"
        )
    _check(path, ds, TABLE, "")
    for section, key in PATHS:
        if ds.get(section, {}).get(key):
            ds[section][key] = os.path.expanduser(ds[section][key])
    return ds


def _unique(pairs: list[tuple[str, object]]) -> Json:
    found: Json = {}
    for key, value in pairs:
        if key in found:
            raise DuplicateKeyError(f"key '{key}' is given twice in one object; keep one")
        found[key] = value
    return found


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is no number of JSON")


def _check(path: Path | str, section: Json, table: Table, name: str) -> None:
    for key, value in list(section.items()):
        full = f"{name}.{key}" if name else key
        if not name and key in REFUSED:
            raise ConfigError(f"{path}: '{key}' has no place here: {REFUSED[key]}; remove it")
        if key not in table:
            raise ConfigError(f"{path}: unknown key '{full}'; {near(key, table)}")
        entry = table[key]
        if isinstance(entry, Key):
            section[key] = _checked(value, entry, f"{path}: {full} is {json.dumps(value)}")
            if name.startswith("zero_optimization") and value == "auto":
                del section[key]  # DeepSpeed's own default
        elif value is None and key in NULL_SECTIONS:
            del section[key]
        elif not isinstance(value, dict):
            raise ConfigError(
                f"{path}: {full} is {json.dumps(value)}; expected an object with keys such as "
                f"'{next(iter(entry))}'"
            )
        else:
            _check(path, value, entry, full)


def _checked(value: object, key: Key, shown: str) -> object:
    """`value`, an integer as one; ConfigError that begins with `shown` if it is none of `key`."""
    if value == "auto" and key.auto or value is None and key.null:
        return value
    if key.refusal and value:
        raise ConfigError(f"{shown}, but {key.refusal}; remove it")
    whole = isinstance(value, float) and value.is_integer()
    if key.kind is int and whole:
        value = int(value)  # type: ignore[call-overload]  # 5e8 is usual for sizes
    kinds = (int, float) if key.kind is float else (key.kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and key.kind is not bool):
        raise ConfigError(f"{shown}; {_expected(value, key)}")
    problem = ""
    if key.bounds is not None and isinstance(value, str | int | float):
        problem = key.bounds.problem(value)
    if problem:
        raise ConfigError(f"{shown}; {problem}")
    return value


def _expected(value: object, key: Key) -> str:
    if value == "auto":
        return f"the run does not decide it, so give {EXPECTED[key.kind]}"
    words = f"expected {EXPECTED[key.kind]}"
    if key.bounds is not None and key.bounds.choices:
        words = f"choose from: {', '.join(key.bounds.choices)}"
    if isinstance(value, str) and key.kind in (bool, int, float):
        words += ", without quotes"
    return words + (' or "auto"' if key.auto else "")


def without_effect(ds: Json) -> Iterator[str]:
    """A line for each part of a resolved JSON that asks for something and gets nothing."""
    stage = ds.get("zero_optimization", {}).get("stage", 0)
    for name, entry in TABLE.items():
        value = ds.get(name)
        if isinstance(entry, Key):
            if entry.idle and value and value != NEVER:
                yield f"{name} has no effect here: {entry.idle}"
        elif value:
            yield from _idle_parts(name, value, entry)
    yield from _other_stages(ds.get("zero_optimization", {}), stage)
    if ds.get("aio") and '"nvme"' not in json.dumps(ds):
        yield "aio has no effect without offload to nvme"


def _idle_parts(name: str, section: Json, table: Table) -> Iterator[str]:
    if "enabled" in table and "enabled" not in section:
        yield f'{name} has no effect without "enabled": true'
        return
    if section.get("enabled") is False:
        return
    keys = {key: table[key] for key, value in section.items() if value}
    reasons = {entry.idle: key for key, entry in keys.items() if isinstance(entry, Key)}
    whole = all(isinstance(entry, Key) and entry.idle for entry in table.values())
    for reason, key in reasons.items():
        if reason:
            yield f"{name if whole else f'{name}.{key}'} has no effect here: {reason}"


def _other_stages(zero: Json, stage: int) -> Iterator[str]:
    """Keys of `zero_optimization` that only other stages read."""
    table = TABLE["zero_optimization"]
    assert isinstance(table, dict)
    keys = []
    for key, value in zero.items():
        entry = table[key]
        if isinstance(entry, Key) and value and stage not in entry.stages:
            keys.append(key)
    if zero.get("offload_optimizer", {}).get("device", "none") != "none" and stage == 0:
        keys.append("offload_optimizer")
    if zero.get("offload_param", {}).get("device", "none") != "none" and stage != 3:
        keys.append("offload_param")
    if keys:
        yield f"zero_optimization: no effect in stage {stage}: {', '.join(keys)}"
