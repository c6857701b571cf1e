"""The tasks of fine-tuning: one file a kind, one line a task.

| kind                 | sequences                                                | tasks                              |
|----------------------|----------------------------------------------------------|------------------------------------|
| classification       | `<s> text <e>`                                           | CoLA, SST-2                        |
| entailment           | `<s> premise <delim> hypothesis <e>`                     | MNLI, SNLI, QNLI, RTE, SciTail, .. |
| similarity           | `<s> a <delim> b <e>` and `<s> b <delim> a <e>`          | STS-B, MRPC, QQP                   |
| multiple_choice      | `<s> context question <delim> answer <e>`, one an answer | RACE, Story Cloze                  |
| token_classification | `<s> text <e>`, every token's state                      | CoNLL-2003, WNUT-17                |

To add a task: a file with its `Task` (whose table names files, columns and labels), a line below, and a test. A task
of a user's own needs none of that: `task.kind` and the keys beside it describe it (see `own_data.py`).
"""

import dataclasses

from gpt1_ds.base.errors import ConfigError, near
from gpt1_ds.settings.sections import TaskConfig
from gpt1_ds.tasks.base import IGNORE, LABELLED, Encoded, Example, Task
from gpt1_ds.tasks.classification import COLA, SST2
from gpt1_ds.tasks.entailment import MNLI, QNLI, RTE, SCITAIL, SNLI, WNLI
from gpt1_ds.tasks.multiple_choice import RACE, STORY_CLOZE
from gpt1_ds.tasks.own_data import own_task
from gpt1_ds.tasks.similarity import MRPC, QQP, STSB, ScoredSimilarity
from gpt1_ds.tasks.token_classification import CONLL2003, WNUT17, TokenClassification

__all__ = ["IGNORE", "LABELLED", "TASKS", "Encoded", "Example", "Task", "build"]

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


def build(config: TaskConfig) -> Task:
    """The task that `config.name` names or `config.kind` describes, with the options its reading depends on."""
    if config.kind is None and config.name not in TASKS:
        raise ConfigError(
            f"task.name is '{config.name}'; {near(config.name, TASKS)}, or set task.kind for your own"
        )
    task = TASKS[config.name] if config.kind is None else own_task(config)
    if config.label_all_subtokens and isinstance(task, TokenClassification):
        task = dataclasses.replace(task, label_all_subtokens=True)
    if config.squared_error and isinstance(task, ScoredSimilarity):
        task = dataclasses.replace(task, squared_error=True)
    return task
