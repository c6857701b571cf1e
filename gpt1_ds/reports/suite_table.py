"""Tables and pictures of a suite of fine-tuning runs, with the results of Radford et al. 2018."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from gpt1_ds.base.protocols import Json
from gpt1_ds.reports.checking import is_number, mapping_of
from gpt1_ds.reports.expected import TABLE_5, TABLE_5_TASKS, paper_score
from gpt1_ds.reports.suite_files import VARIANTS, RunKind, SeedRuns, best_points, collect
from gpt1_ds.reports.suite_noise import Resampled, noise_sections
from gpt1_ds.reports.suite_pictures import OF_LSTM, Scores, picture
from gpt1_ds.reports.suite_sections import Cell, Row, Section, plain

SCHEMES = ("light", "dark")
IS_SCORES = mapping_of(mapping_of(lambda of_task: isinstance(of_task, dict)))
ZERO_SHOT = {"scores": "", "lstm_scores": OF_LSTM}
"""The scores of zero_shot.json, and what stands behind the tasks' names."""
NOTE = (
    "Times 100; medians over seeds of the best score on dev, and lowest to highest. Majority: the "
    "score of the training set's commonest answer; medians above it are bold. The paper's are its "
    "test scores (Tables 2 to 4; ablations: Table 5). Of a grid: its best point by dev."
)


def sections(
    out: Path,
    failures: Mapping[str, Json],
    zero_shot: Json,
    resampled: Resampled | None = None,
) -> list[Section]:
    """All tables of the suite in `out`.

    `failures`: exit code and last error of each run that failed; `zero_shot`: zero_shot.json.
    """
    resampled = resampled or Resampled([], [], [])
    lost = [*resampled.lost]
    of_all = collect(out, failures, lost)
    runs = {RunKind(kind.task, kind.variant): of_all[kind] for kind in best_points(of_all)}
    found = []
    if any(kind.variant in VARIANTS for kind in runs):
        found.append(_scores(runs))
    found += noise_sections(resampled)
    by_epoch = _by_epoch(runs)
    if by_epoch:
        found.append(_curves("Score on dev after each epoch", "epoch", by_epoch, "epochs.png"))
    by_layers = _by_layers(runs)
    if by_layers:
        title = "Score on dev by layers transferred (0: embeddings only)"
        found.append(_curves(title, "layers", by_layers, "layers.png"))
    known = {place: zero_shot[place] for place in ZERO_SHOT if IS_SCORES(zero_shot.get(place))}
    if known:
        found.append(_zero_shot(known, Path(str(zero_shot.get("init"))).name))
    if failures:
        found.append(_failures(failures))
    lost += _mixtures(of_all)
    if lost and found:
        found.append(Section("Not as it should be", ("file or run", "what"), _told(lost)))
    return found


def _told(lost: Sequence[str]) -> list[Row]:
    """The first column names a run or one of its files, and links to the run."""
    rows: list[Row] = []
    for text in lost:
        place, _, what = text.partition(": ")
        run = place.partition("/")[0]
        rows.append([Cell(place, runs=[run]), Cell(what)])
    return rows


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
    rows: list[Row] = []
    for task in tasks:
        of_task = {variant: runs.get(RunKind(task, variant), SeedRuns()) for variant in variants}
        rows += _task_rows(task, of_task)
    means = _means(runs, variants)
    return Section("Scores", header, [*rows, means] if means else rows, NOTE)


def _task_rows(task: str, of_variant: Mapping[str, SeedRuns]) -> list[Row]:
    results: list[Json] = sum((runs.results for runs in of_variant.values()), [])
    metric = results[0]["metric"] if results else ""
    splits = {"dev": None}
    for result in results:
        splits |= dict.fromkeys(result.get("splits", ()))
    rows: list[Row] = []
    for split in splits:
        name = task if split == "dev" else f"{task} {split}"
        known = [result for result in results if "majority" in result and split == "dev"]
        chances = sorted({result["majority"] for result in known})
        cells = plain([name, metric, _each(chances)])
        for variant, runs in of_variant.items():
            values = runs.scores(split)
            above = bool(chances and values) and median(values) > chances[-1]
            cells.append(Cell(_median(values), is_bold=above))
            cells.append(Cell(_spread(values)))
            cells.append(Cell(runs.seeds, runs=runs.names if split == "dev" else ()))
            cells.append(Cell(paper_score(name, variant)))
        rows.append(cells)
    return rows


def _each(values: Sequence[float]) -> str:
    """Each different value. Seeds that train on different examples may have several."""
    return ", ".join(dict.fromkeys(f"{100 * value:.1f}" for value in values))


def _means(runs: Mapping[RunKind, SeedRuns], variants: Sequence[str]) -> list[Cell]:
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
    return plain(cells)


def _median(values: Sequence[float]) -> str:
    return f"{100 * median(values):.1f}" if values else ""


def _spread(values: Sequence[float]) -> str:
    if len(values) < 2:
        return ""
    return f"{100 * min(values):.1f}..{100 * max(values):.1f}"


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


def _zero_shot(scores: Mapping[str, Json], run: str) -> Section:
    curves: dict[str, dict[float, list[float]]] = {}
    chance: dict[str, float] = {}
    for place, of_run in scores.items():
        for step, of_step in of_run.items():
            for task, result in of_step.items():
                if step.isdigit() and is_number(result.get("score")):
                    curves.setdefault(task + ZERO_SHOT[place], {})[int(step)] = [result["score"]]
                    chance.setdefault(task, result.get("majority", 0.0))
    in_order = {task: curves[task] for task in sorted(curves)}
    title = f"Zero-shot score by pre-training step of {run}"
    return _curves(title, "step", in_order, "zero_shot.png", chance)


def _failures(failures: Mapping[str, Json]) -> Section:
    rows = []
    for name, failure in sorted(failures.items()):
        told = failure if isinstance(failure, dict) else {}
        texts = (str(told.get("exit_code", "")), str(told.get("error", "")))
        rows.append([Cell(name, runs=[name]), *plain(texts)])
    return Section("Runs that failed", ("run", "exit code", "last error"), rows)


def _curves(
    title: str,
    unit: str,
    curves: Mapping[str, Scores],
    file: str,
    chance: Mapping[str, float] | None = None,
) -> Section:
    """Medians by epoch, layer or step, as a table and a picture: see `picture`."""
    places = sorted(set().union(*curves.values()))
    rows = []
    for task, curve in curves.items():
        rows.append(plain([task, *(_median(curve.get(place, [])) for place in places)]))
    header = ["task", *(f"{unit} {place:.10g}" for place in places)]
    listed = ", ".join(
        f"{task} {100 * score:.1f}" for task, score in sorted((chance or {}).items())
    )
    note = f"The picture shows what is above the commonest answer: {listed}." if chance else ""
    pictures = {scheme: picture(title, unit, curves, chance or {}, scheme) for scheme in SCHEMES}
    return Section(title, header, rows, note, file, pictures)
