"""Optimizer and parameters on NVMe: the checkpoints equal those of other ZeRO-3 runs.

They run only in the soak: DeepSpeed first compiles async_io, which takes minutes and needs the
header of libaio.
"""

import json
from pathlib import Path

import pytest
from deepspeed.ops.op_builder import AsyncIOBuilder

from gpt1_ds.checkpoints.folder import find_checkpoint

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(
        not AsyncIOBuilder().is_compatible(verbose=False),
        reason="no libaio.h here: apt-get install libaio-dev",
    ),
]
STEPS, MORE = 3, 3
# DeepSpeed swaps a tensor of at least a MiB: some of this model's sub-groups, on one rank and on
# two, and the shares of its MLPs' matrices in bf16.
LARGER = ("model.n_embd=512", "model.n_head=4")
SUB_GROUP = 1_200_000


@pytest.fixture
def json_of(tmp_path):
    def write(where: str) -> str:
        section = {"device": "nvme", "nvme_path": str(tmp_path / "nvme")}
        zero = {"stage": 3, "sub_group_size": SUB_GROUP}
        if where != "memory":
            zero["offload_optimizer"] = section | (
                {"pipeline_read": True, "pipeline_write": True, "buffer_count": 10}
                if where == "pipelined"
                else {}
            )
        if where == "parameters":
            zero["offload_param"] = section | {
                "buffer_size": 8_000_000,
                "buffer_count": 40,
                "max_in_cpu": 0,
            }
        ds = {
            "zero_optimization": zero,
            "bf16": {"enabled": True},
            "zero_force_ds_cpu_optimizer": False,
        }
        path = tmp_path / f"{where}.json"
        path.write_text(json.dumps(ds))
        return str(path)

    return write


@pytest.mark.parametrize(
    ("where", "saved_by", "target", "resumed_by"),
    [
        ("optimizer", 2, "optimizer", 2),
        ("pipelined", 2, "pipelined", 2),
        ("parameters", 2, "parameters", 2),
        ("optimizer", 2, "memory", 2),
        ("optimizer", 2, "memory", 1),
        ("memory", 1, "optimizer", 2),
        ("parameters", 1, "memory", 2),
        ("memory", 2, "parameters", 1),
    ],
)
def test_checkpoints_of_nvme_are_those_of_zero_3(
    ranks, tiny_shards, tmp_path, json_of, where, saved_by, target, resumed_by
):
    run = str(tmp_path / "run")
    save = (
        "tests.support.cases_checkpoint:save_layout",
        json_of(where),
        str(tiny_shards),
        run,
        STEPS,
        MORE,
        *LARGER,
    )
    losses = ranks(saved_by).run(*save)[0]
    if where != "memory":
        assert len(list((tmp_path / "nvme" / "gpt1").rglob("*.swp"))) > 3 * saved_by
    if where == "parameters":
        assert list((tmp_path / "nvme" / "gpt1").rglob("*_param.tensor.swp"))
    folder = find_checkpoint(Path(run))
    assert all(path.is_file() for path in folder.iterdir())
    resume = (
        "tests.support.cases_checkpoint:resume_layout",
        json_of(target),
        str(tiny_shards),
        run,
        str(tmp_path / "again"),
        MORE,
    )
    for exact, resumed, state, _ in ranks(resumed_by).run(*resume, *LARGER):
        assert exact, "weights, moments or step counts differ"
        assert resumed == (losses if saved_by == resumed_by else pytest.approx(losses, rel=5e-4))
        assert state["global_steps"] == STEPS + MORE
