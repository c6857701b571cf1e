"""The weights of classes in the task loss, from `task.class_weights` and the training examples."""

from collections import Counter
from collections.abc import Sequence
from itertools import chain

from gpt1_ds.base.errors import ConfigError, near
from gpt1_ds.settings.sections import TaskConfig
from gpt1_ds.tasks.base import Task
from gpt1_ds.tasks.batches import classes_of
from gpt1_ds.tasks.examples import Encoded

BALANCED = "balanced"


def refuse_bad_weights(config: TaskConfig, task: Task) -> None:
    """ConfigError for weights that do not fit the labels of `task`."""
    weights = config.class_weights
    listed = ", ".join(task.classes)
    if isinstance(weights, list) and len(weights) != len(task.classes):
        raise ConfigError(
            f"task.class_weights is {weights}; give {len(task.classes)} weights, for {listed}"
        )
    if isinstance(weights, dict):
        for name in weights:
            if name not in task.classes:
                raise ConfigError(f"task.class_weights names '{name}'; {near(name, task.classes)}")
    if weights and weights != BALANCED and not any(_all_weights(config, task)):
        raise ConfigError(f"task.class_weights is {weights}: all are 0; give one above 0")


def _all_weights(config: TaskConfig, task: Task) -> list[float]:
    """The weights that the user gave; those that are not named are 1."""
    weights = config.class_weights
    if isinstance(weights, dict):
        return [weights.get(name, 1.0) for name in task.classes]
    return list(weights) if isinstance(weights, list) else []


def class_weights(config: TaskConfig, task: Task, train: Sequence[Encoded]) -> list[float] | None:
    """The weight of each class of `task`; None: no weights.

    `balanced` is scikit-learn's: labels / (classes * labels of the class). A class that does not
    occur has weight 0. Token classification counts tokens.
    """
    if config.class_weights != BALANCED:
        return _all_weights(config, task) or None
    counts = Counter(chain.from_iterable(map(classes_of, train)))
    total, n_classes = counts.total(), len(task.classes)
    return [
        total / (n_classes * counts[number]) if counts[number] else 0.0
        for number in range(n_classes)
    ]
