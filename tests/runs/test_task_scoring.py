"""What `eval` says of fine-tuned runs: probabilities, tables, ensembles, calibration."""

import csv
import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import gpt1_ds
from gpt1_ds import eval as gpt1_eval
from gpt1_ds.base.errors import UserError
from gpt1_ds.runs.fine_tuned import encode, load_fine_tuned, logits_of, predictions
from gpt1_ds.tasks.scores import task_metrics
from tests.support.fine_tuning import save_tuned
from tests.support.task_folders import FOLDERS


@pytest.fixture(scope="module")
def tuned(tiny_run: Path, sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs, some named as in a suite; copies of a run are to be changed, not these."""
    folder = tmp_path_factory.mktemp("tuned")
    for name in ("sst2", "snli", "stsb", "wnut17"):
        data = str(sample / "tasks" / FOLDERS[name])
        for seed in (0, 1) if name != "sst2" else (0,):
            run = folder / f"{name}-seed-{seed}"
            save_tuned(run, tiny_run, seed=seed, name=name, data=data)
    return folder


def few(sample: Path, name: str, folder: Path) -> Path:
    """The first examples of a task's dev file."""
    dev = next((sample / "tasks" / FOLDERS[name]).glob("*dev*"))
    part = folder / dev.name
    part.write_text("\n".join(dev.read_text().split("\n")[:60]) + "\n")
    return part


def table(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def run_eval(capsys: pytest.CaptureFixture, *words: object) -> str:
    gpt1_eval.main([str(word) for word in words])
    return capsys.readouterr().out


def test_the_table_has_probabilities_and_texts(tuned, sample, tmp_path, capsys):
    run, data = tuned / "snli-seed-0", few(sample, "snli", tmp_path)
    words = (run, "--task", "snli", "--data", data, "--probabilities", "--with-text")
    said = run_eval(capsys, *words, "--out", tmp_path / "new" / "t.tsv")
    rows = table(tmp_path / "new" / "t.tsv")
    loaded = load_fine_tuned(run, None)
    examples = loaded.task.read(data, "dev")
    logits = torch.tensor(logits_of(loaded, encode(loaded, examples)))
    assert len(rows) == len(examples) and f"predictions of {len(rows)} examples" in said
    for row, example, expected in zip(rows, examples, logits.softmax(-1), strict=True):
        found = [float(row[name]) for name in loaded.task.classes]
        assert found == pytest.approx(expected.tolist(), rel=1e-5)
        assert sum(found) == pytest.approx(1, abs=1e-6)
        assert row["prediction"] == loaded.task.classes[int(np.argmax(found))]
        assert (row["premise"], row["hypothesis"]) == example.texts
        assert row["gold"] == loaded.task.show(example.label)
    header = said.splitlines()[1].split()
    assert header == ["class", "precision", "recall", "f1", "support"]


def test_the_table_lies_in_the_run_unless_asked_elsewhere(tuned, sample, tmp_path, capsys):
    run = shutil.copytree(tuned / "stsb-seed-0", tmp_path / "run")
    data = few(sample, "stsb", tmp_path)
    assert "class" not in run_eval(capsys, run, "--task", "stsb", "--data", data)
    assert not list(run.glob("*.tsv"))
    run_eval(capsys, run, "--task", "stsb", "--data", data, "--probabilities")
    for row in table(run / f"evaluation-{data.stem}.tsv"):
        assert f"{float(row['score']):.3f}" == row["prediction"]


def test_each_word_has_the_probability_of_its_tag(tuned, sample, tmp_path, capsys):
    run, data = tuned / "wnut17-seed-0", few(sample, "wnut17", tmp_path)
    out = tmp_path / "t.tsv"
    run_eval(capsys, run, "--task", "wnut17", "--data", data, "--probabilities", "--out", out)
    loaded = load_fine_tuned(run, None)
    examples = loaded.task.read(data, "dev")
    encoded = encode(loaded, examples)
    rows = table(out)
    for row, example, words in zip(rows, examples, logits_of(loaded, encoded), strict=True):
        found = list(map(float, row["probability"].split(" ")))
        assert len(found) == len(example.texts) == len(row["prediction"].split(" "))
        expected = [
            torch.tensor(word).softmax(0).max().item() if word else np.nan for word in words
        ]
        assert found == pytest.approx(expected, rel=1e-5, nan_ok=True)


def test_lines_of_stdin_get_probabilities(tuned, capsys, monkeypatch):
    text = io.TextIOWrapper(io.BytesIO(b"a fine film\na bad one\n"))
    monkeypatch.setattr(sys, "stdin", text)
    gpt1_eval.main([str(tuned / "sst2-seed-0"), "--predict", "--probabilities"])
    out, err = capsys.readouterr()
    assert "the columns are prediction, 0, 1, text" in err
    rows = [line.split("\t") for line in out.splitlines()]
    assert [row[3] for row in rows] == ["a fine film", "a bad one"]
    for label, *shares, _ in rows:
        assert label == str(int(np.argmax(list(map(float, shares)))))
        assert sum(map(float, shares)) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", ["snli", "stsb", "wnut17"])
def test_an_ensemble_is_the_mean_of_its_members(tuned, sample, tmp_path, capsys, name):
    """Given as two runs, and as the folder of a suite."""
    data = few(sample, name, tmp_path)
    runs = [tuned / f"{name}-seed-{seed}" for seed in (0, 1)]
    said = run_eval(capsys, "--ensemble", *runs, "--data", data)
    assert said == run_eval(capsys, "--ensemble", tuned, "--task", name, "--data", data)
    members = [load_fine_tuned(run, None) for run in runs]
    examples = members[0].task.read(data, "dev")
    gold, task = [example.label for example in examples], members[0].task
    scores, shares = [], []
    for member in members:
        labels = predictions(member, examples)
        scores.append(task_metrics(task.metrics, gold, labels, len(task.classes)))
        rows = logits_of(member, encode(member, examples))
        if name == "stsb":
            shares.append(np.array([[label] for label in labels]))
        elif name == "snli":
            shares.append(torch.tensor(rows).softmax(-1).numpy())
        else:
            nothing = [0.0] * len(task.classes)
            shares.append([torch.tensor([w or nothing for w in row]).softmax(-1) for row in rows])
    if name == "wnut17":
        means = [(one + other) / 2 for one, other in zip(*shares, strict=True)]
        together = [[task.classes[i] for i in mean.argmax(-1)] for mean in means]
    else:
        mean = (shares[0] + shares[1]) / 2
        together = mean.argmax(-1).tolist() if name == "snli" else mean[:, 0].tolist()
    scores.append(task_metrics(task.metrics, gold, together, len(task.classes)))
    lines = said.splitlines()[:3]
    assert lines[2].startswith(f"ensemble of 2 on {data}: ")
    for line, expected in zip(lines, scores, strict=True):
        assert all(f"{metric} {value:.4f}" in line for metric, value in expected.items()), line


def test_a_temperature_is_kept_and_used_for_its_weights_alone(tuned, sample, tmp_path, capsys):
    run = shutil.copytree(tuned / "snli-seed-0", tmp_path / "run")
    data = few(sample, "snli", tmp_path)
    said = run_eval(capsys, run, "--calibrate", "--data", data)
    fitted = json.loads((run / "calibration.json").read_text())
    assert f"NLL  {fitted['nll']['before']:.4f} before, {fitted['nll']['after']:.4f} after" in said
    assert fitted["nll"]["after"] < fitted["nll"]["before"]
    table_of = {}
    for option in ([], ["--uncalibrated"]):
        out = tmp_path / f"{len(option)}.tsv"
        words = [run, "--task", "snli", "--data", data, "--probabilities", "--out", out, *option]
        gpt1_eval.main([str(word) for word in words])
        told = "calibrated with temperature" in capsys.readouterr().err
        assert told is not bool(option)
        table_of[len(option)] = table(out)
    for calibrated, plain in zip(table_of[0], table_of[1], strict=True):
        shares = np.array([float(plain[name]) for name in ("contradiction", "neutral")])
        expected = np.log(shares[0] / shares[1]) / fitted["temperature"]
        found = np.log(float(calibrated["contradiction"]) / float(calibrated["neutral"]))
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-3)
        assert calibrated["prediction"] == plain["prediction"]
    one = load_fine_tuned(run, None).task.read(data, "dev")[0]
    (prediction,) = gpt1_ds.load(run).predict([one.texts])
    expected = {name: float(table_of[0][0][name]) for name in prediction.probabilities}
    assert prediction.probabilities == pytest.approx(expected, rel=1e-4)
    content = fitted | {"checkpoint_sha256": "0" * 64}
    (run / "calibration.json").write_text(json.dumps(content))
    gpt1_eval.main(
        [str(word) for word in [run, "--task", "snli", "--data", data, "--probabilities"]]
    )
    err = capsys.readouterr().err
    assert "was fitted for other weights" in err and "calibrated with" not in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--ensemble {0}/sst2-seed-0 {0}/snli-seed-0 --data x", "task of .* is snli, but of"),
        ("--ensemble {0}/snli-seed-0 --data x", "has one run"),
        ("--ensemble {0} --data x", "has runs of snli, sst2, stsb, wnut17; add --task"),
        ("--ensemble {0} --task rte --data x", "no runs of rte"),
        ("--ensemble {0} --task snli", "--data is not set"),
        ("--ensemble {0} --task snli --data x --probabilities", "needs --out FILE"),
        ("{0}/stsb-seed-0 --calibrate", "similarity scores have no probabilities"),
        ("{0}/snli-seed-0 --calibrate --probabilities", "does not go with --calibrate"),
        ("{0}/snli-seed-0 --data x --probabilities", "--probabilities does not go with"),
        ("{0}/snli-seed-0 --predict --with-text", "--with-text does not go with --predict"),
        ("--task snli --data x", "RUN is not set"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(tuned, words, says):
    with pytest.raises(UserError, match=says) as caught:
        gpt1_eval.main(words.format(tuned).split())
    assert "\n" not in str(caught.value)
