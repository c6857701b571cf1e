"""What the report puts beside a run's figures."""

import json
import math
from pathlib import Path

import pytest
import yaml

from gpt1_ds.reports.charts import page_data
from gpt1_ds.reports.expected import PAPER_MODEL, expected_of
from gpt1_ds.reports.expected_curves import EXPECTED, curves_of
from gpt1_ds.reports.run_files import RunFiles
from gpt1_ds.settings.loading import load, to_yaml
from gpt1_ds.settings.sections import PretrainConfig
from gpt1_ds.settings.shipped import CONFIGS
from tests.support.report_runs import lines, make_fine_tuning, make_run


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


@pytest.fixture
def like_quickstart(tmp_path: Path) -> Path:
    """A run with the settings and the shards of the shipped configuration, up to step 300."""
    content = yaml.safe_load((EXPECTED / "quickstart.yaml").read_text())
    (losses,) = content["losses"].values()
    folder = make_run(tmp_path / "a")
    config = load(PretrainConfig, CONFIGS / "quickstart.yaml", ["run.seed=5", "log.every=3"])
    (folder / "config.yaml").write_text(to_yaml(config))
    [state] = folder.glob("checkpoints/*/state.json")
    state.write_text(json.dumps({"model": {"vocab_size": 2000}, "data": content["data"]}))
    valid = [
        {"step": step, "split": "valid", "corpus": "stories", "loss": losses[step][0] + 0.01}
        for step in (0, 100, 200, 300)
    ]
    train = {"step": 300, "split": "train", "loss": 4.0, "tokens": 9600, "elapsed_seconds": 60.0}
    (folder / "metrics.jsonl").write_text(lines(*valid, train))
    return folder


def test_a_shipped_curve_stands_behind_that_of_a_run_like_it(like_quickstart, tmp_path):
    run = RunFiles(like_quickstart)
    (curve,) = curves_of(run)
    assert [point.step for point in curve.points] == [0, 100, 200, 300], "no further than the run"
    assert all(0 < point.tolerance < 0.5 for point in curve.points)
    (figure,) = [found for found in expected_of(run) if "at step 300" in found.figure]
    assert "within it" in figure.expected and figure.source.startswith("quickstart: ")
    (chart,) = [chart for chart in page_data([run], [])["charts"] if "bands" in chart]
    (band,) = chart["bands"]
    step, _, seconds, _, low, high = band["points"][-1]
    assert (step, seconds) == (300, 60)
    assert high - low == pytest.approx(2 * curve.points[-1].tolerance)
    run.valid[-1]["loss"] += 1
    assert any("outside of it" in found.expected for found in expected_of(run))


@pytest.mark.parametrize("change", ["optim.lr=1e-3", "model.n_ctx=64", "train.max_steps=500"])
def test_a_run_with_other_settings_or_data_has_no_expected_curve(like_quickstart, change):
    run = RunFiles(like_quickstart)
    section, _, setting = change.partition(".")
    key, _, value = setting.partition("=")
    run.config[section][key] = yaml.safe_load(value)
    assert curves_of(run) == []
    run = RunFiles(like_quickstart)
    del run.config["train"]["grad_clip"]  # as a version without this setting
    assert curves_of(run)
    run.state["data"] = {**run.state["data"], "train/stories": "1 tokens, sha256 ab"}
    assert curves_of(run) == []
