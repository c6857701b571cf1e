"""Reads files that may be damaged, and keeps what has the expected form.

What is lost is collected as text, for the page and for the command to say.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import yaml

from gpt1_ds.base.protocols import Json

Check = Callable[[object], bool]
SHOWN_CHARACTERS = 60


def is_number(value: object) -> bool:
    """Whether the value is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer above the largest float
        return False


def is_lost(value: object) -> bool:
    """Whether the value is NaN or infinite."""
    return isinstance(value, float) and not math.isfinite(value)


def is_text(value: object) -> bool:
    return isinstance(value, str)


def mapping_of(check: Check) -> Check:
    """Whether the value is an object whose values all pass `check`."""
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


def list_of(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def checked(content: Json, checks: Mapping[str, Check], path: Path, lost: list[str]) -> Json:
    """`content` without the keys of `checks` whose values do not pass; they are told in `lost`.

    A missing key is not told.
    """
    kept = dict(content)
    for key, check in checks.items():
        if key in kept and kept[key] is None:
            del kept[key]
        elif key in kept and not check(kept[key]):
            shown = json.dumps(kept.pop(key), default=str)[:SHOWN_CHARACTERS]
            lost.append(f"{path.name}: {key} is {shown}, which is not shown")
    return kept


def missing(content: Json, keys: Sequence[str], path: Path, lost: list[str]) -> None:
    """Tell in `lost` which of `keys` a file that is there lacks."""
    absent = [key for key in keys if key not in content]
    if absent and path.exists():
        lost.append(f"{path.name}: no {', '.join(absent)}")


def read_object(path: Path, parse: Callable[[str], object], lost: list[str]) -> Json:
    """The object in a file; an empty one if the file is missing, damaged or has no object."""
    if not path.exists():
        return {}
    try:
        content = parse(path.read_text(encoding="utf-8"))
        json.dumps(content, default=str, skipkeys=True)  # refuses an alias of YAML to its parent
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        lost.append(f"{path.name}: cannot be read ({' '.join(str(error).split())})")
        return {}
    if isinstance(content, dict):
        return {str(key): value for key, value in content.items()}
    if content is not None:
        lost.append(f"{path.name}: not an object with keys")
    return {}


def read_text(path: Path, lost: list[str]) -> str:
    """The text of a file; empty if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        lost.append(f"{path.name}: {error.strerror}")
        return ""
