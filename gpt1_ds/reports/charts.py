"""The data of the page's charts, and of the file that the page offers for download."""

import base64
import csv
import gzip
import io
import json
from collections.abc import Iterator, Sequence

from gpt1_ds.base.protocols import Json
from gpt1_ds.reports.checking import is_lost
from gpt1_ds.reports.expected import Expected
from gpt1_ds.reports.expected_curves import curves_of
from gpt1_ds.reports.run_files import AXES, LOSSES, Curve, RunFiles, keys_of, with_number

FIRST_COLUMNS = ("run", "step", "split", "corpus")
MOST_MARKS = 200
"""Of each kind and run. A page with more of them would be slow, and black with lines."""
NOT_A_NUMBER = "loss is not a number"


def page_data(runs: Sequence[RunFiles], expected: Sequence[Expected]) -> Json:
    """Everything that templates/report.js draws and offers."""
    charts = list(map(_rounded, _charts(runs)))
    for chart in charts:
        if chart["title"] == "Task scores":
            chart["references"] = _references(expected)
        if chart["title"] == LOSSES:
            chart["bands"] = list(map(_rounded_points, _bands(runs)))
    packed = gzip.compress(records_csv(runs).encode(), compresslevel=6, mtime=0)
    axes = [{"name": name, "has_data": _has_data(charts, i)} for i, name in enumerate(AXES)]
    return {
        "runs": [run.name for run in runs],
        "axes": axes,
        "charts": charts,
        "marks": sum((list(_marks(*numbered)) for numbered in enumerate(runs)), []),
        "csv": base64.b64encode(packed).decode(),
    }


def _bands(runs: Sequence[RunFiles]) -> Iterator[Json]:
    """What the losses are compared with: places, lowest and highest loss of expected curves."""
    for number, run in enumerate(runs):
        for curve in curves_of(run):
            points = []
            for step, loss, tolerance in curve.points:
                points.append([*run.place(step), loss - tolerance, loss + tolerance])
            label = f"expected of {curve.name}, {curve.corpus}"
            yield {"run": number, "label": label, "points": points}


def _references(expected: Sequence[Expected]) -> list[Json]:
    """Lines of the chart of scores: each different figure once."""
    values = {}
    for figure in expected:
        if figure.score is not None:
            name = "paper" if figure.source.startswith("the paper") else "majority"
            values[f"{name} {figure.score:.3f}"] = figure.score
    return [{"label": label, "value": value} for label, value in values.items()]


def _has_data(charts: Sequence[Json], axis: int) -> bool:
    """Whether any point of the charts has a place on the axis."""
    for chart in charts:
        for series in chart["series"]:
            if any(point[axis] is not None for point in series["points"]):
                return True
    return False


def _charts(runs: Sequence[RunFiles]) -> list[Json]:
    """The charts that have a curve.

    With one run, each curve has its own colour. With several runs, each run has its own colour. The
    curves of a run differ by their dashes too.
    """
    of_runs = [run.charts() for run in runs]
    charts = []
    for title in of_runs[0]:
        curves = sum((charts_of_run[title] for charts_of_run in of_runs), [])
        logged = [curve for curve in curves if with_number(curve.records, curve.key)]
        kinds = list(dict.fromkeys(curve.label for curve in logged))
        series = []
        for number, run in enumerate(runs):
            for curve in of_runs[number][title]:
                points = run.points(curve)
                if points:
                    series.append(_series(runs, number, kinds, curve) | {"points": points})
        if series:
            charts.append(
                {
                    "title": title,
                    "series": series,
                    "zero": title.endswith(("second", "step", "bytes")),
                    "legend": len(kinds) > 1,
                    "labels": title == "Seconds a step",
                }
            )
    # The wide ones last, so that they leave no gap between the others.
    return sorted(charts, key=lambda chart: bool(chart["labels"]))


def _series(runs: Sequence[RunFiles], number: int, kinds: Sequence[str], curve: Curve) -> Json:
    kind = kinds.index(curve.label)
    several = len(runs) > 1
    name = f"{runs[number].name} {curve.label}".strip() if several else curve.label
    return {
        "run": number,
        "kind": curve.label,
        "label": name,
        "color": number if several else kind,
        "dash": kind,
        "faint": curve.label == "train" and bool(runs[number].valid),
    }


def _rounded(chart: Json) -> Json:
    """Places have seven digits: more than a screen shows, and a smaller page."""
    for series in chart["series"]:
        _rounded_points(series)
    return chart


def _rounded_points(series: Json) -> Json:
    places = len(AXES)
    points = series["points"]
    series["points"] = [[*map(_short, point[:places]), *point[places:]] for point in points]
    return series


def _short(place: float | None) -> float | None:
    return None if place is None else float(f"{place:.7g}")


def _marks(number: int, run: RunFiles) -> Iterator[Json]:
    """Later starts, changed settings, loss spikes and lost losses, which charts show as lines."""

    def mark(kind: str, step: float, text: str) -> Json:
        told = f"{run.name}: {text}"
        return {"kind": kind, "run": number, "at": run.place(step), "text": told}

    for start in run.starts[1:][-MOST_MARKS:]:
        step = start["step"]
        changes = ", ".join(changes_of(start))
        kind = "changed" if changes else "start"
        yield mark(kind, step, f"start at step {step:,}{': ' * bool(changes)}{changes}")
    for event in with_number(run.skipped, "from_step")[-MOST_MARKS:]:
        step = event["from_step"]
        yield mark("spike", step, f"loss {event.get('loss')} at step {step:,}, undone")
    for first, last in _lost_losses(run)[-MOST_MARKS:]:
        steps = f"at step {first:,}" if first == last else f"from step {first:,} to {last:,}"
        yield mark("lost", first, f"{NOT_A_NUMBER} {steps}")


def changes_of(start: Json) -> list[str]:
    """The settings that a start changed: `optim.lr 0.001 -> 0.05`."""
    texts = []
    changed = start.get("changed")
    for name, values in changed.items() if isinstance(changed, dict) else ():
        if isinstance(values, list) and len(values) == 2:
            old, new = (json.dumps(value, default=str).strip('"') for value in values)
            texts.append(f"{name} {old} -> {new}")
    return texts


def _lost_losses(run: RunFiles) -> list[tuple[int, int]]:
    """First and last step of each row of training records whose loss is NaN or infinite."""
    rows: list[tuple[int, int]] = []
    goes_on = False
    for record in run.train:
        lost = is_lost(record.get("loss"))
        if lost:
            first = rows.pop()[0] if goes_on else record["step"]
            rows.append((first, record["step"]))
        goes_on = lost
    return rows


def records_csv(runs: Sequence[RunFiles]) -> str:
    """All usable records of metrics.jsonl, one in each line, as exact as they are there."""
    rows = []
    for run in runs:
        for record in run.records:
            cells = {key: _cell(value) for key, value in record.items()}
            rows.append({"run": run.name, **cells})
    columns = list(dict.fromkeys([*FIRST_COLUMNS, *keys_of(rows)]))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _cell(value: object) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, default=str)
