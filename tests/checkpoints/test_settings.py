"""A save refuses what is not finite; a resume keeps the settings that it is given."""

import json
from pathlib import Path

import pytest

from gpt1_ds.base.errors import DivergedError
from gpt1_ds.checkpoints.folder import find_checkpoint
from tests.support.cases_settings import SPOILED

CHANGES = ["optim.weight_decay=0.5", "optim.betas=[0.8,0.9]", "optim.eps=1e-4"]
CHANGED = [[0.5, [0.8, 0.9], 1e-4], [0.0, [0.8, 0.9], 1e-4]]


def ds_json(tmp_path: Path, stage: int, name: str = "ds.json", **more: object) -> str:
    path = tmp_path / name
    content = {"bf16": {"enabled": True}, "zero_optimization": {"stage": stage}}
    path.write_text(json.dumps(content | more))
    return str(path)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_what_is_not_finite_on_one_rank_is_never_committed(ranks, tiny_shards, tmp_path, stage):
    words = ds_json(tmp_path, stage), str(tiny_shards), str(tmp_path / "run")
    cases = "tests.support.cases_settings"
    for errors, kept, latest in ranks(2).run(f"{cases}:spoiled_saves", *words):
        for error, kind in zip(errors, SPOILED, strict=True):
            assert "step-00000002: not saved: " in error and "not finite on rank 1" in error
            assert (kind in error) == (kind != "weight"), "the tensor is named"
        assert latest == "step-00000001\n"
        assert kept == ["step-00000001", "step-00000002"], "a sound state is saved afterwards"


@pytest.mark.parametrize("stage, at", [(2, 2), (3, 4)])
def test_a_run_whose_weights_are_spoiled_ends_with_its_last_sound_checkpoint(
    ranks, tiny_shards, tmp_path, stage, at
):
    words = ds_json(tmp_path, stage), str(tiny_shards), str(tmp_path), at
    with pytest.raises(DivergedError, match=f"step-0000000{at}: not saved: .* the last checkpoint"):
        ranks(2).run("tests.support.cases_settings:spoiled_run", *words)
    assert find_checkpoint(tmp_path / "run").name == f"step-0000000{at - 1}"
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 4)


@pytest.mark.parametrize("before, after", [(0, 0), (1, 1), (2, 2), (3, 3), (2, 3), (3, 0)])
def test_settings_of_a_resume_take_effect(ranks, tiny_shards, tmp_path, before, after):
    """By DeepSpeed's own load, and, between two stages, by ours."""
    files = ds_json(tmp_path, before), ds_json(tmp_path, after, "after.json")
    changes = [*CHANGES, "train.grad_clip=0.25"]
    words = *files, str(tiny_shards), str(tmp_path / "run"), changes
    for then, now in ranks(2).run("tests.support.cases_settings:changed_settings", *words):
        assert then["clip"] == 1.0 and then["groups"][0] == [0.01, [0.9, 0.999], 1e-8]
        assert now == {"groups": CHANGED, "clip": 0.25}


@pytest.mark.parametrize("stage", [2])
def test_a_changed_loss_scaler_keeps_its_scale(ranks, tiny_shards, tmp_path, stage):
    files = []
    for window, power in ((1, 4), (500, 9)):
        fp16 = {"enabled": True, "initial_scale_power": power, "loss_scale_window": window}
        more = {"fp16": fp16, "bf16": {"enabled": False}}
        files.append(ds_json(tmp_path, stage, f"{window}.json", **more))
    words = *files, str(tiny_shards), str(tmp_path / "run"), []
    function = "tests.support.cases_settings:changed_settings"
    for then, now in ranks(2).run("tests.support.cases_engine:in_float16", function, *words):
        assert then["window"] == 1 and then["scale"] > 2**4, "it has grown"
        assert now["window"] == 500 and now["scale"] == then["scale"]
