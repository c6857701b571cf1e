"""What the report puts beside a run's figures."""

import json
import math
from pathlib import Path

import pytest

from gpt1_ds.reports.expected import PAPER_MODEL, expected_of
from gpt1_ds.reports.run_files import RunFiles
from tests.support.report_runs import make_fine_tuning, make_run


def with_model(folder: Path, **model: object) -> RunFiles:
    """The run of `make_run` with another model."""
    make_run(folder)
    [state] = folder.glob("checkpoints/*/state.json")
    state.write_text(json.dumps({"model": {"vocab_size": 512, **model}}))
    return RunFiles(folder)


def test_the_first_loss_of_new_weights_is_beside_that_of_equal_chances(tmp_path):
    run = with_model(tmp_path / "a", n_layer=2)
    [first] = expected_of(run)
    assert (first.measured, first.expected) == ("6.0000", f"{math.log(512):.4f}")
    run.config["init"] = {"checkpoint": "runs/a"}
    assert expected_of(run) == [], "weights of another run know more"


def test_the_papers_model_is_beside_the_papers_perplexity(tmp_path):
    run = with_model(tmp_path / "a", **PAPER_MODEL)
    last = expected_of(run)[-1]
    assert (last.figure, last.measured) == ("perplexity, bo<ks", f"{math.exp(4):,.1f}")
    assert last.expected == "18.4"


@pytest.mark.parametrize(
    ("config", "paper", "says"),
    [
        ({}, "0.9130", "in full"),
        ({"task": {"lm_coef": 0.0}}, "0.9200", "without the auxiliary objective"),
        ({"task": {"n_transfer": -1}}, "0.8400", "without pre-training"),
        ({"model": {"kind": "lstm"}}, "0.9050", "LSTM"),
    ],
)
def test_a_score_is_beside_chance_and_the_papers_score(tmp_path, config, paper, says):
    run = RunFiles(make_fine_tuning(tmp_path / "a"))
    run.config = config
    chance, theirs = expected_of(run)
    assert (chance.measured, chance.expected, chance.score) == ("0.7000", "0.5000", 0.5)
    assert (theirs.expected, says in theirs.source) == (paper, True)


def test_splits_and_tasks_that_the_paper_has_or_not(tmp_path):
    run = RunFiles(make_fine_tuning(tmp_path / "a"))
    accuracy = {"accuracy": 0.6}
    run.result |= {"task": "mnli", "splits": {"dev_mismatched": accuracy, "test": accuracy}}
    found = {figure.figure: figure.expected for figure in expected_of(run)}
    assert found == {
        "dev accuracy": "0.8210",
        "dev_mismatched accuracy": "0.8140",
        "test accuracy": "0.8210",
    }
    run.result |= {"task": "own", "splits": {}}
    assert [figure.expected for figure in expected_of(run)] == ["0.5000"]
    run.result = {}
    assert expected_of(run) == []
