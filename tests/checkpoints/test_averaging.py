"""The mean of the last checkpoints of a run: its values, its memory, its errors."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from gpt1_ds import eval, export
from gpt1_ds.base.errors import ConfigError, DataError
from gpt1_ds.checkpoints import averaging
from gpt1_ds.checkpoints.averaging import load_mean
from gpt1_ds.checkpoints.folder import step_folder
from gpt1_ds.checkpoints.loading import load_weights
from gpt1_ds.checkpoints.saving import save_weights
from gpt1_ds.model.gpt import GPTConfig
from gpt1_ds.runs.trained import load_gpt
from tests.conftest import ROOT, succeed
from tests.support.fine_tuning import save_tuned

spec = importlib.util.spec_from_file_location("scale", ROOT / "benchmarks" / "scale.py")
scale = importlib.util.module_from_spec(spec)
spec.loader.exec_module(scale)

SHAPE = GPTConfig(500, 2, 2, 24, 16)
LAYOUTS = [(2, 8), (3, 3), (3, 8), (2, 1)]
"""ZeRO stage and ranks of the checkpoints of a run that was resized."""


def write_run(folder: Path, shape: GPTConfig = SHAPE, layouts=LAYOUTS) -> Path:
    for step, layout in enumerate(layouts, start=1):
        scale.write_checkpoint(step_folder(folder / "checkpoints", step), shape, *layout)
    return folder


def noisy_run(tiny_run: Path, folder: Path) -> Path:
    """A run with three checkpoints: the weights of `tiny_run` and a little noise."""
    shutil.copytree(tiny_run / "tokenizer", folder / "tokenizer")
    gpt, state, _ = load_gpt(tiny_run)
    for step in range(1, 4):
        weights = {name: w + 0.01 * torch.randn_like(w) for name, w in gpt.state_dict().items()}
        save_weights(folder / str(step), weights, state)
        checkpoint = folder / str(step) / "checkpoints" / "step-00000000"
        shutil.move(checkpoint, step_folder(folder / "checkpoints", step))
    return folder


@pytest.mark.parametrize("count", [1, 3, 4])
def test_the_mean_of_checkpoints_of_any_layout(tmp_path, monkeypatch, count):
    monkeypatch.setattr(averaging, "PIECE", 1000)  # pieces of parameters, and files mapped anew
    run = write_run(tmp_path / "run")
    mean = load_mean(run, count)
    steps = range(5 - count, 5)
    each = [load_weights(step_folder(run / "checkpoints", step))[0] for step in steps]
    assert [folder.name[-1] for folder in mean.folders] == [str(step) for step in reversed(steps)]
    assert mean.weights.keys() == each[0].keys() and mean.state.step == 1
    for name, weight in mean.weights.items():
        exact = torch.stack([weights[name] for weights in each]).double().mean(0)
        assert weight.dtype == torch.float32 and weight.shape == exact.shape
        torch.testing.assert_close(weight.double(), exact, rtol=1e-6, atol=3e-7)


def test_the_mean_of_equal_checkpoints_is_each_of_them_and_a_path_is_the_last(tmp_path):
    run = write_run(tmp_path / "run", layouts=LAYOUTS[:1])
    for step in range(2, 8):
        shutil.copytree(step_folder(run / "checkpoints", 1), step_folder(run / "checkpoints", step))
    expected, _ = load_weights(run)
    mean = load_mean(step_folder(run / "checkpoints", 5), 5)
    assert [int(folder.name[-1]) for folder in mean.folders] == [5, 4, 3, 2, 1]
    assert all(torch.equal(mean.weights[name], weight) for name, weight in expected.items())
    assert load_mean(step_folder(run / "checkpoints", 6), 1).folders[0].name == "step-00000006"


def test_damaged_checkpoints_are_left_out_and_too_few_are_one_line(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    (step_folder(run / "checkpoints", 3) / "state.json").write_text("{}")
    found = load_mean(run, 3).folders
    assert [folder.name[-1] for folder in found] == ["4", "2", "1"]
    assert "step-00000003: state.json differs from its sha256; left out" in capsys.readouterr().err
    with pytest.raises(DataError, match=f"{run}: --average is 4, and 3 checkpoints are whole"):
        load_mean(run, 4)
    with pytest.raises(DataError, match="--average is 2, and 1 checkpoints are whole"):
        load_mean(step_folder(run / "checkpoints", 1), 2)
    with pytest.raises(DataError, match="--average is 1, and 0 checkpoints are whole"):
        load_mean(tmp_path / "absent", 1)


def test_shapes_that_differ_are_one_line(tmp_path):
    run = write_run(tmp_path / "run")
    old = step_folder(run / "checkpoints", 2)
    shutil.rmtree(old)
    scale.write_checkpoint(old, GPTConfig(500, 3, 2, 24, 16), 2, 2)
    with pytest.raises(DataError, match="blocks.2.* has not the shape .*; --average 2 leaves"):
        load_mean(run, 3)
    shutil.rmtree(old)
    scale.write_checkpoint(old, GPTConfig(900, 2, 2, 24, 16), 3, 2)
    with pytest.raises(
        DataError, match=f"{old}: wte has not the shape that it has in step-00000004"
    ):
        load_mean(run, 3)


def test_eval_and_export_take_it(tiny_run, tmp_path, capsys):
    run = noisy_run(tiny_run, tmp_path / "run")
    mean = load_mean(run, 3)
    text = tmp_path / "text.txt"
    text.write_text("The old miller went to the river. He was glad.\n" * 5)
    eval.main([str(run), "--data", str(text), "--average", "3"])
    assert "mean of 3 checkpoints to step-00000003 on " in (printed := capsys.readouterr().out)
    save_weights(tmp_path / "alone", mean.weights, mean.state)
    shutil.copytree(run / "tokenizer", tmp_path / "alone" / "tokenizer")
    eval.main([str(tmp_path / "alone"), "--data", str(text)])
    assert printed.splitlines()[1:] == capsys.readouterr().out.splitlines()[1:]
    eval.main([str(run), "--data", str(text)])
    assert printed.splitlines()[1:] != capsys.readouterr().out.splitlines()[1:]
    for source, words in ((run, ["--average", "3"]), (tmp_path / "alone", [])):
        export.main([str(source), str(tmp_path / f"{source.name}-hf"), *words])
    ours, alone = (
        safetensors.torch.load_file(tmp_path / f"{name}-hf" / "model.safetensors")
        for name in ("run", "alone")
    )
    assert all(torch.equal(ours[name], weight) for name, weight in alone.items())
    card = (tmp_path / "run-hf" / "README.md").read_text()
    assert "| weights | mean of step-00000003, step-00000002, step-00000001 |" in card


def test_a_fine_tuned_run_and_options_that_do_not_go_together(tiny_run, sample, tmp_path, capsys):
    tuned = save_tuned(tmp_path / "tuned", tiny_run, name="sst2", data="nowhere")
    for step, seed in ((1, 1), (2, 2)):
        other = save_tuned(tmp_path / f"other-{step}", tiny_run, seed, name="sst2", data="nowhere")
        folder = other / "best" / "checkpoints" / "step-00000000"
        shutil.copytree(folder, step_folder(tuned / "checkpoints", step))
    (tuned / "calibration.json").write_text(json.dumps({"not": "read"}))
    data = next((sample / "tasks").glob("SST*/dev.tsv"))
    words = ["--task", "sst2", "--data", str(data), "--probabilities"]
    eval.main([str(tuned), *words, "--average", "2"])
    title = f"mean of 2 checkpoints to {step_folder(tuned / 'checkpoints', 2)} on {data}"
    assert title in capsys.readouterr().out
    with pytest.raises(ConfigError, match="--average does not go with --calibrate"):
        eval.main([str(tuned), "--calibrate", "--average", "2"])
    with pytest.raises(ConfigError, match="--average does not go with --ensemble"):
        eval.main(["--ensemble", str(tuned), str(tuned), "--data", str(data), "--average", "2"])
    with pytest.raises(ConfigError, match="--average goes with the export of a run"):
        export.main([str(tiny_run), str(tmp_path / "out"), "--from-hf", "--average", "2"])


MEASURE = """
import re, sys
from gpt1_ds.checkpoints.averaging import load_mean

def status(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

load_mean(sys.argv[1], 2)
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # VmHWM starts anew
mean = load_mean(sys.argv[2], 3)
size = sum(weight.nbytes for weight in mean.weights.values())
print("grown", status("VmHWM") - before, size)
"""


def test_memory_holds_the_mean_once(tmp_path):
    small = write_run(tmp_path / "small")
    big = write_run(tmp_path / "big", GPTConfig(20_000, 4, 8, 640, 16), [(2, 2), (3, 2)])
    shutil.copytree(step_folder(big / "checkpoints", 1), step_folder(big / "checkpoints", 3))
    out = succeed("python", "-c", MEASURE, small, big).stdout
    grown, size = map(int, out.split("grown")[1].split())
    assert size > 120e6 and grown < 1.6 * size, out
