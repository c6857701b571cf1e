"""The examples of a fine-tuning run, as the model sees them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from gpt1_ds.base.errors import ConfigError
from gpt1_ds.data.tokenizer import Tokenizer
from gpt1_ds.runs.predictions import Texts
from gpt1_ds.runs.provenance import examples_digest
from gpt1_ds.settings.sections import FinetuneConfig, TaskConfig
from gpt1_ds.tasks import Encoded, Example, Task
from gpt1_ds.tasks.batches import subset
from gpt1_ds.tasks.class_weights import class_weights
from gpt1_ds.tasks.examples import Label
from gpt1_ds.tasks.scores import majority_score
from gpt1_ds.tasks.splits import oddities, read_splits, vanished_texts


@dataclass
class TaskData:
    """A task's examples as the model sees them, and what its answers are compared with."""

    task: Task
    tokenizer: Tokenizer
    train: list[Encoded]
    dev: list[Encoded]
    gold: list[Label]
    """Answers of the dev examples, as the task's metrics take them."""
    parts: list[str]
    """Part of dev (RACE: middle or high) that each dev example belongs to; empty: none.

    Each part is also scored by itself.
    """
    others: dict[str, list[Example]]
    """Every further split whose file is there: test, MNLI's mismatched half. Predicted last."""
    digests: dict[str, str]
    """Number and hash of the examples in the files of train and dev."""
    majority: float
    """The score on dev of the commonest answer of the training set."""
    class_weights: list[float] | None = None
    """Of each class, in the task loss."""
    dev_texts: Texts | None = None
    """The texts of dev, if they go to the table of predictions."""
    drop_last: bool = False
    """Whether an epoch has no smaller last batch."""
    warnings: list[str] = field(default_factory=list)
    """What is odd about the files and their examples."""

    @property
    def cut(self) -> dict[str, dict[str, int]]:
        """For each split: how many examples were too long for the context, and the tokens they
        lost: `examples`, `tokens` (all together) and `most` (of one example)."""
        counts = {}
        for split, examples in (("train", self.train), ("dev", self.dev)):
            lost = [example.cut for example in examples if example.cut]
            most = max(lost, default=0)
            counts[split] = {"examples": len(lost), "tokens": sum(lost), "most": most}
        return counts

    @property
    def predicted(self) -> dict[str, str]:
        """Number and hash of the examples in the files of the further splits."""
        return {split: examples_digest(examples) for split, examples in self.others.items()}

    @property
    def largest(self) -> tuple[int, int]:
        """Sequences of a training example, and tokens of the longest one."""
        return len(self.train[0].sequences), max(example.length for example in self.train)

    def tokens(self, batch: list[int]) -> int:
        """Real tokens of the training examples with these indices."""
        sequences = [self.train[index].sequences for index in batch]
        return sum(sum(map(len, example)) for example in sequences)

    def steps_per_epoch(self, global_batch: int) -> int:
        """Batches in which every training example comes once; the last one may be smaller.

        With `drop_last` there is no smaller one. ConfigError if there is none at all then.
        """
        if not self.drop_last:
            return -(-len(self.train) // global_batch)
        if len(self.train) < global_batch:
            raise ConfigError(
                f"task.drop_last is true, but {len(self.train)} training examples make no batch of "
                f"train.global_batch {global_batch}; lower it"
            )
        return len(self.train) // global_batch

    def longest_sequence(self, n_ctx: int) -> int:
        """Tokens of the longest sequence of all splits."""
        examples = [*self.train, *self.dev]
        for others in self.others.values():
            examples += self.task.encode(others, self.tokenizer, n_ctx)
        return max(example.length for example in examples)


def read_task_data(
    config: FinetuneConfig, task: Task, tokenizer: Tokenizer, n_ctx: int
) -> TaskData:
    """Every split of the task that is there; train and dev are encoded."""
    folder, seed = config.task.data, config.run.seed
    if not folder:
        raise ConfigError(f"task.data is not set; give the folder of {config.task.name}'s files")
    splits = read_splits(task, folder)
    warnings = oddities(task, folder, splits)
    train, dev = splits.pop("train"), splits.pop("dev")
    digests = {"train": examples_digest(train), "dev": examples_digest(dev)}
    train = [train[index] for index in subset(len(train), config.task.max_examples, seed)]
    if config.eval.batches is not None:
        most = config.eval.batches * config.train.global_batch
        dev = [dev[index] for index in subset(len(dev), most, seed)]
    gold = [example.label for example in dev]
    encoded = {
        "train": task.encode(train, tokenizer, n_ctx),
        "dev": task.encode(dev, tokenizer, n_ctx),
    }
    labels = [example.label for example in train]
    return TaskData(
        task=task,
        tokenizer=tokenizer,
        train=encoded["train"],
        dev=encoded["dev"],
        gold=gold,
        parts=[example.part for example in dev],
        others=splits,
        digests=digests,
        majority=majority_score(task.metrics[0], labels, gold, len(task.classes)),
        class_weights=class_weights(config.task, task, encoded["train"]),
        dev_texts=texts_of(config.task, dev),
        drop_last=config.task.drop_last,
        warnings=warnings + vanished_texts(encoded),
    )


def texts_of(config: TaskConfig, examples: Sequence[Example]) -> Texts | None:
    """The texts for the table of predictions; None if the user did not ask for them."""
    return [example.texts for example in examples] if config.predictions_with_text else None
