"""Options of the `task` section that would have no effect, or that do not fit the task's kind."""

from gpt1_ds.base.errors import ConfigError
from gpt1_ds.settings.sections import TaskConfig
from gpt1_ds.tasks.base import Task
from gpt1_ds.tasks.class_weights import refuse_bad_weights
from gpt1_ds.tasks.scores import refuse_unknown_metric
from gpt1_ds.tasks.similarity import ScoredSimilarity
from gpt1_ds.tasks.token_classification import TokenClassification

CLASS_METRICS = ("accuracy", "f1", "matthews")
SCORE_METRICS = ("pearson", "spearman")
TAG_METRICS = ("entity_f1",)


def metrics_of(task: Task) -> tuple[str, ...]:
    """The metrics that are defined for the labels of `task`.

    A correlation needs an order. Classes have one if their labels are numbers that rise.
    """
    if isinstance(task, TokenClassification):
        return TAG_METRICS
    if isinstance(task, ScoredSimilarity):
        return SCORE_METRICS
    return CLASS_METRICS + SCORE_METRICS if _rise(task.classes) else CLASS_METRICS


def _kind(task: Task) -> str:
    """The kind as `task.kind` names it."""
    return "similarity_score" if isinstance(task, ScoredSimilarity) else task.kind


def _rise(labels: tuple[str, ...]) -> bool:
    try:
        numbers = [float(label) for label in labels]
    except ValueError:
        return False
    return numbers == sorted(set(numbers))


def refuse_misfits(config: TaskConfig, task: Task) -> None:
    """ConfigError for an option that would do nothing to `task`, or that it cannot follow."""
    if config.metrics == []:
        raise ConfigError("task.metrics is []; name at least one, or leave it out")
    refuse_unknown_metric(task.metrics)
    choices = metrics_of(task)
    for metric in task.metrics:
        if metric not in choices:
            raise ConfigError(
                f"task.metrics names '{metric}', which does not go with {_kind(task)} "
                f"({config.name}); choose from: {', '.join(choices)}"
            )
    if config.kind is None:
        _refuse_descriptions(config, task)
    of_tokens = isinstance(task, TokenClassification)
    of_classes = task.kind not in ("multiple_choice", "token_classification")
    of_classes = of_classes and not isinstance(task, ScoredSimilarity)
    needs = {
        f"class_weights={config.class_weights}": (
            config.class_weights is not None,
            of_classes or of_tokens,
            "classification, entailment, similarity and token_classification",
        ),
        "sampling=balanced": (
            config.sampling == "balanced",
            of_classes,
            "classification, entailment and similarity",
        ),
        "truncation=fields": (
            config.truncation == "fields",
            task.kind not in ("classification", "token_classification"),
            "kinds with two texts or more",
        ),
        "split=released": (
            config.split == "released",
            config.name == "storycloze" and config.kind is None,
            "storycloze",
        ),
        "label_all_subtokens=true": (config.label_all_subtokens, of_tokens, "token_classification"),
        "squared_error=true": (
            config.squared_error,
            isinstance(task, ScoredSimilarity),
            "similarity_score",
        ),
        "pool=first": (config.pool == "first", not of_tokens, "kinds with one state an example"),
    }
    for option, (is_set, fits, kinds) in needs.items():
        if is_set and not fits:
            raise ConfigError(
                f"task.{option} has no effect on {config.name} ({_kind(task)}), only on {kinds}; "
                "leave it out"
            )
    refuse_bad_weights(config, task)
    if config.lm_coef == config.task_coef == 0:
        raise ConfigError("task.lm_coef and task.task_coef are 0: nothing is trained; set one")


def _refuse_descriptions(config: TaskConfig, task: Task) -> None:
    """A published task has its own columns and labels."""
    if config.labels is not None and tuple(config.labels) != task.classes:
        raise ConfigError(
            f"task.labels is {config.labels}, but {config.name} has its own: "
            f"{', '.join(task.classes)}; leave it out, or set task.kind for your own task"
        )
    if config.columns is not None:
        raise ConfigError(
            f"task.columns is {config.columns}, but {config.name} has its own; leave it out, or "
            "set task.kind for your own task"
        )
