"""JSON lines: damaged lines are skipped, and written records are read back."""

import json
from pathlib import Path

from gpt1_ds.base.records import read_metrics, read_records, write_records

LOSS = {"step": 1, "split": "train", "loss": 1e-7, "elapsed_seconds": 0.5}
SAVE = {"step": 1, "split": "checkpoint", "seconds": 0.25}


def test_records_come_back_as_they_were_written(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    assert read_records(path) == []
    write_records(path, [LOSS, SAVE])
    before = path.read_bytes()
    assert read_records(path) == [LOSS, SAVE]
    write_records(path, read_records(path))
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_line_that_is_no_record_is_passed_over(tmp_path: Path):
    lines = [json.dumps(LOSS), "[1, 2]", "", "nonsense", json.dumps({"step": 2}), json.dumps(SAVE)]
    torn = json.dumps(LOSS)[:9]
    text = "\n".join([*lines, torn]).encode() + b"\xff"
    (tmp_path / "metrics.jsonl").write_bytes(text)
    assert read_records(tmp_path / "metrics.jsonl") == [LOSS, {"step": 2}, SAVE]
    assert read_metrics(tmp_path) == [LOSS, SAVE]
    assert read_metrics(tmp_path, "train") == [LOSS]
    assert read_metrics(tmp_path, "valid") == []
