"""metrics.jsonl and TensorBoard keep one point a step after a resume; a broken log never raises."""

import json

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gpt1_ds.metrics import RunLog, Throughput


def test_a_resume_drops_what_the_killed_start_logged_past_it(tmp_path):
    log = RunLog(tmp_path, 0)
    for step in (1, 2, 3, 4):
        log.log(step, "train", loss=float(step), tokens=step * 10)
    log.log(4, "valid", "books", loss=1.5, perplexity=4.5)
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "spl')  # a kill in mid-line
    log = RunLog(tmp_path, 2)
    for step in (3, 4):
        log.log(step, "train", loss=10.0 * step, tokens=0)
    log.close()
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(r["step"], r["loss"]) for r in records] == [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0)]
    board = EventAccumulator(str(tmp_path))
    board.Reload()
    assert [(e.step, e.value) for e in board.Scalars("train/loss")] == [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0)]
    assert not board.Tags()["scalars"] or "train/tokens" not in board.Tags()["scalars"]


def test_status_is_replaced_whole(tmp_path):
    log = RunLog(tmp_path, 0)
    log.status("running", 3)
    log.status("stopped", 7, 75)
    assert json.loads((tmp_path / "status.json").read_text()) == {"state": "stopped", "step": 7, "exit_code": 75}
    log.close()


def test_a_log_folder_that_cannot_be_written_costs_the_log_only(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    log = RunLog(tmp_path / "file" / "run", 0)
    log.log(1, "train", loss=1.0)
    log.status("running", 1)
    log.close()
    assert "warning" in capsys.readouterr().err


def test_throughput_counts_tokens_a_second():
    throughput = Throughput(1000, "fp32")
    reading = throughput.read(10_000)
    assert reading["tokens_per_second"] > 0 and reading["mfu"] >= 0
