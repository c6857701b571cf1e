"""What status.json says of the wall time adds up to it, over kills and pauses too."""

import json
import os
import signal
import subprocess
import sys
import time

from gpt1_ds.base.records import WALL_TIME_PARTS
from gpt1_ds.reports.facts import facts_of
from gpt1_ds.reports.page import report_page
from gpt1_ds.reports.run_files import RunFiles
from gpt1_ds.runs import wall_time
from gpt1_ds.runs.wall_time import WallTime
from tests.conftest import ROOT
from tests.support.launched_runs import SMALL, committed, lines, status, steps_logged
from tests.support.ranks import RANK_ENV, die_with_parent

PAUSE_SECONDS = 1.5
SAVED, STEPS = 25, 60


def test_the_parts_of_a_killed_run_add_up_to_its_wall_time(tiny_shards, tmp_path):
    command = [sys.executable, "gpt1_ds/train.py", "--deepspeed_config", "ds_configs/cpu.json"]
    command += [*SMALL, f"train.max_steps={STEPS}", f"checkpoint.every={SAVED}"]
    command += [f"data.shards={tiny_shards}", f"run.dir={tmp_path}"]
    options = {"cwd": ROOT, "env": os.environ | RANK_ENV, "preexec_fn": die_with_parent}
    began = time.time()
    process = subprocess.Popen(command, **options)
    while committed(tmp_path) < SAVED or max(steps_logged(tmp_path)) < SAVED + 5:
        assert process.poll() is None and time.time() < began + 60
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed = time.time()
    time.sleep(PAUSE_SECONDS)
    subprocess.run(command, **options, check=True, timeout=120)
    ended = time.time()

    found = status(tmp_path)["wall_time"]
    parts = {name: found[name] for name in WALL_TIME_PARTS}
    assert abs(sum(parts.values()) - found["total"]) < 1e-6 and min(parts.values()) > 0
    assert abs(found["total"] - (found["until"] - found["first_start"])) < 0.1
    assert 0 <= found["first_start"] - began < 1 and 0 <= ended - found["until"] < 3
    assert PAUSE_SECONDS <= found["waiting"] < ended - killed
    times = [line["time"] for line in lines(tmp_path) if line["split"] == "start"]
    assert times[0] - began + times[1] - killed - PAUSE_SECONDS - 0.5 < found["start_up"]
    assert found["highest_step"] == STEPS
    run = RunFiles(tmp_path / "run")
    assert facts_of(run)["goodput"].endswith(" since the first start")
    assert "steps made before, and lost" in report_page([run])


def test_parts_nest_and_steps_are_new_once(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(wall_time.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(wall_time, "_process_seconds", lambda: 2.0)
    found = WallTime({})

    def spend(seconds: float) -> None:
        clock[0] += seconds

    spend(1)
    for done in (0, 1, 0, 1, 2):  # a rollback after two steps
        with found.part("data"):
            spend(0.25)
        found.in_step(done)
        spend(1)
        with found.part("validation"):
            spend(4)
            with found.part("checkpoints"):
                spend(2)
    told = found.to_json(3)
    expected = {"new_steps": 3, "repeated_steps": 2, "validation": 20, "checkpoints": 10}
    expected |= {"data": 1.25, "start_up": 3, "waiting": 0, "total": 39.25, "highest_step": 3}
    assert {name: told[name] for name in expected} == expected


def test_a_start_goes_on_from_what_an_earlier_one_wrote_if_that_is_sound(monkeypatch):
    monkeypatch.setattr(wall_time, "_process_seconds", lambda: 0.0)
    before = json.loads(json.dumps(WallTime({}).to_json(7)))
    before |= {"new_steps": 5.0, "until": time.time() - 60, "first_start": 3.0}
    after = WallTime(before).to_json(0)
    assert (after["new_steps"], after["highest_step"], after["first_start"]) == (5.0, 7, 3.0)
    assert 60 <= after["waiting"] < 61
    ahead = WallTime(before | {"until": time.time() + 60}).to_json(0)
    assert ahead["waiting"] == 0, "the clock was set back"
    for damaged in ({"until": "x"}, {"data": -1}, {"new_steps": None}):
        assert WallTime(before | damaged).to_json(0)["highest_step"] == 0
    assert WallTime([]).to_json(0)["highest_step"] == 0
