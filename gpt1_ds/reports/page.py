"""The HTML page of one run or several."""

import json
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from gpt1_ds.base.formatting import duration
from gpt1_ds.reports.run_files import Run, flatten, keys_of, with_number

EXAMPLES = 5


def render(runs: Sequence[Run]) -> str:
    """The page, whole."""
    names = [run.name for run in runs]
    for run in runs:
        if names.count(run.name) > 1:  # runs of one name from two folders
            run.name = "/".join(run.folder.resolve().parts[-2:])
    title, facts = " · ".join(run.name for run in runs), {run.name: run.facts() for run in runs}
    states = " · ".join(dict.fromkeys(fact["state"] for fact in facts.values()))
    data = json.dumps({"charts": _charts(runs), "marks": _marks(runs)}, allow_nan=False)
    settings = [
        _fold(name, _side_by_side({run.name: flatten(getattr(run, kind)) for run in runs}))
        for name, kind in (("config.yaml", "config"), ("deepspeed.json", "deepspeed"))
    ]
    body = [
        _section("Numbers", _side_by_side(facts)),
        *(part(run) for run in runs for part in (_data, _scores, _history, _samples)),
        _section("Configuration", *settings),
    ]
    parts = {
        "TITLE": escape(title),
        "DATA": re.sub("[<>&\u2028\u2029]", lambda m: f"\\u{ord(m[0]):04x}", data),
        "HEAD": f'<h1>{escape(title)}</h1><p class="dim">{escape(states)}</p>',
        "BODY": "".join(body),
    }
    template = (Path(__file__).parent / "templates" / "report.html").read_text(encoding="utf-8")
    return re.sub("@@([A-Z]+)@@", lambda match: parts[match[1]], template)


def _charts(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The charts that have a curve; curves of one run differ by colour, those of several by it and by their dashes."""
    charts, lines = [], [run.lines() for run in runs]
    for title in lines[0]:
        series = []
        for number, run in enumerate(runs):
            for index, (label, records, key) in enumerate(lines[number][title]):
                if points := run.curve(records, key):
                    look = (
                        {"color": number, "dash": index}
                        if len(runs) > 1
                        else {"color": index, "dash": 0}
                    )
                    name = f"{run.name} {label}".strip() if len(runs) > 1 else label or title
                    faint = label == "train" and bool(run.valid)
                    series.append({"label": name, "points": points, "faint": faint, **look})
        if series:
            zero, many = (
                title.endswith(("second", "step", "bytes")),
                max(len(of_run[title]) for of_run in lines) > 1,
            )
            charts.append({"title": title, "series": series, "zero": zero, "legend": many})
    return charts


def _marks(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Restarts and spikes, as lines in the curves of the loss."""
    marks: list[dict[str, Any]] = []
    for number, run in enumerate(runs):
        marks += [
            {
                "at": run.place(start["step"]),
                "text": f"{run.name}: start at step {start['step']}",
                "color": number,
            }
            for start in run.starts[1:]
        ]
        marks += [
            {
                "at": run.place(event["from_step"]),
                "bad": True,
                "text": f"{run.name}: loss {event.get('loss')} at step {event['from_step']}",
            }
            for event in with_number(run.skipped, "from_step")
        ]
    return marks


def _data(run: Run) -> str:
    # "train/books": "123 tokens, sha256 0123456789ab"
    rows = [
        [name, *str(text).split(" tokens, sha256 ")]
        for name, text in run.state.get("data", {}).items()
    ]
    table = _table(
        ["corpus", "tokens", "sha256"], [[name, f"{int(n):,}", digest] for name, n, digest in rows]
    )
    where = (run.config.get("data") or {}).get("shards")
    return (
        _section(f"Data of {run.name}", table, f'<p class="dim">shards: {escape(str(where))}</p>')
        if rows
        else ""
    )


def _scores(run: Run) -> str:
    parts = []
    if confusion := run.result.get("confusion"):
        names = confusion["classes"]
        rows = [
            [name, *(f"{n:,}" for n in counts)]
            for name, counts in zip(names, confusion["counts"], strict=True)
        ]
        parts.append(
            '<p class="dim">Dev set at the best step: label by row, prediction by column.</p>'
        )
        parts.append(_table(["", *names], rows))
    for path in sorted(run.folder.glob("predictions-*.tsv")):
        lines = [
            line.split("\t")
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
        ]
        if wrong := [
            line for line in lines[1:] if len(line) == 3 and line[1] and line[1] != line[2]
        ]:
            parts.append(
                _fold(
                    f"{path.name}: the first errors",
                    _table(lines[0], wrong[:EXAMPLES]),
                    is_open=False,
                )
            )
    return _section(f"Task scores of {run.name}", *parts) if parts else ""


def _history(run: Run) -> str:
    keys = keys_of(run.skipped)
    tables = {
        "Starts": (
            ["from step", "at", "ranks", "after running"],
            [
                [
                    f"{r['step']:,}",
                    f"{datetime.fromtimestamp(r.get('time', 0), UTC):%Y-%m-%d %H:%M:%S UTC}",
                    str(r.get("world_size", "")),
                    duration(r.get("elapsed_seconds", 0)),
                ]
                for r in run.starts
            ],
        ),
        "Loss spikes undone and batches skipped": (
            keys,
            [[json.dumps(event.get(key, "")).strip('"') for key in keys] for event in run.skipped],
        ),
        "Checkpoints": (
            ["step", "bytes", "seconds"],
            [
                [f"{r['step']:,}", f"{r.get('bytes', 0):,}", f"{r.get('seconds', 0):.2f}"]
                for r in run.saves
            ],
        ),
    }
    folds = [
        _fold(f"{title} ({len(rows)})", _table(head, rows), is_open=len(rows) <= 12)
        for title, (head, rows) in tables.items()
        if rows
    ]
    return _section(f"History of {run.name}", *folds) if folds else ""


def _samples(run: Run) -> str:
    files = sorted((run.folder / "samples").glob("step-*.txt"))[-EXAMPLES:]
    texts = [(path.stem, path.read_text(encoding="utf-8", errors="replace")) for path in files]
    parts = [
        f'<h3>{escape(stem)}</h3><div class="scroll"><pre>{escape(text)}</pre></div>'
        for stem, text in texts
    ]
    return _section(f"Samples of {run.name}", *parts) if parts else ""


def _section(title: str, *parts: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def _fold(title: str, content: str, is_open: bool = True) -> str:
    return f"<details{' open' if is_open else ''}><summary>{escape(title)}</summary>{content}</details>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns of numbers stand to the right."""
    rows = list(rows)
    numeric = [all(re.fullmatch(r"-?[\d,.]*", row[i]) for row in rows) for i in range(len(head))]

    def line(cells: Sequence[str], tag: str) -> str:
        attributes = (" class=n" if number else "" for number in numeric)
        return f"<tr>{''.join(f'<{tag}{a}>{escape(c)}</{tag}>' for a, c in zip(attributes, cells, strict=True))}</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f'<div class="scroll"><table><thead>{line(head, "th")}</thead><tbody>{body}</tbody></table></div>'


def _side_by_side(columns: dict[str, dict[str, str]]) -> str:
    """A row a fact, a column a run; rows in which the runs differ are coloured."""
    rows = ""
    for key in keys_of(columns.values()):
        values = [facts.get(key, "") for facts in columns.values()]
        differs = ' class="differs"' if len(set(values)) > 1 else ""
        rows += f"<tr{differs}><th>{escape(key)}</th>{''.join(f'<td>{escape(value)}</td>' for value in values)}</tr>"
    names = "".join(f"<th>{escape(name)}</th>" for name in columns)
    head = f"<thead><tr><th></th>{names}</tr></thead>" if len(columns) > 1 else ""
    return f'<div class="scroll"><table>{head}<tbody>{rows}</tbody></table></div>'
