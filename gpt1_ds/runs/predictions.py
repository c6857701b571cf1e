"""Tables of predictions: predictions-SPLIT.tsv of a run, GLUE's files, and those of `eval`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gpt1_ds.base.errors import ConfigError
from gpt1_ds.base.files import write_atomically
from gpt1_ds.tasks import Task
from gpt1_ds.tasks.class_report import Report, class_report
from gpt1_ds.tasks.examples import Label
from gpt1_ds.tasks.probabilities import probability_cells, probability_columns
from gpt1_ds.tasks.similarity import ScoredSimilarity

TEXT_COLUMNS = {
    "classification": ("text",),
    "entailment": ("premise", "hypothesis"),
    "similarity": ("first", "second"),
    "token_classification": ("text",),
}
BLANKS = str.maketrans("\t\r\n", "   ")
Texts = Sequence[tuple[str, ...]]


def predictions_table(
    task: Task,
    gold: Sequence[Label],
    predicted: Sequence[Label],
    values: Sequence[np.ndarray] | None = None,
    texts: Texts | None = None,
) -> str:
    """A row for each example: index, gold label (empty: none) and prediction.

    With `values` (see `probabilities.outcome`) the probabilities follow. With `texts` the fields of
    the example follow; tabs and line ends in them become spaces.
    """
    header = ["index", "gold", "prediction"]
    header += probability_columns(task) if values is not None else []
    header += _text_columns(task) if texts is not None else []
    lines = ["\t".join(header)]
    for index, (label, prediction) in enumerate(zip(gold, predicted, strict=True)):
        cells = [str(index), "" if label is None else task.show(label), task.show(prediction)]
        if values is not None:
            cells += probability_cells(task, values[index])
        if texts is not None:
            cells += _text_cells(task, texts[index])
        lines.append("\t".join(cells))
    return "\n".join(lines) + "\n"


def _text_columns(task: Task) -> list[str]:
    if task.kind == "multiple_choice":
        return ["context", "question", *(f"answer {name}" for name in task.classes)]
    return list(TEXT_COLUMNS[task.kind])


def _text_cells(task: Task, texts: tuple[str, ...]) -> list[str]:
    fields = [" ".join(texts)] if task.kind == "token_classification" else texts
    return [field.translate(BLANKS) for field in fields]


def write_predictions(
    folder: Path,
    task: Task,
    split: str,
    gold: Sequence[Label],
    predictions: Sequence[Label],
    texts: Texts | None = None,
) -> None:
    """predictions-SPLIT.tsv in `folder`; for a test file of GLUE also glue/NAME.tsv.

    The latter is in the format that GLUE's site takes.
    """
    table = predictions_table(task, gold, predictions, texts=texts)
    write_atomically(folder / f"predictions-{split}.tsv", table)
    if split in task.glue:
        shown = [task.show(prediction) for prediction in predictions]
        rows = [f"{index}\t{prediction}\n" for index, prediction in enumerate(shown)]
        (folder / "glue").mkdir(exist_ok=True)
        path = folder / "glue" / f"{task.glue[split]}.tsv"
        write_atomically(path, "index\tprediction\n" + "".join(rows))


def write_out(path: Path, table: str) -> None:
    """Write a table to the user's `path`; ConfigError if that is impossible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, table)
    except OSError as error:
        raise ConfigError(f"--out {path}: {error.strerror}; choose another file") from error


def report_of_predictions(folder: Path, task: Task, gold: Sequence[Label]) -> Report | None:
    """The report by class of predictions-dev.tsv in `folder`.

    None for similarity scores, and if the file is not there or not of these labels.
    """
    if isinstance(task, ScoredSimilarity):
        return None
    try:
        _, predicted = read_predictions(folder / "predictions-dev.tsv")
        return class_report(task, gold, [_read(task, shown) for shown in predicted])
    except (OSError, ValueError, IndexError):
        return None


def read_predictions(path: Path) -> tuple[list[str], list[str]]:
    """Gold labels and predictions of a table, as `Task.show` wrote them.

    Raises OSError, ValueError or IndexError for a file that is not such a table.
    """
    # A text may hold characters that `splitlines` takes for the end of a line.
    lines = path.read_text(encoding="utf-8").split("\n")[1:-1]
    rows = [line.split("\t") for line in lines]
    return [row[1] for row in rows], [row[2] for row in rows]


def _read(task: Task, shown: str) -> Label:
    """The prediction that `Task.show` wrote."""
    return shown.split(" ") if task.kind == "token_classification" else task.classes.index(shown)
