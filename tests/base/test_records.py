"""JSON lines: damaged lines are skipped, and written records are read back."""

import json
from pathlib import Path

import pytest

from gpt1_ds.base.records import (
    read_metrics,
    read_object,
    read_records,
    read_skipped,
    write_records,
)

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


def line(**changes: object) -> bytes:
    return json.dumps({**LOSS, **changes}).encode()


DAMAGED = {
    "zeros": bytes(200),
    "half": line()[:30],
    "encoding": b"\xff\xfe" + line(),
    "no keys": b"{}",
    "no object": b"[1]",
    "nested": b"[" * 100_000,
    "long number": b'{"step": ' + b"9" * 5000 + b"}",
    "step as text": line(step="1"),
    "step as truth": line(step=True),
    "negative step": line(step=-1),
    "split as number": line(split=3),
    "corpus as list": line(corpus=["books"]),
    "loss as text": line(loss="low"),
    "loss as section": line(loss={}),
    "endless time": line(elapsed_seconds=float("inf")),
    "time beyond a float": line(elapsed_seconds=10**400),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_line_costs_itself_and_is_told_once(tmp_path: Path, capsys, kind):
    path = tmp_path / "metrics.jsonl"
    lines = [line(), DAMAGED[kind], b"", b"\0\0" + line(step=2), line(loss=None), line()[:9]]
    path.write_bytes(b"\n".join(lines))
    for _ in range(2):
        assert read_metrics(tmp_path) == [LOSS, {**LOSS, "step": 2}, {**LOSS, "loss": None}]
    told = capsys.readouterr().err
    assert told == f"warning: {path}: 1 of 5 lines are damaged; they are not used\n", (
        "the half line at the end is of a kill, or of a run that writes at this moment"
    )


def test_other_side_files_are_read_as_far_as_they_go(tmp_path: Path, capsys):
    path = tmp_path / "skipped.jsonl"
    event = {"to_step": 4, "last": {"epoch": 0, "index": 9}}
    broken = [{**event, "to_step": None}, {**event, "last": 9}, {**event, "last": {"epoch": 0}}]
    write_records(path, [*broken, event])
    assert read_skipped(path) == [event]
    status = tmp_path / "status.json"
    contents = {b'{"state": "done"}': {"state": "done"}, bytes(50): {}, b"[]": {}, b"\xff": {}}
    for number, (content, meant) in enumerate(contents.items()):
        status = tmp_path / f"status-{number}.json"
        status.write_bytes(content)
        assert read_object(status) == meant
    assert read_object(tmp_path) == read_object(tmp_path / "missing") == {}
    assert read_records(tmp_path) == [] == read_records(Path("/dev/full")), "no endless reading"
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 4 and told[0].endswith("3 of 4 lines are damaged; they are not used")
