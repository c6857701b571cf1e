"""Throughput, the parts of a step, its communication, and a step in the profiler."""

import gzip
import json
import time

import pytest

from gpt1_ds.engine.timing import StepTimer, Throughput
from tests.settings.test_deepspeed_json import FOLDER


def test_throughput_counts_tokens_a_second():
    throughput = Throughput(1000, "fp32")
    reading = throughput.read(10_000)
    assert reading["tokens_per_second"] > 0 and reading["mfu"] >= 0


def test_the_parts_of_a_step_are_timed():
    timer = StepTimer()
    for _ in timer.waiting(range(2)):
        with timer.part("forward"):
            time.sleep(0.02)
        with timer.part("backward"):
            pass
    seconds = timer.read(2)
    assert set(seconds) == {"data_seconds", "forward_seconds", "backward_seconds"}
    assert seconds["forward_seconds"] >= 0.02
    assert seconds["backward_seconds"] < seconds["forward_seconds"]
    assert timer.read(2) == {}, "a reading begins anew"


@pytest.mark.parametrize("name", ["zero0_fp32", "zero1_bf16", "zero2_bf16", "zero3_bf16"])
def test_communication_and_a_profile_of_every_stage(ranks, tiny_shards, tmp_path, name):
    arguments = str(FOLDER / f"{name}.json"), str(tiny_shards), str(tmp_path)
    for parts, restored in ranks(2).run("tests.support.cases_log:timed", *arguments):
        communication = parts.pop("communication_seconds")
        assert set(parts) == {"forward_seconds", "backward_seconds", "optimizer_seconds"}
        assert 0 < communication < sum(parts.values()), "it is within the others"
        assert restored, "DeepSpeed's own methods are back"
    trace = tmp_path / "profile" / "step-00000002.json.gz"
    text = tmp_path / "profile" / "step-00000002.txt"
    assert set((tmp_path / "profile").iterdir()) == {trace, text}
    with gzip.open(trace) as file:
        names = {event["name"] for event in json.load(file)["traceEvents"]}
    table = text.read_text()
    assert {"forward", "backward", "optimizer", "communication"} <= names
    assert "Self CPU" in table and "backward" in table and "aten::" in table
