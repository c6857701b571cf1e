"""The common part of all kinds of tasks: files, reading, encoding, cutting to the context.

A `Task` is one entry of the registry in `gpt1_ds/tasks/__init__.py`. Each kind has its own file in
this folder, with a subclass of `Task` that defines its sequences and its prediction.
"""

import glob
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from gpt1_ds.base.errors import DataError
from gpt1_ds.data.tokenizer import Tokenizer
from gpt1_ds.tasks.examples import Encoded, Example, Label, Parse, Rows
from gpt1_ds.tasks.tables import label_index

LABELLED = ("train", "dev")
"""Splits that need labels. Other splits may lack labels; then they are only predicted."""
DEV_NAMES = ("dev.*", "validation.*", "valid.*", "val.*")
"""What others call a dev file. It is looked for if the task's own names are not there."""
DATA_ENDINGS = (".tsv", ".csv", ".jsonl", ".ndjson", ".json", ".txt", ".conll", ".bio", ".iob")
OTHER_ENDINGS = (".parquet", ".arrow", ".xlsx", ".gz", ".bz2", ".xz", ".zip")
"""Endings of data that no reader takes."""
UNLABELLED = ("-1", "-1.0")
"""What Hugging Face's test files have in place of a label."""
DEV_SHARE = 0.1
"""Share of the training examples that becomes the dev set, unless the task has its own share."""
RELEASED_STORIES, RELEASED_DEV, RELEASED_SEED = 1871, 374, 3535999445
"""The released code's split of Story Cloze."""
PAIR_CONTROLS = 3
"""Control tokens of a pair: `<s>`, `<delim>` and `<e>`."""


class Sequences(NamedTuple):
    """Token ids of an example's sequences, and the number of tokens that were cut off."""

    ids: list[list[int]]
    cut: int


class Pair(NamedTuple):
    """Token ids of two texts in one sequence, and the number of tokens that were cut off."""

    ids: list[int]
    cut: int


@dataclass(frozen=True)
class Task(ABC):
    """One labelled data set: its files, how to read them, and its metrics."""

    files: Mapping[str, tuple[str, ...]]
    """Glob patterns for each split's file in `task.data`; the first file that exists is read."""
    rows: Callable[[Path, Parse], Rows]
    """Reads one file: a `tables.Table`, or a function of the task's own."""
    classes: tuple[str, ...]
    """Labels as published, or letters of the answers. F1: the second label is the positive one."""
    metrics: tuple[str, ...]
    """Names in `scores.METRICS`. The first one is the task's score and selects the best epoch."""
    dev_share: float = 0.0
    """Share of the training file that becomes the dev set if the publisher has no dev file."""
    split: str = "hash"
    """How `divided` takes a dev set: `hash`, or `released` (`task.split`)."""
    truncation: str = "longest"
    """How texts are cut: `longest`, or `fields` (`task.truncation`)."""
    named: frozenset[str] = frozenset()
    """Splits whose file the user named (`task.files`): these files must be there."""
    glue: dict[str, str] = field(default_factory=dict)
    """Name of each split's file in a submission to the GLUE site."""

    kind: ClassVar[str]

    @property
    def n_texts(self) -> int:
        """Number of fields of an example."""
        return 2

    @property
    def n_outputs(self) -> int:
        """Width of the head."""
        return len(self.classes)

    def path(self, folder: Path | str, split: str) -> Path | None:
        """The file of `split` in the publisher's `folder`, if it is there."""
        patterns = self.files.get(split, ())
        if split == "dev" and split not in self.named:
            patterns += DEV_NAMES
        for pattern in patterns:
            found = files_like(Path(folder), pattern)
            if found:
                return found[0]
        return None

    def read(self, folder: Path | str, split: str) -> list[Example]:
        """Examples of `split` in the publisher's `folder`, or all examples of one file.

        Without a dev file, `dev_share` of the training file is the dev set, selected by a hash of
        the text. Raises DataError with file and row for a fault in the data.
        """
        if os.path.isfile(folder):
            return self.examples(Path(folder), split)
        shares_a_file = self.dev_share > 0 and "dev" not in self.named
        if self.split == "released" and self.path(folder, "dev") is not None:
            raise DataError(
                f"{folder}: has a dev file, but task.split is released; leave one of them out"
            )
        if shares_a_file and split in LABELLED and self.path(folder, "dev") is None:
            path = self.required_path(folder, "train")
            return self.divided(self.examples(path, split), path)[split]
        return self.examples(self.required_path(folder, split), split)

    def required_path(self, folder: Path | str, split: str) -> Path:
        path = self.path(folder, split)
        if path is None:
            expected = " or ".join(self.files[split])
            raise DataError(f"{folder}: no {split} file; expected {expected}")
        return path

    def examples(self, path: Path, split: str) -> list[Example]:
        """Every example of a file; those of train and dev need a label."""

        def parse(label: str | None, where: str) -> Label:
            if label in UNLABELLED and label not in self.classes and split not in LABELLED:
                return None
            if label is not None:
                return self.parse(label, where)
            if split in LABELLED:
                raise DataError(
                    f"{where}: no label, as in a test file; {split} needs labelled rows"
                )
            return None

        if path.suffix.lower() in OTHER_ENDINGS:
            raise DataError(f"{path}: such files are not read; write .tsv, .csv or .jsonl")
        examples = list(self.rows(path, parse))
        if not examples:
            raise DataError(f"{path}: no {split} examples; give the publisher's file")
        return examples

    def divided(self, examples: Sequence[Example], source: Path) -> dict[str, list[Example]]:
        """The examples of `source` as train and dev: a share of them, selected by a hash, is dev.

        Each of the two gets at least one text. Equal texts are on the same side.
        """
        if self.split == "released":
            return released_split(examples, source)
        places = [_place(example) for example in examples]
        limit = (self.dev_share or DEV_SHARE) * 2**64
        if max(places) < limit:
            limit = max(places)
        if min(places) >= limit:
            limit = min(places) + 1
        parts: dict[str, list[Example]] = {"train": [], "dev": []}
        for example, place in zip(examples, places, strict=True):
            parts["dev" if place < limit else "train"].append(example)
        if not parts["train"]:
            raise DataError(
                f"{source}: one text in {len(examples)} rows; a dev set needs another text, or "
                "give a dev file"
            )
        return parts

    def from_line(self, line: str, where: str) -> Example:
        """An unlabelled example from raw text; its fields are separated by tabs."""
        texts = tuple(text.strip() for text in line.split("\t"))
        if len(texts) != self.n_texts:
            raise DataError(
                f"{where}: {len(texts)} fields between tabs; {self.kind} takes {self.n_texts}"
            )
        return Example(texts)

    def parse(self, label: str, where: str) -> Label:
        """Convert a published label to the label of an `Example`; `where` is for the error."""
        return label_index(label, self.classes, where)

    def encode(
        self, examples: Sequence[Example], tokenizer: Tokenizer, n_ctx: int
    ) -> list[Encoded]:
        """Encode every example for the model, cut to `n_ctx` tokens a sequence."""
        # One call encodes all texts, each text once. A call costs 0.1 ms, as much as a sentence,
        # and RACE has several questions about each passage.
        texts: dict[str, None] = {}
        for example in examples:
            texts.update(dict.fromkeys(example.texts))
        ids = dict(zip(texts, tokenizer.encode_batch(list(texts)), strict=True))
        special = tokenizer.special_ids
        encoded = []
        for example in examples:
            ids_of_texts = [ids[text] for text in example.texts]
            arranged = self.arrange(example, ids_of_texts, special, n_ctx)
            vanished = sum(text != "" and not ids[text] for text in example.texts)
            encoded.append(replace(arranged, vanished=vanished) if vanished else arranged)
        return encoded

    def arrange(
        self, example: Example, ids: list[list[int]], special: dict[str, int], n_ctx: int
    ) -> Encoded:
        """Encode an example from the ids of its texts and the control ids."""
        sequences = self.sequences(ids, special, n_ctx)
        return Encoded(sequences.ids, self.target(example.label), sequences.cut)

    @abstractmethod
    def sequences(self, ids: list[list[int]], special: dict[str, int], n_ctx: int) -> Sequences:
        """Build the sequences from the ids of an example's texts."""

    def target(self, label: Label) -> list[float]:
        """The label as a one-hot vector; all zeros without a label."""
        return [float(index == label) for index in range(len(self.classes))]

    def predict(self, logits: list[Any], encoded: Encoded) -> Label:
        """The prediction from the logits of one example, in the form of its label."""
        return max(range(len(logits)), key=logits.__getitem__)

    def show(self, value: Label) -> str:
        """A label or a prediction in the publisher's spelling."""
        return self.classes[value]


def files_like(folder: Path, pattern: str) -> list[Path]:
    """The file of this name in `folder`, or the files that the glob pattern matches.

    `train.*` may match notes and copies too: files with an ending of data come first.
    """
    named = folder / pattern
    if pattern and os.path.exists(named):
        return [named]
    found = sorted(folder / name for name in glob.glob(pattern, root_dir=folder, recursive=True))
    if pattern.endswith(".*"):
        found.sort(key=lambda path: path.suffix.lower() not in DATA_ENDINGS)
    return found


def _place(example: Example) -> int:
    """A number from 0 to 2^64 from a hash of the example's texts."""
    digest = hashlib.sha256("\n".join(example.texts).encode()).digest()
    return int.from_bytes(digest[:8], "big")


def fit(lengths: Sequence[int], room: int) -> list[int]:
    """The number of tokens that each field keeps, so that all fields fit into `room` tokens.

    Only the longest fields are cut, and all to the same length.

    >>> fit([10, 200, 90], 100)
    [10, 45, 45]
    """
    kept = [0] * len(lengths)
    fields_left = len(lengths)
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        kept[index] = min(lengths[index], room // fields_left)
        room -= kept[index]
        fields_left -= 1
    return kept


def released_split(examples: Sequence[Example], source: Path) -> dict[str, list[Example]]:
    """Train and dev as `rocstories` of the released code's `datasets.py` divides the stories.

    It is scikit-learn's `train_test_split` with a seed: a permutation, of which the first part is
    dev. Of another number of stories than the published 1,871, the same share is dev.
    """
    n_dev = round(len(examples) * RELEASED_DEV / RELEASED_STORIES)
    if not 0 < n_dev < len(examples):
        raise DataError(f"{source}: {len(examples)} stories are too few for task.split=released")
    order = np.random.RandomState(RELEASED_SEED).permutation(len(examples)).tolist()
    return {
        "train": [examples[index] for index in order[n_dev:]],
        "dev": [examples[index] for index in order[:n_dev]],
    }


def longest_field(n_ctx: int) -> int:
    """Tokens that the released code keeps of each text."""
    return n_ctx // 2 - 2


def pair(
    first: list[int],
    second: list[int],
    special: dict[str, int],
    n_ctx: int,
    truncation: str = "longest",
) -> Pair:
    """`<s> first <delim> second <e>`, cut to `n_ctx` tokens."""
    keep_first, keep_second = fit([len(first), len(second)], n_ctx - PAIR_CONTROLS)
    if truncation == "fields":
        keep_first = keep_second = longest_field(n_ctx)
    ids = [special["s"], *first[:keep_first], special["delim"], *second[:keep_second], special["e"]]
    return Pair(ids, len(first) + len(second) + PAIR_CONTROLS - len(ids))
