"""Errors of tasks: a user's own description of one, and the files of labelled sets."""

from functools import partial
from pathlib import Path
from typing import Any

from gpt1_ds.runs.task_data import read_task_data
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import FinetuneConfig, TaskConfig
from gpt1_ds.tasks import TASKS, build_task
from gpt1_ds.tasks.pronouns import read_dpr
from gpt1_ds.tasks.scores import task_metrics
from gpt1_ds.tasks.zero_shot import zero_shot
from tests.golden.refusals import Act, add, write
from tests.golden.store import Group

TASK_ERRORS = Group("errors_tasks")

TEXT = ["text", "label"]
PAIR = ["a", "b", "label"]
OWN: dict[str, dict[str, Any]] = {
    "unknown kind": {"kind": "classify"},
    "no labels": {"kind": "classification", "columns": TEXT},
    "one label": {"kind": "classification", "columns": TEXT, "labels": ["yes"]},
    "a label twice": {"kind": "classification", "columns": TEXT, "labels": ["yes", "yes"]},
    "scores from 1": {"kind": "similarity_score", "columns": PAIR, "labels": ["1", "2"]},
    "too many columns": {"kind": "classification", "columns": PAIR, "labels": ["no", "yes"]},
    "too few columns": {"kind": "entailment", "columns": TEXT, "labels": ["no", "yes"]},
    "columns of answers": {"kind": "multiple_choice", "columns": TEXT, "labels": ["a", "b"]},
    "file of no split": {
        "kind": "classification",
        "columns": TEXT,
        "labels": ["no", "yes"],
        "files": {"valid": "valid.tsv"},
    },
}
FILES: dict[str, tuple[str, str, str | bytes]] = {
    "no file": ("sst2", "other.tsv", ""),
    "empty file": ("sst2", "train.tsv", ""),
    "header alone": ("sst2", "train.tsv", "sentence\tlabel\n"),
    "no column of the text": ("sst2", "train.tsv", "sentences\tlabel\ngood\t1\n"),
    "too few columns": ("rte", "train.tsv", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\n"),
    "too many columns": ("sst2", "train.tsv", "sentence\tlabel\ngood\t1\tmore\n"),
    "unknown label": ("sst2", "train.tsv", "sentence\tlabel\ngood\t2\n"),
    "no label": ("sst2", "train.tsv", "sentence\tlabel\ngood\t\n"),
    "no column of the label": ("sst2", "train.tsv", "sentence\nx\n"),
    "empty text": ("sst2", "train.tsv", "sentence\tlabel\n\t1\n"),
    "not UTF-8": ("sst2", "train.tsv", b"sentence\tlabel\ncaf\xe9\t1\n"),
    "no JSON object": ("snli", "train.tsv", '{"sentence1": "a"\n'),
    "JSON without a column": ("snli", "train.tsv", '{"sentence1": "a", "gold_label": "neutral"}\n'),
    "open quotes": ("storycloze", "train.csv", 'InputSentence1,"x\n'),
    "no number for a score": ("stsb", "train.tsv", "sentence1\tsentence2\tscore\na\tb\thigh\n"),
    "score above 5": ("stsb", "train.tsv", "sentence1\tsentence2\tscore\na\tb\t5.5\n"),
    "no passage": ("race", "train/middle/1.txt", '{"article": "a"}'),
    "three answers": (
        "race",
        "train/high/1.txt",
        '{"article": "a", "questions": ["q"], "options": [["x", "y", "z"]], "answers": ["A"]}',
    ),
    "unknown answer": (
        "race",
        "train/high/1.txt",
        '{"article": "a", "questions": ["q"], "options": [["w", "x", "y", "z"]], "answers": ["E"]}',
    ),
    "word without a tag": ("conll2003", "train.txt", "U.N. NNP I-NP I-ORG\nofficial\n"),
    "unknown tag": ("wnut17", "wnut17train.conll", "Empire\tB-place\n"),
}
LINES = {"one text": ("rte", "a premise alone"), "a text too many": ("sst2", "one\ttwo")}
DPR = {
    "three lines": "He came.\nHe\nJohn,Jim\n\n",
    "no pronoun in the sentence": "John came.\nhe\nJohn,Jim\nJohn\n\n",
    "one candidate": "He came.\nHe\nJohn\nJohn\n\n",
    "another answer": "He came.\nHe\nJohn,Jim\nJack\n",
}


def own_task(options: dict[str, Any], tmp: Path) -> None:
    build_task(TaskConfig(name="own", **options))


def from_file(name: str, file: str, text: str | bytes, tmp: Path) -> None:
    write(tmp / file, text)
    TASKS[name].read(tmp, "train")


def from_line(name: str, line: str, tmp: Path) -> None:
    TASKS[name].from_line(line, "stdin line 1")


def from_dpr(text: str, tmp: Path) -> None:
    write(tmp / "train.c.txt", text)
    read_dpr(tmp)


def own_words_and_tags(tmp: Path) -> None:
    options = {"kind": "token_classification", "columns": ["words", "tags"], "labels": ["PER"]}
    write(tmp / "train.tsv", "words\ttags\nTwo words\tO\n")
    build_task(TaskConfig(name="own", **options)).read(tmp, "train")


def without_data(tmp: Path) -> None:
    config = load(FinetuneConfig, None, ["task.name=sst2"])
    unused: Any = None
    read_task_data(config, TASKS["sst2"], unused, 64)


def zero_shot_of_an_unknown_task(tmp: Path) -> None:
    unused: Any = None
    zero_shot(unused, unused, "rte", tmp)


OTHERS: dict[str, Act] = {
    "words and tags": own_words_and_tags,
    "no folder": without_data,
    "unknown metric": lambda tmp: task_metrics(("accuracies",), [0], [0]),
    "zero-shot of another task": zero_shot_of_an_unknown_task,
}

add(TASK_ERRORS, "own", {name: partial(own_task, OWN[name]) for name in OWN})
add(TASK_ERRORS, "file", {name: partial(from_file, *FILES[name]) for name in FILES})
add(TASK_ERRORS, "line", {name: partial(from_line, *LINES[name]) for name in LINES})
add(TASK_ERRORS, "dpr", {name: partial(from_dpr, DPR[name]) for name in DPR})
add(TASK_ERRORS, "task", OTHERS)
