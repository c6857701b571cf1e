"""Tables and plots of a suite of fine-tuning runs, beside the figures of Radford et al. 2018 (layer 2).

A suite is a folder of runs named TASK-seed-SEED[-VARIANT]; everything here is read from their result.json,
metrics.jsonl and config.yaml, and from the suite's own runs.json and zero_shot.json.
"""

import base64
import html
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from gpt1_ds.base.errors import DataError
from gpt1_ds.base.files import write_atomically

# Tables 2 to 4, on the test sets; the GLUE benchmark in all is 72.8 there.
PAPER = {
    "mnli": "82.1",
    "mnli dev_mismatched": "81.4",
    "snli": "89.9",
    "scitail": "88.3",
    "qnli": "88.1",
    "rte": "56.0",
    "storycloze": "86.5",
    "race": "59.0",
    "race dev_middle": "62.9",
    "race dev_high": "57.4",
    "cola": "45.4",
    "sst2": "91.3",
    "mrpc": "82.3",
    "stsb": "82.0",
    "qqp": "70.3",
}
TABLE_5_TASKS = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte")
TABLE_5 = {
    "none": (45.4, 91.3, 82.3, 82.0, 70.3, 81.8, 88.1, 56.0),
    "no_lm": (47.9, 92.0, 84.9, 83.2, 69.8, 81.1, 86.9, 54.4),
    "scratch": (18.9, 84.0, 79.4, 30.9, 65.5, 75.7, 71.2, 53.8),
    "lstm": (30.3, 90.5, 83.2, 71.8, 68.1, 73.7, 81.1, 54.6),
}
VARIANTS = {
    "none": "full",
    "no_lm": "no auxiliary LM",
    "scratch": "no pre-training",
    "lstm": "LSTM",
}
STYLE = (
    "body{font:15px sans-serif;max-width:75em;margin:2em auto}table{border-collapse:collapse}"
    "td,th{border:1px solid #ccc;padding:.2em .6em;text-align:left}img{max-width:100%}"
)
RUN_NAME = re.compile(
    rf"(?P<task>\w+)-seed-(?P<seed>\d+)(?:-(?P<variant>{'|'.join(VARIANTS)}|layers-\d+))?"
)


@dataclass
class Row:
    """The runs of one task and variant: one for each seed."""

    results: list[dict[str, Any]] = field(default_factory=list)
    curves: list[dict[float, float]] = field(default_factory=list)
    """Score on dev by epoch."""
    failed: int = 0
    unfinished: int = 0
    n_layer: int | None = None

    @property
    def seeds(self) -> str:
        counts = ((self.failed, "failed"), (self.unfinished, "unfinished"))
        return ", ".join(
            [str(len(self.results)), *(f"{count} {what}" for count, what in counts if count)]
        )


@dataclass
class Section:
    """A table, and perhaps its picture."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    file: str = ""
    """Name of the picture beside the page."""
    png: bytes = b""


def run_name(task: str, seed: int, variant: str) -> str:
    """`slurm/suite.sh` names its runs alike."""
    return f"{task}-seed-{seed}" + ("" if variant == "none" else f"-{variant}")


def collect(out: Path, failures: Mapping[str, Any]) -> dict[tuple[str, str], Row]:
    """The runs below `out` by (task, variant); `failures` are those that ended otherwise than well."""
    table: dict[tuple[str, str], Row] = {}
    folders = {path for path in out.glob("*-seed-*") if path.is_dir()} | {
        out / name for name in failures
    }
    for folder in sorted(folders):
        if not (name := RUN_NAME.fullmatch(folder.name)):
            continue
        row = table.setdefault((name["task"], name["variant"] or "none"), Row())
        if (folder / "result.json").exists():
            row.results.append(read_json(folder / "result.json"))
            row.curves.append(_curve(folder, row.results[-1]))
            config = folder / "config.yaml"
            if config.exists():
                row.n_layer = yaml.safe_load(config.read_text(encoding="utf-8"))["model"]["n_layer"]
        else:
            row.failed += folder.name in failures
            row.unfinished += folder.name not in failures
    return table


def read_json(path: Path) -> Any:
    """The content of a file; {} where there is none."""
    try:
        if not path.exists():
            return {}
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {error}; move it away") from error


def _curve(folder: Path, result: dict[str, Any]) -> dict[float, float]:
    """Score on dev by epoch; the records of metrics.jsonl know steps, and the training ones both."""
    path = folder / "metrics.jsonl"
    records = (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if path.exists()
        else []
    )
    last = next((record for record in reversed(records) if record["split"] == "train"), None)
    scored = [record for record in records if record["split"] == "task"]
    return (
        {round(r["step"] * last["epoch"] / last["step"], 3): r[result["metric"]] for r in scored}
        if last
        else {}
    )


def sections(out: Path, failures: Mapping[str, Any], zero_shot: Mapping[str, Any]) -> list[Section]:
    """Everything there is to show of the suite in `out`."""
    runs = collect(out, failures)
    full = {task: row for (task, variant), row in runs.items() if variant == "none" and row.results}
    found = [_scores(runs)] if any(variant in VARIANTS for _, variant in runs) else []
    curves = {
        task: {
            epoch: [c[epoch] for c in row.curves if epoch in c]
            for epoch in sorted(set().union(*row.curves))
        }
        for task, row in full.items()
        if any(row.curves)
    }
    if curves:
        found.append(_by("Score on dev after each epoch", "epoch", curves, "epochs.png"))
    layers: dict[str, dict[int, list[float]]] = {}
    for (task, variant), row in runs.items():
        count = (
            row.n_layer
            if variant == "none"
            else int(variant[7:])
            if variant.startswith("layers-")
            else None
        )
        if row.results and count is not None:
            layers.setdefault(task, {})[count] = [result["score"] for result in row.results]
    layers = {task: curve for task, curve in layers.items() if len(curve) > 1}
    if layers:
        found.append(
            _by(
                "Score on dev by layers transferred (0: embeddings only)",
                "layers",
                layers,
                "layers.png",
            )
        )
    if scores := zero_shot.get("scores"):
        tasks = sorted({task for by_task in scores.values() for task in by_task})
        steps = {
            t: {int(step): [s[t]["score"]] for step, s in scores.items() if t in s} for t in tasks
        }
        chance = {t: next(s[t]["majority"] for s in scores.values() if t in s) for t in tasks}
        title = f"Zero-shot score by pre-training step of {Path(zero_shot['init']).name}"
        found.append(_by(title, "step", steps, "zero_shot.png", chance))
    if failures:
        rows = [
            (name, str(failure["exit_code"]), failure["error"])
            for name, failure in sorted(failures.items())
        ]
        found.append(Section("Runs that failed", ("run", "exit code", "last error"), rows))
    return found


def _scores(runs: Mapping[tuple[str, str], Row]) -> Section:
    """A row a task (and labelled split beside dev), four columns a variant; the mean where all variants have it."""
    variants = [variant for variant in VARIANTS if any(there == variant for _, there in runs)]
    header, rows = ["task", "metric", "majority"], []
    for variant in variants:
        header += [VARIANTS[variant], "spread", "seeds", "paper"]
    medians: dict[str, dict[str, float]] = {variant: {} for variant in variants}
    for task in dict.fromkeys(task for task, variant in runs if variant in VARIANTS):
        of_task = {variant: runs.get((task, variant), Row()) for variant in variants}
        results = [result for row in of_task.values() for result in row.results]
        splits = dict.fromkeys(split for result in results for split in result.get("splits", ()))
        for split in ("dev", *splits):
            majority = [
                r["majority"] for r in results if split == "dev"
            ]  # differs where seeds draw a part of the data
            cells = [
                task if split == "dev" else f"{task} {split}",
                next((r["metric"] for r in results), ""),
                _median_and_spread(majority)[0],
            ]
            for variant, row in of_task.items():
                of_run = (
                    r["score"]
                    if split == "dev"
                    else r.get("splits", {}).get(split, {}).get(r["metric"])
                    for r in row.results
                )
                values = [value for value in of_run if value is not None]
                if values and split == "dev":
                    medians[variant][task] = median(values)
                cells += [*_median_and_spread(values), row.seeds, _paper(cells[0], variant)]
            rows.append(cells)
    common = [task for task in TABLE_5_TASKS if all(task in found for found in medians.values())]
    if len(common) > 1:
        cells = [f"mean of {len(common)} tasks of Table 5", "", ""]
        for variant in variants:
            theirs = [
                figure
                for task, figure in zip(TABLE_5_TASKS, TABLE_5[variant], strict=True)
                if task in common
            ]
            mine = [medians[variant][task] for task in common]
            cells += [
                f"{100 * sum(mine) / len(mine):.1f}",
                "",
                "",
                f"{sum(theirs) / len(theirs):.1f}",
            ]
        rows.append(cells)
    note = (
        "Times 100; medians over seeds of the best score on dev, and lowest to highest; majority: the training "
        "set's commonest answer. The paper's are its test scores (Tables 2 to 4; ablations: Table 5)."
    )
    return Section("Scores", header, rows, note)


def _median_and_spread(values: Sequence[float]) -> tuple[str, str]:
    if not values:
        return "", ""
    return (
        f"{100 * median(values):.1f}",
        f"{100 * min(values):.1f}..{100 * max(values):.1f}" if len(values) > 1 else "",
    )


def _paper(row: str, variant: str) -> str:
    if variant == "none":
        return PAPER.get(row, "")
    return str(TABLE_5[variant][TABLE_5_TASKS.index(row)]) if row in TABLE_5_TASKS else ""


def _by(
    title: str,
    unit: str,
    curves: Mapping[str, Mapping[float, list[float]]],
    file: str,
    chance: Mapping[str, float] | None = None,
) -> Section:
    """Medians by epoch, layer or step: a table, and its picture (steps: a logarithmic axis; dashed: chance)."""
    from matplotlib.figure import Figure

    places = sorted({place for curve in curves.values() for place in curve})
    rows = [
        (task, *(_median_and_spread(curve.get(place, ()))[0] for place in places))
        for task, curve in curves.items()
    ]
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for task, curve in curves.items():
        medians = [100 * median(curve[place]) for place in sorted(curve)]
        [line] = axes.plot(sorted(curve), medians, "o-", ms=4, label=task)
        if chance:
            axes.axhline(100 * chance[task], ls="--", lw=0.8, color=line.get_color())
    if chance and len(places) > 1 and places[0] > 0:
        axes.set_xscale("log")
    else:
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel=unit, ylabel="score x 100", title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    note = "Dashed: the commonest answer." if chance else ""
    header = ("task", *(f"{unit} {place:.10g}" for place in places))
    return Section(title, header, rows, note, file, picture.getvalue())


def write(out: Path, found: Sequence[Section]) -> str:
    """table.md with its pictures beside it, and table.html, one file; returns the Markdown of the tables."""
    for section in found:
        if section.png:
            write_atomically(out / section.file, section.png)
    tables = [_markdown(section) for section in found]
    pictures = [
        f"\n![{section.title}]({section.file})\n" if section.png else "" for section in found
    ]
    write_atomically(out / "table.md", "\n".join(map("".join, zip(tables, pictures, strict=True))))
    body = "".join(map(_html, found))
    write_atomically(
        out / "table.html",
        f"<!doctype html><meta charset=utf-8><title>{html.escape(out.name)}</title>"
        f"<style>{STYLE}</style><h1>{html.escape(str(out))}</h1>{body}\n",
    )
    return "\n".join(tables)


def _markdown(section: Section) -> str:
    lines = [section.header, ["---"] * len(section.header), *section.rows]
    table = "".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines
    )
    return f"## {section.title}\n\n{table}" + (f"\n{section.note}\n" if section.note else "")


def _html(section: Section) -> str:
    title = html.escape(section.title)
    head, *rows = (
        "".join(f"<{tag}>{html.escape(cell)}" for cell in row)
        for tag, row in (("th", section.header), *(("td", row) for row in section.rows))
    )
    picture = (
        f"<img alt='{title}' src='data:image/png;base64,{base64.b64encode(section.png).decode()}'>"
    )
    return (
        f"<h2>{title}</h2><table><tr>{head}{''.join(f'<tr>{row}' for row in rows)}</table>"
        f"<p>{html.escape(section.note)}</p>{picture if section.png else ''}"
    )
