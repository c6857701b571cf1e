"""Metrics, the majority score and the confusion matrix, for known answers."""

import math

import pytest

from gpt1_ds.base.errors import ConfigError
from gpt1_ds.reports.figures import confusion_figure
from gpt1_ds.tasks.scores import (
    confusion_matrix,
    majority_score,
    scores_by_part,
    task_metrics,
)


def test_metrics_of_known_answers():
    gold, predicted = [1, 1, 0, 0, 1], [1, 0, 0, 1, 1]
    assert task_metrics(("accuracy", "f1"), gold, predicted) == pytest.approx(
        {"accuracy": 0.6, "f1": 2 / 3}
    )
    assert task_metrics(("matthews",), gold, predicted)["matthews"] == pytest.approx(
        (2 * 1 - 1 * 1) / 6
    )
    assert task_metrics(("matthews", "f1"), [0, 0], [0, 0]) == {"matthews": 0.0, "f1": 0.0}
    assert task_metrics(("pearson", "spearman"), [1.0, 2.0, 3.0], [2.0, 4.0, 9.0])[
        "spearman"
    ] == pytest.approx(1)
    assert task_metrics(("pearson",), [1.0, 2.0, 3.0], [2.0, 2.0, 2.0]) == {"pearson": 0.0}
    tags = [["B-person", "I-person", "O", "B-group"]]
    assert task_metrics(("entity_f1",), tags, [["B-person", "O", "O", "B-group"]]) == {
        "entity_f1": 0.5
    }


def test_majority_answers_without_the_text():
    assert majority_score("accuracy", [0, 1, 1], [1, 1, 0, 1]) == 0.75
    assert majority_score("matthews", [0, 1, 1], [1, 1, 0, 1]) == 0.0
    assert majority_score("pearson", [1.0, 3.0], [0.0, 5.0]) == 0.0
    assert majority_score("entity_f1", [("O", "O", "B-person")], [("O", "B-person")]) == 0.0


def test_a_correlation_of_one_value_is_0_with_a_warning(capsys: pytest.CaptureFixture):
    assert task_metrics(("matthews", "pearson"), [1, 0, 1], [1, 1, 1]) == {
        "matthews": 0.0,
        "pearson": 0.0,
    }
    assert task_metrics(("matthews",), [1, 1], [1, 0]) == {"matthews": 0.0}
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 3 and "matthews is undefined where all predictions are alike" in said[0]
    assert "matthews is undefined where all labels are alike" in said[2]


def test_f1_of_more_than_two_classes_is_their_mean():
    assert task_metrics(("f1",), [0, 1, 2, 2], [0, 1, 2, 2]) == {"f1": 1.0}
    assert task_metrics(("f1",), [0, 1, 2, 2], [0, 1, 0, 2])["f1"] == pytest.approx(
        (2 / 3 + 1 + 2 / 3) / 3
    )
    with pytest.raises(ConfigError, match="did you mean 'accuracy'"):
        task_metrics(("acuracy",), [0], [0])


def test_confusion_counts_labels_by_predictions():
    assert confusion_matrix(("a", "b", "c"), [0, 0, 1, 2], [0, 1, 1, 0]) == [
        [1, 1, 0],
        [0, 1, 0],
        [1, 0, 0],
    ]
    assert confusion_matrix(("O", "B-x"), [("O", "B-x")], [["O", "O"]]) == [[1, 0], [1, 0]]
    assert confusion_matrix(("0", "1"), [0.5], [0.5]) is None
    axes = confusion_figure(("a", "b"), [[3, 1], [0, 0]]).axes[0]
    assert [text.get_text() for text in axes.texts] == ["3", "1", "0", "0"]
    assert axes.images[0].get_array().tolist() == [[0.75, 0.25], [0.0, 0.0]]


def test_f1_depends_on_the_classes_of_the_task_and_not_on_those_that_occur():
    """F1 of 0 and 1 is 2/3 each; a class that does not occur counts as 0 in the mean."""
    gold, predicted = [0, 1, 1], [0, 1, 0]
    parts = ["x", "x", "x"]
    for n_classes, expected in ((2, 2 / 3), (3, 4 / 9), (4, 1 / 3)):
        expected = pytest.approx({"f1": expected})
        assert task_metrics(("f1",), gold, predicted, n_classes) == expected
        by_part = scores_by_part(("f1",), "dev", parts, gold, predicted, n_classes)
        assert by_part == {"dev_x": expected}
    for n_classes, expected in ((2, 0.8), (3, 0.8 / 3)):  # every answer is 1
        found = majority_score("f1", [1], gold, n_classes)
        assert found == pytest.approx(expected)
    # The second of two classes is the positive one, also if only the first occurs.
    assert task_metrics(("f1",), [0, 0], [0, 0], 2) == {"f1": 0.0}
    assert task_metrics(("f1",), [0, 0], [0, 0], 3)["f1"] == pytest.approx(1 / 3)


def test_a_correlation_of_predictions_that_are_no_numbers_is_0(capsys: pytest.CaptureFixture):
    for name in ("pearson", "spearman"):
        assert task_metrics((name,), [1.0, 2.0, 3.0], [math.nan, 2.0, 1.0]) == {name: 0.0}
        assert f"warning: {name} is undefined for these predictions" in capsys.readouterr().out
