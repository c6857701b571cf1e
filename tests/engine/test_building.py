"""Models built one parameter at a time: the same values, and never whole in float32."""

import importlib.util
import json
import subprocess
import sys

import pytest
import torch

from gpt1_ds.engine.building import without_memory
from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.tasks.heads import TaskModel
from tests.conftest import ROOT
from tests.settings.test_deepspeed_json import FOLDER

spec = importlib.util.spec_from_file_location("scale", ROOT / "benchmarks" / "scale.py")
scale = importlib.util.module_from_spec(spec)
spec.loader.exec_module(scale)


@pytest.mark.parametrize("kind", ["transformer", "lstm"])
def test_values_drawn_one_by_one_are_those_of_the_constructor(kind):
    def built() -> TaskModel:
        return TaskModel(GPT(GPTConfig(1000, 3, 3, 48, 32, kind=kind)), "similarity", 3, "last", 0)

    torch.manual_seed(5)
    whole, next_number = dict(built().named_parameters()), torch.rand(1)
    with without_memory():
        module = built()
    torch.manual_seed(5)
    drawn = {name: value.clone() for name, value in module.initial_values()}
    assert list(drawn) == list(whole)
    assert all(torch.equal(drawn[name], whole[name]) for name in whole)
    assert torch.equal(torch.rand(1), next_number), "the generator is where it would be"


def test_the_compiler_is_not_imported_for_it():
    code = (
        "import sys\n"
        "from gpt1_ds.engine.building import without_memory\n"
        "from gpt1_ds.model.gpt import GPT, GPTConfig\n"
        "with without_memory():\n"
        "    module = GPT(GPTConfig(1000, 2, 2, 32, 16))\n"
        "assert all(parameter.is_meta for parameter in module.parameters())\n"
        "print('torch._dynamo' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "False\n", done.stderr[-2000:]


def test_one_of_64_ranks_starts_within_what_the_planner_states():
    """Over the fake process group: 60M parameters, which take 240 MB in float32."""
    from_nothing = scale.start_on(ROOT, 64, 3, 4)
    from_a_whole = scale.start_on(ROOT, 64, 3, 4, "whole")
    assert from_nothing["peak"] < from_nothing["stated"] < from_a_whole["peak"]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_real_ranks_start_within_what_the_planner_states(ranks):
    figures = scale.start_on(ROOT, ranks, 3, 4)
    assert figures["peak"] < figures["stated"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("zero0_fp32", "transformer"),
        ("zero1_bf16", "transformer"),
        ("zero2_bf16", "lstm"),
        ("zero2_offload", "task"),
        ("zero3_bf16", "transformer"),
        ("zero3_bf16", "lstm"),
        ("zero3_bf16", "task"),
        ("zero3_offload", "transformer"),
        ("zero3_fp32", "transformer"),
        ("zero3_muon", "transformer"),
    ],
)
def test_an_engine_around_a_model_without_memory_is_that_around_a_whole_one(
    ranks, tiny_shards, tmp_path, name, kind
):
    stem, _, change = name.partition("_")
    source = name if (FOLDER / f"{name}.json").exists() else f"{stem}_bf16"
    ds = json.loads((FOLDER / f"{source}.json").read_text())
    if change == "fp32":
        ds["bf16"] = {"enabled": False}
    if change == "muon":
        ds["optimizer"] = {"type": "Muon", "params": {"lr": 3e-3}}
        ds["zero_optimization"]["reduce_scatter"] = False
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(ds))
    # Muon builds DeepSpeed's FusedAdam, which a new machine compiles for a minute or two.
    case = "tests.support.cases_building:built_both_ways"
    for whole, one_by_one in ranks(2).run(
        case, str(path), str(tiny_shards), kind, [], timeout_seconds=280.0
    ):
        assert one_by_one == whole
        assert len(whole) > 5
