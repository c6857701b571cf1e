"""A run's folder: its lock, what a second start may change, and what the folder says of it."""

import json
import os
import shutil
from dataclasses import replace

import pytest
import yaml

from gpt1_ds.base.errors import ConfigError, DataError
from gpt1_ds.base.files import lock_file
from gpt1_ds.base.records import read_metrics
from gpt1_ds.checkpoints.state import CheckpointState
from gpt1_ds.data.tokenizer import load_tokenizer
from gpt1_ds.runs import directory
from gpt1_ds.runs.log import RunLog
from gpt1_ds.runs.setup import check_data, check_seed
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import PretrainConfig

DS = {"train_batch_size": 64, "zero_optimization": {"stage": 1}}


@pytest.fixture
def start(tokenizer, tmp_path):
    """Claim the folder of a run with these overrides, record its settings, and end."""
    codec = load_tokenizer(tokenizer)

    def start(*overrides: str, ds=DS, scratch: bool = False, finished: bool = False):
        wait = "distributed.timeout_seconds=0.4"
        config = load(PretrainConfig, None, [f"run.dir={tmp_path}", "run.name=r", wait, *overrides])
        folder = directory.claim_folder(config, codec, scratch)
        directory.record_settings(folder, config, ds, finished)
        directory._locks.clear()  # the end of a process does the same
        return folder

    yield start
    directory._locks.clear()


@pytest.mark.parametrize("scratch", [False, True])
def test_a_live_run_is_neither_joined_nor_set_aside(start, tmp_path, scratch, capsys):
    folder = start()
    (folder / ".lock").write_text("process 77 on node3 (since 2026-11-28 22:57:10)\n")
    held = lock_file(folder / ".lock", "")
    with pytest.raises(
        ConfigError, match=r"/r: process 77 on node3 \(since .*\) trains this run; wait for it"
    ):
        start("run.seed=5", scratch=scratch)
    directory.tell_of_holder(folder)
    who = "for process 77 on node3 (since 2026-11-28 22:57:10), which trains this run\n"
    said = capsys.readouterr().err
    assert said == f"{folder}: waiting up to 0 s {who}{folder}: waiting {who}"
    assert os.listdir(tmp_path) == ["r"]
    held.close()
    start(scratch=scratch)
    assert sorted(os.listdir(tmp_path)) == (["r", "r.1"] if scratch else ["r"])
    assert f"process {os.getpid()} on " in (folder / ".lock").read_text()
    directory._locks.clear()
    directory.tell_of_holder(folder)
    assert capsys.readouterr().err == "", "the lock of a process that has ended is free"


@pytest.mark.parametrize(
    "change", ["model.n_layer=3", "data.weights={a: 1.0}", "model.attn_pdrop=0"]
)
def test_a_run_of_another_kind_is_refused_and_its_settings_stay(start, change):
    folder = start()
    name = change.partition("=")[0]
    with pytest.raises(ConfigError, match=f"holds a run of another kind: {name} was"):
        start(change, "optim.lr=1")
    assert yaml.safe_load((folder / "config.yaml").read_text())["optim"]["lr"] != 1


def test_what_a_start_may_change_is_listed(start, capsys):
    start("model.preset=gpt1-tiny", "train.max_steps=10")
    capsys.readouterr()
    same_shape = ["model.n_layer=2", "model.n_head=4", "model.n_embd=128", "model.n_ctx=128"]
    start(*same_shape, "train.max_steps=10")
    assert capsys.readouterr().out == (
        "changed since the last start (config.1.yaml and deepspeed.1.json have the earlier "
        'settings):\n  model.preset "gpt1-tiny" -> "gpt1"\n'
    )
    ds = {"train_batch_size": 32, "zero_optimization": {"stage": 2}}
    start(*same_shape, "data.shards=x/", "optim.lr=0.5", "init.checkpoint=runs/old", ds=ds)
    assert capsys.readouterr().out.splitlines() == [
        "changed since the last start (config.2.yaml and deepspeed.2.json have the earlier "
        "settings):",
        '  data.shards "shards" -> "x/"',
        "  train.max_steps 10 -> null",
        "  optim.lr 2.5e-4 -> 0.5",
        '  init.checkpoint null -> "runs/old" (not used: the run goes on from its own)',
        "  --deepspeed_config zero_optimization.stage 1 -> 2",
    ]


def test_the_settings_of_every_earlier_start_are_kept(start):
    folder = start("optim.lr=1e-3")
    texts = [{name: (folder / name).read_text() for name in ("config.yaml", "deepspeed.json")}]
    start("optim.lr=1e-3")
    assert not list(folder.glob("config.*.yaml")), "nothing has changed"
    start("optim.lr=5e-2", ds={**DS, "fp16": {"enabled": True}})
    texts.append({name: (folder / name).read_text() for name in ("config.yaml", "deepspeed.json")})
    # A start that is killed behind the copy makes no second one.
    shutil.copy(folder / "config.yaml", folder / "config.2.yaml")
    start("optim.lr=0.5")
    for number, text in enumerate(texts, 1):
        assert (folder / f"config.{number}.yaml").read_text() == text["config.yaml"]
        assert (folder / f"deepspeed.{number}.json").read_text() == text["deepspeed.json"]
    assert not (folder / "config.3.yaml").exists()
    assert load(PretrainConfig, folder / "config.1.yaml", []).optim.lr == 1e-3


def test_changes_are_shown_as_typed_and_kept_in_the_record_of_the_start(start, tmp_path, capsys):
    start("optim.lr=1e-3")
    config = load(PretrainConfig, None, [f"run.dir={tmp_path}", "run.name=r", "optim.lr=5e-2"])
    changed = directory.record_settings(tmp_path / "r", config, DS, finished=False)
    assert "\n  optim.lr 1e-3 -> 5e-2\n" in capsys.readouterr().out
    RunLog(tmp_path / "r", 3, facts={"changed": changed}).close()
    (record,) = read_metrics(tmp_path / "r", "start")
    assert record["changed"]["optim.lr"] == [0.001, 0.05]


def test_a_finished_run_keeps_the_settings_that_it_was_trained_with(start, capsys):
    folder = start("optim.lr=0.5")
    before = {name: (folder / name).read_text() for name in ("config.yaml", "deepspeed.json")}
    start("optim.lr=0.25", finished=True, ds={})
    assert "this run is done, so these settings have no effect on it:\n" in capsys.readouterr().out
    assert before == {name: (folder / name).read_text() for name in before}
    assert json.loads(before["deepspeed.json"]) == DS


DATA = {"train/a": "9 tokens, sha256 aa", "train/b": "9 tokens, sha256 bb", "valid/a": "1"}
STATE = CheckpointState(step=5, model={}, tokenizer_sha256="", seed=42, data=DATA)


def test_another_seed_is_refused_once_a_step_is_trained(tmp_path):
    facts = replace(STATE, step=0, seed=43)
    with pytest.raises(ConfigError, match=r"began with run\.seed=42.*now run\.seed is 43"):
        check_seed(STATE, facts, tmp_path)
    check_seed(replace(STATE, step=0), facts, tmp_path)
    check_seed(replace(STATE, seed=None), facts, tmp_path)
    check_seed(STATE, replace(facts, seed=42), tmp_path)


@pytest.mark.parametrize(
    ("now", "weights", "differs"),
    [
        (DATA, {}, None),
        ({**DATA, "train/a": "9 tokens, sha256 cc"}, {}, "train/a"),
        ({**DATA, "valid/a": "2"}, {}, "valid/a"),
        ({**DATA, "train/c": "9 tokens, sha256 cc"}, {}, "train/c"),
        ({**DATA, "train/c": "9 tokens, sha256 cc"}, {"a": 1.0}, None),
        ({"train/a": DATA["train/a"]}, {}, "train/b"),
        ({"train/a": DATA["train/a"]}, {"a": 1.0, "b": 0.0}, None),
        ({**DATA, "valid/b": "1"}, {}, None),
    ],
)
def test_the_data_of_a_resume_are_known_by_their_hashes(tmp_path, now, weights, differs):
    facts = replace(STATE, data=now)
    if differs is None:
        return check_data(STATE, facts, tmp_path, weights)
    with pytest.raises(DataError, match=f"began with other shards of {differs} "):
        check_data(STATE, facts, tmp_path, weights)


@pytest.mark.parametrize("split", ["train", "dev"])
def test_the_examples_of_a_resume_are_known_by_their_hashes(tmp_path, split):
    data = {"train": "9 examples, sha256 aa", "dev": "4 examples, sha256 bb"}
    state = replace(STATE, data=data, task={"name": "sst2"})
    check_data(state, replace(state, step=0), tmp_path, {})
    facts = replace(state, data={**data, split: "4 examples, sha256 cc"})
    with pytest.raises(DataError, match=f"began with other examples of {split} "):
        check_data(state, facts, tmp_path, {})
