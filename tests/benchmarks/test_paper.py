"""benchmarks/paper.py from nothing to the table, with a bound of time and a kill on the way."""

import importlib.util
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from gpt1_ds.base.errors import ConfigError
from tests.conftest import ROOT

SCRIPT = ROOT / "benchmarks" / "paper.py"
spec = importlib.util.spec_from_file_location("paper", SCRIPT)
paper = importlib.util.module_from_spec(spec)
spec.loader.exec_module(paper)

VARIANTS = ("", "-no_lm", "-scratch", "-lstm", "-layers-0")


@pytest.fixture
def command(tiny_shards: Path, sample: Path, tmp_path: Path) -> list[str]:
    config = {
        "model": {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_ctx": 32},
        "data": {"shards": str(tiny_shards)},
        "train": {"max_steps": 400, "epochs": None, "global_batch": 4},
        "eval": {"every": 400, "batches": 1},
        "checkpoint": {"every": 200},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    words = ["--run", "runs/a", "--config", "tiny.yaml", "--data", str(sample / "tasks")]
    words += ["--tasks", "sst2", "--seeds", "1", "--examples", "64", "--ranks", "1"]
    words += ["--out", "out", "--results", "results", "eval.batches=2", "train.global_batch=8"]
    return [sys.executable, str(SCRIPT), *words]


def finish(command: list[str], folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command, *words], cwd=folder, capture_output=True, text=True, timeout=900
    )


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_bounded_killed_and_continued_to_the_table(command: list[str], tmp_path: Path):
    bounded = finish(command, tmp_path, "--hours", "0.004")
    assert bounded.returncode == 75, bounded.stderr
    assert "stopped: after 0.004 hours; the same command goes on" in bounded.stderr

    metrics = tmp_path / "out" / "sst2-seed-1-no_lm" / "metrics.jsonl"
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
        deadline = time.monotonic() + 600
        while not metrics.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        assert metrics.exists(), (tmp_path / "log").read_text()
        process.send_signal(signal.SIGKILL)
        process.wait()
    said = (tmp_path / "log").read_text()
    assert "Table 5, 4 runs" in said and "Figure 2, left, 1 runs" in said
    before = (tmp_path / "out" / "sst2-seed-1" / "result.json").stat().st_mtime_ns

    done = finish(command, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out" / "sst2-seed-1" / "result.json").stat().st_mtime_ns == before
    names = sorted(path.parent.name for path in (tmp_path / "out").glob("sst2*/result.json"))
    assert names == sorted(f"sst2-seed-1{variant}" for variant in VARIANTS)
    results = [json.loads((tmp_path / "out" / n / "result.json").read_text()) for n in names]
    assert {result["examples"]["train"] for result in results} == {64}
    table = (tmp_path / "results" / "table.md").read_text()
    assert "no auxiliary LM" in table and "| LSTM |" in table and "layers 0" in table
    steps = [line for line in table.splitlines() if line.startswith("| task | step ")]
    assert steps and "| step 200 |" in steps[0] and "| step 400 |" in steps[0]
    pictures = {path.name for path in (tmp_path / "results").glob("*.png")}
    assert pictures == {"epochs.png", "layers.png", "zero_shot.png"}
    shutil.rmtree(tmp_path / "results")
    again = finish(command, tmp_path)
    assert again.returncode == 0 and "launcher" not in again.stdout, again.stdout
    assert "Table 5, 0 runs" in again.stdout
    assert (tmp_path / "results" / "table.md").read_text() == table


def test_a_folder_without_tasks_and_a_bad_setting_are_refused(command, tmp_path):
    with pytest.raises(ConfigError, match="none of the folders of cola, .* is there"):
        paper.parse(["--data", str(tmp_path)], None)
    refused = finish(command, tmp_path, "--hours", "0")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1, refused.stderr


def test_another_number_of_steps_than_a_finished_run_has_is_refused(command, tmp_path):
    for run in ("a", "a-lstm"):
        (tmp_path / "runs" / run).mkdir(parents=True)
        status = {"state": "done", "step": 400}
        (tmp_path / "runs" / run / "status.json").write_text(json.dumps(status))
    refused = finish(command, tmp_path, "--steps", "300")
    assert refused.returncode == 2 and refused.stderr.splitlines() == [
        "error: --steps 300: runs/a is done with 400; give 400, or another --run and --out"
    ]


@pytest.mark.parametrize(
    "words, says",
    [
        (["--tasks", "sst3"], "--tasks sst3: did you mean 'sst2'?"),
        (["--layer-tasks", "rtee"], "--layer-tasks rtee: did you mean 'rte'?"),
        (["--layer-tasks", "mnli"], "tasks/MNLI: not there; give --data"),
        (["--sample", "9"], "--sample 9 is for BLiMP and LAMBADA, which are not in zero_shot"),
        (["--layers", "0", "5"], "--layers 5: tiny.yaml has 1 blocks"),
        (["optim.lrr=1"], "option 'optim.lrr=1': no such setting"),
        (["run.seed=3"], "option 'run.seed=3': each run gets its own; use --run"),
    ],
)
def test_what_the_suite_would_refuse_is_refused_before_any_training(
    command, tmp_path, monkeypatch, words, says
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=re.escape(says)) as error:
        paper.parse([*command[2:], *words], None)
    assert "\n" not in str(error.value)
