"""Every split of a task for a run, and what is odd about them, in lines for the user."""

import os
import re
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from gpt1_ds.tasks.base import DATA_ENDINGS, LABELLED, OTHER_ENDINGS, Task
from gpt1_ds.tasks.examples import Encoded, Example

SPLIT_WORDS = "train|training|dev|development|valid|validation|val|eval|test|testing"
LIKE_A_SPLIT = re.compile(rf"(^|[\W_])({SPLIT_WORDS})([\W_]|$)", re.IGNORECASE)
BELOW = ("*", "*/*", "*/*/*")
"""Where such files may be. Publishers put further files into folders (`original/raw` of CoLA)."""
SHOWN = 5
"""Names in a line."""


def read_splits(task: Task, source: Path | str) -> dict[str, list[Example]]:
    """Examples of train, of dev and of each further split whose file is in the folder `source`.

    If `source` is one file (RACE: one folder of passages), a part of it becomes the dev set.
    """
    if one_source(task, source):
        return task.divided(task.examples(Path(source), "train"), Path(source))
    names = list(LABELLED)
    for name in sorted(set(task.files) - set(LABELLED)):
        if name in task.named or task.path(source, name):
            names.append(name)
    return {name: task.read(source, name) for name in names}


def one_source(task: Task, source: Path | str) -> bool:
    """Whether train and dev would be all of `source`."""
    return os.path.isfile(source) or task.path(source, "train") == Path(source)


def files_passed_over(task: Task, source: Path | str) -> str:
    """Names of files in a publisher's folder that look like a split of data, but are not read.

    They are listed for a message, relative to `source`; empty if there are none.
    """
    if one_source(task, source):
        return ""
    folder = Path(source)
    used = {task.path(source, split) for split in task.files}
    names = []
    for pattern in BELOW:
        for path in sorted(folder.glob(pattern)):
            is_data = path.suffix.lower() in (*DATA_ENDINGS, *OTHER_ENDINGS)
            if is_data and LIKE_A_SPLIT.search(path.name) and not used & {path, *path.parents}:
                names.append(str(path.relative_to(folder)))
    return _listed(names)


def oddities(task: Task, source: Path | str, splits: dict[str, list[Example]]) -> list[str]:
    """Lines about files that are not used, rows in two splits, and labels that do not occur."""
    lines = []
    if one_source(task, source):
        count, held_out = sum(map(len, splits.values())), len(splits["dev"])
        lines.append(
            f"{source} has no dev set: {held_out:,} of its {count:,} examples are held out"
        )
    passed_over = files_passed_over(task, source)
    if passed_over:
        lines.append(f"{source}: {passed_over} passed over; task.files names the files to use")
    train = {example.texts for example in splits["train"]}
    for name in list(splits)[1:]:
        shared = sum(example.texts in train for example in splits[name])
        if shared == len(splits[name]):
            lines.append(
                f"every {name} example is in train too; its score says nothing of new text"
            )
        elif shared:
            lines.append(f"{shared:,} of {len(splits[name]):,} {name} examples are in train too")
    for name, examples in splits.items():
        lines += _about_labels(task, name, examples)
    return lines


def _about_labels(task: Task, split: str, examples: Sequence[Example]) -> list[str]:
    labels = [example.label for example in examples if example.label is not None]
    without = len(examples) - len(labels)
    if labels and without:
        return [f"{without:,} of {len(examples):,} {split} examples lack a label; no score of it"]
    if not labels:
        return []
    if not isinstance(labels[0], int):
        shown = chain.from_iterable(labels) if isinstance(labels[0], tuple) else labels
        alike = set(shown)
        return [f"every label of {split} is {alike.pop()}"] if len(alike) == 1 else []
    present = set(labels)
    absent = [name for index, name in enumerate(task.classes) if index not in present]
    if not absent:
        return []
    counts = ", which counts as 0 in its f1" if "f1" in task.metrics and split != "train" else ""
    return [f"{split} has no example of the label {_listed(absent)}{counts}"]


def vanished_texts(splits: dict[str, list[Encoded]]) -> list[str]:
    """Lines about texts that the tokenizer turned into nothing."""
    lines = []
    for name, examples in splits.items():
        count = sum(example.vanished for example in examples)
        if count:
            what = "words (each predicted as O)" if examples[0].is_per_token else "texts"
            lines.append(f"{name}: the tokenizer has no token for {count:,} {what}")
    return lines


def _listed(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
