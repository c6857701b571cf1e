"""A resumed run ends where its budget says, in windows that were trained; a new end is told."""

import json
import shutil
from pathlib import Path

import pytest

from data_prep.trace import windows_of
from gpt1_ds.data.batches import BatchSizes, total_steps
from gpt1_ds.data.manifest import read_manifest
from gpt1_ds.data.order import WindowOrder
from gpt1_ds.engine.optimizer import lr_at
from gpt1_ds.settings.sections import ScheduleConfig, TrainConfig
from tests.settings.test_deepspeed_json import FOLDER
from tests.support.fine_tuning import TINY, arguments, logged, task_of

N_CTX = 32
BLOCK_WEIGHTS, VOCABULARY, N_LAYER, N_EMBD = 12 * 32**2, 512, 2, 32
TOKEN_FLOPS = 6 * (N_LAYER * BLOCK_WEIGHTS + VOCABULARY * N_EMBD) + 12 * N_LAYER * N_CTX * N_EMBD
CASES = "tests.support.cases_losses"


def order_of(shards: Path) -> WindowOrder:
    corpora = read_manifest(shards).splits["train"].items()
    return WindowOrder({name: corpus.tokens for name, corpus in corpora}, N_CTX, 1, {})


@pytest.fixture
def start(ranks, tiny_shards, tmp_path):
    """Start the run "r" once more with `words`: its metrics, and what it said."""

    def start_again(*words: str) -> tuple[list[dict], str]:
        names = str(FOLDER / "cpu.json"), str(tiny_shards), str(tmp_path), "r"
        case = f"{CASES}:said", f"{CASES}:pretrain"
        (_, metrics, _), said = ranks(2).run(*case, *names, list(words))[0]
        return metrics, said

    return start_again


def places(metrics: list[dict]) -> list[tuple[int, int]]:
    """Step and windows of the lines of training."""
    lines = [record for record in metrics if record["split"] == "train"]
    return [(line["step"], line["tokens"] // N_CTX) for line in lines]


@pytest.mark.parametrize("budget", ["tokens", "epochs", "flops"])
def test_a_changed_batch_ends_where_the_budget_says(start, tiny_shards, tmp_path, budget):
    """Six steps of 8 windows, then steps of 16, up to 112 windows or a little more."""

    def words(windows: int) -> list[str]:
        epochs = windows / order_of(tiny_shards).epoch_windows
        flops = windows * N_CTX * TOKEN_FLOPS
        value = {"tokens": windows * N_CTX, "epochs": epochs, "flops": flops}[budget]
        return ["train.epochs=null", f"train.{budget}={value}"]

    start(*words(50))
    metrics, said = start("train.global_batch=16", *words(120))
    windows = [8, 16, 24, 32, 40, 48, 64, 80, 96, 112]
    assert places(metrics) == list(enumerate(windows, 1)), "the number of tokens never jumps"
    assert "steps    6 of 10 done" in said
    flops = 112 * N_CTX * TOKEN_FLOPS
    assert f"train.{budget}=" in said and f"ends it at step 10; {flops:.3g} FLOPs" in said
    metrics, said = start("train.global_batch=4", *words(100))
    assert places(metrics) == list(enumerate(windows, 1)), "it is past that end already"
    assert "nothing to do, all 10 steps are done" in said
    metrics, _ = start("train.global_batch=4", "train.max_steps=5", *words(121))
    assert places(metrics) == list(enumerate(windows, 1))
    metrics, _ = start("train.global_batch=4", *words(121))
    assert places(metrics)[10:] == [(11, 116), (12, 120)]
    status = json.loads((tmp_path / "r" / "status.json").read_text())
    assert (status["state"], status["step"]) == ("done", 12)
    order, sizes = order_of(tiny_shards), BatchSizes(4)
    found = [windows_of(tmp_path / "r", step, sizes, order) for step in (1, 6, 7, 10, 11, 12)]
    assert found == [(0, 8), (40, 8), (48, 16), (96, 16), (112, 4), (116, 4)]


def test_windows_that_a_spike_skipped_are_not_trained_ones(ranks, tiny_shards, tmp_path):
    """Back to step 8 from step 11, then to the 13 steps of the budget, then batches of 16."""
    names = str(FOLDER / "cpu.json"), str(tiny_shards), str(tmp_path), "r"
    words = ["optim.lr=1e-2", "train.epochs=null", "train.max_steps=null"]
    for batch, windows in ((8, 13 * 8), (16, 13 * 8 + 40)):
        more = [*words, f"train.tokens={windows * N_CTX}", f"train.global_batch={batch}"]
        _, metrics, events = ranks(2).run(f"{CASES}:pretrain", *names, more, [80, 88])[0]
        assert len(events) == 1
    assert places(metrics)[-3:] == [(13, 104), (14, 120), (15, 136)]


def test_a_new_end_of_the_schedule_is_told_and_can_be_set(start):
    cosine = "schedule.kind=cosine"
    _, said = start(cosine, "train.max_steps=4")
    assert "schedule:" not in said
    metrics, said = start(cosine, "train.max_steps=8")
    told = next(line for line in said.splitlines() if line.startswith("schedule: "))
    assert "the cosine now ends at step 8 and not at 4" in told
    assert "the rate of step 5 is 0.00225 and not 0; schedule.total_steps sets" in told
    metrics, said = start(cosine, "train.max_steps=10", "schedule.total_steps=8")
    assert "schedule:" not in said
    rates = [record["lr"] for record in metrics if record["split"] == "train"]
    whole = [lr_at(step, 8, 3e-3, ScheduleConfig(warmup_steps=2)) for step in range(10)]
    assert rates[4:] == whole[4:] and rates[8:] == [0.0, 0.0]


def test_a_fine_tuning_with_a_changed_batch_ends_with_its_epochs(
    ranks, sample, tiny_shards, tmp_path
):
    """Ten steps of 4 of the 32 examples, which is 1.25 epochs; then steps of 8.

    The later starts read a copy of the examples.
    """
    words = arguments(tmp_path, "cpu", *TINY, *task_of(sample, "sst2"), "task.max_examples=32")
    words += ["init.checkpoint=none", f"data.shards={tiny_shards}", "eval.batches=1"]
    words += ["train.epochs=2", "train.global_batch=4"]
    tuned = [f"{CASES}:said", "tests.support.cases_finetune:tuned"]

    def start(*more: str) -> str:
        return ranks(2).run(*tuned, [*words, *more])[0][1]

    start("train.max_steps=10")
    shutil.copytree(sample / "tasks" / "SST-2", tmp_path / "copy")
    words.append(f"task.data={tmp_path / 'copy'}")
    said = start("train.global_batch=8")
    assert "epoch 2 goes on after 1 of its 4 batches" in said
    assert "the linear now ends at step 13 and not at 10" in said
    for fewer in ("train.epochs=1", "train.max_steps=5"):
        assert "steps    13 of 13 done" in start("train.global_batch=8", fewer)
    lines = logged(tmp_path / "sst2", "train")
    epochs = [*(step / 8 for step in range(1, 11)), 1.5, 1.75, 2.0]
    assert [line["epoch"] for line in lines] == epochs
    assert json.loads((tmp_path / "sst2" / "status.json").read_text())["state"] == "done"
    assert json.loads((tmp_path / "sst2" / "result.json").read_text())["epochs"] == 2


def test_sizes_that_changed_count_from_what_was_trained(tiny_shards):
    sizes = BatchSizes(16, more=-48)  # 48 windows in six steps
    assert [sizes.before(step) for step in (6, 7, 10)] == [48, 64, 112]
    assert [sizes.steps_in(windows) for windows in (48, 63, 64, 112, 127)] == [6, 6, 7, 10, 10]
    order = order_of(tiny_shards)
    for windows, steps in ((20, 6), (48, 6), (64, 7), (120, 10)):
        train = TrainConfig(epochs=None, tokens=windows * N_CTX)
        assert total_steps(order, train, 1, sizes, 6) == steps
    for kind in ("cosine", "linear", "wsd"):
        assert lr_at(30, 20, 1.0, ScheduleConfig(kind=kind, warmup_steps=2)) == 0.0
