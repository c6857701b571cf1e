"""What the files of a suite's job array say about elements that ended without a result."""

import json
import os
from pathlib import Path

import pytest

from gpt1_ds import suite
from gpt1_ds.runs.suite_slurm import failures_of_elements
from tests.reports.test_suite_table import made

RUNS = ("rte-seed-1", "rte-seed-2", "rte-seed-3", "rte-seed-4", "rte-seed-5")


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Element 0 has its result, 1 bad data, 2 was stopped, 3 lost a rank, and 4 has not begun."""
    monkeypatch.setenv("PATH", "/nowhere")  # no squeue: the files alone count
    submission = {"job": "7", "collecting": "8", "runs": RUNS}
    (tmp_path / "slurm.json").write_text(json.dumps({"submissions": [submission]}))
    (tmp_path / "slurm-1.tsv").write_text("")
    os.utime(tmp_path / "slurm-1.tsv", (1, 1))
    (tmp_path / "logs").mkdir()
    made(tmp_path, RUNS[0], [0.5])
    for name, code in zip(RUNS[:4], (3, 3, 75, 137), strict=True):
        log = f"error: of an earlier start\nelement  7_0 on node1\nerror: {name} fails\nsrun: so\n"
        (tmp_path / "logs" / f"{name}.log").write_text(log)
        (tmp_path / "logs" / f"{name}.exit").write_text(f"{code}\n")
    for name, code in ((RUNS[1], 75), (RUNS[2], 75), (RUNS[3], 5)):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "status.json").write_text(json.dumps({"exit_code": code}))
    return tmp_path


def test_failures_are_those_of_the_last_start_and_a_stop_is_none(out):
    assert failures_of_elements(out) == {
        RUNS[1]: (3, "rte-seed-2 fails"),
        RUNS[3]: (5, "rte-seed-4 fails"),
    }


def test_files_of_before_the_submission_say_nothing(out):
    later = 10**10
    os.utime(out / "slurm-1.tsv", (later, later))
    assert failures_of_elements(out) == {}


def test_the_table_notes_failures_and_forgets_those_that_have_a_result(out):
    (out / "runs.json").write_text(json.dumps({RUNS[0]: {"exit_code": 3, "error": "before"}}))
    assert suite.main(["--table-only", "--out", str(out)]) == 0
    assert set(json.loads((out / "runs.json").read_text())) == {RUNS[1], RUNS[3]}
    table = (out / "table.md").read_text()
    assert "| rte-seed-4 | 5 | rte-seed-4 fails |" in table and "before" not in table
