"""Reads the runs of a suite from their folders.

A suite is a folder of runs named TASK[-POINT]-seed-SEED[-VARIANT]. Each run has a result.json, a
metrics.jsonl and a config.yaml.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import NamedTuple

import yaml

from gpt1_ds.base.errors import DataError
from gpt1_ds.base.protocols import Json
from gpt1_ds.base.records import read_metrics
from gpt1_ds.reports.checking import checked, missing, read_object
from gpt1_ds.reports.run_files import RESULT

VARIANTS = {
    "none": "full",
    "no_lm": "no auxiliary LM",
    "scratch": "no pre-training",
    "lstm": "LSTM",
}
"""The ablations of Table 5, and their column headers."""
LAYERS_PREFIX = "layers-"
RUN_NAME = re.compile(
    rf"(?P<task>\w+)(?:-(?P<point>[\w.]+=[^/]+))?-seed-(?P<seed>\d+)"
    rf"(?:-(?P<variant>{'|'.join(VARIANTS)}|{LAYERS_PREFIX}\d+))?"
)


class RunKind(NamedTuple):
    """What the runs of all seeds share."""

    task: str
    variant: str
    point: str = ""
    """The settings of a point of the grid, KEY=VALUE with commas between; empty: no grid."""

    @property
    def layers_transferred(self) -> int | None:
        """The number N of the variant `layers-N`; None for other variants."""
        if not self.variant.startswith(LAYERS_PREFIX):
            return None
        return int(self.variant.removeprefix(LAYERS_PREFIX))


@dataclass
class SeedRuns:
    """The runs of one task and variant, one for each seed."""

    names: list[str] = field(default_factory=list)
    """The names of the runs of `results`."""
    results: list[Json] = field(default_factory=list)
    curves: list[dict[float, float]] = field(default_factory=list)
    """For each run, the score on dev by epoch."""
    failed: int = 0
    unfinished: int = 0
    unreadable: int = 0
    n_layer: int | None = None

    @property
    def seeds(self) -> str:
        """The numbers of seeds as text, such as `2, 1 failed`."""
        parts = [str(len(self.results))]
        if self.failed:
            parts.append(f"{self.failed} failed")
        if self.unfinished:
            parts.append(f"{self.unfinished} unfinished")
        if self.unreadable:
            parts.append(f"{self.unreadable} unreadable")
        return ", ".join(parts)

    def scores(self, split: str) -> list[float]:
        """The scores of the runs that have one for `split`."""
        if split == "dev":
            return [result["score"] for result in self.results]
        scores = []
        for result in self.results:
            metrics = result.get("splits", {}).get(split, {})
            if metrics.get(result["metric"]) is not None:
                scores.append(metrics[result["metric"]])
        return scores

    def scores_by_epoch(self) -> dict[float, list[float]]:
        """The scores of all seeds at each epoch."""
        found: dict[float, list[float]] = {}
        for curve in self.curves:
            for epoch, score in curve.items():
                found.setdefault(epoch, []).append(score)
        return dict(sorted(found.items()))

    def mean_score(self) -> float:
        return mean(self.scores("dev"))

    def median_score(self) -> float:
        return median(self.scores("dev"))


def run_name(task: str, seed: int, variant: str, point: str = "") -> str:
    """The name of a run's folder."""
    # The point stands in front: behind, it would end like a run that --from-scratch set aside.
    name = f"{task}-{point}-seed-{seed}" if point else f"{task}-seed-{seed}"
    return name if variant == "none" else f"{name}-{variant}"


def best_points(runs: Mapping[RunKind, SeedRuns]) -> list[RunKind]:
    """Of each task and variant the point of the grid with the highest mean on dev.

    Points with fewer finished seeds than others are not chosen: few seeds are lucky more easily.
    """
    groups: dict[tuple[str, str], list[RunKind]] = {}
    for kind in runs:
        groups.setdefault((kind.task, kind.variant), []).append(kind)
    best = []
    for kinds in groups.values():
        most = max(len(runs[kind].results) for kind in kinds)
        whole = [kind for kind in kinds if len(runs[kind].results) == most]
        best.append(max(whole, key=lambda kind: runs[kind].mean_score()) if most else whole[0])
    return best


def collect(out: Path, failed: Iterable[str], lost: list[str]) -> dict[RunKind, SeedRuns]:
    """The runs in `out`; `failed` has the names of the runs that ended with an error.

    What cannot be read is told in `lost`.
    """
    failed = set(failed)
    folders = {path for path in out.glob("*-seed-*") if path.is_dir()}
    folders |= {out / name for name in failed}
    table: dict[RunKind, SeedRuns] = {}
    for folder in sorted(folders):
        name = RUN_NAME.fullmatch(folder.name)
        if not name:
            continue
        kind = RunKind(name["task"], name["variant"] or "none", name["point"] or "")
        runs = table.setdefault(kind, SeedRuns())
        if (folder / "result.json").exists():
            told: list[str] = []
            _add(runs, folder, told)
            lost += [f"{folder.name}/{text}" for text in told]
        elif folder.name in failed:
            runs.failed += 1
        else:
            runs.unfinished += 1
    return table


def _add(runs: SeedRuns, folder: Path, lost: list[str]) -> None:
    path = folder / "result.json"
    result = checked(read_object(path, json.loads, lost), RESULT, path, lost)
    missing(result, ("metric", "score", "majority"), path, lost)
    if "metric" not in result or "score" not in result:
        runs.unreadable += 1
        return
    runs.names.append(folder.name)
    runs.results.append(result)
    runs.curves.append(_curve(folder, result["metric"]))
    model = read_object(folder / "config.yaml", yaml.safe_load, lost).get("model")
    if isinstance(model, dict) and isinstance(model.get("n_layer"), int):
        runs.n_layer = model["n_layer"]


def read_json(path: Path) -> Json:
    """The object in a file; empty if there is no file. Raises DataError for a damaged file."""
    try:
        if not path.exists():
            return {}
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {error}; move it away") from error


def _curve(folder: Path, metric: str) -> dict[float, float]:
    """Score on dev by epoch.

    Score records have only steps. The last training record has step and epoch, so it gives the
    number of epochs for each step.
    """
    training = [r for r in read_metrics(folder, "train") if r["step"] and r.get("epoch")]
    if not training:
        return {}
    last = training[-1]
    curve = {}
    for record in read_metrics(folder, "task"):
        epoch = round(record["step"] * last["epoch"] / last["step"], 3)
        if record.get(metric) is not None:
            curve[epoch] = record[metric]
    return curve
