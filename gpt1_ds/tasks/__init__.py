"""The tasks of fine-tuning: one file for each kind, one line for each task.

May import `model`, `data`, `settings`, `distributed` and `base`.

| kind                 | sequences                                     | tasks                     |
|----------------------|-----------------------------------------------|---------------------------|
| classification       | `<s> text <e>`                                | CoLA, SST-2               |
| entailment           | `<s> premise <delim> hypothesis <e>`          | MNLI, SNLI, QNLI, RTE, .. |
| similarity           | `<s> a <delim> b <e>` and the other order     | STS-B, MRPC, QQP          |
| multiple_choice      | `<s> context question <delim> answer <e>`, .. | RACE, Story Cloze         |
| token_classification | `<s> text <e>`, the state of every token      | CoNLL-2003, WNUT-17       |

To add a task, write a `Task` (files, columns, labels, metrics) in the file of its kind, a line in
`TASKS` below, a YAML in gpt1_ds/configs and a row in tests/tasks. A user's own task needs no code:
`task.kind` and the other keys of the section describe it. The files, in reading order:

- `examples`: an example as published, and encoded for the model.
- `tables`: publishers' tables and JSON lines.
- `base`: the common part of all kinds: the files of a split, and cutting to the context.
- `classification`, `entailment`, `similarity`, `multiple_choice` and
  `token_classification`: the kinds.
- `own_data`: a user's own task, described in YAML.
- `class_weights`: the weight of each class in the task loss.
- `options`: options that would have no effect on a task, or do not fit its kind.
- `splits`: all splits of a run, and what is odd about them.
- `batches`: the order of examples, their batches and their tensors.
- `heads`: the task's linear layer on the decoder, and the joint objective.
- `predicting`: predictions for a split, on all ranks.
- `probabilities`: probabilities from logits, and the temperature that calibrates them.
- `scores`: metrics.
- `resampling`: the bootstrap of a metric over seeds and examples.
- `class_report`: precision, recall and F1 of each class.
- `pronouns`: the sentences of the pronoun task (DPR).
- `zero_shot`: the paper's heuristics without fine-tuning.
- `minimal_pairs`: pairs of sentences, of which the acceptable one should be the likelier one.
- `blimp`: the 67 paradigms of BLiMP, and the published scores of other models.
- `cloze`: passages that lack their last word; LAMBADA.
- `overlap`: examples that a training text has, by their n-grams of words.
- `benchmarks`: these by name, and a user's own files of both kinds.
"""

import dataclasses

from gpt1_ds.base.errors import ConfigError, near
from gpt1_ds.settings.sections import TaskConfig
from gpt1_ds.tasks.base import LABELLED, Task
from gpt1_ds.tasks.classification import COLA, SST2
from gpt1_ds.tasks.entailment import MNLI, QNLI, RTE, SCITAIL, SNLI, WNLI
from gpt1_ds.tasks.examples import IGNORE, Encoded, Example
from gpt1_ds.tasks.multiple_choice import RACE, STORY_CLOZE
from gpt1_ds.tasks.options import refuse_misfits
from gpt1_ds.tasks.own_data import own_task, user_files
from gpt1_ds.tasks.similarity import MRPC, QQP, STSB, ScoredSimilarity
from gpt1_ds.tasks.token_classification import CONLL2003, WNUT17, TokenClassification

__all__ = ["IGNORE", "LABELLED", "TASKS", "Encoded", "Example", "Task", "build_task"]

TASKS: dict[str, Task] = {
    "cola": COLA,
    "sst2": SST2,
    "mnli": MNLI,
    "snli": SNLI,
    "qnli": QNLI,
    "rte": RTE,
    "scitail": SCITAIL,
    "wnli": WNLI,
    "stsb": STSB,
    "mrpc": MRPC,
    "qqp": QQP,
    "race": RACE,
    "storycloze": STORY_CLOZE,
    "conll2003": CONLL2003,
    "wnut17": WNUT17,
}


def build_task(config: TaskConfig, strict: bool = True) -> Task:
    """The task that `config.name` names or `config.kind` describes, with its options.

    Raises ConfigError for an unknown name and for a description that does not fit its kind. If
    `strict`, an option without effect is refused too; runs of earlier versions may have one.
    """
    if config.kind is None and config.name not in TASKS:
        raise ConfigError(
            f"task.name is '{config.name}'; {near(config.name, TASKS)}, "
            "or set task.kind for your own"
        )
    task = own_task(config) if config.kind is not None else _published(config)
    if config.label_all_subtokens and isinstance(task, TokenClassification):
        task = dataclasses.replace(task, label_all_subtokens=True)
    if config.squared_error and isinstance(task, ScoredSimilarity):
        task = dataclasses.replace(task, squared_error=True)
    if strict:
        refuse_misfits(config, task)
    if (config.split, config.truncation) != (task.split, task.truncation):
        task = dataclasses.replace(task, split=config.split, truncation=config.truncation)
    return task


def _published(config: TaskConfig) -> Task:
    """A published task, with the files and metrics that the user names."""
    task = TASKS[config.name]
    if config.files:
        files, named = user_files(config.files, task.files)
        task = dataclasses.replace(task, files=files, named=named)
    if config.metrics:
        task = dataclasses.replace(task, metrics=tuple(config.metrics))
    return task
