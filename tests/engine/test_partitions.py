"""ZeRO-3's buckets: DeepSpeed's bits, with work that does not grow with ranks times parameters."""

import pytest

from tests.engine.test_host_work import printed_by
from tests.engine.test_update import ds_json

CASES = "tests.support.cases_partitions"
GATHERS = 4
"""Buckets that are gathered in a pass forward and backward of the model of `CASES`, at most."""


@pytest.mark.parametrize(
    ("ranks_count", "layout", "more"),
    [
        (2, "3-bf16", {}),
        (2, "3-fp32", {"reduce_bucket_size": 3000}),
        # Of three ranks the last has less of most parameters; their sums depend on the order.
        (3, "3-bf16", {"stage3_param_persistence_threshold": 0, "reduce_bucket_size": 3000}),
        (3, "3-fp32", {"stage3_param_persistence_threshold": 0}),
    ],
)
def test_the_buckets_have_the_bits_of_deepspeeds(
    ranks, tiny_shards, tmp_path, ranks_count, layout, more
):
    ds = ds_json(tmp_path, layout, zero_optimization={"stage": 3, **more})
    overrides = [f"train.global_batch={2 * ranks_count}", "train.micro_batch=1"]
    for ours, theirs in ranks(ranks_count).run(f"{CASES}:trained", ds, str(tiny_shards), overrides):
        assert ours == theirs
        assert min(ours[1]) > 0


def test_their_operators_grow_by_one_for_each_rank_and_gather(tmp_path):
    """DeepSpeed's own grow by 54 for each rank: from 1,522 on 8 ranks to 28,738 on 512."""
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0}
    worlds = 8, 512, 4096
    ds = ds_json(tmp_path, "3-bf16", zero_optimization=zero)
    few, *more = printed_by("cases_partitions", ds, *worlds)
    for ranks, many in zip(worlds[1:], more, strict=True):
        assert many - few <= GATHERS * (ranks - worlds[0]), ranks
