"""Weights of classes in the task loss, and balanced sampling."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gpt1_ds.base.errors import ConfigError
from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import FinetuneConfig, TaskConfig
from gpt1_ds.tasks import IGNORE, TASKS, Encoded, build_task
from gpt1_ds.tasks.batches import collate, epoch_batches, n_lm_targets, n_targets
from gpt1_ds.tasks.class_weights import class_weights
from gpt1_ds.tasks.heads import Counts, TaskModel, objective

SPECIAL = {"pad": 0, "s": 1, "e": 2}
WEIGHTS = [0.1, 0.7, 2.5]


def encoded(kind: str) -> list[Encoded]:
    """Six examples of three classes, of different lengths."""
    examples = []
    for index, label in enumerate([0, 1, 1, 2, 0, 0]):
        ids = [1, *range(5, 8 + index), 2]
        target: list = [float(label == number) for number in range(3)]
        if kind == "token_classification":
            target = [IGNORE, label, *[IGNORE] * (len(ids) - 3), (label + 1) % 3]
        examples.append(Encoded([ids], target))
    return examples


@pytest.mark.parametrize("kind", ["classification", "token_classification"])
@pytest.mark.parametrize("micro_batch", [6, 4, 1])
def test_the_weighted_loss_is_torchs_whatever_the_micro_batch(kind, micro_batch):
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(vocab_size=32, n_layer=1, n_head=2, n_embd=8, n_ctx=16))
    model = TaskModel(gpt, kind, 3, "last", 0.0).eval()
    model.class_weights = WEIGHTS
    examples = encoded(kind)
    n_labels = sum(n_targets(example, WEIGHTS) for example in examples)
    counts = Counts(n_labels, sum(map(n_lm_targets, examples)))
    config = TaskConfig(lm_coef=0.0)
    parts, logits, labels = [], [], []
    for start in range(0, len(examples), micro_batch):
        batch = collate(examples[start : start + micro_batch], SPECIAL, examples[0])
        task_loss, lm_loss, found = model(batch.ids_BST, batch.end_BS, batch.targets)
        parts.append(objective(task_loss, lm_loss, counts, config))
        logits.append(found.flatten(0, -2))
        is_class = kind == "classification"
        labels.append(batch.targets.argmax(1) if is_class else batch.targets.flatten())
    expected = F.cross_entropy(
        torch.cat(logits), torch.cat(labels), torch.tensor(WEIGHTS), ignore_index=IGNORE
    )
    torch.testing.assert_close(sum(parts), expected)


def test_balanced_weights_are_scikit_learns_and_names_may_be_given():
    from sklearn.utils.class_weight import compute_class_weight

    snli, examples = TASKS["snli"], encoded("entailment")
    found = class_weights(TaskConfig(name="snli", class_weights="balanced"), snli, examples)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=[0, 1, 1, 2, 0, 0])
    assert found == pytest.approx(expected.tolist())
    without_last = class_weights(TaskConfig(class_weights="balanced"), snli, examples[:3])
    assert without_last == [1.0, 0.5, 0.0]
    named = TaskConfig(name="snli", class_weights={"neutral": 3.0})
    assert class_weights(named, snli, examples) == [1.0, 3.0, 1.0]
    assert class_weights(TaskConfig(class_weights=WEIGHTS), snli, examples) == WEIGHTS
    assert class_weights(TaskConfig(), snli, examples) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("task.class_weights=balanced", "balanced"),
        ("task.class_weights=[1, 3e0]", [1.0, 3.0]),
        ("task.class_weights={0: 1, 1: 3}", {"0": 1.0, "1": 3.0}),
        ("task.class_weights.1=3", {"1": 3.0}),
        ("task.class_weights=null", None),
    ],
)
def test_weights_are_set_in_three_ways(text, value):
    config = load(FinetuneConfig, None, ["task.class_weights=balanced", text])
    assert config.task.class_weights == value
    build_task(config.task)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"class_weights": "balancd"}, "balanced"),
        ({"class_weights": "3"}, "balanced"),
        ({"class_weights": "[1, -1]"}, r"class_weights\[1\] is -1.0; it must be at least 0"),
        ({"class_weights": "{0: .inf}"}, "class_weights.0 is inf"),
        ({"class_weights": "[1, 2, 3]"}, "give 2 weights, for 0, 1"),
        ({"class_weights": "[]"}, "give 2 weights"),
        ({"class_weights": "[0, 0]"}, "all are 0"),
        ({"class_weights": "{yes: 2}"}, "names 'yes'"),
        ({"name": "stsb", "class_weights": "balanced"}, "no effect on stsb"),
        ({"name": "race", "class_weights": "balanced"}, "no effect on race"),
        ({"name": "race", "sampling": "balanced"}, "no effect on race"),
        ({"name": "wnut17", "sampling": "balanced"}, "no effect on wnut17"),
        ({"sampling": "even"}, "choose from: balanced, plain, shuffled"),
    ],
)
def test_weights_that_mean_nothing_are_refused_in_one_line(options, says):
    with pytest.raises(ConfigError, match=says) as caught:
        words = [f"task.{key}={value}" for key, value in options.items()]
        build_task(load(FinetuneConfig, None, words).task)
    assert "\n" not in str(caught.value)


def test_balanced_sampling_draws_each_class_equally_often():
    """90 examples of class 0, 9 of class 1, 1 of class 2: 33 or 34 draws of each in an epoch."""
    classes = [0] * 90 + [1] * 9 + [2]
    lengths = [5 + index % 7 for index in range(100)]
    first, again, second = (epoch_batches(lengths, 8, 3, epoch, classes) for epoch in (0, 0, 1))
    assert first == again != second
    assert [len(batch) for batch in first] == [8] * 12 + [4]
    drawn = Counter(chain.from_iterable(first))
    by_class = Counter()
    for index, count in drawn.items():
        by_class[classes[index]] += count
    assert sorted(by_class.values()) == [33, 33, 34]
    assert max(drawn[index] for index in range(90)) == 1
    assert {drawn[index] for index in range(90, 99)} <= {3, 4} and drawn[99] >= 33
