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
from gpt1_ds.model import GPTConfig

MOST_POINTS = 2000
"""Points a curve; of more, evenly spread ones and the last."""
SMALL_CHARTS = {"lr": "Learning rate", "grad_norm": "Gradient norm", "tokens_per_second": "Tokens a second",
                "mfu": "Model FLOPs utilization", "loss_scale": "Loss scale", "host_bytes": "Host memory, bytes",
                "device_bytes": "GPU memory, bytes"}  # fmt: skip
PARTS = ("data", "forward", "backward", "optimizer")
EXAMPLES = 5


class Run:
    """What the files of a run folder say; those that are missing or damaged say nothing, but metrics.jsonl must."""

    def __init__(self, folder: Path):
        if not (folder / "metrics.jsonl").is_file():
            raise DataError(f"{folder}: no metrics.jsonl here; give the folder of a run that has started (runs/NAME)")
        self.folder, self.name = folder, folder.resolve().name
        self.records = _json_lines(folder / "metrics.jsonl")
        if not any(record["split"] in ("train", "valid", "task") for record in self.records):
            raise DataError(f"{folder}/metrics.jsonl: nothing is logged yet; wait for step log.every of the run")
        self.train, self.starts, self.saves, self.scores = (
            [record for record in self.records if record["split"] == split]
            for split in ("train", "start", "checkpoint", "task")
        )
        self.skipped = _json_lines(folder / "skipped.jsonl")
        self.status, self.result, self.deepspeed = (
            _object(folder / f"{name}.json", json.loads) for name in ("status", "result", "deepspeed")
        )
        self.config = _object(folder / "config.yaml", yaml.safe_load)
        steps = sorted((folder / "checkpoints").glob("step-*/state.json"))
        self.state = _object(steps[-1], json.loads) if steps else {}
        self.ticks = self._ticks()

    def _ticks(self) -> tuple[list[float], list[float | None], list[float | None]]:
        """Steps of the training lines, and tokens and hours at each; hours by speed in older logs."""
        steps, tokens, hours, spent, before = [0.0], [0.0], [0.0], 0.0, 0.0
        for record in self.train:
            seen, speed = record.get("tokens"), record.get("tokens_per_second")
            spent = record.get("elapsed_seconds", spent + (seen - before) / speed if seen and speed else None) or spent
            before = seen or before
            for values, value in ((steps, record["step"]), (tokens, seen), (hours, spent / 3600)):
                values.append(value)
        return steps, tokens if tokens[-1] else [], hours if hours[-1] else []

    def place(self, record: dict[str, Any]) -> list[float | None]:
        """[step, tokens, hours] of a record; what was not logged with it lies between its neighbours."""
        steps, *axes = self.ticks
        tokens, hours = (float(np.interp(record["step"], steps, values)) if values else None for values in axes)
        seconds = record.get("elapsed_seconds")
        return [record["step"], record.get("tokens", tokens), hours if seconds is None else seconds / 3600]

    def curve(self, records: Sequence[dict[str, Any]], key: str) -> list[list[float | None]]:
        records = [record for record in records if _number(record.get(key)) is not None]
        if len(records) > MOST_POINTS:
            records = [records[round(i * (len(records) - 1) / (MOST_POINTS - 1))] for i in range(MOST_POINTS)]
        return [[*self.place(record), _number(record[key])] for record in records]

    def corpora(self) -> list[str]:
        return list(dict.fromkeys(r["corpus"] for r in self.records if r["split"] == "valid" and "corpus" in r))

    def valid(self, corpus: str) -> list[dict[str, Any]]:
        return [r for r in self.records if r["split"] == "valid" and r.get("corpus") == corpus]

    def facts(self) -> dict[str, str]:
        """The final numbers, by name."""
        last = self.train[-1] if self.train else {}
        status, config, losses = self.status, self.config, [_number(r.get("loss")) for r in self.train]
        facts = {"state": f"{status.get('state', 'unknown')}" + (f", exit code {status['exit_code']}" if status.get(
                 "exit_code") else "")}  # fmt: skip
        try:
            facts["parameters"] = f"{GPTConfig(**self.state['model']).parameters:,}"
        except (KeyError, TypeError):
            pass
        facts["steps"] = f"{status.get('step', self.records[-1]['step']):,}"
        for name, text in (("tokens", "{:,}"), ("epoch", "{:.2f}")):
            if _number(last.get(name)) is not None:
                facts[name] = text.format(last[name])
        if losses and losses[-1] is not None:
            facts["training loss"] = f"{losses[-1]:.4f}"
        for corpus in self.corpora():
            values = [_number(r.get("loss")) for r in self.valid(corpus)]
            if values[-1] is not None:
                best = min(value for value in values if value is not None)
                lowest = f"; lowest {best:.4f}" if best < values[-1] else ""
                perplexity = math.exp(min(values[-1], 100))
                facts[f"validation loss, {corpus}"] = f"{values[-1]:.4f} (perplexity {perplexity:,.1f}{lowest})"
        for key, name, text in (("tokens_per_second", "tokens a second, median", "{:,.0f}"),
                                ("mfu", "FLOPs utilization, median", "{:.1%}")):  # fmt: skip
            if values := [v for r in self.train if (v := _number(r.get(key))) is not None]:
                facts[name] = text.format(median(values))
        for key, name in (("host_bytes", "host memory, most"), ("device_bytes", "GPU memory, most")):
            if most := [r[key] for r in self.train if _number(r.get(key))]:
                facts[name] = f"{max(most) / 1e9:.2f} GB"
        if seconds := max((r.get("elapsed_seconds", 0.0) for r in self.records), default=0.0):
            facts["wall time"] = _duration(seconds)
        elif self.ticks[2]:
            facts["training time"] = _duration(self.ticks[2][-1] * 3600)
        facts |= {"starts": str(len(self.starts))} if self.starts else {}
        facts["skipped steps"] = str(last.get("skipped_steps", 0)) + (
            f"; {len(self.skipped)} rolled back" if self.skipped else "")  # fmt: skip
        if self.saves:
            size, stood = (median(r.get(key, 0) for r in self.saves) for key in ("bytes", "seconds"))
            facts["checkpoints"] = f"{len(self.saves)}; {size / 1e6:,.1f} MB, training stood {stood:.1f} s (medians)"
        if "score" in self.result:
            result = self.result
            facts |= {"task": f"{result.get('task')}", "examples": ", ".join(
                f"{count:,} {split}" for split, count in result.get("examples", {}).items())}  # fmt: skip
            facts |= {f"dev {name}": f"{value:.4f}" for name, value in result.get("metrics", {}).items()}
            facts |= {f"{split} {name}": f"{value:.4f}" for split, scores in (result.get("splits") or {}).items()
                      for name, value in scores.items()}  # fmt: skip
            facts |= {"majority": f"{result.get('majority', math.nan):.4f}", "initial weights": f"{result.get('init')}"}
        facts["seed"] = str(config.get("run", {}).get("seed", "unknown"))
        return facts


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
    for index, run in enumerate(runs):
        if names.count(names[index]) > 1:  # runs of one name from two folders
            run.name = "/".join(run.folder.resolve().parts[-2:])
    title = " · ".join(run.name for run in runs)
    states = " · ".join(dict.fromkeys(run.facts()["state"] for run in runs))
    data = json.dumps({"charts": _charts(runs), "marks": _marks(runs)}, allow_nan=False)
    facts = {run.name: run.facts() for run in runs}
    body = [_section("Numbers", _side_by_side(facts))]
    for run in runs:
        body += [_data(run), _scores(run), _history(run), _samples(run)]
    body.append(_section("Configuration", *(
        f"<details open><summary>{name}</summary>{_side_by_side({r.name: _flat(kind(r)) for r in runs}, mark=True)}"
        "</details>" for name, kind in (("config.yaml", lambda r: r.config), ("deepspeed.json", lambda r: r.deepspeed))
    )))  # fmt: skip
    parts = {"TITLE": escape(title), "DATA": re.sub("[<>&\u2028\u2029]", lambda m: f"\\u{ord(m[0]):04x}", data),
             "HEAD": f'<h1>{escape(title)}</h1><p class="dim">{escape(states)}</p>', "BODY": "".join(body)}  # fmt: skip
    template = (Path(__file__).parent / "report.html").read_text(encoding="utf-8")
    return re.sub("@@([A-Z]+)@@", lambda match: parts[match[1]], template)


def _charts(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Loss of training and of each validation corpus; then what was logged beside it, a chart each."""
    charts: list[dict[str, Any]] = [
        {"title": "Loss" if any(run.scores for run in runs) else "Loss, nats a token", "series": []}
    ]
    many = len(runs) > 1

    def series(run: int, name: str, points: list, color: int, dash: int, faint: bool = False) -> list[dict[str, Any]]:
        label = f"{runs[run].name} {name}".strip() if many else name
        return [{"label": label, "points": points, "color": run if many else color, "dash": dash if many else 0,
                 "faint": faint}] if points else []  # fmt: skip

    for number, run in enumerate(runs):
        charts[0]["series"] += series(number, "train", run.curve(run.train, "loss"), 0, 0, bool(run.corpora()))
        for index, corpus in enumerate(run.corpora()):
            points = run.curve(run.valid(corpus), "loss")
            charts[0]["series"] += series(number, f"validation {corpus}", points, 1 + index, 1 + index)
    groups = {key: (title, [(key, "")], "train") for key, title in SMALL_CHARTS.items()}
    groups["parts"] = ("Seconds a step", [(f"{part}_seconds", part) for part in PARTS], "train")
    scores = dict.fromkeys(key for run in runs for record in run.scores for key in record)
    groups["task"] = (
        "Task scores",
        [(k, k) for k in scores if k not in ("step", "split", "elapsed_seconds")],
        "scores",
    )
    norms = dict.fromkeys(key for run in runs for record in run.train for key in record if "_norm/" in key)
    for kind in ("grad", "weight"):
        keys = [(key, key.partition("/")[2]) for key in norms if key.startswith(kind)]
        groups[kind] = (f"{'Gradient' if kind == 'grad' else 'Weight'} norm of each group", keys, "train")
    for title, keys, split in groups.values():
        lines = [line for number, run in enumerate(runs) for index, (key, name) in enumerate(keys)
                 for line in series(number, name or (title if not many else ""), run.curve(getattr(run, split), key),
                                    index, index)]  # fmt: skip
        if lines:
            zero = title.endswith(("second", "step", "bytes"))
            charts.append({"title": title, "series": lines, "zero": zero, "legend": len(keys) > 1})
    return charts


def _marks(runs: Sequence[Run]) -> list[dict[str, Any]]:
    marks = [{"at": run.place(start), "text": f"{run.name}: start at step {start['step']}", "color": number}
             for number, run in enumerate(runs) for start in run.starts[1:]]  # fmt: skip
    return marks + [
        {"at": run.place({"step": event["from_step"]}), "bad": True,
         "text": f"{run.name}: loss {event.get('loss')} at step {event['from_step']}"}
        for run in runs for event in run.skipped if _number(event.get("from_step")) is not None
    ]  # fmt: skip


def _data(run: Run) -> str:
    rows = []
    for corpus, text in run.state.get("data", {}).items():  # "train/books": "123 tokens, sha256 0123456789ab"
        tokens, _, digest = str(text).partition(" tokens, sha256 ")
        rows.append([corpus, f"{int(tokens):,}" if tokens.isdigit() else tokens, digest])
    where = (run.config.get("data") or {}).get("shards")
    table = _table(["corpus", "tokens", "sha256"], rows) if rows else ""
    table += f'<p class="dim">shards: {escape(str(where))}</p>' if where else ""
    return _section(f"Data of {run.name}", table) if rows else ""


def _scores(run: Run) -> str:
    confusion, parts = run.result.get("confusion") or {}, []
    if isinstance(confusion, dict) and confusion.get("counts"):
        rows = ""
        for name, counts in zip(confusion["classes"], confusion["counts"], strict=False):
            cells = "".join(f'<td class="hot" style="--share:{n / max(sum(counts), 1):.3f}">{n:,}</td>' for n in counts)
            rows += f"<tr><th>{escape(str(name))}</th>{cells}</tr>"
        head = "".join(f'<th style="text-align:right">{escape(str(name))}</th>' for name in confusion["classes"])
        parts.append('<p class="dim">Dev set at the best step: label by row, prediction by column.</p>'
                     f'<div class="scroll"><table><tr><th></th>{head}</tr>{rows}</table></div>')  # fmt: skip
    for path in sorted(run.folder.glob("predictions-*.tsv")):
        lines = [line.split("\t") for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
        wrong = [line for line in lines[1:] if len(line) == 3 and line[1] and line[1] != line[2]][:EXAMPLES]
        if wrong:
            parts.append(f"<details><summary>{escape(path.name)}: the first errors</summary>"
                         f"{_table(lines[0], wrong)}</details>")  # fmt: skip
    return _section(f"Task scores of {run.name}", *parts) if parts else ""


def _history(run: Run) -> str:
    """Starts, skipped batches and checkpoints."""
    from datetime import UTC, datetime

    parts = []
    if run.starts:
        rows = [[f"{r['step']:,}", datetime.fromtimestamp(r.get("time", 0), UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
                 str(r.get("world_size", "")), _duration(r.get("elapsed_seconds", 0))] for r in run.starts]  # fmt: skip
        parts.append(_fold("Starts", _table(["from step", "at", "ranks", "after running"], rows), len(rows)))
    if run.skipped:
        keys = list(dict.fromkeys(key for event in run.skipped for key in event))
        rows = [[json.dumps(event.get(key, "")).strip('"') for key in keys] for event in run.skipped]
        parts.append(_fold("Loss spikes undone and batches skipped", _table(keys, rows), len(rows)))
    if run.saves:
        rows = [[f"{r['step']:,}", f"{r.get('bytes', 0):,}", f"{r.get('seconds', 0):.2f}"] for r in run.saves]
        parts.append(_fold("Checkpoints", _table(["step", "bytes", "seconds"], rows), len(rows)))
    return _section(f"History of {run.name}", *parts) if parts else ""


def _samples(run: Run) -> str:
    files = sorted((run.folder / "samples").glob("step-*.txt"))[-EXAMPLES:]
    texts = [(path.stem, path.read_text(encoding="utf-8", errors="replace")) for path in files]
    return _section(f"Samples of {run.name}", *(
        f"<h3>{escape(stem)}</h3><div class=\"scroll\"><pre>{escape(text)}</pre></div>" for stem, text in texts
    )) if texts else ""  # fmt: skip


def _section(title: str, *parts: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def _fold(title: str, content: str, rows: int) -> str:
    return f"<details{' open' if rows <= 12 else ''}><summary>{escape(title)} ({rows})</summary>{content}</details>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def cell(text: str) -> str:
        number = re.fullmatch(r"-?[\d,.]+", text)
        return f"<td{' class=n' if number else ''}>{escape(text)}</td>"

    rows = [list(map(str, row)) for row in rows]
    numeric = [bool(rows) and all(re.fullmatch(r"-?[\d,.]*", row[i]) for row in rows) for i in range(len(head))]
    head = "".join(f"<th{' style=text-align:right' if right else ''}>{escape(name)}</th>"
                   for name, right in zip(head, numeric, strict=True))  # fmt: skip
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _side_by_side(columns: dict[str, dict[str, str]], mark: bool = False) -> str:
    """A row a fact, a column a run; with `mark`, rows in which the runs differ are coloured."""
    rows = ""
    for key in dict.fromkeys(key for facts in columns.values() for key in facts):
        values = [facts.get(key, "") for facts in columns.values()]
        differs = ' class="differs"' if mark and len(set(values)) > 1 else ""
        rows += f"<tr{differs}><th>{escape(key)}</th>{''.join(f'<td>{escape(value)}</td>' for value in values)}</tr>"
    names = "".join(f"<th>{escape(name)}</th>" for name in columns)
    head = f"<thead><tr><th></th>{names}</tr></thead>" if len(columns) > 1 else ""
    return f'<div class="scroll"><table>{head}<tbody>{rows}</tbody></table></div>'


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= (
            _flat(value, f"{name}.")
            if isinstance(value, dict) and value
            else {name: json.dumps(value, default=str).strip('"')}
        )
    return flat


def _json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file that may still grow: a torn line, or one that is no record, is passed over."""
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and (path.name != "metrics.jsonl" or {"step", "split"} <= record.keys()):
            records.append(record)
    return records


def _object(path: Path, parse: Any) -> dict[str, Any]:
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _number(value: Any) -> float | None:
    finite = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if finite else None


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60:02d} min" if hours else f"{rest // 60} min {rest % 60:02d} s"


def cli() -> None:
    guard(main)


if __name__ == "__main__":
    cli()
