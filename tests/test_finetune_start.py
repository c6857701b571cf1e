"""Fine-tuning starts from a sharded checkpoint, some of its blocks, or another kind of model."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from gpt1_ds import eval as gpt1_eval
from gpt1_ds import finetune
from gpt1_ds.base.errors import ConfigError, DataError
from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import FinetuneConfig
from gpt1_ds.tasks import TASKS, build_task
from tests.conftest import ROOT, succeed
from tests.support.fine_tuning import TINY, arguments, logged, task_of, weights


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


def test_starts_from_the_weights_of_a_sharded_checkpoint(
    ranks, pretrained: Path, sample: Path, tmp_path: Path
):
    """With a rate near 0 the fine-tuned decoder is the pre-trained one, under either ZeRO stage."""
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


def test_a_pre_trained_run_is_scored_zero_shot(
    pretrained: Path, sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    gpt1_eval.main(
        [str(pretrained), "--zero-shot", "sst2", "--data", str(sample / "tasks" / "SST-2")]
    )
    assert re.search(
        r"zero-shot: accuracy 0\.\d+, majority 0\.\d+; 400 examples", capsys.readouterr().out
    )
    with pytest.raises(DataError, match="not a fine-tuned run"):
        gpt1_eval.main([str(pretrained), "--predict"])
    for name in ("train", "test"):
        (tmp_path / f"{name}.c.txt").write_text("A saw B as it fell.\nit\nA,B\nA\n\n")
    gpt1_eval.main([str(pretrained), "--zero-shot", "dpr", "--data", str(tmp_path)])
    by_file = r"; 2 examples\n  test: accuracy \S+; 1 examples\n  train: accuracy \S+; 1 examples\n"
    assert re.search(by_file, capsys.readouterr().out)


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
    """Pre-trained, transferred with the auxiliary objective, and learning.

    At the paper's width it has 2,048 units.
    """
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
    first = logged(tmp_path / "lstm", "train")[0]
    last = logged(tmp_path / "lstm", "valid")[-1]
    assert last["loss"] < 6.0 < first["loss"]
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


def test_a_checkpoint_of_another_kind_is_refused(
    ranks, sample: Path, tiny_shards: Path, tmp_path: Path
):
    """A fine-tuned run with other parameter names, and a run with a replaced tokenizer."""
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
    fault = r"another model: blocks.0.\S+ is nothing there, \(.*\) here"
    with pytest.raises(DataError, match=fault):
        ranks(2).run("gpt1_ds.finetune:main", second)
    corpus, other = f"books={sample / 'books' / 'valid'}", tmp_path / "tok"
    options = ("--corpus", corpus, "--vocab-size", 400, "--out", other)
    succeed("python", "-m", "data_prep.train_tokenizer", *options)
    shutil.copy(other / "tokenizer.model", tmp_path / "cola" / "tokenizer" / "tokenizer.model")
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
    fault = "model.n_layer is 3, but .*/step-00000060 holds a model with 2;"
    with pytest.raises(ConfigError, match=fault):
        finetune.main(arguments(tmp_path, "zero2_bf16", *words))


def test_every_shipped_configuration_names_a_task_and_its_folder():
    configs = sorted((ROOT / "gpt1_ds" / "configs").glob("finetune_*.yaml"))
    assert {path.stem.removeprefix("finetune_") for path in configs} == {*TASKS, "own"}
    for path in configs:
        config = load(FinetuneConfig, path, [])
        name = path.stem.removeprefix("finetune_")
        assert build_task(config.task).files
        assert Path(config.task.data).parts[0] in ("tasks", "tickets")
        assert config.task.name == name or name == "own"
        assert path.read_text().startswith("# ") and f"finetune_{name}.yaml" in path.read_text()
