"""Exports and round trips against transformers, lm-evaluation-harness and DeepSpeed's own
consolidation."""

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from gpt1_ds import eval, export
from gpt1_ds.base.errors import ConfigError, DataError
from gpt1_ds.checkpoints.folder import read_state
from gpt1_ds.checkpoints.loading import load_weights
from gpt1_ds.checkpoints.saving import save_weights
from gpt1_ds.checkpoints.state import CheckpointState
from gpt1_ds.data.tokenizer import load_tokenizer
from gpt1_ds.interchange.safetensors_files import INDEX
from gpt1_ds.interchange.weights import to_theirs
from gpt1_ds.model.gpt import GPTConfig
from gpt1_ds.runs.trained import load_gpt
from gpt1_ds.tasks.heads import TaskModel
from tests.conftest import ROOT, succeed
from tests.interchange.test_weights import NASTY, check_ids, real_lines, run_export, same


@pytest.fixture(scope="module")
def run(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the training command, of three steps, with a logged loss."""
    runs = tmp_path_factory.mktemp("export")
    succeed(
        "python",
        "gpt1_ds/train.py",
        "--deepspeed_config",
        "ds_configs/cpu.json",
        f"data.shards={tiny_shards}",
        f"run.dir={runs}",
        "run.name=small",
        "model.preset=gpt1-tiny",
        "model.n_ctx=32",
        "train.max_steps=3",
        "train.global_batch=8",
        "optim.lr=3e-3",
        "schedule.warmup_steps=1",
        "eval.batches=1",
        "log.every=1",
    )
    return runs / "small"


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "hf"
    run_export(run, out)
    return out


STAGES = [
    ("zero0_fp32", 2),
    ("zero1_bf16", 2),
    ("zero2_bf16", 1),
    ("zero2_bf16", 2),
    ("zero3_bf16", 1),
    ("zero3_bf16", 2),
]


@pytest.mark.parametrize(("name", "world_size"), STAGES)
def test_every_stage_and_world_size_exports_its_float32_weights(
    ranks, tiny_shards, tmp_path, name, world_size
):
    ds = str(ROOT / "ds_configs" / f"{name}.json")
    ranks(world_size).run(
        "tests.support.cases_export:save_run", ds, str(tiny_shards), str(tmp_path / "run"), []
    )
    run_export(tmp_path / "run", tmp_path / "hf")
    folder = tmp_path / "run" / "checkpoints" / "step-00000002"
    if name == "zero0_fp32":
        oracle = torch.load(folder / "mp_rank_00_model_states.pt", weights_only=True)["module"]
    else:
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        oracle = get_fp32_state_dict_from_zero_checkpoint(str(folder.parent), tag=folder.name)
    config = GPTConfig(**read_state(folder).model)
    expected = dict(to_theirs(name, tensor, config) for name, tensor in oracle.items())
    same(safetensors.torch.load_file(tmp_path / "hf" / "model.safetensors"), expected)


def test_the_folder_loads_as_it_is_and_shards_are_a_matter_of_size(run, exported, tmp_path):
    run_export(run, tmp_path / "sharded", "--shard-gb", "0.0005")
    assert (tmp_path / "sharded" / INDEX).exists() and not (
        tmp_path / "sharded" / "model.safetensors"
    ).exists()
    gpt, state, _ = load_gpt(run)
    ids = torch.randint(gpt.config.vocab_size, (8, 32))
    targets = torch.cat([ids[:, 1:], torch.full((8, 1), -100)], 1)
    with torch.no_grad():
        hidden, nll = gpt(ids, targets)
        for folder in (exported, tmp_path / "sharded"):
            theirs = AutoModelForCausalLM.from_pretrained(folder)(ids, labels=ids)
            torch.testing.assert_close(
                theirs.logits, hidden @ gpt.wte[: gpt.config.vocab_size].T, rtol=1e-5, atol=1e-5
            )
            assert theirs.loss.item() == pytest.approx(nll[:, :-1].mean().item(), rel=1e-5)
    keys = safetensors.safe_open(exported / "model.safetensors", "pt").keys()
    assert "transformer.tokens_embed.weight" in keys and "lm_head.weight" not in keys


def test_the_card_tells_data_steps_losses_and_the_command(run, exported):
    card = (exported / "README.md").read_text()
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    valid = [point for point in logged if point["split"] == "valid"][-1]
    assert (
        "| steps | 3 |" in card
        and f"gpt1_ds.export {run} {exported}" in card
        and "| data, train/books |" in card
    )
    assert (
        f"| valid books, step 3 | loss {valid['loss']:.6g}, perplexity {valid['perplexity']:.6g} |"
        in card
    )


def test_texts_have_the_same_ids(exported):
    check_ids(load_tokenizer(exported / "tokenizer"), exported, NASTY)


def test_every_line_of_real_text_has_the_same_ids(exported, shared_data):
    check_ids(load_tokenizer(exported / "tokenizer"), exported, real_lines(shared_data))


def test_ours_to_hugging_face_to_ours_is_bitwise_and_trains_on(
    ranks, run, exported, tiny_shards, sample, tmp_path
):
    run_export("--from-hf", exported, tmp_path / "back")
    (before, state), (after, imported) = load_weights(run), load_weights(tmp_path / "back")
    same(before, after)
    assert imported.model == state.model
    assert imported.tokenizer_sha256 == state.tokenizer_sha256
    start = [
        f"run.dir={tmp_path}",
        f"init.checkpoint={tmp_path / 'back'}",
        "log.every=1",
        "schedule.warmup_steps=0",
    ]
    ds = ["--deepspeed_config", str(ROOT / "ds_configs" / "zero2_bf16.json")]
    shape = [
        "model.preset=gpt1-tiny",
        "model.n_ctx=32",
        f"data.shards={tiny_shards}",
        "eval.batches=1",
    ]
    more = ["run.name=more", "train.max_steps=1", "train.global_batch=8"]
    ranks(2).run("gpt1_ds.train:main", [*ds, *start, *shape, *more])
    logged = [
        json.loads(line) for line in (tmp_path / "more" / "metrics.jsonl").read_text().splitlines()
    ]
    last = [
        json.loads(line)
        for line in (run / "metrics.jsonl").read_text().splitlines()
        if '"valid"' in line
    ][-1]
    first = next(record for record in logged if record["split"] == "valid")
    assert first["loss"] == pytest.approx(
        last["loss"], rel=1e-3
    )  # validation before the first step
    task = [
        "run.name=task",
        "task.name=sst2",
        f"task.data={sample / 'tasks' / 'SST-2'}",
        "task.max_examples=16",
        "train.max_steps=1",
        "train.global_batch=8",
    ]
    ranks(2).run("gpt1_ds.finetune:main", [*ds, *start, *task])
    assert json.loads((tmp_path / "task" / "result.json").read_text())["init"].startswith(
        str(tmp_path / "back")
    )


KINDS = [
    ("classification", 3, 1, "last"),
    ("classification", 2, 1, "first"),
    ("similarity", 2, 2, "last"),
    ("similarity", 1, 2, "last"),
    ("multiple_choice", 1, 3, "last"),
    ("token_classification", 4, 1, "last"),
]


@pytest.mark.parametrize(("kind", "outputs", "sequences", "pool"), KINDS)
def test_a_task_head_goes_along_and_scores_alike_in_transformers(
    run, tmp_path, kind, outputs, sequences, pool
):
    gpt, state, _ = load_gpt(run)
    model = TaskModel(gpt, kind, outputs, pool, 0.1).eval()
    with torch.no_grad():
        for parameter in (model.head.weight, model.head.bias, gpt.blocks[-1].ln_2.bias):
            parameter.normal_()
    classes = ["no", "yes", "maybe", "never"][: max(2, outputs)]
    task = {"name": "mine", "kind": kind, "classes": classes, "config": {"pool": pool}}
    state = replace(state, step=0, task=task, init="none")
    save_weights(tmp_path / "run" / "best", model.state_dict(), state)
    shutil.copytree(run / "tokenizer", tmp_path / "run" / "best" / "tokenizer")
    run_export(tmp_path / "run", tmp_path / "hf")
    head = safetensors.torch.load_file(tmp_path / "hf" / "head.safetensors")
    same(head, {name: tensor.detach() for name, tensor in model.head.state_dict().items()})
    card, loadable = (
        (tmp_path / "hf" / "README.md").read_text(),
        pool == "last" and kind != "token_classification",
    )
    assert ("no class for this head" in card) is not loadable and "| task | mine" in card
    ids_BST = torch.randint(5, gpt.config.vocab_size, (2, sequences, 9))
    end_BS = torch.randint(3, 9, (2, sequences))
    place = torch.arange(9).expand_as(ids_BST)
    ids_BST[place == end_BS[..., None]], ids_BST[place > end_BS[..., None]] = 2, 0
    if not loadable:
        return
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf")
    with torch.no_grad():
        ours = model(ids_BST, end_BS, torch.zeros(2, 1))[2]
        each = theirs(ids_BST.flatten(0, 1)).logits.view(2, sequences, -1)
    torch.testing.assert_close(
        each[..., 0] if kind == "multiple_choice" else each.sum(1), ours, rtol=1e-4, atol=1e-4
    )
    assert list(theirs.config.id2label.values()) == (classes if outputs > 1 else ["score"])


def test_the_harness_finds_our_perplexity(run, exported, sample, tmp_path, capsys):
    pytest.importorskip(
        "accelerate", reason="lm-eval reads models of transformers with accelerate: its extra `hf`"
    )
    lines = "".join(
        path.read_text() for path in sorted((sample / "books" / "valid").glob("*.txt"))
    ).split("\n")
    (tmp_path / "text.txt").write_text("\n".join(lines[:80]) + "\n")
    task = yaml.safe_load((ROOT / "benchmarks" / "lm_eval" / "text.yaml").read_text())
    task["dataset_kwargs"]["data_files"]["test"] = str(tmp_path / "text.txt")
    (tmp_path / "text.yaml").write_text(yaml.safe_dump(task))
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    succeed(
        "lm_eval",
        "run",
        "--model",
        "hf",
        "--model_args",
        f"pretrained={exported},dtype=float32",
        "--include_path",
        tmp_path,
        "--tasks",
        "text",
        "--device",
        "cpu",
        "--batch_size",
        8,
        "--output_path",
        tmp_path / "out.json",
        **offline,
    )
    (path,) = tmp_path.glob("out*.json")
    theirs = json.loads(path.read_text())["results"]["text"]
    eval.main([str(run), "--data", str(tmp_path / "text.txt")])
    printed = capsys.readouterr().out
    for name, words in (("word_perplexity", "word perplexity"), ("bits_per_byte", "bits per byte")):
        ours = float(re.search(rf"{words} +([\d.]+)", printed)[1])
        assert theirs[f"{name},none"] == pytest.approx(ours, rel=1e-3)


MEASURE = """
import re, sys
from gpt1_ds import export

def status(name):  # not ru_maxrss, which a child inherits from its parent
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

# Every import and its caches are there before the measure begins.
export.main([sys.argv[1], sys.argv[3] + ".small"])
before = status("VmRSS")
export.main([sys.argv[2], sys.argv[3]])
print("grown", status("VmHWM") - before)
"""


@pytest.mark.parametrize(
    ("name", "world_size"), [("zero2_bf16", 2), ("zero3_bf16", 2), ("zero2_bf16", 1)]
)
def test_export_holds_the_weights_about_once(ranks, run, tiny_shards, tmp_path, name, world_size):
    ds, shape = (
        str(ROOT / "ds_configs" / f"{name}.json"),
        ["model.n_layer=8", "model.n_embd=640", "model.n_ctx=8", "train.micro_batch=2"],
    )
    ranks(world_size).run(
        "tests.support.cases_export:save_run", ds, str(tiny_shards), str(tmp_path / "big"), shape
    )
    out = succeed("python", "-c", MEASURE, run, tmp_path / "big", tmp_path / "hf").stdout
    size = (tmp_path / "hf" / "model.safetensors").stat().st_size
    assert size > 150e6 and int(out.split("grown")[1]) < 1.6 * size, (out, size)


def test_bad_usage_is_one_line(run, exported, tmp_path, monkeypatch):
    with pytest.raises(DataError, match="no checkpoint here"):
        run_export(tmp_path, tmp_path / "out")
    with pytest.raises(ConfigError, match="exists; choose another"):
        run_export(run, exported)
    with pytest.raises(ConfigError, match="Not a directory"):
        run_export(run, exported / "config.json" / "out")
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "tokenizer")
    with pytest.raises(DataError, match="no such tokenizer"):
        run_export(copy, tmp_path / "out")
    lstm = CheckpointState(step=0, model={"kind": "lstm"}, tokenizer_sha256="")
    save_weights(tmp_path / "lstm", {}, lstm)
    with pytest.raises(DataError, match="kind lstm"):
        run_export(tmp_path / "lstm", tmp_path / "out")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=re.escape("gpt1-ds[interchange]")):
        run_export(run, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lstm", "run"]


def test_different_logits_are_no_success(run, tmp_path, monkeypatch):
    right = to_theirs
    first, second = "blocks.0.mlp.c_fc.weight", "blocks.1.mlp.c_fc.weight"
    names = {first: second, second: first}
    monkeypatch.setattr(
        export, "to_theirs", lambda name, t, config: right(names.get(name, name), t, config)
    )
    with pytest.raises(DataError, match="logits of AutoModelForCausalLM differ"):
        run_export(run, tmp_path / "out")
    assert not list(tmp_path.iterdir())
