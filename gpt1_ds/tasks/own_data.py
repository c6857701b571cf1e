"""A user's own task, named entirely in YAML: kind, files, columns and labels; no code.

    task: {name: tickets, kind: classification, data: tickets, columns: [text, queue], labels: [billing, bug]}

The last column is the label's. Files are tab-separated, comma-separated (`.csv`) or JSON lines, by default `train.*`,
`dev.*` and `test.*`; without a dev file a tenth of the training rows, by hash, is held out. token_classification also
reads CoNLL files (`.conll`).
"""

from pathlib import Path

from gpt1_ds.base.errors import ConfigError, DataError, near
from gpt1_ds.settings.sections import TaskConfig
from gpt1_ds.tasks.base import Parse, Rows, Task
from gpt1_ds.tasks.classification import Classification
from gpt1_ds.tasks.entailment import Entailment
from gpt1_ds.tasks.multiple_choice import MultipleChoice
from gpt1_ds.tasks.similarity import ScoredSimilarity, Similarity
from gpt1_ds.tasks.tables import Table
from gpt1_ds.tasks.token_classification import TokenClassification, bio, read_conll, to_bio

# Class of each kind, its metrics unless told otherwise, and how many columns hold its texts (beside the answers).
KINDS: dict[str, tuple[type[Task], tuple[str, ...], tuple[int, ...]]] = {
    "classification": (Classification, ("accuracy",), (1,)),
    "entailment": (Entailment, ("accuracy",), (2,)),
    "similarity": (Similarity, ("f1", "accuracy"), (2,)),
    "similarity_score": (ScoredSimilarity, ("pearson", "spearman"), (2,)),
    "multiple_choice": (MultipleChoice, ("accuracy",), (1, 2)),
    "token_classification": (TokenClassification, ("entity_f1",), (1,)),
}
SPLITS = ("train", "dev", "test")


def own_task(config: TaskConfig) -> Task:
    """The task that `config.kind` and the keys beside it describe; `ConfigError` names the key to mend."""
    if config.kind not in KINDS:
        raise ConfigError(f"task.kind is '{config.kind}'; {near(config.kind, KINDS)}")
    cls, metrics, n_columns = KINDS[config.kind]
    labels, columns = tuple(config.labels or ()), tuple(config.columns or ())[:-1]
    if len(set(labels)) < 2 - (cls is TokenClassification) or len(set(labels)) < len(labels):
        raise ConfigError(f"task.labels is {list(labels)}; list the labels, each once")
    if cls is ScoredSimilarity and labels != tuple(map(str, range(len(labels)))):
        raise ConfigError(
            f"task.labels is {list(labels)}; for scores list 0, 1, .. up to the highest"
        )
    n_answers = len(labels) if cls is MultipleChoice else 0
    if len(columns) - n_answers not in n_columns:
        wanted = " or ".join(str(n + n_answers) for n in n_columns)
        raise ConfigError(
            f"task.columns is {config.columns}; {config.kind} takes {wanted} columns of text and the label's"
        )
    if unknown := set(config.files or ()) - set(SPLITS):
        raise ConfigError(f"task.files names '{min(unknown)}'; choose from: {', '.join(SPLITS)}")
    files = {split: (f"{split}.*",) for split in SPLITS} | {
        k: (v,) for k, v in (config.files or {}).items()
    }

    def rows(path: Path, parse: Parse) -> Rows:
        if cls is TokenClassification and path.suffix == ".conll":
            return read_conll(path, parse)
        table = Table(columns, config.columns[-1], delimiter="," if path.suffix == ".csv" else "\t")
        if cls is TokenClassification:
            return _words(path, table, parse)
        found = table(path, parse)
        if cls is MultipleChoice and len(columns) == n_answers + 1:  # no column for the question
            return (((texts[0], "", *texts[1:]), label) for texts, label in found)
        return found

    classes = bio(*labels) if cls is TokenClassification else labels
    return cls(files, rows, classes, tuple(config.metrics or metrics), dev_share=0.1)


def _words(path: Path, table: Table, parse: Parse) -> Rows:
    """A column of words and one of tags, each a JSON list or parted by blanks."""

    def tags(label: str | None, where: str) -> tuple[str, tuple[str, ...] | None]:
        parsed = [parse(tag, where) for tag in (label.split() if label else [None])]
        return where, None if None in parsed else to_bio(parsed)

    for (text,), (where, labels) in table(path, tags):
        words = tuple(text.split())
        if labels is not None and len(labels) != len(words):
            raise DataError(
                f"{where}: {len(words)} words but {len(labels)} tags; give one tag a word"
            )
        yield words, labels
