"""One self-contained HTML page about one run, or several side by side.

    python -m gpt1_ds.report runs/gpt1                      # runs/gpt1/report.html
    python -m gpt1_ds.report runs/a runs/b --out both.html

Curves against steps, tokens and hours, final numbers, data, configuration, starts, skipped batches, checkpoints,
samples, task scores. Layer 3, template: report.html. Whatever comes from files is escaped; the page loads nothing.
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import yaml

from gpt1_ds.errors import DataError, guard
from gpt1_ds.files import write_atomically
from gpt1_ds.metrics import duration
from gpt1_ds.model import GPTConfig

MOST_POINTS = 2000
"""Points a curve; of more, evenly spread ones."""
CHARTS = {"lr": "Learning rate", "grad_norm": "Gradient norm", "tokens_per_second": "Tokens a second",
          "mfu": "Model FLOPs utilization", "loss_scale": "Loss scale", "host_bytes": "Host memory, bytes",
          "device_bytes": "GPU memory, bytes"}  # fmt: skip
STEP_PARTS = ("data", "forward", "backward", "optimizer", "communication")
EXAMPLES = 5
Records = list[dict[str, Any]]


class Run:
    """What the files of a run folder say; those that are missing or damaged say nothing, but metrics.jsonl must."""

    def __init__(self, folder: Path):
        if not (folder / "metrics.jsonl").is_file():
            raise DataError(f"{folder}: no metrics.jsonl here; give the folder of a run that has started (runs/NAME)")
        self.folder, self.name = folder, folder.resolve().name
        records = [r for r in _json_lines(folder / "metrics.jsonl") if {"step", "split"} <= r.keys()]
        self.train, self.valid, self.scores, self.starts, self.saves = (
            [record for record in records if record["split"] == split]
            for split in ("train", "valid", "task", "start", "checkpoint")
        )
        if not self.train + self.valid + self.scores:
            raise DataError(f"{folder}/metrics.jsonl: nothing is logged yet; wait for step log.every of the run")
        self.seconds = max(record.get("elapsed_seconds", 0.0) for record in records)
        self.skipped = _json_lines(folder / "skipped.jsonl")
        self.status, self.result, self.deepspeed = (
            _object(folder / f"{name}.json", json.loads) for name in ("status", "result", "deepspeed")
        )
        self.config = _object(folder / "config.yaml", yaml.safe_load)
        states = sorted((folder / "checkpoints").glob("step-*/state.json"))
        self.state = _object(states[-1], json.loads) if states else {}
        self.corpora = list(dict.fromkeys(record["corpus"] for record in self.valid if "corpus" in record))
        self.axes = [
            np.array([(0, 0), *((r["step"], r[key] / unit) for r in _with_number(self.train, key))], float).T
            for key, unit in (("tokens", 1), ("elapsed_seconds", 3600))
        ]

    def place(self, step: float) -> list[float | None]:
        """[step, tokens, hours], by the training records; None where these do not tell."""
        return [step, *(float(np.interp(step, *axis)) if axis.shape[1] > 1 else None for axis in self.axes)]

    def curve(self, records: Records, key: str) -> list[list[float | None]]:
        """Points (step, tokens, hours, value)."""
        records = _with_number(records, key)
        if len(records) > MOST_POINTS:
            records = [records[i] for i in np.linspace(0, len(records) - 1, MOST_POINTS, dtype=int)]
        return [[*self.place(record["step"]), record[key]] for record in records]

    def lines(self) -> dict[str, list[tuple[str, Records, str]]]:
        """Title of each chart -> (label, records, key) of each curve in it."""
        losses = [("train", self.train, "loss"), *((f"validation {c}", self.valid_of(c), "loss") for c in self.corpora)]
        scores = [key for key in _keys(self.scores) if key not in ("step", "split", "elapsed_seconds")]
        lines = {"Loss, nats": losses} | {title: [("", self.train, key)] for key, title in CHARTS.items()}
        lines["Seconds a step"] = [(part, self.train, f"{part}_seconds") for part in STEP_PARTS]
        lines["Task scores"] = [(key, self.scores, key) for key in scores]
        for kind in ("grad", "weight"):
            norms = [key for key in _keys(self.train) if key.startswith(f"{kind}_norm/")]
            lines[f"{kind}_norm of each group"] = [(key.partition("/")[2], self.train, key) for key in norms]
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
        for name, key, text in (("steps", "step", "{:,}"), ("tokens", "tokens", "{:,}"), ("epoch", "epoch", "{:.2f}"),
                                ("training loss", "loss", "{:.4f}")):  # fmt: skip
            if _with_number([last], key):
                facts[name] = text.format(last[key])
        for corpus in self.corpora:
            if losses := [record["loss"] for record in _with_number(self.valid_of(corpus), "loss")]:
                lowest = f"; lowest {min(losses):.4f}" if min(losses) < losses[-1] else ""
                perplexity = math.exp(min(losses[-1], 100))
                facts[f"validation loss, {corpus}"] = f"{losses[-1]:.4f} (perplexity {perplexity:,.1f}{lowest})"
        for name, key, of_all, scale, text in (
            ("tokens a second, median", "tokens_per_second", median, 1, "{:,.0f}"),
            ("FLOPs utilization, median", "mfu", median, 1, "{:.1%}"),
            ("host memory, most", "host_bytes", max, 1e9, "{:.2f} GB"),
            ("GPU memory, most", "device_bytes", max, 1e9, "{:.2f} GB"),
        ):
            if logged := _with_number(self.train, key):
                facts[name] = text.format(of_all(record[key] for record in logged) / scale)
        rolled_back = f"; {len(self.skipped)} rolled back" if self.skipped else ""
        facts |= {"wall time": duration(self.seconds), "starts": str(len(self.starts)),
                  "skipped steps": f"{last.get('skipped_steps', 0)}{rolled_back}"}  # fmt: skip
        if self.saves:
            size, stood = (median(save.get(key, 0) for save in self.saves) for key in ("bytes", "seconds"))
            facts["checkpoints"] = f"{len(self.saves)}; {size / 1e6:,.1f} MB, training stood {stood:.1f} s (medians)"
        if "score" in result:
            examples = ", ".join(f"{count:,} {split}" for split, count in result["examples"].items())
            facts |= {"task": result["task"], "examples": examples, "majority": f"{result['majority']:.4f}",
                      "initial weights": str(result["init"])}  # fmt: skip
            for split, scores in {"dev": result["metrics"], **(result.get("splits") or {})}.items():
                facts |= {f"{split} {name}": f"{value:.4f}" for name, value in scores.items()}
        return facts | {"seed": str(self.config.get("run", {}).get("seed", "unknown"))}


def main(argv: list[str]) -> int | None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder (runs/NAME)")
    parser.add_argument("--out", metavar="FILE", help="page to write (default: RUN/report.html; of several runs "
                        "report.html)")  # fmt: skip
    args = parser.parse_args(argv)
    folders = [Path(run) for run in args.runs]
    out = Path(args.out) if args.out else folders[0] / "report.html" if len(folders) == 1 else Path("report.html")
    page = render([Run(folder) for folder in folders])
    try:
        write_atomically(out, page)
    except OSError as error:
        raise DataError(f"--out {out}: {error.strerror}; give a file in a folder that can be written") from error
    print(out)


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
        _fold(name, _side_by_side({run.name: _flat(getattr(run, kind)) for run in runs}))
        for name, kind in (("config.yaml", "config"), ("deepspeed.json", "deepspeed"))
    ]
    body = [
        _section("Numbers", _side_by_side(facts)),
        *(part(run) for run in runs for part in (_data, _scores, _history, _samples)),
        _section("Configuration", *settings),
    ]
    parts = {"TITLE": escape(title), "DATA": re.sub("[<>&\u2028\u2029]", lambda m: f"\\u{ord(m[0]):04x}", data),
             "HEAD": f'<h1>{escape(title)}</h1><p class="dim">{escape(states)}</p>', "BODY": "".join(body)}  # fmt: skip
    template = (Path(__file__).parent / "report.html").read_text(encoding="utf-8")
    return re.sub("@@([A-Z]+)@@", lambda match: parts[match[1]], template)


def _charts(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The charts that have a curve; curves of one run differ by colour, those of several by it and by their dashes."""
    charts, lines = [], [run.lines() for run in runs]
    for title in lines[0]:
        series = []
        for number, run in enumerate(runs):
            for index, (label, records, key) in enumerate(lines[number][title]):
                if points := run.curve(records, key):
                    look = {"color": number, "dash": index} if len(runs) > 1 else {"color": index, "dash": 0}
                    name = f"{run.name} {label}".strip() if len(runs) > 1 else label or title
                    faint = label == "train" and bool(run.valid)
                    series.append({"label": name, "points": points, "faint": faint, **look})
        if series:
            zero, many = title.endswith(("second", "step", "bytes")), max(len(of_run[title]) for of_run in lines) > 1
            charts.append({"title": title, "series": series, "zero": zero, "legend": many})
    return charts


def _marks(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Restarts and spikes, as lines in the curves of the loss."""
    marks: list[dict[str, Any]] = []
    for number, run in enumerate(runs):
        marks += [{"at": run.place(start["step"]), "text": f"{run.name}: start at step {start['step']}",
                   "color": number} for start in run.starts[1:]]  # fmt: skip
        marks += [{"at": run.place(event["from_step"]), "bad": True,
                   "text": f"{run.name}: loss {event.get('loss')} at step {event['from_step']}"}
                  for event in _with_number(run.skipped, "from_step")]  # fmt: skip
    return marks


def _data(run: Run) -> str:
    # "train/books": "123 tokens, sha256 0123456789ab"
    rows = [[name, *str(text).split(" tokens, sha256 ")] for name, text in run.state.get("data", {}).items()]
    table = _table(["corpus", "tokens", "sha256"], [[name, f"{int(n):,}", digest] for name, n, digest in rows])
    where = (run.config.get("data") or {}).get("shards")
    return _section(f"Data of {run.name}", table, f'<p class="dim">shards: {escape(str(where))}</p>') if rows else ""


def _scores(run: Run) -> str:
    parts = []
    if confusion := run.result.get("confusion"):
        names = confusion["classes"]
        rows = [[name, *(f"{n:,}" for n in counts)] for name, counts in zip(names, confusion["counts"], strict=True)]
        parts.append('<p class="dim">Dev set at the best step: label by row, prediction by column.</p>')
        parts.append(_table(["", *names], rows))
    for path in sorted(run.folder.glob("predictions-*.tsv")):
        lines = [line.split("\t") for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
        if wrong := [line for line in lines[1:] if len(line) == 3 and line[1] and line[1] != line[2]]:
            parts.append(_fold(f"{path.name}: the first errors", _table(lines[0], wrong[:EXAMPLES]), is_open=False))
    return _section(f"Task scores of {run.name}", *parts) if parts else ""


def _history(run: Run) -> str:
    keys = _keys(run.skipped)
    tables = {
        "Starts": (["from step", "at", "ranks", "after running"], [
            [f"{r['step']:,}", f"{datetime.fromtimestamp(r.get('time', 0), UTC):%Y-%m-%d %H:%M:%S UTC}",
             str(r.get("world_size", "")), duration(r.get("elapsed_seconds", 0))] for r in run.starts]),
        "Loss spikes undone and batches skipped": (keys, [
            [json.dumps(event.get(key, "")).strip('"') for key in keys] for event in run.skipped]),
        "Checkpoints": (["step", "bytes", "seconds"], [
            [f"{r['step']:,}", f"{r.get('bytes', 0):,}", f"{r.get('seconds', 0):.2f}"] for r in run.saves]),
    }  # fmt: skip
    folds = [_fold(f"{title} ({len(rows)})", _table(head, rows), is_open=len(rows) <= 12)
             for title, (head, rows) in tables.items() if rows]  # fmt: skip
    return _section(f"History of {run.name}", *folds) if folds else ""


def _samples(run: Run) -> str:
    files = sorted((run.folder / "samples").glob("step-*.txt"))[-EXAMPLES:]
    texts = [(path.stem, path.read_text(encoding="utf-8", errors="replace")) for path in files]
    parts = [f'<h3>{escape(stem)}</h3><div class="scroll"><pre>{escape(text)}</pre></div>' for stem, text in texts]
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
    for key in _keys(columns.values()):
        values = [facts.get(key, "") for facts in columns.values()]
        differs = ' class="differs"' if len(set(values)) > 1 else ""
        rows += f"<tr{differs}><th>{escape(key)}</th>{''.join(f'<td>{escape(value)}</td>' for value in values)}</tr>"
    names = "".join(f"<th>{escape(name)}</th>" for name in columns)
    head = f"<thead><tr><th></th>{names}</tr></thead>" if len(columns) > 1 else ""
    return f'<div class="scroll"><table>{head}<tbody>{rows}</tbody></table></div>'


def _flat(tree: dict[str, Any]) -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in tree.items():
        is_section = isinstance(value, dict) and value
        inner = _flat(value) if is_section else {"": json.dumps(value, default=str).strip('"')}
        flat |= {f"{key}.{name}".strip("."): text for name, text in inner.items()}
    return flat


def _keys(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Of all rows, in the order in which they first occur."""
    return list(dict.fromkeys(key for row in rows for key in row))


def _json_lines(path: Path) -> Records:
    """The objects of a file that may still grow: a torn line is passed over."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
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


def _with_number(records: Records, key: str) -> Records:
    """Those that hold a finite number under `key`."""
    return [r for r in records if isinstance(r.get(key), int | float) and math.isfinite(r[key])]


def cli() -> None:
    guard(main)


if __name__ == "__main__":
    cli()
