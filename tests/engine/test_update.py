"""The update of the weights: DeepSpeed's bits, in few operators, without a wait for the device."""

import json
from pathlib import Path

import pytest

CASES = "tests.support.cases_update"


def ds_json(tmp_path: Path, layout: str, **more: object) -> str:
    stage, precision = layout.split("-")
    path = tmp_path / "ds.json"
    ds: dict = {"zero_optimization": {"stage": int(stage)}, **more}
    if precision != "fp32":
        ds[precision] = {"enabled": True}
    path.write_text(json.dumps(ds))
    return str(path)


@pytest.mark.parametrize("layout", ["0-fp32", "1-bf16", "1-fp32", "2-bf16", "2-fp32"])
def test_the_update_has_the_bits_of_deepspeeds(ranks, tiny_shards, tmp_path, layout):
    """On one and two ranks, with and without accumulation; the norms are DeepSpeed's too."""
    for count, overrides in ((1, []), (2, ["train.micro_batch=2", "train.grad_clip=0.2"])):
        arguments = ds_json(tmp_path, layout), str(tiny_shards), overrides
        for ours, theirs in ranks(count).run(f"{CASES}:trained", *arguments):
            if layout == "0-fp32":  # DeepSpeed throws this norm away
                assert not any(theirs[1]) and min(ours[1]) > 0
                ours[1][:] = theirs[1]
            assert ours == theirs


def test_the_update_has_the_bits_of_deepspeeds_in_float16(ranks, tiny_shards, tmp_path):
    """The first steps overflow: the loss scale comes down in the same steps."""
    fp16 = {"enabled": True, "initial_scale_power": 19, "hysteresis": 1}
    for stage in (1, 2):
        ds = ds_json(tmp_path, f"{stage}-fp32", fp16=fp16)
        arguments = f"{CASES}:trained", ds, str(tiny_shards), ["train.max_skipped=30"]
        case = "tests.support.cases_engine:in_float16"
        for ours, theirs in ranks(2).run(case, *arguments):
            assert ours == theirs
            assert 0 < ours[2][-1] < 4, "none or all were skipped"


def test_the_device_orders_its_streams_and_the_host_does_not_wait(ranks, tiny_shards, tmp_path):
    for stage in (1, 2):
        zero = {"stage": stage, "reduce_bucket_size": 3000, "overlap_comm": True}
        ds = ds_json(tmp_path, f"{stage}-bf16", zero_optimization=zero)
        for waits, ordered, recorded in ranks(2).run(f"{CASES}:streams", ds, str(tiny_shards)):
            assert waits == recorded == 0
            pairs = [tuple(pair) for pair in ordered]
            assert pairs[0] == ("side", "main"), "the reduction waits for the gradients"
            assert pairs[-1] == ("main", "side"), "the step waits for the reduction"
            # Before a bucket is reduced, the one before it is waited for: its memory is free.
            reductions = [at for at, pair in enumerate(pairs) if pair == ("side", "main")]
            assert len(reductions) > 4
            assert all(pairs[at - 1] == ("main", "side") for at in reductions[1:])


def test_a_bucket_waits_for_every_stream_that_computed_its_gradients(ranks, tiny_shards, tmp_path):
    """torch.compile lets autograd take several; without the wait DeepSpeed read unfinished ones."""
    zero = {"stage": 2, "reduce_bucket_size": 3000, "overlap_comm": True}
    ds = ds_json(tmp_path, "2-bf16", zero_optimization=zero)
    names = ["main", "other"]
    for waits, ordered, recorded in ranks(2).run(f"{CASES}:streams", ds, str(tiny_shards), names):
        assert waits == 0 and recorded == 2 * 26, "two steps of 26 gradients"
        reductions, has_joined = 0, False
        for waiting, other in ordered:
            if waiting == "side":
                assert has_joined, "a bucket was reduced before the other stream was waited for"
                reductions, has_joined = reductions + 1, False
            has_joined |= {waiting, other} == set(names)
        assert reductions > 4


@pytest.mark.parametrize("layout", ["0-fp32", "1-bf16", "2-bf16"])
def test_a_step_is_skipped_without_the_host(ranks, tiny_shards, tmp_path, layout):
    """As on a GPU: the optimizer reads the verdict, and the host counts it later."""
    arguments = ds_json(tmp_path, layout), str(tiny_shards), [2, 3, 5]
    for at_once, late in zip(
        ranks(2).run(f"{CASES}:skipping", *arguments, False),
        ranks(2).run(f"{CASES}:skipping", *arguments, True),
        strict=True,
    ):
        bad = [False, False, True, True, False, True]
        assert [skipped for skipped, _ in at_once[1]] == bad
        assert [skipped for skipped, _ in late[1]] == bad
        assert at_once[1][-1][1] == at_once[2] == late[2] == 3
        assert [counted for _, counted in late[1]] == [0] * 6, "the host knows nothing yet"
        assert at_once[0] == late[0] and late[3] == 0


def test_three_ranks_have_the_bits_of_deepspeeds(ranks, tiny_shards, tmp_path):
    """Their sums depend on the order. Some parameters are larger than the small buckets, which
    DeepSpeed reduces whole if it is told to."""
    small = {"reduce_bucket_size": 3000, "overlap_comm": True, "reduce_scatter": False}
    overrides = ["train.global_batch=12", "train.micro_batch=2"]
    for stage, more in ((1, {}), (2, {}), (1, small), (2, small)):
        zero = {"stage": stage, **more}
        scaled = {"prescale_gradients": True} if more else {}
        ds = ds_json(tmp_path, f"{stage}-bf16", zero_optimization=zero, **scaled)
        for ours, theirs in ranks(3).run(f"{CASES}:trained", ds, str(tiny_shards), overrides):
            assert ours == theirs, (stage, more)
