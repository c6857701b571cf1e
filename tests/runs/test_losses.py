"""NaN and loss spikes on two real ranks: skipped, rolled back, recorded, too many of them."""

import json
import math
from pathlib import Path

import pytest
import torch

from gpt1_ds.base.errors import DivergedError
from gpt1_ds.data.order import Cursor
from gpt1_ds.runs.losses import LossHistory, Spike, record_skipped
from gpt1_ds.settings.sections import TrainConfig
from tests.settings.test_deepspeed_json import FOLDER
from tests.support.ranks import RankError

LAYOUTS = ["0-fp32", "0-bf16", "1-fp32", "1-bf16", "2-fp32", "2-bf16", "3-fp32", "3-bf16"]
SPIKE = ["train.max_steps=16", "optim.lr=1e-2"]
GARBAGE = [80, 88]  # the windows of the step from 10 to 11


def ds_json(tmp_path: Path, layout: str) -> str:
    stage, precision = layout.split("-")
    bf16 = {"enabled": precision == "bf16"}
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": int(stage)}, "bf16": bf16}))
    return str(path)


def train_lines(metrics: list[dict]) -> list[dict]:
    return [line for line in metrics if line["split"] == "train"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nan_on_one_rank_is_skipped_by_all_counted_and_survived(
    ranks, tiny_shards, tmp_path, layout
):
    """Twice in a row, where three would end the run, then once more: 3 skipped, weights finite."""
    arguments = (
        ds_json(tmp_path, layout),
        str(tiny_shards),
        str(tmp_path),
        "nan",
        ["train.max_steps=7", "train.max_skipped=3"],
        [0, 0],
        [2, 3, 5],
    )
    (exact, metrics, _), other = ranks(2).run("tests.support.cases_losses:pretrain", *arguments)
    assert exact == other[0]
    lines = train_lines(metrics)
    assert [line["skipped_steps"] for line in lines] == [0, 1, 2, 2, 3, 3, 3]
    assert [line["step"] for line in lines if line["loss"] is None] == [2, 3, 5]
    assert all(math.isfinite(line["loss"]) for line in lines if line["loss"] is not None)


def test_float16_comes_down_to_its_loss_scale_or_ends_as_any_run(ranks, tiny_shards, tmp_path):
    """Steps skipped for a scale that is too high are no divergence.

    NaN in every step ends the run by train.max_skipped, not by DeepSpeed's own exception at the
    lowest scale.
    """
    fp16 = {"enabled": True, "initial_scale_power": 19, "hysteresis": 1}
    (tmp_path / "ds.json").write_text(json.dumps({"fp16": fp16, "zero_optimization": {"stage": 2}}))
    arguments = (
        "tests.support.cases_losses:pretrain",
        str(tmp_path / "ds.json"),
        str(tiny_shards),
        str(tmp_path),
    )
    words = ["train.max_skipped=24", "train.max_steps=8"]
    _, metrics, _ = ranks(2).run(
        "tests.support.cases_engine:in_float16", *arguments, "scaled", words
    )[0]
    lines = train_lines(metrics)
    skipped = [line["skipped_steps"] for line in lines]
    assert 0 < skipped[-1] < 8
    assert [line["loss_scale"] for line in lines] == [2.0 ** (19 - count) for count in skipped]
    assert all(math.isfinite(line["loss"]) for line in lines)
    words[1] = "train.max_steps=40"
    with pytest.raises(
        DivergedError, match="step 28, 24 steps skipped in a row; the last checkpoint is kept"
    ):
        ranks(2).run(
            "tests.support.cases_engine:in_float16",
            *arguments,
            "nan",
            words,
            [0, 0],
            list(range(5, 99)),
        )


def test_nan_for_ever_ends_the_run_with_the_last_checkpoint_kept(ranks, tiny_shards, tmp_path):
    arguments = str(FOLDER / "cpu.json"), str(tiny_shards), str(tmp_path), "nan"
    with pytest.raises(
        DivergedError, match="step 8, 3 steps skipped in a row; the last checkpoint is kept"
    ):
        ranks(2).run(
            "tests.support.cases_losses:pretrain",
            *arguments,
            ["train.max_skipped=3"],
            [0, 0],
            list(range(6, 99)),
        )
    exact, metrics, _ = ranks(2).run(
        "tests.support.cases_losses:pretrain", *arguments, ["train.max_steps=9"]
    )[0]
    assert [line["step"] for line in train_lines(metrics)] == list(range(1, 10)), (
        "it goes on from step 4"
    )


@pytest.mark.parametrize("layout", ["0-fp32", "0-bf16", "1-bf16", "2-bf16", "3-bf16"])
def test_a_spike_goes_back_to_the_checkpoint_and_past_the_batches(
    ranks, tiny_shards, tmp_path, layout
):
    ds = ds_json(tmp_path, layout)
    arguments = ds, str(tiny_shards), str(tmp_path), "spike", SPIKE, GARBAGE
    _, metrics, events = ranks(2).run("tests.support.cases_losses:pretrain", *arguments)[0]
    (event,) = events
    assert (event["to_step"], event["from_step"]) == (8, 11)
    assert (event["first"], event["last"]) == ({"epoch": 0, "index": 64}, {"epoch": 0, "index": 88})
    assert event["loss"] > event["recent"] + 2.0
    lines = train_lines(metrics)
    assert [line["step"] for line in lines] == list(range(1, 17)), "each step once"
    checkpoint = str(tmp_path / "spike" / "checkpoints" / "step-00000008")
    again = ranks(2).run(
        "tests.support.cases_losses:replay", ds, str(tiny_shards), checkpoint, 88, 12, SPIKE
    )[0]
    assert [line["loss"] for line in lines[8:12]] == again, (
        "as a new process that starts there does, bitwise"
    )


def test_a_kill_before_or_after_the_next_checkpoint_changes_nothing(ranks, tiny_shards, tmp_path):
    arguments = str(FOLDER / "cpu.json"), str(tiny_shards), str(tmp_path)
    runs = []
    # The 13th step is the second after the rollback; the 17th is the second after the checkpoint
    # that follows it.
    for name, call in (("before", 13), ("after", 17), ("whole", 0)):
        words = (*arguments, name, SPIKE, GARBAGE)
        ranks(2).close()  # new processes: what earlier tests left in these may round otherwise
        if call:
            with pytest.raises(RankError):
                ranks(2).run("tests.support.cases_losses:pretrain", *words, [], call)
        exact, metrics, events = ranks(2).run("tests.support.cases_losses:pretrain", *words)[0]
        runs.append((exact, [line["loss"] for line in train_lines(metrics)], events))
    assert runs[0] == runs[2] and runs[1] == runs[2] and len(runs[2][2]) == 1


def test_the_budget_and_the_first_steps(ranks, tiny_shards, tmp_path):
    arguments = str(FOLDER / "cpu.json"), str(tiny_shards), str(tmp_path)
    with pytest.raises(DivergedError, match="a spike after 1 of train.max_rollbacks 1"):
        ranks(2).run(
            "tests.support.cases_losses:pretrain",
            *arguments,
            "budget",
            [*SPIKE, "train.max_rollbacks=1"],
            [80, 96],
        )
    with pytest.raises(DivergedError, match="no checkpoint to go back to.*spike_nats=null"):
        ranks(2).run(
            "tests.support.cases_losses:pretrain",
            *arguments,
            "first",
            [*SPIKE, "checkpoint.every=50"],
            GARBAGE,
        )
    _, metrics, events = ranks(2).run(
        "tests.support.cases_losses:pretrain",
        *arguments,
        "bear",
        [*SPIKE, "train.spike_nats=null"],
        GARBAGE,
    )[0]
    assert not events and train_lines(metrics)[10]["loss"] > train_lines(metrics)[9]["loss"] + 2.0


def test_what_a_spike_is():
    """Far above the median of the recent lines; not a NaN step, a slow rise, a high first line."""
    losses = LossHistory(TrainConfig(spike_nats=1.0), {})

    def line(value: float, skipped: bool = False) -> float:
        losses.add(torch.tensor(value), 1, skipped)
        loss = losses.check(1, Cursor())
        losses.start_line(loss)
        return loss

    for value in (9.0, 3.0, 4.5, 3.0, 3.1, 3.9, 3.0):
        assert line(value) == pytest.approx(value)
    assert math.isnan(line(math.nan, skipped=True)) and len(losses.recent) == 7
    again = LossHistory(losses.train, json.loads(json.dumps(losses.to_dict())))
    assert again.to_dict() == losses.to_dict() and losses.in_a_row == 1
    with pytest.raises(Spike, match="4.3000 at step 1, recent median 3.1000"):
        line(4.3)
    LossHistory(losses.train, {}).add(torch.tensor(math.nan), 5, False)
    with pytest.raises(DivergedError, match="is nan"):
        LossHistory(losses.train, {"steps": [math.nan]}).check(5, Cursor())


def test_each_skipped_event_is_recorded_once_and_a_missing_folder_is_survived(tmp_path, capsys):
    first, last = {"epoch": 0, "index": 8}, {"epoch": 0, "index": 9}
    event = {"to_step": 4, "from_step": 6, "first": first, "last": last, "loss": 7.5}
    for from_step in (6, 6, 7):
        record_skipped(tmp_path, {**event, "from_step": from_step})
    lines = (tmp_path / "skipped.jsonl").read_text().splitlines()
    assert [json.loads(line)["from_step"] for line in lines] == [6, 7]
    record_skipped(tmp_path / "missing", event)
    assert "training goes on without this line" in capsys.readouterr().out
