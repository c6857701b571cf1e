"""The result of a fine-tuning run belongs to the run that it stands in, and `eval` gives it too."""

import json
import shutil
from pathlib import Path

import pytest

from gpt1_ds.base.files import file_sha256
from gpt1_ds.checkpoints.folder import checkpoint_sha256, find_checkpoint, read_state
from gpt1_ds.checkpoints.loading import load_weights
from gpt1_ds.runs.fine_tuned import load_fine_tuned, predictions
from gpt1_ds.tasks.scores import task_metrics
from tests.support.fine_tuning import arguments, logged, task_of

SHORT = ["task.max_examples=16", "train.global_batch=8", "eval.batches=4", "optim.lr=1e-3"]


def scores_now(run: Path, data: Path) -> dict[str, float]:
    """The metrics that `eval --task` prints."""
    tuned = load_fine_tuned(str(run), None)
    examples = tuned.task.read(data, "dev")
    predicted = predictions(tuned, examples)
    gold = [example.label for example in examples]
    return task_metrics(tuned.task.metrics, gold, predicted, len(tuned.task.classes))


def tune(ranks, ds: str, folder: Path, *overrides: object) -> Path:
    """Fine-tune on two ranks; the folder of the run."""
    argv = arguments(folder, ds, *SHORT, *overrides)
    ranks(2).run("tests.support.cases_finetune:start_and_end", argv)
    return folder / argv_value(argv, "run.name")


def argv_value(argv: list[str], key: str) -> str:
    return next(word.split("=")[1] for word in argv if word.startswith(f"{key}="))


@pytest.mark.parametrize("ds", ["zero0_fp32", "zero1_bf16", "zero3_bf16", "zero2_offload"])
def test_the_result_is_what_eval_gives_to_the_last_bit(ranks, tiny_run, sample, tmp_path, ds: str):
    """Correlations are sensitive to every bit of the logits. Training on 2 ranks, eval on 1."""
    own = ["train.epochs=1", "eval.batches=null", f"init.checkpoint={tiny_run}"]
    run = tune(ranks, ds, tmp_path, *task_of(sample, "stsb"), *own)
    result = json.loads((run / "result.json").read_text())
    assert result["metrics"] == scores_now(run, sample / "tasks" / "STS-B")


def result_of(run: Path) -> dict:
    return json.loads((run / "result.json").read_text())


def test_a_result_tells_what_it_was_made_from(ranks, tiny_run, sample, tmp_path):
    own = [*task_of(sample, "sst2"), f"init.checkpoint={tiny_run}", "train.max_steps=2"]
    run = tune(ranks, "zero2_bf16", tmp_path, *own)
    first = result_of(run)
    facts = first["made_from"]
    assert facts["settings"]["optim.lr"] == 1e-3 and facts["settings"]["run.seed"] == 42
    assert facts["init_sha256"] == checkpoint_sha256(find_checkpoint(tiny_run))
    assert {split: text.split()[0] for split, text in facts["data"].items()} == {
        "train": "2000",
        "dev": "400",
    }
    assert first["files"] == {
        "predictions-dev.tsv": file_sha256(run / "predictions-dev.tsv"),
    }
    # The same start again changes nothing; a start with other settings trains nothing.
    for changed in ([], ["optim.lr=1e-2"], ["eval.batches=2"], ["train.max_steps=1"]):
        tune(ranks, "zero2_bf16", tmp_path, *own, *changed)
        assert result_of(run) == first
    # A longer one trains on, and says so.
    tune(ranks, "zero2_bf16", tmp_path, *own, "train.max_steps=4", "optim.lr=1e-2")
    assert result_of(run)["made_from"]["settings"]["train.max_steps"] == 4
    assert result_of(run)["made_from"]["settings"]["optim.lr"] == 1e-2


def test_weights_that_a_cut_off_start_left_are_not_taken_for_the_best(
    ranks, tiny_run, sample, tmp_path
):
    """An earlier start was killed before its first checkpoint; its best/ is newer than ours."""
    own = [*task_of(sample, "sst2"), f"init.checkpoint={tiny_run}"]
    steps = ["train.max_steps=2", "checkpoint.every=9", "eval.every=1"]
    other = tune(ranks, "zero2_bf16", tmp_path / "other", *own, *steps, "optim.lr=1e-2")
    run = tmp_path / "sst2"
    run.mkdir()
    left = find_checkpoint(other / "best")
    for step in (1, 2, 9):
        shutil.copytree(left, run / "best" / "checkpoints" / f"step-{step:08d}")
    (run / "predictions-test.tsv").write_text("index\tgold\tprediction\n")
    tune(ranks, "zero2_bf16", tmp_path, *own, *steps)
    best = find_checkpoint(run / "best")
    assert read_state(best).best["step"] == result_of(run)["best_step"]
    scores = {record["step"]: record["accuracy"] for record in logged(run, "task")}
    assert scores[read_state(best).step] == max(scores.values())
    own_weights, left_weights = load_weights(best)[0], load_weights(left)[0]
    assert not own_weights["head.weight"].equal(left_weights["head.weight"])
    assert not (run / "predictions-test.tsv").exists()
