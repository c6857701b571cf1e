"""When a loss is a spike, and when a run has diverged: the thresholds, from both sides."""

import json
import math
from pathlib import Path

import pytest
import torch

from gpt1_ds.base.errors import DivergedError
from gpt1_ds.data.order import Cursor
from gpt1_ds.distributed import collectives
from gpt1_ds.runs.losses import LossHistory, Spike, TaskLosses, record_skipped
from gpt1_ds.settings.sections import TrainConfig

TRAIN = TrainConfig(spike_nats=1.0, max_skipped=3)


def logged(*values: float, train: TrainConfig = TRAIN) -> LossHistory:
    """A run that has logged these losses."""
    losses = LossHistory(train, {})
    for value in values:
        losses.start_line(value)
    return losses


def is_spike(losses: LossHistory, value: float) -> bool:
    losses.add(torch.tensor(value, dtype=torch.float64), 7, False)
    try:
        losses.check(7, Cursor(1, 2))
    except Spike as spike:
        assert (spike.step, spike.cursor, spike.loss) == (7, Cursor(1, 2), value)
        return True
    return False


def test_a_spike_is_more_than_so_many_nats_above_the_median():
    lines = (9.0, 3.0, 2.0, 3.0, 9.0)
    assert not is_spike(logged(*lines), 4.0)
    assert is_spike(logged(*lines), 4.001)
    assert not is_spike(logged(*lines), 0.0)


def test_a_spike_needs_five_lines():
    assert not is_spike(logged(3.0, 3.0, 3.0, 3.0), 100.0)
    assert is_spike(logged(3.0, 3.0, 3.0, 3.0, 3.0), 100.0)


def test_the_median_is_of_the_last_20_lines():
    assert is_spike(logged(*[9.0] * 9, *[3.0] * 11), 4.5)
    # The 10 of the last 20 that are lower put the median at 6; the first 80 do not count.
    assert not is_spike(logged(*[3.0] * 80, *[9.0] * 10, *[3.0] * 10), 7.0)
    assert is_spike(logged(*[3.0] * 80, *[9.0] * 10, *[3.0] * 10), 7.001)
    assert logged(*map(float, range(30))).recent == [float(value) for value in range(10, 30)]


def test_no_spikes_where_they_are_turned_off():
    off = TrainConfig(spike_nats=None)
    assert not is_spike(logged(*[3.0] * 9, train=off), 100.0)


def test_the_mean_is_of_the_steps_that_were_not_skipped():
    losses = LossHistory(TRAIN, {})
    for value, skipped in ((1.0, False), (math.nan, True), (4.0, False)):
        losses.add(torch.tensor(value), 1, skipped)
    assert losses.check(1, Cursor()) == 2.5
    losses.start_line(2.5)
    assert losses.to_dict() == {"recent": [2.5], "steps": [], "in_a_row": 0, "rollbacks": 0}


def mean_of_ranks() -> float:
    """On each rank: the losses of two steps, 1 and 2 on rank 0, 2 and 3 on rank 1."""
    losses = LossHistory(TRAIN, {})
    for value in (1.0, 2.0):
        losses.add(torch.tensor(value + collectives.rank()), 1, False)
    return losses.check(1, Cursor())


def test_the_mean_is_of_all_ranks(ranks):
    assert ranks(2).run("tests.runs.test_losses_pinned:mean_of_ranks") == [2.0, 2.0]


def test_a_line_without_a_loss_is_not_remembered():
    losses = logged(3.0)
    losses.add(torch.tensor(math.nan), 1, True)
    assert math.isnan(losses.check(1, Cursor()))
    losses.start_line(math.nan)
    assert losses.recent == [3.0] and losses.steps == []
    assert math.isnan(losses.check(1, Cursor())), "no step since the last line"


def test_so_many_skipped_steps_in_a_row_end_a_run():
    losses = LossHistory(TRAIN, {})
    for skipped, in_a_row in ((True, 1), (True, 2), (False, 0), (True, 1), (True, 2)):
        losses.add(torch.tensor(math.nan), 1, skipped)
        assert losses.in_a_row == in_a_row
    with pytest.raises(DivergedError, match="not finite at step 9, 3 steps skipped in a row"):
        losses.add(torch.tensor(math.nan), 9, True)


def test_a_loss_that_is_not_finite_though_no_step_was_skipped_ends_a_run():
    losses = LossHistory(TRAIN, {})
    losses.add(torch.tensor(math.inf), 9, False)
    with pytest.raises(DivergedError, match="loss is nan at step 9"):
        losses.check(9, Cursor())


def test_the_losses_of_fine_tuning_are_means_since_the_last_line():
    losses = TaskLosses()
    for task_loss, lm_loss in ((1.0, 4.0), (3.0, 6.0)):
        losses.add(torch.tensor([task_loss, lm_loss]), 1, False)
        losses.tokens += 5
    assert losses.read() == (2.0, 5.0, 10)
    losses.add(torch.tensor([7.0, 8.0]), 2, False)
    assert losses.read() == (7.0, 8.0, 0)


def test_what_was_saved_is_read_again():
    saved = {"recent": [2.0, 3.0], "steps": [1.0, 0.5], "in_a_row": 2, "rollbacks": 1}
    assert LossHistory(TRAIN, saved).to_dict() == saved
    empty = {"recent": [], "steps": [], "in_a_row": 0, "rollbacks": 0}
    assert LossHistory(TRAIN, {}).to_dict() == empty


def test_an_event_is_written_once_by_its_steps_and_cursors(tmp_path: Path):
    event = {
        "to_step": 4,
        "from_step": 6,
        "first": {"epoch": 0, "index": 8},
        "last": {"epoch": 0, "index": 9},
    }
    others = [
        event | {"to_step": 5},
        event | {"from_step": 7},
        event | {"first": {}},
        event | {"last": {}},
    ]
    for written in (event, *others, event | {"loss": 7.5}, *others):
        record_skipped(tmp_path, written)
    lines = (tmp_path / "skipped.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [event, *others]


def test_the_message_of_a_spike():
    assert str(Spike(7, Cursor(), 5.0, 2.25)) == "loss 5.0000 at step 7, recent median 2.2500"
