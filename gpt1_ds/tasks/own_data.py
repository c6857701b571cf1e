"""A user's own task, described in YAML by kind, files, columns and labels, without code.

    task: {name: tickets, kind: classification, data: tickets, columns: [text, queue],
           labels: [billing, bug]}

The last column is the label. A file has columns separated by tabs, columns separated by commas
(`.csv`), JSON lines, or a JSON array. The default names are `train.*`, `dev.*` (or `validation.*`,
`valid.*`, `val.*`) and `test.*`. Without a dev file, a tenth of the training rows becomes the dev
set, selected by a hash. token_classification also reads CoNLL files (`.conll .bio .iob`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from gpt1_ds.base.errors import ConfigError, DataError, near
from gpt1_ds.settings.sections import TaskConfig
from gpt1_ds.tasks.base import DEV_SHARE, Task
from gpt1_ds.tasks.classification import Classification
from gpt1_ds.tasks.entailment import Entailment
from gpt1_ds.tasks.examples import Example, Parse, Rows
from gpt1_ds.tasks.multiple_choice import MultipleChoice, WithoutQuestion
from gpt1_ds.tasks.similarity import ScoredSimilarity, Similarity
from gpt1_ds.tasks.tables import Line, Table, read_lines, split_words
from gpt1_ds.tasks.token_classification import TokenClassification, bio, read_conll, to_bio


class Kind(NamedTuple):
    task: type[Task]
    metrics: tuple[str, ...]
    """The default of `task.metrics`."""
    text_columns: tuple[int, ...]
    """Allowed numbers of text columns, not counting the answers."""


KINDS = {
    "classification": Kind(Classification, ("accuracy",), (1,)),
    "entailment": Kind(Entailment, ("accuracy",), (2,)),
    "similarity": Kind(Similarity, ("f1", "accuracy"), (2,)),
    "similarity_score": Kind(ScoredSimilarity, ("pearson", "spearman"), (2,)),
    "multiple_choice": Kind(MultipleChoice, ("accuracy",), (1, 2)),
    "token_classification": Kind(TokenClassification, ("entity_f1",), (1,)),
}
SPLITS = ("train", "dev", "test")
CONLL_ENDINGS = (".conll", ".bio", ".iob")


class Tagged(NamedTuple):
    """The tags of a row, and `FILE row N`."""

    where: str
    tags: tuple[str, ...] | None


def own_task(config: TaskConfig) -> Task:
    """The task that `config` describes; raises ConfigError for wrong keys."""
    if config.kind not in KINDS:
        raise ConfigError(f"task.kind is '{config.kind}'; {near(str(config.kind), KINDS)}")
    kind = KINDS[config.kind]
    labels = _labels(config, kind)
    columns = _text_columns(config, kind, len(labels))
    has_question = kind.task is not MultipleChoice or len(columns) > len(labels) + 1
    reader = _Reader(kind.task, columns, (config.columns or [""])[-1], has_question)
    files, named = user_files(config.files or {}, {split: (f"{split}.*",) for split in SPLITS})
    task = kind.task if has_question else WithoutQuestion
    return task(
        files,
        reader,
        bio(*labels) if kind.task is TokenClassification else labels,
        tuple(config.metrics or kind.metrics),
        dev_share=DEV_SHARE,
        named=named,
    )


def _labels(config: TaskConfig, kind: Kind) -> tuple[str, ...]:
    labels = tuple(config.labels or ())
    fewest = 1 if kind.task is TokenClassification else 2
    if len(set(labels)) < fewest or len(set(labels)) < len(labels):
        raise ConfigError(f"task.labels is {list(labels)}; list the labels, each once")
    for label in labels:
        if label != label.strip() or not label or set(label) & set("\t\r\n"):
            raise ConfigError(
                f"task.labels has {label!r}; a label has no spaces at its ends and no tab"
            )
    if kind.task is ScoredSimilarity and labels != tuple(map(str, range(len(labels)))):
        raise ConfigError(
            f"task.labels is {list(labels)}; for scores list 0, 1, .. up to the highest"
        )
    return labels


def _text_columns(config: TaskConfig, kind: Kind, n_labels: int) -> tuple[str, ...]:
    columns = tuple(config.columns or ())[:-1]
    n_answers = n_labels if kind.task is MultipleChoice else 0
    if len(columns) - n_answers not in kind.text_columns:
        wanted = " or ".join(str(count + n_answers) for count in kind.text_columns)
        raise ConfigError(
            f"task.columns is {config.columns}; {config.kind} takes {wanted} columns of text "
            "and the label's"
        )
    if config.columns and config.columns[-1] in columns:
        raise ConfigError(
            f"task.columns is {config.columns}; the label's column must not be a text as well"
        )
    return columns


class Files(NamedTuple):
    """Glob patterns for each split's file, and the splits whose file the user named."""

    patterns: dict[str, tuple[str, ...]]
    named: frozenset[str]


def user_files(named: dict[str, str], usual: Mapping[str, tuple[str, ...]]) -> Files:
    """The `usual` files of a task, with those that the user `named` in their place."""
    unknown = set(named) - set(usual)
    if unknown:
        raise ConfigError(f"task.files names '{min(unknown)}'; choose from: {', '.join(usual)}")
    for split, name in named.items():
        if not name:
            raise ConfigError(f"task.files.{split} is ''; give the name of a file")
    chosen = {split: (name,) for split, name in named.items()}
    return Files({**usual, **chosen}, frozenset(named))


@dataclass(frozen=True)
class _Reader:
    """Reads a file of the task: the text columns and the label column."""

    task: type[Task]
    columns: tuple[str, ...]
    label: str
    has_question: bool
    """False for multiple choice with columns only for the context and the answers."""

    def __call__(self, path: Path, parse: Parse) -> Rows:
        ending = path.suffix.lower()
        delimiter = "," if ending == ".csv" else "\t"
        table = Table(self.columns, self.label, delimiter=delimiter)
        if self.task is TokenClassification:
            if ending in CONLL_ENDINGS or (ending == ".txt" and not self._has_header(path)):
                return read_conll(path, parse)
            return _words(path, replace(table, holds_words=True), parse)
        rows = table(path, parse)
        return rows if self.has_question else _without_question(rows)

    def _has_header(self, path: Path) -> bool:
        """Whether the first line of a file names its columns, or is JSON."""
        first = next(read_lines(path), Line(1, "")).text
        return first.startswith("{") or self.columns[0] in first.split("\t")


def _without_question(rows: Rows) -> Rows:
    """Add an empty question to multiple-choice examples without a question column."""
    for example in rows:
        context, *answers = example.texts
        yield Example((context, "", *answers), example.label)


def _words(path: Path, table: Table, parse: Parse) -> Rows:
    """Reads a column of words and a column of tags; each is a JSON list or separated by spaces."""

    def tags(label: str | None, where: str) -> Tagged:
        if not label:
            parse(None, where)
            return Tagged(where, None)
        return Tagged(where, to_bio([parse(tag, where) for tag in split_words(label)]))

    for example in table(path, tags):
        words, found = example.texts, example.label
        if found.tags is not None and len(found.tags) != len(words):
            raise DataError(
                f"{found.where}: {len(words)} words but {len(found.tags)} tags; give one tag a word"
            )
        yield Example(words, found.tags)
