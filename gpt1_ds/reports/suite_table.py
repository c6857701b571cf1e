"""Tables and pictures of a suite of fine-tuning runs, with the results of Radford et al. 2018."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from gpt1_ds.base.files import write_atomically
from gpt1_ds.base.protocols import Json
from gpt1_ds.reports.checking import is_number, mapping_of
from gpt1_ds.reports.rendering import render
from gpt1_ds.reports.suite_files import VARIANTS, RunKind, SeedRuns, collect

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
"""The paper's Tables 2 to 4, on the test sets. Its score for all of GLUE is 72.8."""
TABLE_5_TASKS = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte")
TABLE_5 = {
    "none": (45.4, 91.3, 82.3, 82.0, 70.3, 81.8, 88.1, 56.0),
    "no_lm": (47.9, 92.0, 84.9, 83.2, 69.8, 81.1, 86.9, 54.4),
    "scratch": (18.9, 84.0, 79.4, 30.9, 65.5, 75.7, 71.2, 53.8),
    "lstm": (30.3, 90.5, 83.2, 71.8, 68.1, 73.7, 81.1, 54.6),
}
NOTE = (
    "Times 100; medians over seeds of the best score on dev, and lowest to highest; majority: the "
    "training set's commonest answer. The paper's are its test scores (Tables 2 to 4; ablations: "
    "Table 5)."
)
Scores = Mapping[float, list[float]]
"""Scores of all seeds, by epoch, number of layers or step."""


@dataclass
class Section:
    """A table, and a picture of it if there is one."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    file: str = ""
    """File name of the picture, in the folder of the page."""
    png: bytes = b""

    @property
    def png_base64(self) -> str:
        return base64.b64encode(self.png).decode()


def sections(out: Path, failures: Mapping[str, Json], zero_shot: Json) -> list[Section]:
    """All tables of the suite in `out`.

    `failures`: exit code and last error of each run that failed; `zero_shot`: zero_shot.json.
    """
    lost: list[str] = []
    runs = collect(out, failures, lost)
    found = []
    if any(kind.variant in VARIANTS for kind in runs):
        found.append(_scores(runs))
    by_epoch = _by_epoch(runs)
    if by_epoch:
        found.append(_curves("Score on dev after each epoch", "epoch", by_epoch, "epochs.png"))
    by_layers = _by_layers(runs)
    if by_layers:
        title = "Score on dev by layers transferred (0: embeddings only)"
        found.append(_curves(title, "layers", by_layers, "layers.png"))
    if mapping_of(mapping_of(lambda of_task: isinstance(of_task, dict)))(zero_shot.get("scores")):
        found.append(_zero_shot(zero_shot))
    if failures:
        found.append(_failures(failures))
    lost += _mixtures(runs)
    if lost and found:
        found.append(Section("Not as it should be", ("file or run", "what"), _told(lost)))
    return found


def _told(lost: Sequence[str]) -> list[list[str]]:
    return [list(text.split(": ", 1)) for text in lost]


def _mixtures(runs: Mapping[RunKind, SeedRuns]) -> list[str]:
    """Where the seeds of one task and variant were made from different things."""
    found = []
    for seed_runs in runs.values():
        facts = [_facts(result) for result in seed_runs.results]
        for name, own in zip(seed_runs.names, facts, strict=True):
            for key, value in own.items():
                first = facts[0].get(key, value)
                if first != value:
                    found.append(f"{name}: {key} {value}, but {first} in {seed_runs.names[0]}")
    return found


def _facts(result: Json) -> Json:
    """What the result was made from, apart from the seed."""
    made = dict(result.get("made_from", {}))
    for name in ("settings", "data"):
        part = made.pop(name, None)
        made |= part if isinstance(part, dict) else {}
    return {key: value for key, value in made.items() if key not in ("run.seed", "task.data")}


def _scores(runs: Mapping[RunKind, SeedRuns]) -> Section:
    """A row for each task and each other labelled split; four columns for each variant.

    The last row has the means over the tasks of Table 5 that all variants have.
    """
    present = {kind.variant for kind in runs}
    variants = [variant for variant in VARIANTS if variant in present]
    header = ["task", "metric", "majority"]
    for variant in variants:
        header += [VARIANTS[variant], "spread", "seeds", "paper"]
    tasks = dict.fromkeys(kind.task for kind in runs if kind.variant in VARIANTS)
    rows = []
    for task in tasks:
        of_task = {variant: runs.get(RunKind(task, variant), SeedRuns()) for variant in variants}
        rows += _task_rows(task, of_task)
    means = _means(runs, variants)
    return Section("Scores", header, [*rows, means] if means else rows, NOTE)


def _task_rows(task: str, of_variant: Mapping[str, SeedRuns]) -> list[list[str]]:
    results: list[Json] = sum((runs.results for runs in of_variant.values()), [])
    metric = results[0]["metric"] if results else ""
    splits = {"dev": None}
    for result in results:
        splits |= dict.fromkeys(result.get("splits", ()))
    rows = []
    for split in splits:
        name = task if split == "dev" else f"{task} {split}"
        # Seeds may train on different parts of the data and have different majorities.
        known = [result for result in results if "majority" in result and split == "dev"]
        majority = [result["majority"] for result in known]
        cells = [name, metric, _median(majority)]
        for variant, runs in of_variant.items():
            values = runs.scores(split)
            cells += [_median(values), _spread(values), runs.seeds, _paper(name, variant)]
        rows.append(cells)
    return rows


def _means(runs: Mapping[RunKind, SeedRuns], variants: Sequence[str]) -> list[str]:
    """The row of means; empty if the variants have fewer than two tasks in common."""
    common = []
    for task in TABLE_5_TASKS:
        of_task = [runs.get(RunKind(task, variant)) for variant in variants]
        if all(seed_runs is not None and seed_runs.results for seed_runs in of_task):
            common.append(task)
    if len(common) < 2:
        return []
    cells = [f"mean of {len(common)} tasks of Table 5", "", ""]
    for variant in variants:
        ours = [runs[RunKind(task, variant)].median_score() for task in common]
        theirs = [TABLE_5[variant][TABLE_5_TASKS.index(task)] for task in common]
        mean = 100 * sum(ours) / len(ours)
        cells += [f"{mean:.1f}", "", "", f"{sum(theirs) / len(theirs):.1f}"]
    return cells


def _median(values: Sequence[float]) -> str:
    return f"{100 * median(values):.1f}" if values else ""


def _spread(values: Sequence[float]) -> str:
    if len(values) < 2:
        return ""
    return f"{100 * min(values):.1f}..{100 * max(values):.1f}"


def _paper(row: str, variant: str) -> str:
    if variant == "none":
        return PAPER.get(row, "")
    return str(TABLE_5[variant][TABLE_5_TASKS.index(row)]) if row in TABLE_5_TASKS else ""


def _by_epoch(runs: Mapping[RunKind, SeedRuns]) -> dict[str, Scores]:
    curves: dict[str, Scores] = {}
    for kind, seed_runs in runs.items():
        if kind.variant == "none" and any(seed_runs.curves):
            curves[kind.task] = seed_runs.scores_by_epoch()
    return curves


def _by_layers(runs: Mapping[RunKind, SeedRuns]) -> dict[str, Scores]:
    """Scores by the number of layers transferred, for tasks with several such numbers."""
    curves: dict[str, dict[float, list[float]]] = {}
    for kind, seed_runs in runs.items():
        layers = seed_runs.n_layer if kind.variant == "none" else kind.layers_transferred
        if seed_runs.results and layers is not None:
            curves.setdefault(kind.task, {})[layers] = seed_runs.scores("dev")
    return {task: curve for task, curve in curves.items() if len(curve) > 1}


def _zero_shot(zero_shot: Json) -> Section:
    curves: dict[str, dict[float, list[float]]] = {}
    chance: dict[str, float] = {}
    for step, of_step in zero_shot["scores"].items():
        for task, result in of_step.items():
            if step.isdigit() and is_number(result.get("score")):
                curves.setdefault(task, {})[int(step)] = [result["score"]]
                chance.setdefault(task, result.get("majority", 0.0))
    in_order = {task: curves[task] for task in sorted(curves)}
    title = f"Zero-shot score by pre-training step of {Path(str(zero_shot.get('init'))).name}"
    return _curves(title, "step", in_order, "zero_shot.png", chance)


def _failures(failures: Mapping[str, Json]) -> Section:
    rows = []
    for name, failure in sorted(failures.items()):
        told = failure if isinstance(failure, dict) else {}
        rows.append((name, str(told.get("exit_code", "")), str(told.get("error", ""))))
    return Section("Runs that failed", ("run", "exit code", "last error"), rows)


def _curves(
    title: str,
    unit: str,
    curves: Mapping[str, Scores],
    file: str,
    chance: Mapping[str, float] | None = None,
) -> Section:
    """Medians by epoch, layer or step, as a table and a picture. Dashed lines show `chance`."""
    places = sorted(set().union(*curves.values()))
    rows = []
    for task, curve in curves.items():
        rows.append([task, *(_median(curve.get(place, [])) for place in places)])
    header = ["task", *(f"{unit} {place:.10g}" for place in places)]
    note = "Dashed: the commonest answer." if chance else ""
    png = _picture(title, unit, curves, chance or {})
    return Section(title, header, rows, note, file, png)


def _picture(
    title: str, unit: str, curves: Mapping[str, Scores], chance: Mapping[str, float]
) -> bytes:
    from matplotlib.figure import Figure
    from matplotlib.ticker import AutoLocator

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for task, curve in curves.items():
        places = sorted(curve)
        medians = [100 * median(curve[place]) for place in places]
        [line] = axes.plot(places, medians, "o-", ms=4, label=task)
        if task in chance:
            axes.axhline(100 * chance[task], ls="--", lw=0.8, color=line.get_color())
    places = sorted(set().union(*curves.values()))
    if chance and len(places) > 1 and places[0] > 0:
        axes.set_xscale("log")
    else:
        locator = AutoLocator()
        locator.set_params(integer=True)
        axes.xaxis.set_major_locator(locator)
    axes.set(xlabel=unit, ylabel="score x 100", title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    return picture.getvalue()


def write(out: Path, found: Sequence[Section]) -> str:
    """Write table.md, its picture files, and table.html with embedded pictures.

    Returns the Markdown of the tables without pictures.
    """
    tables, with_pictures = [], []
    for section in found:
        table = _markdown(section)
        tables.append(table)
        if section.png:
            write_atomically(out / section.file, section.png)
            table += f"\n![{section.title}]({section.file})\n"
        with_pictures.append(table)
    write_atomically(out / "table.md", "\n".join(with_pictures))
    page = render("suite.html", name=out.name, folder=str(out), sections=found)
    write_atomically(out / "table.html", page)
    return "\n".join(tables)


def _markdown(section: Section) -> str:
    lines = [section.header, ["---"] * len(section.header), *section.rows]
    table = "".join(_markdown_row(line) for line in lines)
    note = f"\n{section.note}\n" if section.note else ""
    return f"## {section.title}\n\n{table}{note}"


def _markdown_row(cells: Sequence[str]) -> str:
    escaped = [cell.replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(escaped)} |\n"
