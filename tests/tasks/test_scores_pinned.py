"""Scores of tasks, with values made by hand."""

import pytest

from gpt1_ds.base.errors import ConfigError
from gpt1_ds.tasks.scores import confusion_matrix, majority_score, scores_by_part, task_metrics


def test_metrics():
    gold, predicted = [1, 1, 1, 0, 0], [1, 0, 1, 1, 0]
    found = task_metrics(("accuracy", "f1", "matthews"), gold, predicted)
    # 2 true and 1 false positives, 1 true and 1 false negatives.
    assert found == pytest.approx({"accuracy": 0.6, "f1": 2 / 3, "matthews": (2 * 1 - 1 * 1) / 6})
    assert task_metrics(("f1",), [0, 0], [0, 0]) == {"f1": 0.0}
    assert task_metrics(("f1",), [0, 1], [0, 2])["f1"] == pytest.approx(1 / 3)
    assert task_metrics(("f1",), [0, 2], [0, 1])["f1"] == pytest.approx(1 / 3)
    assert task_metrics(("f1",), [0, 1], [0, 1]) == {"f1": 1.0}
    scores = task_metrics(("pearson", "spearman"), [1.0, 2.0, 3.0], [1.0, 2.0, 6.0])
    assert scores == pytest.approx({"pearson": 5 / (2 * 14) ** 0.5, "spearman": 1.0})
    with pytest.raises(ConfigError, match="task.metrics names 'zzz'; choose from: accuracy"):
        task_metrics(("accuracy", "zzz"), gold, predicted)


def test_a_correlation_of_one_value_counts_as_0(capsys):
    assert task_metrics(("pearson",), [1.0, 1.0], [1.0, 2.0]) == {"pearson": 0.0}
    assert task_metrics(("spearman",), [1.0, 2.0], [2.0, 2.0]) == {"spearman": 0.0}
    said = capsys.readouterr().out
    assert "pearson is undefined where all labels are alike; it counts as 0" in said
    assert "spearman is undefined where all predictions are alike" in said
    assert task_metrics(("matthews",), [0, 1], [1, 0])["matthews"] == -1.0
    assert capsys.readouterr().out == ""


def test_entities_are_whole():
    gold = [("B-x", "I-x", "O"), ("O", "B-y")]
    assert task_metrics(("entity_f1",), gold, [["B-x", "O", "O"], ["O", "B-y"]]) == {
        "entity_f1": 0.5
    }
    assert task_metrics(("entity_f1",), gold, [["O"] * 3, ["O"] * 2]) == {"entity_f1": 0.0}


def test_scores_of_parts():
    parts = ["high", "", "middle", "high"]
    assert scores_by_part(("accuracy",), "dev", parts, [0, 1, 1, 1], [0, 0, 1, 0]) == {
        "dev_high": {"accuracy": 0.5},
        "dev_middle": {"accuracy": 1.0},
    }


def test_the_answer_that_needs_no_text():
    assert majority_score("accuracy", [2, 0, 2, 1, 1, 2], [2, 2, 0, 1]) == 0.5
    assert majority_score("f1", [0, 1, 1], [1, 1, 0, 0]) == pytest.approx(2 / 3)
    assert majority_score("spearman", [1.0], [1.0, 2.0]) == 0.0
    assert majority_score("entity_f1", [("B-x", "B-x", "O")], [("B-x", "O")]) == pytest.approx(
        2 / 3
    )
    assert majority_score("accuracy", [0, 0, 1], [1, 1]) == 0.0


def test_confusions():
    assert confusion_matrix(("a", "b", "c"), [0, 0, 1], [0, 2, 2]) == [
        [1, 0, 1],
        [0, 0, 1],
        [0, 0, 0],
    ]
    assert confusion_matrix(("O", "B-x"), [("O", "B-x"), ("O",)], [("O", "O"), ("B-x",)]) == [
        [1, 1],
        [1, 0],
    ]
    assert confusion_matrix(("0", "1"), [1.0], [1.0]) is None
