"""Reads the files of a run folder for a report.

The file metrics.jsonl must exist. Other missing or damaged files are ignored.
"""

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from gpt1_ds.base.errors import DataError
from gpt1_ds.base.protocols import Json
from gpt1_ds.base.records import METRICS_FILE, SKIPPED_FILE, read_metrics, read_records

MOST_POINTS = 2000
"""Largest number of points of a curve. Of more records, evenly spaced ones are taken."""
CHARTS = {
    "lr": "Learning rate",
    "grad_norm": "Gradient norm",
    "tokens_per_second": "Tokens a second",
    "mfu": "Model FLOPs utilization",
    "loss_scale": "Loss scale",
    "host_bytes": "Host memory, bytes",
    "device_bytes": "GPU memory, bytes",
}
"""Keys of training records with their own chart, and its title."""
STEP_PARTS = ("data", "forward", "backward", "optimizer", "communication")
SECONDS_AN_HOUR = 3600
Records = list[Json]
Place = list[float | None]
"""Step, tokens and hours; None if the records do not contain them."""


class Curve(NamedTuple):
    """The values of `key` in `records`."""

    label: str
    records: Records
    key: str


class RunFiles:
    """The content of the files of a run folder."""

    def __init__(self, folder: Path):
        path = folder / METRICS_FILE
        if not path.is_file():
            raise DataError(
                f"{folder}: no {METRICS_FILE} here; give the folder of a run that has started "
                "(runs/NAME)"
            )
        self.folder = folder
        self.name = folder.resolve().name
        records = read_metrics(folder)
        self.train = of_split(records, "train")
        self.valid = of_split(records, "valid")
        self.scores = of_split(records, "task")
        self.starts = of_split(records, "start")
        self.saves = of_split(records, "checkpoint")
        if not self.train + self.valid + self.scores:
            raise DataError(f"{path}: nothing is logged yet; wait for step log.every of the run")
        self.seconds = max(record.get("elapsed_seconds", 0.0) for record in records)
        self.skipped = read_records(folder / SKIPPED_FILE)
        self.status = read_object(folder / "status.json", json.loads)
        self.result = read_object(folder / "result.json", json.loads)
        self.deepspeed = read_object(folder / "deepspeed.json", json.loads)
        self.config = read_object(folder / "config.yaml", yaml.safe_load)
        states = sorted((folder / "checkpoints").glob("step-*/state.json"))
        self.state = read_object(states[-1], json.loads) if states else {}
        named = [record["corpus"] for record in self.valid if "corpus" in record]
        self.corpora = list(dict.fromkeys(named))
        self._axes = [self._axis("tokens", 1), self._axis("elapsed_seconds", SECONDS_AN_HOUR)]

    def _axis(self, key: str, unit: float) -> np.ndarray:
        """Steps and values (2, points) of a horizontal axis; the first point is (0, 0)."""
        points = [(record["step"], record[key] / unit) for record in with_number(self.train, key)]
        return np.array([(0, 0), *points], float).T

    def place(self, step: float) -> Place:
        """The position of a step on each horizontal axis, interpolated from the records."""
        place: Place = [step]
        for steps, values in self._axes:
            place.append(float(np.interp(step, steps, values)) if len(steps) > 1 else None)
        return place

    def points(self, curve: Curve) -> list[Place]:
        """The points of a curve: (step, tokens, hours, value)."""
        records = with_number(curve.records, curve.key)
        if len(records) > MOST_POINTS:
            spread = np.linspace(0, len(records) - 1, MOST_POINTS, dtype=int)
            records = [records[i] for i in spread]
        return [[*self.place(record["step"]), record[curve.key]] for record in records]

    def charts(self) -> dict[str, list[Curve]]:
        """The curves of each chart, by its title."""
        losses = [Curve("train", self.train, "loss")]
        for corpus in self.corpora:
            losses.append(Curve(f"validation {corpus}", self.valid_of(corpus), "loss"))
        charts = {"Loss, nats": losses}
        for key, title in CHARTS.items():
            charts[title] = [Curve("", self.train, key)]
        parts = [Curve(part, self.train, f"{part}_seconds") for part in STEP_PARTS]
        charts["Seconds a step"] = parts
        metrics = [key for key in keys_of(self.scores) if key not in NOT_SCORES]
        charts["Task scores"] = [Curve(key, self.scores, key) for key in metrics]
        for kind in ("grad", "weight"):
            norms = [key for key in keys_of(self.train) if key.startswith(f"{kind}_norm/")]
            curves = [Curve(key.partition("/")[2], self.train, key) for key in norms]
            charts[f"{kind}_norm of each group"] = curves
        return charts

    def valid_of(self, corpus: str) -> Records:
        return [record for record in self.valid if record.get("corpus") == corpus]


NOT_SCORES = ("step", "split", "elapsed_seconds")


def of_split(records: Records, split: str) -> Records:
    return [record for record in records if record["split"] == split]


def with_number(records: Records, key: str) -> Records:
    """The records with a finite number at `key`."""
    return [record for record in records if is_finite_number(record.get(key))]


def is_finite_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def keys_of(rows: Iterable[Json]) -> list[str]:
    """All keys of the rows, in the order of their first occurrence."""
    keys: dict[str, None] = {}
    for row in rows:
        keys.update(dict.fromkeys(row))
    return list(keys)


def read_object(path: Path, parse: Callable[[str], object]) -> Json:
    """The object in a file; an empty one if the file is missing, damaged or has no object."""
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def flatten(tree: Json) -> dict[str, str]:
    """The values of nested sections as text, with dotted keys."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= {f"{key}.{name}": text for name, text in flatten(value).items()}
        else:
            flat[str(key)] = json.dumps(value, default=str).strip('"')
    return flat
