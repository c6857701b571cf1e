"""Dev splits of tasks that ship none, by the hash of the text; the splits of the sample's tasks."""

from pathlib import Path
from typing import Any

from gpt1_ds.settings.sections import TaskConfig
from gpt1_ds.tasks import TASKS, Example, build_task
from tests.golden.prepared import sample
from tests.golden.store import Group, json_digest, scratch
from tests.support.task_folders import FOLDERS

SPLITS = Group("splits")


def examples_digest(examples: list[Example]) -> str:
    values = [[example.texts, example.label, example.part] for example in examples]
    return f"{len(examples)}, {json_digest(values)}"


@SPLITS.value
def examples_of_the_sample_tasks() -> dict[str, Any]:
    """Number and digest of training and dev examples; MRPC and Story Cloze divide by hash."""
    found = {}
    for name, folder in FOLDERS.items():
        path = sample() / "tasks" / folder
        found[name] = [examples_digest(TASKS[name].read(path, split)) for split in ("train", "dev")]
    return found


def own_task(kind: str, columns: list[str], rows: list[str]) -> tuple[Any, Path]:
    """A task of one's own with a training file alone."""
    folder = scratch() / f"own-{kind}"
    folder.mkdir(exist_ok=True)
    (folder / "train.tsv").write_text("\n".join(["\t".join(columns), *rows]) + "\n")
    return build_task(
        TaskConfig(name="own", kind=kind, columns=columns, labels=["no", "yes"])
    ), folder


@SPLITS.value
def dev_rows_of_an_own_task() -> list[int]:
    """Numbers of the rows that a tenth of the texts, by hash, makes the dev set."""
    rows = [f"Text number {n}.\t{'yes' if n % 3 else 'no'}" for n in range(200)]
    task, folder = own_task("classification", ["text", "answer"], rows)
    dev = task.read(folder, "dev")
    assert len(dev) + len(task.read(folder, "train")) == len(rows)
    return [int(example.texts[0].split()[-1][:-1]) for example in dev]


@SPLITS.value
def dev_rows_of_pairs() -> list[int]:
    """The hash is of both texts."""
    rows = [f"First {n}.\tSecond {n}.\t{'yes' if n % 2 else 'no'}" for n in range(200)]
    task, folder = own_task("entailment", ["a", "b", "answer"], rows)
    return [int(example.texts[1].split()[-1][:-1]) for example in task.read(folder, "dev")]


@SPLITS.value
def shares_of_dev() -> dict[str, float]:
    return {name: task.dev_share for name, task in TASKS.items() if task.dev_share}
