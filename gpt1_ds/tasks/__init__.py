"""The tasks of fine-tuning: one file a kind, one line a task.

| kind                 | sequences                                                     | tasks            |
|----------------------|---------------------------------------------------------------|------------------|
| classification       | `<s> text <e>`                                                | CoLA, SST-2      |
| entailment           | `<s> premise <delim> hypothesis <e>`                          | RTE, QNLI, SNLI  |
| similarity           | `<s> a <delim> b <e>` and `<s> b <delim> a <e>`               | STS-B, MRPC, QQP |
| multiple_choice      | `<s> context question <delim> answer <e>`, one an answer      | RACE, Story Cloze|
| token_classification | `<s> text <e>`, every token's state                           | WNUT-17          |

To add a task: a reader (a generator of examples) and a `Task` in the file of its kind, a line below, and a test.
"""

import dataclasses

from gpt1_ds.config import TaskConfig
from gpt1_ds.errors import ConfigError, near
from gpt1_ds.tasks.base import IGNORE, Encoded, Task
from gpt1_ds.tasks.classification import COLA, SST2
from gpt1_ds.tasks.entailment import QNLI, RTE, SNLI
from gpt1_ds.tasks.multiple_choice import RACE, STORY_CLOZE
from gpt1_ds.tasks.similarity import MRPC, QQP, STSB
from gpt1_ds.tasks.token_classification import WNUT17, TokenClassification

__all__ = ["IGNORE", "TASKS", "Encoded", "Task", "build"]

TASKS: dict[str, Task] = {
    "cola": COLA,
    "sst2": SST2,
    "rte": RTE,
    "qnli": QNLI,
    "snli": SNLI,
    "stsb": STSB,
    "mrpc": MRPC,
    "qqp": QQP,
    "race": RACE,
    "storycloze": STORY_CLOZE,
    "wnut17": WNUT17,
}


def build(config: TaskConfig) -> Task:
    """The task that `config.name` names, with the options of `config` that its reading depends on."""
    if config.name not in TASKS:
        raise ConfigError(f"task.name is '{config.name}'; {near(config.name, TASKS)}")
    task = TASKS[config.name]
    if config.label_all_subtokens and isinstance(task, TokenClassification):
        task = dataclasses.replace(task, label_all_subtokens=True)
    return task
