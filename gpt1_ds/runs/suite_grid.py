"""The grid of a suite: lists of values of settings, and all their combinations."""

import re
from collections.abc import Iterable, Sequence
from itertools import product

from gpt1_ds.base.errors import ConfigError

LIST_ENDS = re.compile(r",(?![^\[{]*[\]}])")
"""A comma that does not stand in brackets: `[0.9,0.95],[0.9,0.999]` are two values."""
NOT_IN_NAMES = re.compile(r"[^\w.,=+-]+")
EXAMPLE = "such as optim.lr=3e-5,6e-5"


def grid_points(words: Sequence[str], taken: Iterable[str]) -> dict[str, list[str]]:
    """The overrides of each combination of `words`, KEY=V1,V2,.. each, by what names it.

    A grid of no words has one point without overrides, named "". `taken`: other overrides of the
    same runs. Raises ConfigError for a list that cannot be read, and for a key that is set twice.
    """
    keys = [word.partition("=")[0] for word in taken]
    settings = []
    for word in words:
        key, _, values = word.partition("=")
        if key in keys:
            raise ConfigError(f"--grid {word}: {key} is set elsewhere too; leave one of them out")
        keys.append(key)
        listed = [value.strip() for value in LIST_ENDS.split(values)]
        if "" in listed or len(set(listed)) < len(listed):
            raise ConfigError(f"--grid {word}: list each value once, {EXAMPLE}")
        settings.append([f"{key}={value}" for value in listed])
    points: dict[str, list[str]] = {}
    for combination in product(*settings):
        name = NOT_IN_NAMES.sub("_", ",".join(combination))
        if name in points:
            raise ConfigError(f"--grid: two of its points would be named {name}; shorten the lists")
        points[name] = list(combination)
    return points
