"""metrics.jsonl and TensorBoard keep one point a step after a resume; a broken log never raises."""

import csv
import itertools
import json
import os
import shutil

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gpt1_ds.base.formatting import duration
from gpt1_ds.runs.log import RunLog
from gpt1_ds.settings.deepspeed_json import resolve
from gpt1_ds.settings.sections import PretrainConfig
from tests.settings.test_deepspeed_json import FOLDER


def test_a_resume_drops_what_the_killed_start_logged_past_it(tmp_path):
    log = RunLog(tmp_path, 0)
    for step in (1, 2, 3, 4):
        log.log(step, "train", loss=float(step), tokens=step * 10)
    log.log(4, "valid", "books", loss=1.5, perplexity=4.5)
    log.log(2, "checkpoint", seconds=77.0, bytes=5)
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "spl')  # a kill in mid-line
    log = RunLog(tmp_path, 2)
    for step in (3, 4):
        log.log(step, "train", loss=10.0 * step, tokens=0)
    log.close()
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    starts = [(r["step"], r["world_size"]) for r in records if r["split"] == "start"]
    assert starts == [(0, 1), (2, 1)], "each start stays in the log"
    logged = [(r["step"], r["loss"]) for r in records if r["split"] == "train"]
    assert logged == [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0)]
    seconds = [r["elapsed_seconds"] for r in records]
    assert next(r["seconds"] for r in records if r["split"] == "checkpoint") == 77.0, "of the save"
    assert seconds == sorted(seconds), "the time of all starts, which a resume goes on counting"
    board = EventAccumulator(str(tmp_path))
    board.Reload()
    assert [(e.step, e.value) for e in board.Scalars("train/loss")] == [
        (1, 1.0),
        (2, 2.0),
        (3, 30.0),
        (4, 40.0),
    ]
    assert {"train/loss", "x_progress/tokens", "x_memory/host_bytes"} <= set(
        board.Tags()["scalars"]
    )


def test_a_start_on_a_clock_set_back_comes_after_the_one_before(tmp_path):
    """TensorBoard reads event files by the second in their names; two of them say tomorrow."""
    for resume_step, ahead in ((0, 90_000), (2, 90_000), (4, 0)):
        log = RunLog(tmp_path, resume_step)
        for step in range(resume_step + 1, resume_step + 4):
            log.log(step, "train", loss=float(step + resume_step))
        log.close()
        newest = max(tmp_path.glob("events.*"), key=lambda path: path.stat().st_mtime_ns)
        *head, second, rest = newest.name.split(".", 4)
        newest.rename(newest.with_name(".".join([*head, str(int(second) + ahead), rest])))
    board = EventAccumulator(str(tmp_path))
    board.Reload()
    points = [(event.step, event.value) for event in board.Scalars("train/loss")]
    assert points == [(1, 1.0), (2, 2.0), (3, 5.0), (4, 6.0), (5, 9.0), (6, 10.0), (7, 11.0)]


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)  # TensorBoard's writer gives up
def test_a_disk_full_for_a_while_tears_and_costs_no_line(small_disk, capsys):
    log, filler = RunLog(small_disk, 0), small_disk / "filler"
    for step in range(1, 151):
        if step == 51:
            with filler.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(small_disk).free)
        if step == 101:
            filler.unlink()
        log.log(step, "train", loss=1.0)
        log.status("running", step)
    log.sample(150, "text")
    log.close()
    records = list(map(json.loads, (small_disk / "metrics.jsonl").read_text().splitlines()))
    steps = [record["step"] for record in records if record["split"] == "train"]
    assert steps == list(range(1, 151)), "what could not be written waits in memory"
    assert json.loads((small_disk / "status.json").read_text())["step"] == 150
    assert "No space left on device; training goes on" in capsys.readouterr().err


def test_status_is_replaced_whole(tmp_path):
    log = RunLog(tmp_path, 0)
    log.status("running", 3)
    log.status("stopped", 7, 75)
    status = json.loads((tmp_path / "status.json").read_text())
    assert status.pop("wall_time")["highest_step"] == 7
    assert status == {"state": "stopped", "step": 7, "exit_code": 75}
    log.close()


def test_a_log_folder_that_cannot_be_written_costs_the_log_only(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    log = RunLog(tmp_path / "file" / "run", 0)
    log.log(1, "train", loss=1.0)
    log.status("running", 1)
    log.close()
    assert "warning" in capsys.readouterr().err


def test_a_run_that_is_done_is_not_started_by_looking_at_it(tmp_path):
    for state, steps in (("running", [0]), ("done", [0]), ("done", [0, 5])):
        log = RunLog(tmp_path, 5 if (tmp_path / "status.json").exists() else 0)
        if len(steps) > 1:
            log.log(6, "train", loss=1.0)  # its steps were raised
        log.status(state, 5)
        log.close()
        records = [
            json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
        ]
        assert [r["step"] for r in records if r["split"] == "start"] == (
            [0, 5] if len(steps) > 1 else [0]
        )
        (tmp_path / "status.json").write_text('{"state": "done"}')


def test_damaged_files_of_an_earlier_start_cost_themselves_only(tmp_path, capsys):
    log = RunLog(tmp_path, 0)
    for step in (1, 2):
        log.log(step, "train", loss=1.0)
    log.close()
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_bytes(bytes(99) + b"\n{}\n" + metrics.read_bytes() + b"\xff\xfe\n")
    (tmp_path / "status.json").write_bytes(b"\xff\x00")
    for name in ("x", "1", "tomorrow.host", f"{'9' * 40}.host", "1e5.host.1.0"):
        (tmp_path / f"events.out.tfevents.{name}").write_bytes(b"\0")
    (tmp_path / "events.out.tfevents.9999999999.host").mkdir()
    log = RunLog(tmp_path, 2)
    log.log(3, "train", loss=1.0)
    assert log.has(3, "train")
    log.close()
    records = list(map(json.loads, metrics.read_text().splitlines()))
    assert [r["step"] for r in records] == [0, 1, 2, 2, 3]
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(": ")[2].partition(": ")[2] for line in told] == [
        "damaged; it is not used",
        "3 of 6 lines are damaged; they are not used",
    ]


def test_each_file_that_cannot_be_written_is_told_once_and_costs_no_other(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    (tmp_path / "status.json").mkdir()
    (tmp_path / "samples").write_text("")
    log = RunLog(tmp_path, 0)
    for step in (1, 2):
        log.log(step, "train", loss=1.0)
        log.status("running", step)
        log.sample(step, "text")
    log.close()
    told = [line.split(": ")[1] for line in capsys.readouterr().err.splitlines()]
    assert sorted(told) == [str(tmp_path / x) for x in ("metrics.jsonl", "samples", "status.json")]
    board = EventAccumulator(str(tmp_path))
    board.Reload()
    assert [event.step for event in board.Scalars("train/loss")] == [1, 2]


def test_samples_and_configuration_are_text(tmp_path):
    (tmp_path / "config.yaml").write_text("run:\n  seed: 7\n")
    log = RunLog(tmp_path, 0)
    log.sample(5, "He said <b>so</b>")
    log.close()
    assert (tmp_path / "samples" / "step-00000005.txt").read_text() == "He said <b>so</b>\n"
    board = EventAccumulator(str(tmp_path))
    board.Reload()
    assert {"sample/text_summary", "config.yaml/text_summary"} <= set(board.Tags()["tensors"])
    assert b"seed: 7" in board.Tensors("config.yaml/text_summary")[0].tensor_proto.string_val[0]


def test_durations_read_well():
    texts = {40: "40 s", 100: "2 min", 7_000: "117 min", 7_800: "2 h 10 min", 273_600: "3 days 4 h"}
    assert {seconds: duration(seconds) for seconds in texts} == texts


@pytest.mark.parametrize(
    "name, clip",
    [
        ("zero0_fp32", "1000"),
        ("zero0_fp32", "0"),
        ("zero0_fp32", "0.001"),
        ("zero1_bf16", "1000"),
        ("zero2_bf16", "1000"),
        ("zero3_bf16", "1000"),
    ],
)
def test_norms_of_layers_and_samples_come_from_every_stage(ranks, tiny_shards, name, clip):
    results = ranks(2).run(
        "tests.support.cases_log:watched",
        str(FOLDER / f"{name}.json"),
        str(tiny_shards),
        str(tiny_shards / "tokenizer"),
        clip,
    )
    assert results[0] == results[1]
    norms, whole, texts, same, training = results[0]
    groups = ("wte", "wpe", "block-00", "block-01")
    kinds = itertools.product(("weight", "grad"), groups)
    assert set(norms) == {f"{kind}_norm/{group}" for kind, group in kinds}
    squares = [norm**2 for name, norm in norms.items() if "grad" in name]
    assert sum(squares) ** 0.5 == pytest.approx(whole, rel=1e-4 if name == "zero0_fp32" else 0.02)
    assert texts[0] == texts[1] and texts[0].lower().startswith("he said") and same and training


def test_the_monitor_of_the_json_gets_every_record(tmp_path, ranks, tiny_shards):
    ds = json.loads((FOLDER / "zero2_bf16.json").read_text())
    ds["csv_monitor"] = {"enabled": True, "output_path": str(tmp_path / "csv"), "job_name": "run"}
    (tmp_path / "ds.json").write_text(json.dumps(ds))
    assert resolve(tmp_path / "ds.json", PretrainConfig(), 2)["csv_monitor"] == ds["csv_monitor"]
    ranks(2).run(
        "tests.support.cases_log:monitored",
        str(tmp_path / "ds.json"),
        str(tiny_shards),
        str(tmp_path),
    )
    for name in ("train_loss", "Train_Samples_lr"):  # the second is DeepSpeed's own
        with (tmp_path / "gone" / "run" / f"{name}.csv").open() as file:
            steps = [int(row[0]) for row in list(csv.reader(file))[1:]]
        assert steps == [8, 16, 24], (
            "windows of the steps before its folder went, which ends no training"
        )
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 5
