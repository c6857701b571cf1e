"""Commit, exact resume, hashes, fallback, hostile files, and weights from every ZeRO stage."""

import copyreg
import json
import os
import pickle
import shutil

import pytest
import torch
from deepspeed.checkpoint import DeepSpeedCheckpoint
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils import zero_to_fp32

from gpt1_ds.base.errors import DataError
from gpt1_ds.checkpoints.deepspeed_files import allow_known_classes, load_file
from gpt1_ds.checkpoints.folder import find_checkpoint
from gpt1_ds.checkpoints.loading import load_weights
from gpt1_ds.checkpoints.saving import seal_file
from gpt1_ds.checkpoints.state import digest
from gpt1_ds.data.manifest import read_manifest
from gpt1_ds.data.opening import open_streams
from gpt1_ds.engine.internals import pickle_stages_by_value
from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.settings.sections import DataConfig
from tests.settings.test_deepspeed_json import FOLDER

CPU, ZERO3 = str(FOLDER / "cpu.json"), str(FOLDER / "zero3_bf16.json")


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize(
    "name", ["zero0_fp32", "zero1_bf16", "zero2_bf16", "zero3_bf16", "zero3_offload"]
)
def test_resume_is_bitwise_with_dropout_on(ranks, tiny_shards, tmp_path, name, precision):
    ds = json.loads((FOLDER / f"{name}.json").read_text()) | {
        "bf16": {"enabled": precision == "bf16"}
    }
    (tmp_path / "ds.json").write_text(json.dumps(ds))
    results = ranks(2).run(
        "tests.support.cases_engine:exact_resume",
        str(tmp_path / "ds.json"),
        str(tiny_shards),
        str(tmp_path),
        [],
    )
    for undisturbed, resumed, prints, resumed_prints, loss, resumed_loss in results:
        assert resumed == undisturbed and resumed_prints == prints and resumed_loss == loss
        assert len(prints) >= 3


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_resume_is_bitwise_in_float16_its_loss_scale_too(ranks, tiny_shards, tmp_path, stage):
    """From 2^19, where the first steps overflow. The scaler is a pickled object."""
    fp16 = {"enabled": True, "initial_scale_power": 19, "hysteresis": 1}
    (tmp_path / "ds.json").write_text(
        json.dumps({"fp16": fp16, "zero_optimization": {"stage": stage}})
    )
    arguments = str(tmp_path / "ds.json"), str(tiny_shards), str(tmp_path), ["train.max_skipped=30"]
    results = ranks(2).run(
        "tests.support.cases_engine:in_float16",
        "tests.support.cases_engine:exact_resume",
        *arguments,
    )
    for undisturbed, resumed, prints, resumed_prints, loss, resumed_loss in results:
        assert resumed == undisturbed and resumed_prints == prints and resumed_loss == loss
        assert 0 < prints[-1] < 6 and prints[-2]["loss_scale"] == 2.0 ** (19 - prints[-1]), (
            "skipped, and halved for it"
        )


@pytest.mark.parametrize("name", ["zero0_fp32", "zero1_bf16", "zero2_bf16", "zero3_bf16"])
def test_whole_weights_come_out_of_every_stage(ranks, tiny_shards, tmp_path, name):
    loss = ranks(2).run(
        "tests.support.cases_engine:save_steps",
        str(FOLDER / f"{name}.json"),
        str(tiny_shards),
        str(tmp_path),
        [4],
        2,
    )[0]
    weights, state = load_weights(tmp_path)
    model = GPT(GPTConfig(**state.model)).eval()
    model.load_state_dict(weights)
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())
    (stream,) = open_streams(
        DataConfig(shards=str(tiny_shards)), read_manifest(tiny_shards), "valid"
    ).values()
    windows = -(-(stream.tokens - 1) // 32)  # the validation takes 16 of them, evenly spread
    starts = [32 * (number * windows // 16) for number in range(16)]
    ids = torch.from_numpy(stream.read(starts, 33))
    with torch.no_grad():
        plain = model(ids[:, :-1], ids[:, 1:])[1].mean().item()
    assert plain == pytest.approx(loss, rel=1e-6 if name.endswith("fp32") else 5e-3)


@pytest.fixture(scope="module")
def saved(ranks, tiny_shards, tmp_path_factory):
    """A run with checkpoints at steps 2 and 4 (3 was the third newest, and went)."""
    folder = tmp_path_factory.mktemp("saved")
    ranks(2).run(
        "tests.support.cases_engine:save_steps", CPU, str(tiny_shards), str(folder), [1, 2, 4], 2
    )
    return folder


@pytest.fixture
def run(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


def test_the_commit_leaves_what_the_design_says(saved):
    root = saved / "checkpoints"
    assert sorted(path.name for path in root.iterdir() if path.is_dir()) == [
        "step-00000002",
        "step-00000004",
    ]
    assert (root / "latest").read_text() == "step-00000004\n"
    manifest = json.loads((root / "step-00000004" / "MANIFEST.json").read_text())
    assert (manifest["step"], manifest["world_size"], manifest["zero_stage"]) == (4, 2, 2)
    files = {
        path.name: path.stat().st_size
        for path in (root / "step-00000004").iterdir()
        if path.name != "MANIFEST.json"
    }
    assert {name: entry["bytes"] for name, entry in manifest["files"].items()} == files
    assert len(files) == 6


def newest(run):
    return run / "checkpoints" / "step-00000004"


FILES = [
    "MANIFEST.json",
    "state.json",
    "mp_rank_00_model_states.pt",
    "rng-rank-00000.safetensors",
    "rng-rank-00001.safetensors",
    "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
    "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt",
]


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_in_any_file_falls_back_on_all_ranks(ranks, tiny_shards, run, name):
    path = newest(run) / name
    original = path.read_bytes()
    middle = len(original) // 2
    path.write_bytes(original[:middle] + bytes([original[middle] ^ 1]) + original[middle + 1 :])
    assert ranks(2).run(
        "tests.support.cases_engine:resumed_step", CPU, str(tiny_shards), str(run)
    ) == [2, 2]


def test_a_checkpoint_is_found_from_every_folder_of_its_run(run, monkeypatch):
    step = newest(run)
    places = [(run, "."), (run, "checkpoints"), (run.parent, run.name), (run, step)]
    places += [(step.parent, "."), (step.parent, step.name), (step, "."), (step, "..")]
    for folder, name in places:
        monkeypatch.chdir(folder)
        found = find_checkpoint(name)
        assert found.samefile(step) and found.parents[1].samefile(run), (folder, name)


@pytest.mark.parametrize("name", FILES)
def test_cut_empty_and_missing_files_are_named_and_fall_back(run, name, capsys):
    path = newest(run) / name
    original = path.read_bytes()
    for length in (len(original) - 1, len(original) // 2, 0):
        path.write_bytes(original[:length])
        assert find_checkpoint(run).name == "step-00000002"
        assert name in capsys.readouterr().err
    path.unlink()
    assert find_checkpoint(run).name == "step-00000002"
    path.write_bytes(original)
    assert find_checkpoint(run).name == "step-00000004"


@pytest.mark.parametrize("pointer", [None, b"", b"step-0000", b"step-00000002\n"])
def test_a_missing_or_damaged_pointer_costs_nothing(ranks, tiny_shards, run, pointer):
    path = run / "checkpoints" / "latest"
    path.unlink() if pointer is None else path.write_bytes(pointer)
    assert ranks(2).run(
        "tests.support.cases_engine:resumed_step", CPU, str(tiny_shards), str(run)
    ) == [4, 4]


def test_what_a_kill_during_a_save_leaves_is_ignored(ranks, tiny_shards, run):
    newest(run).rename(run / "checkpoints" / "step-00000004.tmp")
    (run / "checkpoints" / "latest").unlink()
    assert ranks(2).run(
        "tests.support.cases_engine:resumed_step", CPU, str(tiny_shards), str(run)
    ) == [2, 2]


def test_no_silent_fresh_start(ranks, tiny_shards, run, tmp_path):
    shutil.rmtree(run / "checkpoints")
    assert ranks(2).run(
        "tests.support.cases_engine:resumed_step", CPU, str(tiny_shards), str(tmp_path / "new")
    ) == [None, None]
    (run / "metrics.jsonl").write_text(json.dumps({"step": 4, "split": "checkpoint"}) + "\n")
    with pytest.raises(DataError, match="--from-scratch"):
        ranks(2).run("tests.support.cases_engine:resumed_step", CPU, str(tiny_shards), str(run))


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def plant(path, canary) -> None:
    """Put a pickle that runs a command at `path`, and its right hash into the manifest."""
    torch.save({"module": {}, "client_state": Canary(canary)}, path)
    if path.suffix == ".json":
        path.write_bytes(pickle.dumps(Canary(canary)))
    manifest_path = path.parent / "MANIFEST.json"
    manifest = json.loads(manifest_path.read_text())
    del manifest["sha256"]
    manifest["files"][path.name] = seal_file(path)._asdict()
    manifest_path.write_text(json.dumps(manifest | {"sha256": digest(manifest)}))


@pytest.mark.parametrize("name", FILES[1:])
def test_a_hostile_pickle_with_a_right_hash_executes_nothing(
    ranks, tiny_shards, run, tmp_path, name
):
    canary = tmp_path / "canary"
    plant(newest(run) / name, canary)
    with pytest.raises(DataError, match="untrusted" if "json" not in name else "state.json"):
        ranks(2).run("tests.support.cases_engine:resumed_step", CPU, str(tiny_shards), str(run))
    with pytest.raises(DataError, match="untrusted" if "json" not in name else "state.json"):
        ranks(1).run(
            "tests.support.cases_engine:resumed_step",
            str(FOLDER / "zero3_bf16.json"),
            str(tiny_shards),
            str(run),
        )
    if "rng" not in name:
        with pytest.raises(DataError, match="untrusted" if "json" not in name else "state.json"):
            load_weights(run)
    assert not canary.exists()
    pickle.loads(pickle.dumps(Canary(canary)))
    assert canary.exists(), "the canary would have sung"


def as_python_3_11_2(stage: ZeroStageEnum, protocol: int) -> tuple:
    """How Python 3.11.0 to 3.11.3 pickle a member of an enum."""
    return getattr, (type(stage), stage.name)


def test_every_version_of_python_writes_and_reads_the_zero_stage(monkeypatch, tmp_path):
    monkeypatch.delitem(copyreg.dispatch_table, ZeroStageEnum, raising=False)
    stages = list(ZeroStageEnum)
    newer = pickle.dumps(stages, 2)
    monkeypatch.setattr(ZeroStageEnum, "__reduce_ex__", as_python_3_11_2)
    torch.save(stages, tmp_path / "older.pt")
    pickle_stages_by_value()
    assert pickle.dumps(stages, 2) == newer
    allow_known_classes()
    assert load_file(tmp_path / "older.pt") == stages


class Attribute:
    """Its pickle is a call of `getattr`."""

    def __init__(self, owner: object, name: str):
        self.call = getattr, (owner, name)

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize("owner, name", [(LossScaler, "backward"), (ZeroStageEnum, "mro")])
def test_getattr_in_a_pickle_gives_nothing_else(tmp_path, owner, name):
    allow_known_classes()
    torch.save(Attribute(owner, name), tmp_path / "call.pt")
    with pytest.raises(pickle.UnpicklingError):
        load_file(tmp_path / "call.pt")


def test_the_readers_of_deepspeed_itself_execute_nothing_either(run, tmp_path):
    """They ask torch for a full unpickling: to convert to float32, and to universal checkpoints."""
    allow_known_classes()
    plant(newest(run) / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", tmp_path / "canary")
    with pytest.raises(pickle.UnpicklingError):
        zero_to_fp32.get_fp32_state_dict_from_zero_checkpoint(
            str(run / "checkpoints"), tag="step-00000004"
        )
    with pytest.raises(pickle.UnpicklingError):
        DeepSpeedCheckpoint(str(newest(run))).get_zero_checkpoint_state(0, 0, 0)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("tag", ["step-00000002", "step-00000004"])
def test_new_runs_take_the_weights_of_the_named_checkpoint_under_zero_3(
    ranks, tiny_shards, run, tmp_path, tag
):
    source = run / "checkpoints" / tag
    ranks(2).run(
        "tests.support.cases_checkpoint:start_from",
        ZERO3,
        str(tiny_shards),
        str(source),
        str(tmp_path / "new"),
    )
    ours, theirs = load_weights(tmp_path / "new")[0], load_weights(source)[0]
    other = load_weights(run / "checkpoints" / f"step-0000000{6 - int(tag[-1])}")[0]
    assert ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) for name in ours
    )
    assert not torch.equal(other["wte"], theirs["wte"])


def test_weights_that_do_not_arrive_whole_are_refused(ranks, tiny_shards, run, tmp_path):
    with pytest.raises(DataError, match="did not arrive whole"):
        ranks(2).run(
            "tests.support.cases_checkpoint:start_from",
            ZERO3,
            str(tiny_shards),
            str(newest(run)),
            str(tmp_path),
            1,
        )


def test_find_names_what_is_not_a_run(tmp_path):
    with pytest.raises(DataError, match="runs/NAME"):
        find_checkpoint(tmp_path)
