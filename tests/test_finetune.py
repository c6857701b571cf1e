"""Fine-tuning end to end on real ranks: every kind, sharded checkpoints in, loss normalisation, stop and resume."""

import csv
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gpt1_ds import eval as gpt1_eval
from gpt1_ds import export, finetune
from gpt1_ds.base.errors import ConfigError, DataError, StopRequested
from gpt1_ds.checkpoints.folder import find_checkpoint, read_state
from gpt1_ds.checkpoints.loading import load_weights
from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import FinetuneConfig
from gpt1_ds.tasks import TASKS, build
from tests.conftest import ROOT, succeed
from tests.support.ranks import RankError
from tests.tasks.test_tasks import FOLDERS

TINY = ["model.n_layer=2", "model.n_head=2", "model.n_embd=32", "model.n_ctx=64"]
NO_DROPOUT = ["model.embd_pdrop=0", "model.attn_pdrop=0", "model.resid_pdrop=0", "task.clf_pdrop=0"]


def arguments(run_dir: Path, ds: str, *overrides: object) -> list[str]:
    ds_config = str(ROOT / "ds_configs" / f"{ds}.json")
    return [
        "--deepspeed_config",
        ds_config,
        f"run.dir={run_dir}",
        "log.every=1",
        *map(str, overrides),
    ]


def task_of(sample: Path, name: str) -> list[str]:
    return [
        f"task.name={name}",
        f"task.data={sample / 'tasks' / FOLDERS[name]}",
        f"run.name={name}",
    ]


def logged(run: Path, split: str) -> list[dict]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["split"] == split]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_weights(run)[0]


@pytest.fixture(scope="session", params=["zero2_bf16", "zero3_bf16"])
def pretrained(ranks, tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory, request) -> Path:
    """A pre-training run of two steps on two ranks, its checkpoint sharded by ZeRO-2 or ZeRO-3."""
    run_dir = tmp_path_factory.mktemp(request.param)
    steps = [
        "train.max_steps=2",
        "train.global_batch=4",
        "eval.batches=1",
        "schedule.warmup_steps=0",
        "optim.lr=1e-3",
    ]
    argv = arguments(
        run_dir, request.param, *TINY, *steps, f"data.shards={tiny_shards}", "run.name=pretrained"
    )
    ranks(2).run("gpt1_ds.train:main", argv)
    return run_dir / "pretrained"


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
    assert set(result) == {
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
    }
    assert (
        result["task"] == name
        and result["metric"] == TASKS[name].metrics[0]
        and result["init"] == "none"
    )
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
    assert json.loads((run / "status.json").read_text()) == {
        "state": "done",
        "step": 10,
        "exit_code": 0,
    }
    [events] = run.glob("events.out.tfevents.*")
    board = EventAccumulator(str(events)).Reload()
    assert f"task/{result['metric']}" in board.Tags()["scalars"]
    assert (
        (board.Tags()["images"] == ["task/confusion"])
        == (name != "stsb")
        == (result["confusion"] is not None)
    )
    best_step = read_state(find_checkpoint(run / "best"))["best"]["step"]
    assert scores[best_step // 5 - 1] == max(scores)


def test_starts_from_the_weights_of_a_sharded_checkpoint(
    ranks, pretrained: Path, sample: Path, tmp_path: Path
):
    """With a rate near 0 the fine-tuned decoder still is the pre-trained one, under either ZeRO stage."""
    ds = "zero3_bf16" if "zero3" in str(pretrained) else "zero2_bf16"
    argv = arguments(
        tmp_path,
        ds,
        *task_of(sample, "rte"),
        f"init.checkpoint={pretrained}",
        "train.max_steps=1",
        "train.global_batch=4",
        "optim.lr=1e-12",
        "eval.batches=2",
    )
    ranks(2).run("gpt1_ds.finetune:main", argv)
    before, after = weights(pretrained), weights(tmp_path / "rte" / "best")
    assert {name.removeprefix("gpt.") for name in after} == {*before, "head.weight", "head.bias"}
    for name, tensor in before.items():
        torch.testing.assert_close(after[f"gpt.{name}"], tensor, rtol=0, atol=1e-7)
    assert (tmp_path / "rte" / "tokenizer" / "tokenizer.model").exists()
    assert "n_layer: 2\n" in (tmp_path / "rte" / "config.yaml").read_text()


def test_ranks_and_accumulation_do_not_change_the_numbers(
    ranks, sample: Path, tiny_shards: Path, tmp_path: Path
):
    """1 rank x 8, 1 rank x 2 x 4 micro-steps, 2 ranks x 2 x 2, with dropout: the same losses, weights and scores."""
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
        losses = [[record[key] for key in ("loss", "task_loss", "lm_loss")] for record in records]
        trained.append({"losses": torch.tensor(losses), **weights(run_dir / "sst2")})
    assert scores[0] == scores[1] == scores[2]
    for other in trained[1:]:
        torch.testing.assert_close(other, trained[0], rtol=1e-3, atol=1e-5)


def test_a_pre_trained_run_is_scored_zero_shot(
    pretrained: Path, sample: Path, capsys: pytest.CaptureFixture
):
    gpt1_eval.main(
        [str(pretrained), "--zero-shot", "sst2", "--data", str(sample / "tasks" / "SST-2")]
    )
    assert re.search(
        r"zero-shot: accuracy 0\.\d+, majority 0\.\d+; 400 examples", capsys.readouterr().out
    )
    with pytest.raises(DataError, match="not a fine-tuned run"):
        gpt1_eval.main([str(pretrained), "--predict"])


@pytest.mark.parametrize("n_transfer", [-1, 0, 1])
def test_transfers_the_first_blocks_only(
    ranks, pretrained: Path, sample: Path, tmp_path: Path, n_transfer: int
):
    argv = arguments(
        tmp_path,
        "zero0_fp32",
        *task_of(sample, "rte"),
        f"init.checkpoint={pretrained}",
        "train.max_steps=1",
        "train.global_batch=4",
        "optim.lr=1e-12",
        "eval.batches=2",
        f"task.n_transfer={n_transfer}",
    )
    ranks(1).run("gpt1_ds.finetune:main", argv)
    before, after = weights(pretrained), weights(tmp_path / "rte" / "best")
    for name, tensor in before.items():
        if name.endswith("c_fc.weight") or not name.startswith("blocks."):
            fresh = (int(name.split(".")[1]) if name.startswith("blocks.") else -1) >= n_transfer
            assert torch.allclose(after[f"gpt.{name}"], tensor, atol=1e-7) != fresh, name


def test_an_lstm_stands_in_for_the_transformer(
    ranks, tiny_shards: Path, sample: Path, tmp_path: Path
):
    """Pre-trained, transferred with the auxiliary objective, and learning; 2,048 units at the paper's width."""
    lstm = [
        *TINY,
        "model.kind=lstm",
        f"data.shards={tiny_shards}",
        "train.global_batch=8",
        "optim.lr=1e-2",
    ]
    ranks(2).run(
        "gpt1_ds.train:main",
        arguments(
            tmp_path,
            "zero2_bf16",
            *lstm,
            "train.max_steps=8",
            "eval.batches=1",
            "schedule.warmup_steps=0",
            "run.name=lstm",
        ),
    )
    assert (
        logged(tmp_path / "lstm", "valid")[-1]["loss"]
        < 6.0
        < logged(tmp_path / "lstm", "train")[0]["loss"]
    )
    ranks(2).run(
        "gpt1_ds.finetune:main",
        arguments(
            tmp_path,
            "zero2_bf16",
            *task_of(sample, "mrpc"),
            f"init.checkpoint={tmp_path / 'lstm'}",
            "task.max_examples=64",
            "train.epochs=1",
            "optim.lr=1e-3",
            "eval.batches=2",
        ),
    )
    assert "gpt.blocks.0.lstm.weight_ih_l0" in weights(tmp_path / "mrpc")
    assert json.loads((tmp_path / "mrpc" / "result.json").read_text())["init"].startswith(
        str(tmp_path / "lstm")
    )
    assert GPT(GPTConfig(100, n_ctx=8, kind="lstm")).blocks[0].lstm.hidden_size == 2048


def test_scores_by_squared_error(ranks, sample: Path, tiny_shards: Path, tmp_path: Path):
    """3 examples on 2 ranks of micro-batch 1: one rank runs a blank example, whose missing score adds nothing."""
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


def test_stops_early_on_request_and_stays_so(
    ranks, sample: Path, tiny_shards: Path, tmp_path: Path
):
    """With a rate near 0 the first score is never beaten: two more, and it ends; a second start adds nothing."""
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


MNLI = "index\tsentence1\tsentence2\tgold_label\n"
UNLABELLED = "index\tsentence1\tsentence2\n"


def test_test_files_become_a_glue_submission(ranks, tiny_shards: Path, tmp_path: Path):
    """Files as the GLUE site takes them: NAME.tsv, `index\tprediction`, consecutive from 0, labels by name."""
    folder = tmp_path / "MNLI"
    folder.mkdir()
    labels = ("entailment", "neutral", "contradiction")
    for name in ("train", "dev_matched", "dev_mismatched"):
        (folder / f"{name}.tsv").write_text(
            MNLI + "".join(f"{i}\ta {i}\tb\t{labels[i % 3]}\n" for i in range(9))
        )
    for name, n in (("test_matched", 5), ("test_mismatched", 4), ("diagnostic", 3)):
        (folder / f"{name}.tsv").write_text(
            UNLABELLED + "".join(f"{i}\ta\tb {i}\n" for i in range(n))
        )
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
        assert header == "index\tprediction" and [row.split("\t")[0] for row in rows] == list(
            map(str, range(n))
        )
        assert {row.split("\t")[1] for row in rows} <= set(labels)
    assert len((run / "predictions-dev_mismatched.tsv").read_text().splitlines()) == 10
    result = json.loads((run / "result.json").read_text())
    assert (
        set(result["splits"]) == {"dev_mismatched"}
        and 0 <= result["splits"]["dev_mismatched"]["accuracy"] <= 1
    )
    assert (
        sum(map(sum, result["confusion"]["counts"])) == 9
        and result["confusion"]["classes"][2] == "entailment"
    )


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
        "files: {train: my_train.csv, dev: my_dev.csv, test: my_test.csv}, metrics: [f1, accuracy]}\n"
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
    assert {row.split("\t")[1] for row in rows} == {""} and {
        row.split("\t")[2] for row in rows
    } <= {"1", "2"}
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
        assert score == pytest.approx(result["score"], abs=0.01)  # float32 here, bf16 there
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
    predicted = [
        line.split("\t")[2] for line in (run / "predictions-dev.tsv").read_text().splitlines()[1:]
    ]
    assert sum(
        mine == theirs for mine, theirs in zip(labels, predicted, strict=True)
    ) >= 0.99 * len(predicted)
    export.main([str(run), str(tmp_path / "hf")])
    head = load_file(tmp_path / "hf" / "head.safetensors")
    assert torch.equal(head["weight"], weights(run / "best")["head.weight"])
    with pytest.raises(ConfigError, match="--task rte: .* was trained for sst2"):
        gpt1_eval.main([str(run), "--task", "rte", "--data", str(dev)])
    with pytest.raises(DataError, match="dev.tsv row 1: no column"):
        gpt1_eval.main(
            [str(run), "--task", "sst2", "--data", str(sample / "tasks" / "RTE" / "dev.tsv")]
        )


@pytest.mark.parametrize("ds", ["zero2_bf16", "zero3_bf16"])
def test_a_killed_and_stopped_run_ends_with_the_weights_of_an_undisturbed_one(
    ranks, sample: Path, tiny_shards: Path, tmp_path: Path, ds: str
):
    """Bit for bit: a rank gets SIGKILL in the first epoch, the next start a stop request in the second."""
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
    ranks(
        2
    ).close()  # ZeRO-3 replaces torch's linear, and its rounding, for the life of a process that has used it
    ranks(2).run("gpt1_ds.finetune:main", undisturbed, timeout_seconds=240)
    run, reference = tmp_path / "disturbed" / "wnut17", tmp_path / "undisturbed" / "wnut17"
    for number, after, says in (
        (signal.SIGKILL, 5, "exit codes"),
        (signal.SIGUSR1, 9, r"step \d+ of 16 is committed"),
    ):
        ranks(
            2
        ).close()  # a process holds the lock of its run for life: a next start is another process, as in use
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
    losses = [
        [(record["step"], record["loss"]) for record in logged(folder, "train")]
        for folder in (run, reference)
    ]
    assert losses[0] == losses[1] and [step for step, _ in losses[0]] == list(range(1, 17))
    assert json.loads((run / "result.json").read_text()) == json.loads(
        (reference / "result.json").read_text()
    )


def test_a_stop_cuts_scoring_short_and_the_next_start_scores(
    ranks, sample: Path, tiny_shards: Path, tmp_path: Path
):
    """The request comes after the last step, in front of the only scoring: committed, exit 75, and no score."""
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
    assert [record["step"] for record in logged(run, "task")] == [1] and (
        run / "result.json"
    ).exists()


def test_a_checkpoint_of_another_kind_is_refused(
    ranks, sample: Path, tiny_shards: Path, tmp_path: Path
):
    """A fine-tuned run, which has a head and names of its own; and a run whose tokenizer was replaced."""
    first = arguments(
        tmp_path,
        "zero2_bf16",
        *TINY,
        *task_of(sample, "cola"),
        f"data.shards={tiny_shards}",
        "init.checkpoint=none",
        "train.max_steps=1",
        "train.global_batch=4",
        "eval.batches=2",
    )
    ranks(2).run("gpt1_ds.finetune:main", first)
    second = arguments(
        tmp_path, "zero2_bf16", *task_of(sample, "rte"), f"init.checkpoint={tmp_path / 'cola'}"
    )
    with pytest.raises(
        DataError, match=r"another model: blocks.0.\S+ is nothing there, \(.*\) here"
    ):
        ranks(2).run("gpt1_ds.finetune:main", second)
    other_vocabulary = tmp_path / "tok"
    succeed(
        "python",
        "-m",
        "data_prep.train_tokenizer",
        "--corpus",
        f"books={sample / 'books' / 'valid'}",
        "--vocab-size",
        400,
        "--out",
        other_vocabulary,
    )
    shutil.copy(
        other_vocabulary / "tokenizer.model", tmp_path / "cola" / "tokenizer" / "tokenizer.model"
    )
    with pytest.raises(DataError, match="not the tokenizer of"):
        finetune.main(second)


@pytest.mark.parametrize(
    "option,kind,words",
    [
        ("task.name=sst3", ConfigError, "did you mean 'sst2'"),
        ("task.data=''", ConfigError, "task.data is not set"),
        ("task.data=nowhere", DataError, "no train file"),
        ("task.lm_coef=2", ConfigError, r"must lie in \[0, 1\]"),
        ("task.pool=middle", ConfigError, "task.pool is 'middle'"),
        ("task.patience=0", ConfigError, "task.patience is 0"),
        ("model.kind=gru", ConfigError, "model.kind is 'gru'"),
        ("task.kind=regression", ConfigError, "task.kind is 'regression'"),
        ("task.kind=classification", ConfigError, "task.labels is"),
        ("init.checkpoint=nowhere", DataError, "nowhere: no checkpoint"),
        ("data.shards=nowhere", DataError, "nowhere"),
        ("train.global_batch=7", ConfigError, None),
    ],
)
def test_bad_input_is_refused_before_the_ranks_join(
    sample: Path, tiny_shards: Path, tmp_path: Path, option: str, kind: type, words: str | None
):
    argv = arguments(
        tmp_path,
        "zero2_bf16",
        *task_of(sample, "sst2"),
        f"data.shards={tiny_shards}",
        "train.micro_batch=2",
        option,
    )
    with pytest.raises(kind, match=words) as error:
        finetune.main(argv)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "sst2").exists()


def test_a_shape_that_is_not_the_checkpoints_is_refused(
    tiny_run: Path, sample: Path, tmp_path: Path
):
    """Rather than ignored: the model is that of the checkpoint."""
    words = [*task_of(sample, "sst2"), f"init.checkpoint={tiny_run}", "model.n_layer=3"]
    with pytest.raises(
        ConfigError, match="model.n_layer is 3, but .*/step-00000060 holds a model with 2;"
    ):
        finetune.main(arguments(tmp_path, "zero2_bf16", *words))


def test_every_shipped_configuration_names_a_task_and_its_folder():
    configs = sorted((ROOT / "gpt1_ds" / "configs").glob("finetune_*.yaml"))
    assert {path.stem.removeprefix("finetune_") for path in configs} == {*TASKS, "own"}
    for path in configs:
        config = load(FinetuneConfig, path, [])
        name = path.stem.removeprefix("finetune_")
        assert build(config.task).files and Path(config.task.data).parts[0] in ("tasks", "tickets")
        assert config.task.name == name or name == "own"
        assert path.read_text().startswith("# ") and f"finetune_{name}.yaml" in path.read_text()
