"""Reads the files of a run folder for a report.

The file metrics.jsonl must exist. Of damaged files what is lost is told in `RunFiles.lost`.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from gpt1_ds.base.errors import DataError
from gpt1_ds.base.files import file_sha256
from gpt1_ds.base.protocols import Json
from gpt1_ds.base.records import METRICS_FILE, SKIPPED_FILE, read_metrics, read_records
from gpt1_ds.reports.checking import (
    Check,
    checked,
    is_number,
    is_text,
    list_of,
    mapping_of,
    missing,
    read_object,
)

MOST_POINTS = 2000
"""Largest number of points of a curve."""
CHARTS = {
    "lr": "Learning rate",
    "grad_norm": "Gradient norm",
    "tokens_per_second": "Tokens a second",
    "mfu": "Model FLOPs utilization",
    "loss_scale": "Loss scale",
    "host_bytes": "Host memory, bytes",
    "device_bytes": "GPU memory, bytes",
    "slowest_ratio": "Slowest rank: its data and forward, as a multiple of the others' median",
}
"""Keys of training records with their own chart, and its title."""
LOSSES = "Loss, nats"
"""The title of the first chart."""
PART_LOSSES = {"task_loss": "task", "lm_loss": "language model"}
"""The two losses that fine-tuning adds up."""
STEP_PARTS = ("data", "forward", "backward", "optimizer", "communication")
AXES = ("steps", "tokens", "time", "epochs")
"""The horizontal axes; time is in seconds."""
AXIS_KEYS = ("tokens", "elapsed_seconds", "epoch")
"""Keys of training records that say where a step lies on the axes after the first."""
NUMBERS = mapping_of(is_number)
RESULT: dict[str, Check] = {
    "task": is_text,
    "metric": is_text,
    "score": is_number,
    "metrics": NUMBERS,
    "majority": is_number,
    "init": is_text,
    "examples": NUMBERS,
    "splits": mapping_of(NUMBERS),
    "confusion": lambda value: _is_confusion(value),
    "files": mapping_of(is_text),
    "made_from": lambda value: isinstance(value, dict),
}
"""The form of each value in result.json that is shown."""
NEEDED_OF_RESULT = ("task", "metric", "score", "metrics", "majority", "examples", "init")
Records = list[Json]
Place = list[float | None]
"""The position on each of `AXES`; None if the records do not contain it."""


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
        self.lost: list[str] = []
        """What the files hold that cannot be shown, for the reader."""
        self.records = records = self._records()
        self.train = of_split(records, "train")
        self.valid = of_split(records, "valid")
        self.scores = of_split(records, "task")
        self.zero_shot = of_split(records, "zero_shot")
        self.starts = of_split(records, "start")
        self.saves = of_split(records, "checkpoint")
        if not self.train + self.valid + self.scores:
            raise DataError(f"{path}: nothing is logged yet; wait for step log.every of the run")
        times = [record["elapsed_seconds"] for record in with_number(records, "elapsed_seconds")]
        self.seconds = max(times, default=0.0)
        self.skipped = read_records(folder / SKIPPED_FILE)
        self.status = read_object(folder / "status.json", json.loads, self.lost)
        self.result = self._result()
        self.deepspeed = read_object(folder / "deepspeed.json", json.loads, self.lost)
        self.config = self._config()
        self._tell_mixtures()
        states = sorted((folder / "checkpoints").glob("step-*/state.json"))
        self.state = read_object(states[-1], json.loads, self.lost) if states else {}
        named = [record["corpus"] for record in self.valid if "corpus" in record]
        self.corpora = list(dict.fromkeys(named))
        self._axes = [self._axis(key) for key in AXIS_KEYS]

    def _records(self) -> Records:
        """The records with a step, a split and, if they name one, a corpus."""
        found = read_metrics(self.folder)
        usable = [record for record in found if _is_usable(record)]
        if len(usable) < len(found):
            self.lost.append(f"{METRICS_FILE}: {len(found) - len(usable)} records are not usable")
        return usable

    def _result(self) -> Json:
        path = self.folder / "result.json"
        result = checked(read_object(path, json.loads, self.lost), RESULT, path, self.lost)
        missing(result, NEEDED_OF_RESULT, path, self.lost)
        return result

    def _tell_mixtures(self) -> None:
        """Tell which files do not belong to result.json."""
        made = self.result.get("made_from", {}).get("settings")
        for name, value in made.items() if isinstance(made, dict) else ():
            section, _, key = name.partition(".")
            now = self.config.get(section, {}).get(key, value)
            if now != value:
                self.lost.append(f"result.json: made with {name} {value}, config.yaml has {now}")
        files = self.result.get("files", {})
        for path in sorted(self.folder.glob("predictions-*.tsv")) if files else ():
            if not path.is_file() or files.get(path.name) != file_sha256(path):
                self.lost.append(f"{path.name}: not of the run that result.json is of")

    def _config(self) -> Json:
        """The sections of config.yaml; an empty one has no keys."""
        config = read_object(self.folder / "config.yaml", yaml.safe_load, self.lost)
        for name, section in config.items():
            if not isinstance(section, dict):
                self.lost.append(f"config.yaml: the section {name} has no keys")
        return {name: section for name, section in config.items() if isinstance(section, dict)}

    def _axis(self, key: str) -> np.ndarray:
        """Steps and values (2, points) of a horizontal axis; the first point is (0, 0)."""
        points = [(record["step"], record[key]) for record in with_number(self.train, key)]
        return np.array([(0, 0), *points], float).T

    def place(self, step: float) -> Place:
        """The position of a step on each horizontal axis, interpolated from the records."""
        place: Place = [step]
        for steps, values in self._axes:
            place.append(float(np.interp(step, steps, values)) if len(steps) > 1 else None)
        return place

    def points(self, curve: Curve) -> list[Place]:
        """The points of a curve: its place on each of `AXES`, and the value."""
        records = with_number(curve.records, curve.key)
        if len(records) > MOST_POINTS:
            values = np.array([record[curve.key] for record in records], float)
            records = [records[i] for i in most_telling(values, MOST_POINTS)]
        return [[*self.place(record["step"]), record[curve.key]] for record in records]

    def charts(self) -> dict[str, list[Curve]]:
        """The curves of each chart, by its title."""
        losses = [Curve("train", self.train, "loss")]
        for key, label in PART_LOSSES.items():
            losses.append(Curve(label, self.train, key))
        for corpus in self.corpora:
            losses.append(Curve(f"validation {corpus}", self.valid_of(corpus), "loss"))
        charts = {LOSSES: losses}
        for key, title in CHARTS.items():
            charts[title] = [Curve("", self.train, key)]
        parts = [Curve(part, self.train, f"{part}_seconds") for part in STEP_PARTS]
        charts["Seconds a step"] = parts
        metrics = [key for key in keys_of(self.scores) if key not in NOT_SCORES]
        charts["Task scores"] = [Curve(key, self.scores, key) for key in metrics]
        charts |= self._zero_shot_charts()
        for kind in ("grad", "weight"):
            norms = [key for key in keys_of(self.train) if key.startswith(f"{kind}_norm/")]
            curves = [Curve(key.partition("/")[2], self.train, key) for key in norms]
            charts[f"{kind}_norm of each group"] = curves
        return charts

    def _zero_shot_charts(self) -> dict[str, list[Curve]]:
        accuracies, perplexities, phenomena = [], [], []
        for name, records in self.benchmarks().items():
            accuracies.append(Curve(name, records, "accuracy"))
            perplexities.append(Curve(name, records, "perplexity"))
            for key in keys_of(records):
                if key.startswith(PHENOMENON):
                    phenomena.append(Curve(key.removeprefix(PHENOMENON), records, key))
        return {
            "Zero-shot accuracy": accuracies,
            "Zero-shot perplexity of the last word": perplexities,
            "BLiMP by phenomenon": phenomena,
        }

    def benchmarks(self) -> dict[str, Records]:
        """The zero-shot records of each benchmark, by its name."""
        found: dict[str, Records] = {}
        for record in self.zero_shot:
            if "corpus" in record:
                found.setdefault(record["corpus"], []).append(record)
        return found

    def valid_of(self, corpus: str) -> Records:
        return [record for record in self.valid if record.get("corpus") == corpus]


PHENOMENON = "phenomenon/"
"""Begins the keys of BLiMP's phenomena."""
NOT_SCORES = ("step", "split", "elapsed_seconds")


def most_telling(values: np.ndarray, count: int) -> list[int]:
    """The indices of at most `count` values: the first, the last, and of each of many equal
    stretches the lowest and the highest, so that no spike is lost."""
    edges = np.linspace(0, len(values), (count - 2) // 2 + 1, dtype=int)
    chosen = {0, len(values) - 1}
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        chosen.add(int(low + values[low:high].argmin()))
        chosen.add(int(low + values[low:high].argmax()))
    return sorted(chosen)


def of_split(records: Records, split: str) -> Records:
    return [record for record in records if record["split"] == split]


def with_number(records: Records, key: str) -> Records:
    """The records with a finite number at `key`."""
    return [record for record in records if is_number(record.get(key))]


def _is_usable(record: Json) -> bool:
    named = is_text(record["split"]) and is_text(record.get("corpus", ""))
    return named and is_number(record["step"])


def _is_confusion(value: object) -> bool:
    """Whether it holds classes, and for each of them a row of as many counts."""
    if not isinstance(value, dict):
        return False
    classes, counts = value.get("classes"), value.get("counts")
    if not isinstance(classes, list) or not isinstance(counts, list):
        return False
    are_numbers = list_of(list_of(is_number))(counts) and list_of(is_text)(classes)
    return are_numbers and [len(row) for row in counts] == [len(classes)] * len(classes)


def keys_of(rows: Iterable[Json]) -> list[str]:
    """All keys of the rows, in the order of their first occurrence."""
    keys: dict[str, None] = {}
    for row in rows:
        keys.update(dict.fromkeys(row))
    return list(keys)


def flatten(tree: Json) -> dict[str, str]:
    """The values of nested sections as text, with dotted keys."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= {f"{key}.{name}": text for name, text in flatten(value).items()}
        else:
            text = json.dumps(value, default=str, skipkeys=True)
            flat[str(key)] = text.strip('"')
    return flat
