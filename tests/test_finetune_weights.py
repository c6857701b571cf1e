"""Fine-tuning with class weights, balanced sampling and texts in its table."""

import json
from pathlib import Path

import torch

from tests.support.fine_tuning import TINY, arguments, logged, task_of, weights


def test_weights_and_sampling_do_not_depend_on_ranks_and_micro_batches(
    ranks, sample: Path, tiny_shards: Path, tmp_path: Path
):
    """1 rank x 8, and 2 ranks x 2 micro-steps of 2: the same losses and weights, with dropout."""
    trained = []
    for world_size, micro_batch in ((1, 8), (2, 2)):
        run = tmp_path / str(world_size) / "snli"
        argv = arguments(
            run.parent,
            "zero0_fp32",
            *TINY,
            *task_of(sample, "snli"),
            "init.checkpoint=none",
            f"data.shards={tiny_shards}",
            "task.max_examples=21",
            "task.class_weights=[0.2, 1, 3]",
            "task.sampling=balanced",
            "task.predictions_with_text=true",
            "train.global_batch=8",
            "train.max_steps=4",
            f"train.micro_batch={micro_batch}",
            "optim.lr=1e-3",
            "eval.batches=4",
        )
        ranks(world_size).run("gpt1_ds.finetune:main", argv)
        records = logged(run, "train")
        losses = [(record["loss"], record["task_loss"], record["lm_loss"]) for record in records]
        trained.append({"losses": torch.tensor(losses), **weights(run)})
    torch.testing.assert_close(trained[1], trained[0], rtol=1e-3, atol=1e-5)
    report = json.loads((run / "result.json").read_text())["by_class"]
    assert list(report) == ["contradiction", "neutral", "entailment"]
    assert sum(row["support"] for row in report.values()) == 32
    header, *rows = (run / "predictions-dev.tsv").read_text().splitlines()
    assert header == "index\tgold\tprediction\tpremise\thypothesis" and len(rows) == 32
    right = [row.split("\t")[1:3] for row in rows if row.split("\t")[1] == "neutral"]
    found = report["neutral"]
    assert found["support"] == len(right)
    assert found["recall"] == sum(gold == guess for gold, guess in right) / max(1, len(right))
