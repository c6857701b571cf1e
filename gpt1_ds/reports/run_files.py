"""The files of a run folder, read for a report."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import yaml

from gpt1_ds.base.errors import DataError
from gpt1_ds.base.formatting import duration
from gpt1_ds.model.gpt import GPTConfig

MOST_POINTS = 2000
"""Points a curve; of more, evenly spread ones."""
CHARTS = {
    "lr": "Learning rate",
    "grad_norm": "Gradient norm",
    "tokens_per_second": "Tokens a second",
    "mfu": "Model FLOPs utilization",
    "loss_scale": "Loss scale",
    "host_bytes": "Host memory, bytes",
    "device_bytes": "GPU memory, bytes",
}
STEP_PARTS = ("data", "forward", "backward", "optimizer", "communication")
Records = list[dict[str, Any]]


class Run:
    """What the files of a run folder say; those that are missing or damaged say nothing, but metrics.jsonl must."""

    def __init__(self, folder: Path):
        if not (folder / "metrics.jsonl").is_file():
            raise DataError(
                f"{folder}: no metrics.jsonl here; give the folder of a run that has started (runs/NAME)"
            )
        self.folder, self.name = folder, folder.resolve().name
        records = [
            r for r in _json_lines(folder / "metrics.jsonl") if {"step", "split"} <= r.keys()
        ]
        self.train, self.valid, self.scores, self.starts, self.saves = (
            [record for record in records if record["split"] == split]
            for split in ("train", "valid", "task", "start", "checkpoint")
        )
        if not self.train + self.valid + self.scores:
            raise DataError(
                f"{folder}/metrics.jsonl: nothing is logged yet; wait for step log.every of the run"
            )
        self.seconds = max(record.get("elapsed_seconds", 0.0) for record in records)
        self.skipped = _json_lines(folder / "skipped.jsonl")
        self.status, self.result, self.deepspeed = (
            _object(folder / f"{name}.json", json.loads)
            for name in ("status", "result", "deepspeed")
        )
        self.config = _object(folder / "config.yaml", yaml.safe_load)
        states = sorted((folder / "checkpoints").glob("step-*/state.json"))
        self.state = _object(states[-1], json.loads) if states else {}
        self.corpora = list(
            dict.fromkeys(record["corpus"] for record in self.valid if "corpus" in record)
        )
        self.axes = [
            np.array(
                [(0, 0), *((r["step"], r[key] / unit) for r in with_number(self.train, key))], float
            ).T
            for key, unit in (("tokens", 1), ("elapsed_seconds", 3600))
        ]

    def place(self, step: float) -> list[float | None]:
        """[step, tokens, hours], by the training records; None where these do not tell."""
        return [
            step,
            *(float(np.interp(step, *axis)) if axis.shape[1] > 1 else None for axis in self.axes),
        ]

    def curve(self, records: Records, key: str) -> list[list[float | None]]:
        """Points (step, tokens, hours, value)."""
        records = with_number(records, key)
        if len(records) > MOST_POINTS:
            records = [records[i] for i in np.linspace(0, len(records) - 1, MOST_POINTS, dtype=int)]
        return [[*self.place(record["step"]), record[key]] for record in records]

    def lines(self) -> dict[str, list[tuple[str, Records, str]]]:
        """Title of each chart -> (label, records, key) of each curve in it."""
        losses = [
            ("train", self.train, "loss"),
            *((f"validation {c}", self.valid_of(c), "loss") for c in self.corpora),
        ]
        scores = [
            key for key in keys_of(self.scores) if key not in ("step", "split", "elapsed_seconds")
        ]
        lines = {"Loss, nats": losses} | {
            title: [("", self.train, key)] for key, title in CHARTS.items()
        }
        lines["Seconds a step"] = [(part, self.train, f"{part}_seconds") for part in STEP_PARTS]
        lines["Task scores"] = [(key, self.scores, key) for key in scores]
        for kind in ("grad", "weight"):
            norms = [key for key in keys_of(self.train) if key.startswith(f"{kind}_norm/")]
            lines[f"{kind}_norm of each group"] = [
                (key.partition("/")[2], self.train, key) for key in norms
            ]
        return lines

    def valid_of(self, corpus: str) -> Records:
        return [record for record in self.valid if record.get("corpus") == corpus]

    def facts(self) -> dict[str, str]:
        """The final numbers, by name."""
        status, result, last = self.status, self.result, self.train[-1] if self.train else {}
        code = status.get("exit_code")
        facts = {"state": status.get("state", "unknown") + (f", exit code {code}" if code else "")}
        if self.state.get("model"):
            facts["parameters"] = f"{GPTConfig(**self.state['model']).parameters:,}"
        for name, key, text in (
            ("steps", "step", "{:,}"),
            ("tokens", "tokens", "{:,}"),
            ("epoch", "epoch", "{:.2f}"),
            ("training loss", "loss", "{:.4f}"),
        ):
            if with_number([last], key):
                facts[name] = text.format(last[key])
        for corpus in self.corpora:
            if losses := [record["loss"] for record in with_number(self.valid_of(corpus), "loss")]:
                lowest = f"; lowest {min(losses):.4f}" if min(losses) < losses[-1] else ""
                perplexity = math.exp(min(losses[-1], 100))
                facts[f"validation loss, {corpus}"] = (
                    f"{losses[-1]:.4f} (perplexity {perplexity:,.1f}{lowest})"
                )
        for name, key, of_all, scale, text in (
            ("tokens a second, median", "tokens_per_second", median, 1, "{:,.0f}"),
            ("FLOPs utilization, median", "mfu", median, 1, "{:.1%}"),
            ("host memory, most", "host_bytes", max, 1e9, "{:.2f} GB"),
            ("GPU memory, most", "device_bytes", max, 1e9, "{:.2f} GB"),
        ):
            if logged := with_number(self.train, key):
                facts[name] = text.format(of_all(record[key] for record in logged) / scale)
        rolled_back = f"; {len(self.skipped)} rolled back" if self.skipped else ""
        facts |= {
            "wall time": duration(self.seconds),
            "starts": str(len(self.starts)),
            "skipped steps": f"{last.get('skipped_steps', 0)}{rolled_back}",
        }
        if self.saves:
            size, stood = (
                median(save.get(key, 0) for save in self.saves) for key in ("bytes", "seconds")
            )
            facts["checkpoints"] = (
                f"{len(self.saves)}; {size / 1e6:,.1f} MB, training stood {stood:.1f} s (medians)"
            )
        if "score" in result:
            examples = ", ".join(
                f"{count:,} {split}" for split, count in result["examples"].items()
            )
            facts |= {
                "task": result["task"],
                "examples": examples,
                "majority": f"{result['majority']:.4f}",
                "initial weights": str(result["init"]),
            }
            for split, scores in {"dev": result["metrics"], **(result.get("splits") or {})}.items():
                facts |= {f"{split} {name}": f"{value:.4f}" for name, value in scores.items()}
        return facts | {"seed": str(self.config.get("run", {}).get("seed", "unknown"))}


def flatten(tree: dict[str, Any]) -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in tree.items():
        is_section = isinstance(value, dict) and value
        inner = flatten(value) if is_section else {"": json.dumps(value, default=str).strip('"')}
        flat |= {f"{key}.{name}".strip("."): text for name, text in inner.items()}
    return flat


def keys_of(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Of all rows, in the order in which they first occur."""
    return list(dict.fromkeys(key for row in rows for key in row))


def _json_lines(path: Path) -> Records:
    """The objects of a file that may still grow: a torn line is passed over."""
    found = []
    for line in (
        path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ()
    ):
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return [record for record in found if isinstance(record, dict)]


def _object(path: Path, parse: Any) -> dict[str, Any]:
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def with_number(records: Records, key: str) -> Records:
    """Those that hold a finite number under `key`."""
    return [r for r in records if isinstance(r.get(key), int | float) and math.isfinite(r[key])]
