"""A report by class: precision, recall, F1 and support, by scikit-learn and seqeval.

For tags the classes are the types of entities, and only whole entities count, as in `entity_f1`.
"""

import warnings
from collections.abc import Sequence

from gpt1_ds.tasks.base import Task
from gpt1_ds.tasks.examples import Label
from gpt1_ds.tasks.similarity import ScoredSimilarity
from gpt1_ds.tasks.token_classification import OUTSIDE, TokenClassification

COLUMNS = ("precision", "recall", "f1", "support")
MOST_SHOWN = 8
Report = dict[str, dict[str, float]]
"""The four `COLUMNS` of each class."""


def class_report(task: Task, gold: Sequence[Label], predicted: Sequence[Label]) -> Report | None:
    """The report of `predicted` against `gold`; None for similarity scores.

    A class that is never predicted has precision 0, and one that does not occur has recall 0.
    """
    if isinstance(task, ScoredSimilarity):
        return None
    with warnings.catch_warnings():
        # The libraries warn of a class that does not occur. Its support shows it.
        warnings.simplefilter("ignore")
        if isinstance(task, TokenClassification):
            return _of_entities(task, gold, predicted)
        return _of_classes(task, gold, predicted)


def _of_classes(task: Task, gold: Sequence[Label], predicted: Sequence[Label]) -> Report:
    from sklearn.metrics import precision_recall_fscore_support

    found = precision_recall_fscore_support(
        gold, predicted, labels=range(len(task.classes)), zero_division=0
    )
    rows = zip(*(column.tolist() for column in found), strict=True)
    named = zip(task.classes, rows, strict=True)
    return {name: dict(zip(COLUMNS, row, strict=True)) for name, row in named}


def _of_entities(task: Task, gold: Sequence[Label], predicted: Sequence[Label]) -> Report:
    from seqeval.metrics import classification_report

    found = classification_report(
        list(map(list, gold)), list(map(list, predicted)), output_dict=True, zero_division=0
    )
    nothing = {"precision": 0.0, "recall": 0.0, "f1-score": 0.0, "support": 0}
    entity_tags = [tag for tag in task.classes if tag != OUTSIDE]
    report = {}
    for name in dict.fromkeys(tag[2:] for tag in entity_tags):
        values = found.get(name, nothing)
        shares = [float(values[key]) for key in ("precision", "recall", "f1-score")]
        report[name] = dict(zip(COLUMNS, [*shares, int(values["support"])], strict=True))
    return report


def report_lines(report: Report) -> list[str]:
    """The report as a table, with the mean over the classes in the last line."""
    mean = {}
    for column in COLUMNS[:-1]:
        mean[column] = sum(row[column] for row in report.values()) / len(report)
    mean["support"] = sum(row["support"] for row in report.values())
    rows = {**report, "(mean)": mean}
    width = max(map(len, [*rows, "class"]))
    lines = [f"  {'class':{width}}" + "".join(f"{column:>11}" for column in COLUMNS)]
    for name, row in rows.items():
        cells = "".join(f"{row[column]:11.4f}" for column in COLUMNS[:-1])
        lines.append(f"  {name:{width}}{cells}{row['support']:11,}")
    return lines


def brief(report: Report) -> str:
    """The F1 of each class in one line; of many classes that of the worst ones."""
    ordered = sorted(report, key=lambda name: report[name]["f1"])
    shown = list(report) if len(report) <= MOST_SHOWN else ordered[:MOST_SHOWN]
    listed = ", ".join(f"{name} {report[name]['f1']:.4f}" for name in shown)
    left = len(report) - len(shown)
    return f"{listed}, {left} better ones" if left else listed
