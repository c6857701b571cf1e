"""What `eval` does with fine-tuned runs: scores, predictions, ensembles, calibration."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from gpt1_ds.base.arguments import stdin_lines
from gpt1_ds.base.errors import ConfigError
from gpt1_ds.runs.fine_tuned import (
    Outcomes,
    encode,
    load_fine_tuned,
    logits_of,
    mean_outcomes,
    member_runs,
    outcomes,
    refuse_misfits,
    run_of,
    temperature_of,
    write_calibration,
)
from gpt1_ds.runs.predictions import predictions_table, write_out
from gpt1_ds.runs.trained import title_of
from gpt1_ds.tasks import Example, Task
from gpt1_ds.tasks.class_report import class_report, report_lines
from gpt1_ds.tasks.probabilities import TEMPERATURES, calibrate, probability_columns
from gpt1_ds.tasks.probabilities import probability_cells as cells_of
from gpt1_ds.tasks.scores import scores_by_part, task_metrics
from gpt1_ds.tasks.splits import files_passed_over

Read = Callable[[Task], list[Example]]


@dataclass(frozen=True)
class Asked:
    """What a user asks of fine-tuned runs."""

    runs: list[str]
    """One run; with `is_ensemble` several, or suites."""
    is_ensemble: bool
    task: str | None
    data: Path | None
    probabilities: bool = False
    with_text: bool = False
    out: Path | None = None
    uncalibrated: bool = False
    average: int | None = None


class Member(NamedTuple):
    """A run, and its answers. It does not hold the model, so that one is in memory at a time."""

    task: Task
    folder: Path
    outcomes: Outcomes


def predict_lines(asked: Asked) -> None:
    """Print a label for each line of stdin, before the line."""
    lines: list[str] = []

    def read(task: Task) -> list[Example]:
        # After the run is loaded: a wrong run is refused before the user types a line.
        lines.extend(stdin_lines("--predict"))
        return [task.from_line(line, f"stdin line {n}") for n, line in enumerate(lines, 1)]

    members = [member for member, _ in _members(asked, read)]
    task, answers = members[0].task, _answers(members)
    if asked.probabilities:
        columns = ", ".join(["prediction", *probability_columns(task), "text"])
        _tell(f"--probabilities: the columns are {columns}")
    for label, value, line in zip(answers.labels, answers.values, lines, strict=True):
        cells = cells_of(task, value) if asked.probabilities else []
        print("\t".join([task.show(label), *cells, line]))


def score_task(asked: Asked) -> None:
    """Print the metrics of fine-tuned runs on labelled data, and a report by class.

    With `probabilities`, `with_text` or `out` it writes a table of the predictions as well.
    """
    data = asked.data
    assert data is not None, "eval refuses that"
    writes = asked.probabilities or asked.with_text or asked.out is not None
    if writes and asked.is_ensemble and asked.out is None:
        raise ConfigError("--ensemble: the table of its predictions needs --out FILE")
    members = []
    examples: list[Example] = []
    for member, examples in _members(asked, lambda task: task.read(data, "dev")):
        name = title_of(member.folder, asked.average)
        _print_metrics(f"{name} on {data}", member.task, examples, member.outcomes)
        members.append(member)
    task, answers = members[0].task, _answers(members)
    _tell_of_other_files(task, data)
    if asked.is_ensemble:
        _print_metrics(f"ensemble of {len(members)} on {data}", task, examples, answers)
    gold = [example.label for example in examples]
    report = class_report(task, gold, answers.labels)
    if report:
        print("\n".join(report_lines(report)))
    if writes:
        values = answers.values if asked.probabilities else None
        texts = [example.texts for example in examples] if asked.with_text else None
        out = asked.out or run_of(members[0].folder) / f"evaluation-{data.stem}.tsv"
        write_out(out, predictions_table(task, gold, answers.labels, values, texts))
        print(f"{out}: predictions of {len(examples):,} examples")


def _tell_of_other_files(task: Task, data: Path) -> None:
    passed_over = files_passed_over(task, data)
    if passed_over:
        _tell(f"--data {data}: {passed_over} not scored; give such a file itself to score it")


def calibrate_run(asked: Asked) -> None:
    """Fit a temperature on labelled data, and keep it in the run's folder."""
    (run,) = asked.runs
    tuned = load_fine_tuned(run, asked.task)
    data = asked.data or Path(tuned.data)
    if not data.exists() or not (asked.data or tuned.data):
        raise ConfigError(f"--data is not set, and the run's task.data '{tuned.data}' is not there")
    examples = tuned.task.read(data, "dev")
    encoded = encode(tuned, examples)
    gold = [example.label for example in examples]
    found = calibrate(tuned.task, logits_of(tuned, encoded), encoded, gold)
    path = write_calibration(tuned, data, found)
    print(f"{tuned.folder} on {data}: temperature {found.temperature:.4f}, {found.labels:,} labels")
    for name, (before, after) in (("NLL", found.nll), ("ECE", found.ece)):
        print(f"  {name}  {before:.4f} before, {after:.4f} after")
    low, high = TEMPERATURES
    if not 1.01 * low < found.temperature < 0.99 * high:
        _tell(
            f"warning: the temperature is at the end of the range {low} to {high}; the data have "
            "too few labels, or too few mistakes"
        )
    print(f"{path}: used by --probabilities and --ensemble from now on")


def _members(asked: Asked, read: Read) -> Iterator[tuple[Member, list[Example]]]:
    """Each run with its answers to the examples that `read` gives, and the examples."""
    paths = asked.runs
    if asked.is_ensemble:
        paths = member_runs(paths, asked.task)
        if len(paths) < 2:
            raise ConfigError(f"--ensemble has one run, {', '.join(paths)}; give at least two")
        refuse_misfits(paths)
    examples: list[Example] | None = None
    for path in paths:
        tuned = load_fine_tuned(path, asked.task, asked.average)
        if examples is None:
            examples = read(tuned.task)
        # The calibration of a run is that of its best weights.
        uncalibrated = asked.uncalibrated or asked.average is not None
        uses_temperature = (asked.probabilities or asked.is_ensemble) and not uncalibrated
        temperature = temperature_of(tuned.folder) if uses_temperature else 1.0
        if temperature != 1.0:
            _tell(f"{tuned.folder}: probabilities calibrated with temperature {temperature:.4f}")
        yield Member(tuned.task, tuned.folder, outcomes(tuned, examples, temperature)), examples


def _answers(members: list[Member]) -> Outcomes:
    if len(members) == 1:
        return members[0].outcomes
    return mean_outcomes(members[0].task, [member.outcomes for member in members])


def _print_metrics(title: str, task: Task, examples: list[Example], found: Outcomes) -> None:
    gold = [example.label for example in examples]
    parts = [example.part for example in examples]
    n_classes = len(task.classes)
    scores = task_metrics(task.metrics, gold, found.labels, n_classes)
    print_scores(title, scores, len(examples))
    by_part = scores_by_part(task.metrics, "dev", parts, gold, found.labels, n_classes)
    for part, scores in by_part.items():
        print_scores(f"  {part}", scores, parts.count(part.removeprefix("dev_")))


def print_scores(title: str, scores: dict[str, float], examples: int) -> None:
    listed = ", ".join(f"{name} {score:.4f}" for name, score in scores.items())
    print(f"{title}: {listed}; {examples:,} examples")


def _tell(text: str) -> None:
    """Print a line that is not a part of the output."""
    print(text, file=sys.stderr)
