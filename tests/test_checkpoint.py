"""Commit, exact resume, hashes, fallback, hostile files, and whole weights from every ZeRO stage, on real ranks."""

import json
import os
import pickle
import shutil

import pytest
import torch

from gpt1_ds import checkpoint
from gpt1_ds.config import DataConfig
from gpt1_ds.dataloader import open_streams
from gpt1_ds.errors import DataError
from gpt1_ds.model import GPT, GPTConfig
from gpt1_ds.shards import read_manifest
from tests.test_deepspeed_config import FOLDER

CPU = str(FOLDER / "cpu.json")


@pytest.mark.parametrize("name", ["zero0_fp32", "zero1_bf16", "zero2_bf16", "zero3_bf16", "zero3_offload"])
def test_resume_is_bitwise_with_dropout_on(ranks, tiny_shards, tmp_path, name):
    results = ranks(2).run(
        "tests.cases_engine:exact_resume", str(FOLDER / f"{name}.json"), str(tiny_shards), str(tmp_path), []
    )
    for undisturbed, resumed, prints, resumed_prints, loss, resumed_loss in results:
        assert resumed == undisturbed and resumed_prints == prints and resumed_loss == loss
        assert len(prints) >= 3


@pytest.mark.parametrize("name", ["zero0_fp32", "zero1_bf16", "zero2_bf16", "zero3_bf16"])
def test_whole_weights_come_out_of_every_stage(ranks, tiny_shards, tmp_path, name):
    loss = ranks(2).run(
        "tests.cases_engine:save_steps", str(FOLDER / f"{name}.json"), str(tiny_shards), str(tmp_path), [4], 2
    )[0]
    weights, state = checkpoint.load_weights(tmp_path)
    model = GPT(GPTConfig(**state["model"])).eval()
    model.load_state_dict(weights)
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())
    (stream,) = open_streams(DataConfig(shards=str(tiny_shards)), read_manifest(tiny_shards), "valid").values()
    windows = -(-(stream.tokens - 1) // 32)  # the validation takes 16 of them, evenly spread
    ids = torch.from_numpy(stream.read([32 * (number * windows // 16) for number in range(16)], 33))
    with torch.no_grad():
        plain = model(ids[:, :-1], ids[:, 1:])[1].mean().item()
    assert plain == pytest.approx(loss, rel=1e-6 if name.endswith("fp32") else 5e-3)


@pytest.fixture(scope="module")
def saved(ranks, tiny_shards, tmp_path_factory):
    """A run with checkpoints at steps 2 and 4 (3 was the third newest, and went)."""
    folder = tmp_path_factory.mktemp("saved")
    ranks(2).run("tests.cases_engine:save_steps", CPU, str(tiny_shards), str(folder), [1, 2, 4], 2)
    return folder


@pytest.fixture
def run(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


def test_the_commit_leaves_what_the_design_says(saved):
    root = saved / "checkpoints"
    assert sorted(path.name for path in root.iterdir() if path.is_dir()) == ["step-00000002", "step-00000004"]
    assert (root / "latest").read_text() == "step-00000004\n"
    manifest = json.loads((root / "step-00000004" / "MANIFEST.json").read_text())
    assert (manifest["step"], manifest["world_size"], manifest["zero_stage"]) == (4, 2, 2)
    files = {
        path.name: path.stat().st_size for path in (root / "step-00000004").iterdir() if path.name != "MANIFEST.json"
    }
    assert {name: entry["bytes"] for name, entry in manifest["files"].items()} == files and len(files) == 6


def newest(run):
    return run / "checkpoints" / "step-00000004"


def test_a_flipped_byte_in_any_file_falls_back_on_all_ranks(ranks, tiny_shards, run):
    for path in sorted(newest(run).iterdir()):
        original = path.read_bytes()
        middle = len(original) // 2
        path.write_bytes(original[:middle] + bytes([original[middle] ^ 1]) + original[middle + 1 :])
        assert checkpoint.find(run).name == "step-00000002", path.name
        path.write_bytes(original)
    assert checkpoint.find(run).name == "step-00000004"
    path = newest(run) / "mp_rank_00_model_states.pt"
    path.write_bytes(path.read_bytes()[:-1])
    assert ranks(2).run("tests.cases_engine:resumed_step", CPU, str(tiny_shards), str(run)) == [2, 2]


@pytest.mark.parametrize("fault", ["missing", "empty", "manifest"])
def test_missing_and_empty_files_fall_back(run, fault):
    path = newest(run) / ("MANIFEST.json" if fault == "manifest" else "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt")
    path.write_bytes(b"") if fault == "empty" else path.unlink()
    assert checkpoint.find(run).name == "step-00000002"


def test_what_a_kill_during_a_save_leaves_is_ignored(ranks, tiny_shards, run):
    newest(run).rename(run / "checkpoints" / "step-00000004.tmp")
    (run / "checkpoints" / "latest").unlink()
    assert ranks(2).run("tests.cases_engine:resumed_step", CPU, str(tiny_shards), str(run)) == [2, 2]


def test_no_silent_fresh_start(ranks, tiny_shards, run, tmp_path):
    shutil.rmtree(run / "checkpoints")
    assert ranks(2).run("tests.cases_engine:resumed_step", CPU, str(tiny_shards), str(tmp_path / "new")) == [None, None]
    (run / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match="--from-scratch"):
        ranks(2).run("tests.cases_engine:resumed_step", CPU, str(tiny_shards), str(run))


def test_another_stage_and_another_world_size_are_named(ranks, tiny_shards, run):
    with pytest.raises(DataError, match="zero_stage 2, this start has 3"):
        ranks(2).run("tests.cases_engine:resumed_step", str(FOLDER / "zero3_bf16.json"), str(tiny_shards), str(run))
    with pytest.raises(DataError, match="world_size 2, this start has 1"):
        ranks(1).run("tests.cases_engine:resumed_step", CPU, str(tiny_shards), str(run))


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["mp_rank_00_model_states.pt", "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"])
def test_a_hostile_pickle_with_a_right_hash_executes_nothing(run, tmp_path, name):
    canary, path = tmp_path / "canary", newest(run) / name
    torch.save({"module": {}, "evil": Canary(canary)}, path)
    manifest_path = newest(run) / "MANIFEST.json"
    manifest = json.loads(manifest_path.read_text())
    del manifest["sha256"]
    manifest["files"][name] = checkpoint._seal(path)
    manifest["sha256"] = checkpoint._digest(manifest)
    manifest_path.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="untrusted"):
        checkpoint.load_weights(run)
    assert not canary.exists()
    pickle.loads(pickle.dumps(Canary(canary)))
    assert canary.exists(), "the canary would have sung"


def test_find_names_what_is_not_a_run(tmp_path):
    with pytest.raises(DataError, match="runs/NAME"):
        checkpoint.find(tmp_path)
