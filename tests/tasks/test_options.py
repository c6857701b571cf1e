"""Each option of the `task` section takes effect on each task, or is refused in one line."""

from pathlib import Path
from typing import Any

import pytest

from gpt1_ds.base.errors import ConfigError
from gpt1_ds.runs.fine_tuning import starting_point
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import FinetuneConfig, TaskConfig
from gpt1_ds.tasks import TASKS, Task, build_task
from gpt1_ds.tasks.scores import METRICS, task_metrics

CLASSES, SCORES, TAGS = ("accuracy", "f1", "matthews"), ("pearson", "spearman"), ("entity_f1",)
RIGHT: dict[tuple[str, ...], Any] = {
    CLASSES: ([0, 1], [0, 1]),
    SCORES: ([0.0, 1.0], [0.0, 0.5]),
    TAGS: ([("O", "B-PER")], [["O", "B-PER"]]),
}
"""Labels and right predictions of each family of metrics."""
OWN: dict[str, dict[str, Any]] = {
    "classification": {"columns": ["a", "y"], "labels": ["no", "yes"]},
    "entailment": {"columns": ["a", "b", "y"], "labels": ["no", "yes", "so"]},
    "similarity": {"columns": ["a", "b", "y"], "labels": ["no", "yes"]},
    "similarity_score": {"columns": ["a", "b", "y"], "labels": ["0", "1", "2"]},
    "multiple_choice": {"columns": ["c", "p", "q", "y"], "labels": ["p", "q"]},
    "token_classification": {"columns": ["words", "tags"], "labels": ["PER"]},
}
FIT = {kind: CLASSES for kind in OWN} | {"similarity_score": SCORES, "token_classification": TAGS}
PUBLISHED = {name: CLASSES for name in TASKS} | {"stsb": SCORES, "conll2003": TAGS, "wnut17": TAGS}
NUMBERS = ("cola", "sst2", "wnli", "mrpc", "qqp", "storycloze")
"""Tasks whose labels are numbers that rise: a correlation is defined for them."""


def config(task: str, **keys: object) -> TaskConfig:
    """Of a published task, or of one's own of a kind."""
    own = {"name": "mine", "kind": task, **OWN[task]} if task in OWN else {"name": task}
    return TaskConfig(**(own | keys))


def refusal(wanted: TaskConfig) -> str | None:
    try:
        build_task(wanted)
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.parametrize("task", [*OWN, *TASKS])
def test_a_metric_goes_with_the_kind_or_is_refused_with_the_choices(task: str):
    fit = (FIT | PUBLISHED)[task] + (SCORES if task in NUMBERS else ())
    for metric in METRICS:
        wanted = config(task, metrics=[metric])
        said = refusal(wanted)
        if metric in fit:
            assert said is None and build_task(wanted).metrics == (metric,)
            right = next(answers for family, answers in RIGHT.items() if metric in family)
            assert task_metrics([metric], *right, 2) == {metric: pytest.approx(1.0)}
        else:
            kind = "similarity_score" if task == "stsb" else build_task(config(task)).kind
            expected = f"task.metrics names '{metric}', which does not go with "
            assert said is not None and said.startswith(expected), (task, metric)
            assert f"{kind if task in TASKS else task} (" in said and said.endswith(", ".join(fit))
    assert "is [];" in (refusal(config(task, metrics=[])) or "")
    assert "choose from" in (refusal(config(task, metrics=["zzz"])) or "")


def effect(task: Task) -> list[object]:
    """What the options of a task can change in it."""
    flags = [getattr(task, name, False) for name in ("squared_error", "label_all_subtokens")]
    return [task.files, task.classes, task.metrics, *flags]


SETS: dict[str, dict[str, Any]] = {
    "labels": {"labels": ["u", "v"]},
    "columns": {"columns": ["x", "z"]},
    "files": {"files": {"train": "mine.tsv"}},
    "squared_error": {"squared_error": True},
    "label_all_subtokens": {"label_all_subtokens": True},
    "pool": {"pool": "first"},
    "coefs": {"lm_coef": 0.0, "task_coef": 0.0},
}
TAKES_POOL = {name for name in (*OWN, *TASKS)} - {"token_classification", "conll2003", "wnut17"}


@pytest.mark.parametrize("task", [*OWN, *TASKS])
def test_no_option_is_ignored(task: str):
    usual = effect(build_task(config(task)))
    for option, keys in SETS.items():
        said = refusal(config(task, **keys))
        if said is not None:
            assert f"task.{option}" in said or option == "coefs", said
            assert task not in OWN or option != "files", said
        elif option == "pool":
            assert task in TAKES_POOL
        elif option == "columns":
            assert task in OWN  # they are read from the file
        else:
            assert effect(build_task(config(task, **keys))) != usual, (task, option)
    # Runs of earlier versions, which ignored them, are loaded all the same.
    for keys in ({"squared_error": True}, {"label_all_subtokens": True}, {"pool": "first"}):
        assert build_task(config(task, **keys), strict=False).kind
    own_labels = list(build_task(config(task)).classes)
    assert task in OWN or refusal(config(task, labels=own_labels)) is None


def test_files_of_a_publishers_task(tmp_path: Path):
    (tmp_path / "mine.tsv").write_text("sentence\tlabel\nfine\t1\n")
    (tmp_path / "train.tsv").write_text("not read")
    task = build_task(config("sst2", files={"train": "mine.tsv"}))
    assert task.read(tmp_path, "train")[0].texts == ("fine",)
    assert "choose from: train, dev, test" in str(refusal(config("sst2", files={"val": "x"})))


@pytest.mark.parametrize("label", ["", " yes", "a\tb", "a\n"])
def test_a_label_that_no_row_can_have(label: str):
    assert "task.labels has" in str(refusal(config("classification", labels=["no", label])))


def test_the_label_is_no_text():
    said = refusal(config("entailment", columns=["a", "y", "y"]))
    assert said is not None and "the label's column must not be a text as well" in said


@pytest.mark.parametrize(("blocks", "is_refused"), [(0, True), (2, True), (-1, False)])
def test_no_blocks_come_from_no_checkpoint(tiny_shards: Path, blocks: int, is_refused: bool):
    words = ["init.checkpoint=none", f"task.n_transfer={blocks}", f"data.shards={tiny_shards}"]
    wanted = load(FinetuneConfig, None, words)
    if is_refused:
        with pytest.raises(ConfigError, match=f"task.n_transfer is {blocks}, but init.checkpoint"):
            starting_point(wanted, resumes=False)
    else:
        assert starting_point(wanted, resumes=False)[2] is None
