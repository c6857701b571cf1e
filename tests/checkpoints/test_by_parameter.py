"""Checkpoints of each ZeRO stage, precision and number of ranks, resumed with another one."""

import json
from itertools import product
from pathlib import Path

import pytest
import torch
from deepspeed.utils import zero_to_fp32

from gpt1_ds.checkpoints.deepspeed_files import allow_known_classes
from gpt1_ds.checkpoints.folder import read_checkpoint_manifest
from gpt1_ds.checkpoints.saved_parameters import SavedParameters

STEPS, MORE = 3, 3
LAYOUTS = [f"{stage}-{precision}" for stage, precision in product(range(4), ("bf16", "fp32"))]


@pytest.fixture(scope="module")
def json_of(tmp_path_factory):
    """Path of the DeepSpeed JSON of a layout such as "2-bf16"."""
    folder = tmp_path_factory.mktemp("ds")

    def write(layout: str) -> str:
        stage, _, precision = layout.partition("-")
        ds = {"zero_optimization": {"stage": int(stage)}, "bf16": {"enabled": precision != "fp32"}}
        if precision == "accumulated":  # another wrapper of DeepSpeed's
            ds["data_types"] = {"grad_accum_dtype": "fp32"}
        if precision == "offload":
            ds["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
            ds["zero_force_ds_cpu_optimizer"] = False
        path = folder / f"{layout}.json"
        path.write_text(json.dumps(ds))
        return str(path)

    return write


@pytest.fixture(scope="module")
def saved(ranks, tiny_shards, tmp_path_factory, json_of):
    """A run of each layout, saved by so many ranks, and the losses of the steps after."""
    runs = {}

    def make(layout: str, world_size: int):
        if (layout, world_size) not in runs:
            folder = tmp_path_factory.mktemp("saved")
            arguments = json_of(layout), str(tiny_shards), str(folder), STEPS, MORE
            losses = ranks(world_size).run(
                "tests.support.cases_checkpoint:save_layout", *arguments
            )[0]
            runs[layout, world_size] = str(folder), losses
        return runs[layout, world_size]

    return make


@pytest.fixture
def check(ranks, tiny_shards, tmp_path, json_of, saved):
    def resumes(layout: str, saved_by: int, target: str, resumed_by: int) -> None:
        folder, losses = saved(layout, saved_by)
        arguments = json_of(target), str(tiny_shards), folder, str(tmp_path), MORE
        for exact, resumed, state, said in ranks(resumed_by).run(
            "tests.support.cases_checkpoint:resume_layout", *arguments
        ):
            assert exact, "weights, moments or step counts differ"
            # Within bf16's rounding. Without the moments, the losses are off by 1e-2.
            assert resumed == pytest.approx(losses, rel=5e-4)
            assert state["cursor"] == {"epoch": 0, "index": 8 * STEPS}
            assert state["global_steps"] == STEPS + MORE
            assert state["global_samples"] == 8 * (STEPS + MORE)
            if (layout, saved_by) != (target, resumed_by):
                assert "weights, moments and the place in the data carry over" in said
                assert said.count("\n") == 1
                assert f"world_size {saved_by}" in said or saved_by == resumed_by
                assert f"zero_stage {layout[0]}" in said or layout[0] == target[0]
            else:
                assert said == ""

    return resumes


def pair(layout: str, target: str):
    """Every stage to every other in bf16, and every change of precision; the rest is soak."""
    same_stage = layout[0] == target[0]
    both_bf16 = layout[2:] == target[2:] == "bf16"
    marks = () if same_stage or both_bf16 else pytest.mark.soak
    return pytest.param(layout, target, marks=marks)


@pytest.mark.parametrize(
    ("layout", "target"), [pair(*layouts) for layouts in product(LAYOUTS, LAYOUTS)]
)
def test_any_stage_and_precision_to_any_and_two_ranks_to_one(check, layout, target):
    check(layout, 2, target, 1)


@pytest.mark.parametrize("target", ["0-fp32", "2-bf16", "3-bf16", "1-accumulated"])
@pytest.mark.parametrize("layout", ["0-bf16", "2-offload", "3-offload", "1-accumulated"])
def test_one_rank_to_two(check, layout, target):
    check(layout, 1, target, 2)


@pytest.mark.parametrize(
    ("layout", "target", "saved_by", "resumed_by"),
    [
        ("2-bf16", "2-bf16", 2, 4),
        ("3-bf16", "3-bf16", 2, 4),
        ("1-fp32", "3-bf16", 2, 4),
        ("3-bf16", "3-bf16", 4, 2),
        ("1-bf16", "1-bf16", 4, 2),
        ("2-bf16", "3-bf16", 2, 2),
        ("3-fp32", "0-fp32", 2, 2),
        ("3-bf16", "3-bf16", 2, 2),
    ],
)
def test_two_ranks_to_four_and_back_and_a_change_of_stage_alone(
    check, layout, target, saved_by, resumed_by
):
    check(layout, saved_by, target, resumed_by)


def test_weights_are_those_that_deepspeed_itself_reads(saved):
    allow_known_classes()
    for layout in ("1-bf16", "2-fp32", "3-bf16"):
        folder = Path(saved(layout, 2)[0]) / "checkpoints" / f"step-{STEPS:08d}"
        theirs = zero_to_fp32.get_fp32_state_dict_from_zero_checkpoint(
            str(folder.parent), tag=folder.name
        )
        ours = dict(SavedParameters(folder, read_checkpoint_manifest(folder)).weights())
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
