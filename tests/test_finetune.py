"""Fine-tuning end to end on real ranks: every kind, sharded checkpoints in, loss normalisation, stop and resume."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch

from gpt1_ds import checkpoint, finetune
from gpt1_ds.config import FinetuneConfig, load
from gpt1_ds.errors import ConfigError, DataError, StopRequested
from gpt1_ds.tasks import TASKS
from tests.conftest import ROOT, succeed
from tests.test_tasks import FOLDERS

TINY = ["model.n_layer=2", "model.n_head=2", "model.n_embd=32", "model.n_ctx=64"]
NO_DROPOUT = ["model.embd_pdrop=0", "model.attn_pdrop=0", "model.resid_pdrop=0", "task.clf_pdrop=0"]


def arguments(run_dir: Path, ds: str, *overrides: object) -> list[str]:
    ds_config = str(ROOT / "ds_configs" / f"{ds}.json")
    return ["--deepspeed_config", ds_config, f"run.dir={run_dir}", "log.every=1", *map(str, overrides)]


def task_of(sample: Path, name: str) -> list[str]:
    return [f"task.name={name}", f"task.data={sample / 'tasks' / FOLDERS[name]}", f"run.name={name}"]


def logged(run: Path, split: str) -> list[dict]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["split"] == split]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load_weights(run)[0]


@pytest.fixture(scope="session", params=["zero2_bf16", "zero3_bf16"])
def pretrained(ranks, tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory, request) -> Path:
    """A pre-training run of two steps on two ranks, its checkpoint sharded by ZeRO-2 or ZeRO-3."""
    run_dir = tmp_path_factory.mktemp(request.param)
    steps = ["train.max_steps=2", "train.global_batch=4", "eval.batches=1", "schedule.warmup_steps=0", "optim.lr=1e-3"]
    argv = arguments(run_dir, request.param, *TINY, *steps, f"data.shards={tiny_shards}", "run.name=pretrained")
    ranks(2).run("gpt1_ds.train:main", argv)
    return run_dir / "pretrained"


@pytest.mark.parametrize("name", ["sst2", "qnli", "stsb", "mrpc", "race", "storycloze", "wnut17"])
def test_every_kind_trains_and_writes_its_results(ranks, sample: Path, tiny_shards: Path, tmp_path: Path, name: str):
    argv = arguments(tmp_path, "zero2_bf16", *TINY, *task_of(sample, name), f"data.shards={tiny_shards}",
                     "init.checkpoint=none", "task.max_examples=37", "train.global_batch=8",
                     "train.epochs=2")  # fmt: skip
    ranks(2).run("gpt1_ds.finetune:main", argv)
    run = tmp_path / name
    n_dev = len(TASKS[name].read(sample / "tasks" / FOLDERS[name], "dev"))
    result = json.loads((run / "result.json").read_text())
    assert set(result) == {"task", "metric", "score", "metrics", "majority", "seed", "epochs", "examples", "init"}
    assert result["task"] == name and result["metric"] == TASKS[name].metrics[0] and result["init"] == "none"
    assert result["examples"] == {"train": 37, "dev": n_dev} and result["epochs"] == 2
    assert set(result["metrics"]) == set(TASKS[name].metrics)
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
    assert json.loads((run / "status.json").read_text()) == {"state": "done", "step": 10, "exit_code": 0}
    assert list(run.glob("events.out.tfevents.*"))
    best_step = checkpoint.read_state(checkpoint.find(run / "best"))["best"]["step"]
    assert scores[best_step // 5 - 1] == max(scores)


def test_starts_from_the_weights_of_a_sharded_checkpoint(ranks, pretrained: Path, sample: Path, tmp_path: Path):
    """With a rate near 0 the fine-tuned decoder still is the pre-trained one, under either ZeRO stage."""
    ds = "zero3_bf16" if "zero3" in str(pretrained) else "zero2_bf16"
    argv = arguments(tmp_path, ds, *task_of(sample, "rte"), f"init.checkpoint={pretrained}", "train.max_steps=1",
                     "train.global_batch=4", "optim.lr=1e-12", "eval.batches=2")  # fmt: skip
    ranks(2).run("gpt1_ds.finetune:main", argv)
    before, after = weights(pretrained), weights(tmp_path / "rte" / "best")
    assert {name.removeprefix("gpt.") for name in after} == {*before, "head.weight", "head.bias"}
    for name, tensor in before.items():
        # The engine rounds what it is given to bf16, once, and trains float32 masters of that.
        torch.testing.assert_close(after[f"gpt.{name}"], tensor.bfloat16().float(), rtol=0, atol=1e-7)
    assert (tmp_path / "rte" / "tokenizer" / "tokenizer.model").exists()
    assert "n_layer: 2\n" in (tmp_path / "rte" / "config.yaml").read_text()


def test_ranks_and_accumulation_do_not_change_the_numbers(ranks, sample: Path, tiny_shards: Path, tmp_path: Path):
    """1 rank x 8, 1 rank x 2 x 4 micro-steps, 2 ranks x 2 x 2: the same losses, weights and scores."""
    scores, trained = [], []
    for world_size, micro_batch in ((1, 8), (1, 2), (2, 2)):
        run_dir = tmp_path / f"{world_size}x{micro_batch}"
        argv = arguments(run_dir, "zero0_fp32", *TINY, *NO_DROPOUT, *task_of(sample, "mrpc"), "init.checkpoint=none",
                         f"data.shards={tiny_shards}", "task.max_examples=21", "train.global_batch=8", "train.epochs=2",
                         f"train.micro_batch={micro_batch}", "optim.lr=1e-3", "eval.batches=4")  # fmt: skip
        ranks(world_size).run("gpt1_ds.finetune:main", argv)
        scores.append(json.loads((run_dir / "mrpc" / "result.json").read_text())["metrics"])
        records = logged(run_dir / "mrpc", "train")
        losses = [[record[key] for key in ("loss", "task_loss", "lm_loss")] for record in records]
        trained.append({"losses": torch.tensor(losses), **weights(run_dir / "mrpc")})
    assert scores[0] == scores[1] == scores[2]
    for other in trained[1:]:
        torch.testing.assert_close(other, trained[0], rtol=1e-3, atol=1e-5)


def test_learns_the_sample(ranks, sample: Path, tiny_shards: Path, tmp_path: Path):
    argv = arguments(tmp_path, "zero2_bf16", *TINY, *NO_DROPOUT, *task_of(sample, "sst2"), "init.checkpoint=none",
                     f"data.shards={tiny_shards}", "optim.lr=3e-3", "train.epochs=4")  # fmt: skip
    ranks(2).run("gpt1_ds.finetune:main", argv, timeout_seconds=240)
    result = json.loads((tmp_path / "sst2" / "result.json").read_text())
    assert result["score"] > result["majority"] + 0.15, result


def test_stopped_run_resumes_to_the_same_weights(ranks, sample: Path, tiny_shards: Path, tmp_path: Path):
    options = [*TINY, *task_of(sample, "wnut17"), f"data.shards={tiny_shards}", "init.checkpoint=none", "optim.lr=1e-3",
               "task.max_examples=60", "train.global_batch=8", "train.max_steps=16", "eval.batches=2"]  # fmt: skip
    undisturbed, stopped = (arguments(tmp_path / name, "zero2_bf16", *options) for name in ("undisturbed", "stopped"))
    ranks(2).close()  # ZeRO-3 replaces torch's linear, and its rounding, for the life of a process that has used it
    ranks(2).run("gpt1_ds.finetune:main", undisturbed, timeout_seconds=240)
    run = tmp_path / "stopped" / "wnut17"
    with pytest.raises(StopRequested, match=r"step \d+ of 16 is committed"):
        ranks(2).run("tests.cases_finetune:stop_after", 3, str(run / "metrics.jsonl"), stopped, timeout_seconds=240)
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "stopped" and status["exit_code"] == 75 and 3 <= status["step"] < 16
    assert not (run / "result.json").exists()
    ranks(2).close()  # a process holds the lock of its run for life: the next start is another process, as it is in use
    ranks(2).run("gpt1_ds.finetune:main", stopped, timeout_seconds=240)
    reference = tmp_path / "undisturbed" / "wnut17"
    expected, resumed = weights(reference), weights(run)
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)
    assert [record["step"] for record in logged(run, "train")] == list(range(1, 17))
    assert json.loads((run / "result.json").read_text()) == json.loads((reference / "result.json").read_text())


def test_a_checkpoint_of_another_kind_is_refused(ranks, sample: Path, tiny_shards: Path, tmp_path: Path):
    """A fine-tuned run, which has a head and names of its own; and a run whose tokenizer was replaced."""
    first = arguments(tmp_path, "zero2_bf16", *TINY, *task_of(sample, "cola"), f"data.shards={tiny_shards}",
                      "init.checkpoint=none", "train.max_steps=1", "train.global_batch=4",
                      "eval.batches=2")  # fmt: skip
    ranks(2).run("gpt1_ds.finetune:main", first)
    second = arguments(tmp_path, "zero2_bf16", *task_of(sample, "rte"), f"init.checkpoint={tmp_path / 'cola'}")
    with pytest.raises(DataError, match=r"another model: blocks.0.\S+ is nothing there, \(.*\) here"):
        ranks(2).run("gpt1_ds.finetune:main", second)
    other_vocabulary = tmp_path / "tok"
    succeed("python", "-m", "data_prep.train_tokenizer", "--corpus", f"books={sample / 'books' / 'valid'}",
            "--vocab-size", 400, "--out", other_vocabulary)  # fmt: skip
    shutil.copy(other_vocabulary / "tokenizer.model", tmp_path / "cola" / "tokenizer" / "tokenizer.model")
    with pytest.raises(DataError, match="not the tokenizer of"):
        finetune.main(second)


@pytest.mark.parametrize("option,kind,words", [
    ("task.name=sst3", ConfigError, "did you mean 'sst2'"),
    ("task.data=''", ConfigError, "task.data is not set"),
    ("task.data=nowhere", DataError, "no train file"),
    ("task.lm_coef=2", ConfigError, r"must lie in \[0, 1\]"),
    ("task.pool=middle", ConfigError, "task.pool is 'middle'"),
    ("init.checkpoint=nowhere", DataError, "nowhere: no checkpoint"),
    ("data.shards=nowhere", DataError, "nowhere"),
    ("train.global_batch=7", ConfigError, None),
])  # fmt: skip
def test_bad_input_is_refused_before_the_ranks_join(
    sample: Path, tiny_shards: Path, tmp_path: Path, option: str, kind: type, words: str | None
):
    argv = arguments(tmp_path, "zero2_bf16", *task_of(sample, "sst2"), f"data.shards={tiny_shards}",
                     "train.micro_batch=2", option)  # fmt: skip
    with pytest.raises(kind, match=words) as error:
        finetune.main(argv)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "sst2").exists()


def test_every_shipped_configuration_names_a_task_and_its_folder():
    configs = sorted((ROOT / "gpt1_ds" / "configs").glob("finetune_*.yaml"))
    assert {path.stem.removeprefix("finetune_") for path in configs} == set(TASKS)
    for path in configs:
        config = load(FinetuneConfig, path, [])
        name = path.stem.removeprefix("finetune_")
        assert config.task.name == name and Path(config.task.data).name == FOLDERS[name]
        assert path.read_text().startswith("# ") and f"finetune_{name}.yaml" in path.read_text()
