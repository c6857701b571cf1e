"""Ranks whose copies of the same weights have parted do not go on, and commit nothing."""

import json
import socket

import pytest
import torch

from gpt1_ds.base.errors import DivergedError
from gpt1_ds.checkpoints.folder import find_checkpoint
from gpt1_ds.checkpoints.replicas import ROW_BYTES, odd_ranks, tensor_hash
from tests.checkpoints.test_settings import ds_json

RUN = "tests.support.cases_settings:flipped_run"
MODULE = "the module's "
LAST = " before the last update"
KINDS = [
    (0, "weight", ""),
    (0, "exp_avg", "exp_avg of "),
    (1, "module", MODULE),
    (2, "module", MODULE),
    (3, "module", MODULE),
]


@pytest.mark.parametrize("stage, kind, named", KINDS)
def test_a_bit_that_changes_on_one_rank_ends_the_run_without_a_checkpoint(
    ranks, tiny_shards, tmp_path, stage, kind, named
):
    words = ds_json(tmp_path, stage), str(tiny_shards), str(tmp_path), 3, kind, []
    with pytest.raises(DivergedError) as raised:
        ranks(2).run(RUN, *words)
    host = socket.gethostname()
    text = str(raised.value)
    assert f"step-00000003: not saved: {named}" in text
    assert f"not the same on all ranks: ranks 0 ({host}), 1 ({host}) disagree; the last" in text
    assert (LAST in text) == (stage > 0), "the update has gathered the weights anew"
    assert find_checkpoint(tmp_path / "run").name == "step-00000002"
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 4)


@pytest.mark.parametrize(
    "stage, kind, overrides",
    [(0, "weight", ["checkpoint.compare_replicas=false"]), (2, "exp_avg", [])],
)
def test_nothing_is_compared_if_switched_off_or_if_it_exists_once(
    ranks, tiny_shards, tmp_path, stage, kind, overrides
):
    """The moments of ZeRO-2 are those of one rank: no other has a copy to compare."""
    words = ds_json(tmp_path, stage), str(tiny_shards), str(tmp_path), 3, kind, overrides
    ranks(2).run(RUN, *words)
    assert find_checkpoint(tmp_path / "run").name == "step-00000004"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [0, 1, 3, 4_099, 3 * ROW_BYTES])
def test_every_single_bit_and_the_order_of_rows_change_the_hash(dtype, size):
    storage = torch.randn(size + 1, generator=torch.Generator().manual_seed(size)).to(dtype)
    tensor = storage[1:]  # not aligned to words
    before, content = tensor_hash(tensor), tensor.view(torch.uint8)
    assert before == tensor_hash(tensor.clone())
    for place in {0, len(content) // 3, len(content) - 1} if size else ():
        for bit in range(8):
            content[place] ^= 1 << bit
            assert tensor_hash(tensor) != before
            content[place] ^= 1 << bit
    assert tensor_hash(tensor) == before
    if len(content) > 2 * ROW_BYTES:
        rows = content[: 2 * ROW_BYTES].view(2, ROW_BYTES)
        rows.copy_(rows.flip(0))
        assert tensor_hash(tensor) != before


def test_of_many_ranks_the_odd_ones_are_named():
    hosts = [f"n{rank // 8}" for rank in range(4096)]
    numbers = torch.full((4096,), -7)
    numbers[9] = 3
    assert odd_ranks(numbers, hosts) == "rank 9 (n1) differs from the other 4095"
    numbers[1000:1020] = 4
    named = odd_ranks(numbers, hosts)
    assert named.startswith("ranks 9 (n1), 1000 (n125), 1001 (n125), ")
    assert named.endswith(" and 13 more differ from the other 4075")
