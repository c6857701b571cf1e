"""Probabilities, their calibration, and the report by class."""

import numpy as np
import pytest
import torch
from sklearn.metrics import classification_report

from gpt1_ds.base.errors import ConfigError
from gpt1_ds.settings.sections import TaskConfig
from gpt1_ds.tasks import TASKS, build_task
from gpt1_ds.tasks.class_report import brief, class_report, report_lines
from gpt1_ds.tasks.examples import Encoded
from gpt1_ds.tasks.probabilities import (
    calibrate,
    calibration_error,
    label_of,
    outcome,
    probability_cells,
    probability_columns,
)

BLANK = Encoded([[0]], [0.0])


def test_probabilities_are_the_softmax_in_float32_and_add_up_to_1():
    logits = [3.0, -1.25, 0.5]
    value = outcome(TASKS["snli"], logits, BLANK, 2.0)
    expected = (torch.tensor(logits) / 2).softmax(0)
    cells = probability_cells(TASKS["snli"], value)
    assert [np.float32(cell) for cell in cells] == pytest.approx(expected.tolist(), rel=1e-6)
    assert sum(map(float, cells)) == pytest.approx(1, abs=1e-6)
    assert probability_columns(TASKS["snli"]) == ["contradiction", "neutral", "entailment"]
    assert label_of(TASKS["snli"], value) == 0


@pytest.mark.parametrize("squared_error", [False, True])
def test_of_a_similarity_score_it_is_the_score(squared_error):
    task = build_task(TaskConfig(name="stsb", squared_error=squared_error))
    logits = [3.1] if squared_error else [0.0, 0, 0, 9, 1, 0]
    value = outcome(task, logits, BLANK, 5.0)
    assert probability_columns(task) == ["score"]
    assert label_of(task, value) == task.predict(logits, BLANK)
    assert probability_cells(task, value) == [str(np.float32(task.predict(logits, BLANK)))]


def test_of_words_it_is_that_of_the_tag_and_a_word_without_a_token_has_none():
    task = TASKS["conll2003"]
    logits = [[0.0] * 8 + [5.0], [], [2.0] + [0.0] * 8]
    value = outcome(task, logits, BLANK, 1.0)
    assert label_of(task, value) == ["I-PER", "O", "O"]
    first, second, third = map(float, probability_cells(task, value)[0].split(" "))
    assert first == pytest.approx(np.exp(5) / (np.exp(5) + 8), rel=1e-6) and np.isnan(second)
    assert third == pytest.approx(np.exp(2) / (np.exp(2) + 8), rel=1e-6)


def test_the_temperature_is_the_one_the_labels_were_drawn_with():
    """Labels drawn from the softmax of logits / 2.5: the fit gets 2.5 back."""
    random = np.random.default_rng(0)
    logits_NK = 4 * random.normal(size=(20_000, 3))
    powers = np.exp(logits_NK / 2.5)
    shares = powers / powers.sum(1, keepdims=True)
    gold = [int(random.choice(3, p=share)) for share in shares]
    found = calibrate(TASKS["snli"], logits_NK.tolist(), [BLANK] * len(gold), gold)
    assert found.temperature == pytest.approx(2.5, rel=0.03) and found.labels == 20_000
    expected = torch.nn.functional.cross_entropy(torch.tensor(logits_NK), torch.tensor(gold))
    assert found.nll[0] == pytest.approx(expected.item(), rel=1e-9) and found.nll[1] < found.nll[0]
    assert found.ece[1] < 0.02 < 0.1 < found.ece[0]
    with pytest.raises(ConfigError, match="similarity scores have no probabilities"):
        calibrate(TASKS["stsb"], [[0.0] * 6], [BLANK], [1.0])


def test_words_are_calibrated_each_and_those_without_a_token_left_out():
    task = TASKS["conll2003"]
    logits = [[[1.0] + [0.0] * 8, []], [[0.0] * 9]]
    found = calibrate(task, logits, [BLANK] * 2, [("O", "B-PER"), ("O",)])
    assert found.labels == 2


def test_the_calibration_error_is_the_gap_in_each_bin():
    """Two bins: 0.9 right in 1 of 2, 0.6 right in 2 of 2."""
    shares_NK = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]])
    error = calibration_error(shares_NK, np.array([0, 1, 0, 1]))
    assert error == pytest.approx((2 * abs(0.9 - 0.5) + 2 * abs(0.6 - 1)) / 4)


def test_the_report_by_class_is_scikit_learns():
    task, gold, predicted = TASKS["snli"], [0, 0, 0, 1, 1, 0], [0, 1, 0, 1, 0, 0]
    report = class_report(task, gold, predicted)
    expected = classification_report(
        gold, predicted, labels=[0, 1], target_names=task.classes[:2], output_dict=True
    )
    for name in task.classes[:2]:
        wanted = expected[name]
        assert report[name]["precision"] == wanted["precision"]
        assert report[name]["recall"] == wanted["recall"]
        assert report[name]["f1"] == wanted["f1-score"]
        assert report[name]["support"] == wanted["support"]
    assert report["entailment"] == {"precision": 0, "recall": 0, "f1": 0, "support": 0}
    lines = report_lines(report)
    assert lines[0].split() == ["class", "precision", "recall", "f1", "support"]
    assert lines[1].split() == ["contradiction", "0.7500", "0.7500", "0.7500", "4"]
    assert len(lines) == 5 and len(set(map(len, lines))) == 1
    assert brief(report) == "contradiction 0.7500, neutral 0.5000, entailment 0.0000"
    assert class_report(TASKS["stsb"], [1.0], [2.0]) is None


def test_of_tags_the_classes_are_types_of_whole_entities():
    gold = [("B-PER", "I-PER", "O", "B-LOC"), ("B-LOC", "O")]
    predicted = [["B-PER", "O", "O", "B-LOC"], ["B-LOC", "B-ORG"]]
    report = class_report(TASKS["conll2003"], gold, predicted)
    assert list(report) == ["LOC", "MISC", "ORG", "PER"]
    assert report["LOC"] == {"precision": 1, "recall": 1, "f1": 1, "support": 2}
    assert report["PER"] == {"precision": 0, "recall": 0, "f1": 0, "support": 1}
    assert report["MISC"]["support"] == report["ORG"]["support"] == 0
