"""Fine-tuning end to end on real ranks: every kind of task, its results, and their use."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gpt1_ds import eval as gpt1_eval
from gpt1_ds import export
from gpt1_ds.base.errors import ConfigError, DataError
from gpt1_ds.checkpoints.folder import find_checkpoint, read_state
from gpt1_ds.tasks import TASKS
from tests.conftest import ROOT, succeed
from tests.support.fine_tuning import NO_DROPOUT, TINY, arguments, logged, task_of, weights
from tests.support.task_folders import FOLDERS

RESULT_KEYS = {
    "task",
    "metric",
    "score",
    "metrics",
    "majority",
    "seed",
    "epochs",
    "examples",
    "init",
    "best_step",
    "cut",
    "splits",
    "confusion",
    "files",
    "made_from",
    "predicted",
    "by_class",
}


@pytest.mark.parametrize("name", ["sst2", "qnli", "stsb", "mrpc", "race", "storycloze", "wnut17"])
def test_every_kind_trains_and_writes_its_results(
    ranks, sample: Path, tiny_shards: Path, tmp_path: Path, name: str
):
    argv = arguments(
        tmp_path,
        "zero2_bf16",
        *TINY,
        *task_of(sample, name),
        f"data.shards={tiny_shards}",
        "init.checkpoint=none",
        "task.max_examples=37",
        "train.global_batch=8",
        "train.epochs=2",
    )
    ranks(2).run("gpt1_ds.finetune:main", argv)
    run = tmp_path / name
    n_dev = len(TASKS[name].read(sample / "tasks" / FOLDERS[name], "dev"))
    result = json.loads((run / "result.json").read_text())
    assert set(result) == RESULT_KEYS
    assert (result["task"], result["init"]) == (name, "none")
    assert result["metric"] == TASKS[name].metrics[0]
    assert result["examples"] == {"train": 37, "dev": n_dev} and result["epochs"] == 2
    assert set(result["metrics"]) == set(TASKS[name].metrics)
    assert name != "race" or result["splits"]["dev_middle"] == result["metrics"]
    with (run / "predictions-dev.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert [row["index"] for row in rows] == [str(index) for index in range(n_dev)]
    if name in ("sst2", "qnli", "race", "storycloze"):
        hits = sum(row["gold"] == row["prediction"] for row in rows)
        assert hits / n_dev == pytest.approx(result["score"])
    # 37 examples are 5 batches of 8, the last of 5: none is left out and none comes twice.
    assert [record["step"] for record in logged(run, "train")] == list(range(1, 11))
    scores = [record[result["metric"]] for record in logged(run, "task")]
    assert len(scores) == 2 and max(scores) == pytest.approx(result["score"], abs=1e-6)
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["step"], status["exit_code"]) == ("done", 10, 0)
    [events] = run.glob("events.out.tfevents.*")
    board = EventAccumulator(str(events)).Reload()
    assert f"task/{result['metric']}" in board.Tags()["scalars"]
    has_classes = name != "stsb"
    assert (board.Tags()["images"] == ["task/confusion"]) == has_classes
    assert (result["confusion"] is not None) == has_classes
    best_step = read_state(find_checkpoint(run / "best")).best["step"]
    assert scores[best_step // 5 - 1] == max(scores)


def test_scores_by_squared_error(ranks, sample: Path, tiny_shards: Path, tmp_path: Path):
    """3 examples on 2 ranks of micro-batch 1: one rank runs a blank example.

    It has no score, and adds nothing to the loss.
    """
    losses = []
    for world_size in (1, 2):
        run_dir = tmp_path / str(world_size)
        argv = arguments(
            run_dir,
            "zero0_fp32",
            *TINY,
            *NO_DROPOUT,
            *task_of(sample, "stsb"),
            "init.checkpoint=none",
            f"data.shards={tiny_shards}",
            "task.squared_error=true",
            "task.max_examples=3",
            "train.global_batch=4",
            "train.micro_batch=1",
            "train.epochs=3",
            "optim.lr=1e-2",
            "eval.batches=2",
        )
        ranks(world_size).run("gpt1_ds.finetune:main", argv)
        losses.append([record["task_loss"] for record in logged(run_dir / "stsb", "train")])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4) and losses[0][-1] < losses[0][0]
    rows = (tmp_path / "2" / "stsb" / "predictions-dev.tsv").read_text().splitlines()[1:]
    assert len(rows) == 8 and all(0 <= float(row.split("\t")[2]) <= 5 for row in rows)


MNLI = "index\tsentence1\tsentence2\tgold_label\n"


UNLABELLED = "index\tsentence1\tsentence2\n"


def test_test_files_become_a_glue_submission(ranks, tiny_shards: Path, tmp_path: Path):
    """As the GLUE site takes them: NAME.tsv, `index\tprediction`, from 0 on, labels by name."""
    folder = tmp_path / "MNLI"
    folder.mkdir()
    labels = ("entailment", "neutral", "contradiction")
    for name in ("train", "dev_matched", "dev_mismatched"):
        rows = [f"{i}\ta {i}\tb\t{labels[i % 3]}\n" for i in range(9)]
        (folder / f"{name}.tsv").write_text(MNLI + "".join(rows))
    for name, n in (("test_matched", 5), ("test_mismatched", 4), ("diagnostic", 3)):
        rows = [f"{i}\ta\tb {i}\n" for i in range(n)]
        (folder / f"{name}.tsv").write_text(UNLABELLED + "".join(rows))
    argv = arguments(
        tmp_path,
        "zero3_bf16",
        *TINY,
        "task.name=mnli",
        f"task.data={folder}",
        "run.name=mnli",
        "init.checkpoint=none",
        f"data.shards={tiny_shards}",
        "train.max_steps=1",
        "train.global_batch=4",
    )
    ranks(2).run("gpt1_ds.finetune:main", argv)
    run = tmp_path / "mnli"
    for name, n in (("MNLI-m", 5), ("MNLI-mm", 4), ("AX", 3)):
        header, *rows = (run / "glue" / f"{name}.tsv").read_text().splitlines()
        numbers, answers = zip(*(row.split("\t") for row in rows), strict=True)
        assert header == "index\tprediction" and list(map(int, numbers)) == list(range(n))
        assert set(answers) <= set(labels)
    assert len((run / "predictions-dev_mismatched.tsv").read_text().splitlines()) == 10
    result = json.loads((run / "result.json").read_text())
    assert set(result["splits"]) == {"dev_mismatched"}
    assert 0 <= result["splits"]["dev_mismatched"]["accuracy"] <= 1
    confusion = result["confusion"]
    assert sum(map(sum, confusion["counts"])) == 9 and confusion["classes"][2] == "entailment"


def test_fewer_examples_than_ranks(ranks, tiny_shards: Path, tmp_path: Path):
    """One training sentence, one dev sentence, one class: Matthews is undefined, and 0."""
    for split in ("train", "dev"):
        (tmp_path / f"{split}.tsv").write_text("gj04\t1\t\tIt works.\n")
    argv = arguments(
        tmp_path,
        "zero2_bf16",
        *TINY,
        "task.name=cola",
        f"task.data={tmp_path}",
        "run.name=cola",
        "init.checkpoint=none",
        f"data.shards={tiny_shards}",
        "train.max_steps=2",
        "train.global_batch=4",
    )
    ranks(2).run("gpt1_ds.finetune:main", argv)
    result = json.loads((tmp_path / "cola" / "result.json").read_text())
    assert result["score"] == 0.0 and result["examples"] == {"train": 1, "dev": 1}


def test_a_task_of_ones_own_needs_no_code(ranks, tiny_shards: Path, tmp_path: Path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for split, label in (("train", ',"{}"'), ("dev", ',"{}"'), ("test", "")):
        rows = "".join(f'"a ""{i}"", b"{label.format(i % 2 + 1)}\n' for i in range(12))
        (folder / f"my_{split}.csv").write_text(
            "text,queue\n".replace(",queue", label and ",queue") + rows
        )
    config = tmp_path / "mine.yaml"
    config.write_text(
        "task: {name: mine, kind: classification, columns: [text, queue], labels: ['1', '2'], "
        "files: {train: my_train.csv, dev: my_dev.csv, test: my_test.csv}, "
        "metrics: [f1, accuracy]}\n"
    )
    argv = arguments(
        tmp_path,
        "zero0_fp32",
        "--config",
        config,
        *TINY,
        f"task.data={folder}",
        "run.name=mine",
        "init.checkpoint=none",
        f"data.shards={tiny_shards}",
        "train.max_steps=1",
        "train.global_batch=4",
    )
    ranks(1).run("gpt1_ds.finetune:main", argv)
    header, *rows = (tmp_path / "mine" / "predictions-test.tsv").read_text().splitlines()
    assert header == "index\tgold\tprediction" and len(rows) == 12
    _, gold, predictions = zip(*(row.split("\t") for row in rows), strict=True)
    assert set(gold) == {""} and set(predictions) <= {"1", "2"}
    assert json.loads((tmp_path / "mine" / "result.json").read_text())["metric"] == "f1"


def test_learns_the_sample_and_is_scored_and_used(
    ranks, sample: Path, tiny_shards: Path, tmp_path: Path
):
    argv = arguments(
        tmp_path,
        "zero2_bf16",
        *TINY,
        *NO_DROPOUT,
        *task_of(sample, "sst2"),
        "init.checkpoint=none",
        f"data.shards={tiny_shards}",
        "optim.lr=3e-3",
        "train.epochs=4",
    )
    ranks(2).run("gpt1_ds.finetune:main", argv, timeout_seconds=240)
    run, dev = tmp_path / "sst2", sample / "tasks" / "SST-2" / "dev.tsv"
    result = json.loads((run / "result.json").read_text())
    assert result["score"] > result["majority"] + 0.15, result
    for options in (["--task", "sst2", "--data", dev], ["--task", "sst2", "--data", dev.parent]):
        said = succeed("python", "-m", "gpt1_ds.eval", run, *options).stdout
        score = float(re.search(r"accuracy ([0-9.]+); 400 examples", said)[1])
        assert score == pytest.approx(result["score"], abs=5e-5)  # as printed
    lines = [line.split("\t")[0].strip() for line in dev.read_text().splitlines()[1:]]
    said = subprocess.run(
        [sys.executable, "-m", "gpt1_ds.eval", run, "--predict"],
        cwd=ROOT,
        capture_output=True,
        input="\n".join(lines) + "\n",
        text=True,
        check=True,
    ).stdout
    labels, texts = zip(*(line.split("\t") for line in said.splitlines()), strict=True)
    assert list(texts) == lines
    rows = (run / "predictions-dev.tsv").read_text().splitlines()[1:]
    predicted = [row.split("\t")[2] for row in rows]
    assert list(labels) == predicted
    export.main([str(run), str(tmp_path / "hf")])
    head = load_file(tmp_path / "hf" / "head.safetensors")
    assert torch.equal(head["weight"], weights(run / "best")["head.weight"])
    with pytest.raises(ConfigError, match="--task rte: .* was trained for sst2"):
        gpt1_eval.main([str(run), "--task", "rte", "--data", str(dev)])
    with pytest.raises(DataError, match="dev.tsv row 1: no column"):
        gpt1_eval.main(
            [str(run), "--task", "sst2", "--data", str(sample / "tasks" / "RTE" / "dev.tsv")]
        )


STEP_PARTS = ("data", "forward", "backward", "optimizer", "communication")


def test_the_parts_of_a_step_are_timed_and_one_step_is_profiled(
    ranks, sample: Path, tiny_shards: Path, tmp_path: Path
):
    argv = arguments(
        tmp_path,
        "zero2_bf16",
        *TINY,
        *task_of(sample, "sst2"),
        "init.checkpoint=none",
        f"data.shards={tiny_shards}",
        "train.max_steps=3",
        "train.global_batch=4",
        "eval.batches=1",
        "log.profile=2",
    )
    ranks(2).run("gpt1_ds.finetune:main", argv)
    for record in logged(tmp_path / "sst2", "train"):
        assert all(record[f"{part}_seconds"] > 0 for part in STEP_PARTS), record
    folder = tmp_path / "sst2" / "profile"
    assert {path.name for path in folder.iterdir()} == {
        "step-00000002.json.gz",
        "step-00000002.txt",
    }
    table = (folder / "step-00000002.txt").read_text()
    assert all(part in table for part in STEP_PARTS)
