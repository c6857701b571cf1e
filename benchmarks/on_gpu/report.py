"""The results so far, as OUT.json and OUT.md."""

import json
from pathlib import Path
from typing import Any

from benchmarks.on_gpu.running import Result, Row
from gpt1_ds.base.files import write_atomically

SPEED_HEAD = """
| way to train GPT-1 | windows | tokens/s | slowest to fastest | MFU | host ms of ms a step | GB |
|---|---|---|---|---|---|---|
"""
CHECKS_HEAD = """
| check | | found |
|---|---|---|
"""


def verdict(result: Result) -> str:
    """`passed`, `failed`, `untried` or `fault`; `measured` for a row that is no check."""
    for word in ("fault", "untried"):
        if word in result:
            return word
    if "passed" in result:
        return "passed" if result["passed"] else "failed"
    return "measured"


def write(out: Path, results: list[tuple[Row, Result]], about: dict[str, Any]) -> None:
    """Replace both files by `results`; a kill at any moment leaves the old or the new ones."""
    rows = [{"row": row.name, "verdict": verdict(result), **result} for row, result in results]
    whole = json.dumps({**about, "rows": rows}, indent=1) + "\n"
    write_atomically(out.with_name(f"{out.name}.json"), whole)
    write_atomically(out.with_name(f"{out.name}.md"), table(results, about))


def table(results: list[tuple[Row, Result]], about: dict[str, Any]) -> str:
    """The results as Markdown: the checks, the speeds, and what gave no figure."""
    facts = ", ".join(f"{name} {value}" for name, value in about.items())
    checks, speeds, others = [], [], []
    for row, result in results:
        if "tokens_per_second" in result:
            speeds.append(_speed(row, result))
        elif "passed" in result:
            checks.append(f"| {row.name} | {verdict(result)} | {result['found']} |\n")
        else:
            word = verdict(result)
            others.append(f"| {row.name} | {word} | {result[word]} |\n")
    text = f"{facts}\n"
    for head, lines in ((CHECKS_HEAD, checks), (SPEED_HEAD, speeds)):
        text += head + "".join(lines) if lines else ""
    if others:
        text += CHECKS_HEAD.replace("check | | found", "without a figure | | reason")
        text += "".join(others)
    return text


def _speed(row: Row, result: Result) -> str:
    name = row.name.rpartition(f", {result['windows']} windows")
    host = "" if "host_ms" not in result else f"{result['host_ms']} of {result['step_ms']}"
    if "parts_ms" in result:
        host = ", ".join(f"{part} {value}" for part, value in result["parts_ms"].items())
    memory = "" if result.get("gigabytes") is None else f"{result['gigabytes']:.1f}"
    cells = [
        f"{name[0]}{name[2]}",
        f"{result['windows']}",
        f"{result['tokens_per_second']:,}",
        f"{result['slowest']:,} to {result['fastest']:,}",
        f"{result['mfu']:.1%}",
        host,
        memory,
    ]
    return f"| {' | '.join(cells)} |\n"
