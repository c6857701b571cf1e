"""A fine-tuning run does not depend on the number of ranks, kills, stops and restarts."""

import json
import signal
from pathlib import Path

import pytest
import torch

from gpt1_ds.base.errors import StopRequested
from tests.support.fine_tuning import TINY, arguments, logged, task_of, weights
from tests.support.ranks import RankError


def test_ranks_and_accumulation_do_not_change_the_numbers(
    ranks, sample: Path, tiny_shards: Path, tmp_path: Path
):
    """1 rank x 8, 1 rank x 2 x 4 micro-steps, 2 ranks x 2 x 2, with dropout.

    All have the same losses, weights and scores.
    """
    scores, trained = [], []
    for world_size, micro_batch in ((1, 8), (1, 2), (2, 2)):
        run_dir = tmp_path / f"{world_size}x{micro_batch}"
        argv = arguments(
            run_dir,
            "zero0_fp32",
            *TINY,
            *task_of(sample, "sst2"),
            "init.checkpoint=none",
            f"data.shards={tiny_shards}",
            "task.max_examples=21",
            "train.global_batch=8",
            "train.epochs=2",
            f"train.micro_batch={micro_batch}",
            "optim.lr=1e-3",
            "eval.batches=4",
        )
        ranks(world_size).run("gpt1_ds.finetune:main", argv)
        scores.append(json.loads((run_dir / "sst2" / "result.json").read_text())["metrics"])
        records = logged(run_dir / "sst2", "train")
        losses = [(record["loss"], record["task_loss"], record["lm_loss"]) for record in records]
        trained.append({"losses": torch.tensor(losses), **weights(run_dir / "sst2")})
    assert scores[0] == scores[1] == scores[2]
    for other in trained[1:]:
        torch.testing.assert_close(other, trained[0], rtol=1e-3, atol=1e-5)


def test_stops_early_on_request_and_stays_so(
    ranks, sample: Path, tiny_shards: Path, tmp_path: Path
):
    """With a rate near 0 the first score is never beaten: two more scores, and training ends.

    A second start adds nothing.
    """
    argv = arguments(
        tmp_path,
        "zero0_fp32",
        *TINY,
        *task_of(sample, "sst2"),
        "init.checkpoint=none",
        f"data.shards={tiny_shards}",
        "optim.lr=1e-12",
        "task.max_examples=32",
        "train.global_batch=4",
        "eval.every=2",
        "eval.batches=2",
        "task.patience=2",
    )
    for _ in range(2):
        ranks(1).run("gpt1_ds.finetune:main", argv)
        ranks(1).close()
        assert [record["step"] for record in logged(tmp_path / "sst2", "task")] == [2, 4, 6]
        result = json.loads((tmp_path / "sst2" / "result.json").read_text())
        assert result["best_step"] == 2 and result["epochs"] == 0.75


@pytest.mark.parametrize("ds", ["zero2_bf16", "zero3_bf16"])
def test_a_killed_and_stopped_run_ends_with_the_weights_of_an_undisturbed_one(
    ranks, sample: Path, tiny_shards: Path, tmp_path: Path, ds: str
):
    """Bit for bit: SIGKILL of a rank in the first epoch, a stop request in the second."""
    options = [
        *TINY,
        *task_of(sample, "wnut17"),
        f"data.shards={tiny_shards}",
        "init.checkpoint=none",
        "optim.lr=1e-3",
        "task.max_examples=60",
        "train.global_batch=8",
        "train.max_steps=16",
        "eval.batches=2",
        "checkpoint.every=3",
    ]
    undisturbed, disturbed = (
        arguments(tmp_path / name, ds, *options) for name in ("undisturbed", "disturbed")
    )
    ranks(2).run("gpt1_ds.finetune:main", undisturbed, timeout_seconds=240)
    run, reference = tmp_path / "disturbed" / "wnut17", tmp_path / "undisturbed" / "wnut17"
    for number, after, says in (
        (signal.SIGKILL, 5, "exit codes"),
        (signal.SIGUSR1, 9, r"step \d+ of 16 is committed"),
    ):
        ranks(2).close()  # a process holds the lock of its run for life, so the next start is new
        with pytest.raises((RankError, StopRequested), match=says):
            ranks(2).run(
                "tests.support.cases_finetune:stop_after",
                after,
                str(run / "metrics.jsonl"),
                disturbed,
                number,
                timeout_seconds=240,
            )
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "stopped" and status["exit_code"] == 75 and 9 <= status["step"] < 16
    assert not (run / "result.json").exists()
    ranks(2).close()
    ranks(2).run("gpt1_ds.finetune:main", disturbed, timeout_seconds=240)
    expected, resumed = weights(reference), weights(run)
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)
    ours, theirs = logged(run, "train"), logged(reference, "train")
    assert [record["loss"] for record in ours] == [record["loss"] for record in theirs]
    for records in (ours, theirs):
        assert [record["step"] for record in records] == list(range(1, 17))
    assert json.loads((run / "result.json").read_text()) == json.loads(
        (reference / "result.json").read_text()
    )


def test_a_stop_cuts_scoring_short_and_the_next_start_scores(
    ranks, sample: Path, tiny_shards: Path, tmp_path: Path
):
    """The request comes after the last step, before the only scoring: committed, and no score."""
    options = [
        *TINY,
        *task_of(sample, "sst2"),
        f"data.shards={tiny_shards}",
        "init.checkpoint=none",
        "task.max_examples=8",
        "train.global_batch=8",
        "train.max_steps=1",
    ]
    words, run = arguments(tmp_path, "zero2_bf16", *options), tmp_path / "sst2"
    with pytest.raises(StopRequested, match="step 1 of 1 is committed"):
        ranks(2).run(
            "tests.support.cases_finetune:stop_after",
            1,
            str(run / "metrics.jsonl"),
            words,
            timeout_seconds=240,
        )
    assert not logged(run, "task") and not (run / "best").exists()
    ranks(2).close()
    ranks(2).run("gpt1_ds.finetune:main", words, timeout_seconds=240)
    assert [record["step"] for record in logged(run, "task")] == [1]
    assert (run / "result.json").exists()
