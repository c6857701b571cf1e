"""What DeepSpeed gets where a JSON leaves it open: by the model's size and the device."""

import pytest

from gpt1_ds.engine.defaults import Buckets, buckets, with_defaults

TIMER = {"throughput": {"enabled": False}}


def zero(**keys: object) -> dict:
    return {"zero_optimization": keys, "bf16": {"enabled": True}}


@pytest.mark.parametrize(
    ("parameters", "elements"),
    [(1e6, 1e6), (117e6, 25e6), (1.3e9, 1.3e9 // 16), (6.7e9, 6.7e9 // 16), (13e9, 5e8)],
)
def test_buckets_on_a_gpu_are_a_sixteenth_of_the_model(parameters, elements):
    for stage in (1, 2):
        assert buckets(zero(stage=stage), parameters, on_gpu=True) == Buckets(elements, True)
        on_cpu = Buckets(min(5e8, parameters), False)
        assert buckets(zero(stage=stage), parameters, on_gpu=False) == on_cpu


def test_what_the_json_says_stays():
    said = zero(stage=1, overlap_comm=False, reduce_bucket_size=300, reduce_scatter=True)
    said["timers"] = {"throughput": {"enabled": True, "synchronized": False}}
    for on_gpu in (False, True):
        assert with_defaults(said, 1000, on_gpu) == said
        assert with_defaults({}, 1000, on_gpu) == {"timers": TIMER}
    assert buckets(zero(stage=2, overlap_comm=False), 117e6, True) == Buckets(117e6, False)
    assert buckets(zero(stage=1, overlap_comm=True), 117e6, False) == Buckets(117e6, True)
    assert (
        "reduce_scatter"
        not in with_defaults({**zero(stage=1), "prescale_gradients": False}, 1000, True)[
            "zero_optimization"
        ]
    )


def test_what_the_json_leaves_open_is_chosen():
    chosen = with_defaults(zero(stage=1), 117_000_000, True)
    assert chosen["timers"] == TIMER and chosen["prescale_gradients"] is True
    assert chosen["zero_optimization"] == {
        "stage": 1,
        "reduce_bucket_size": 25_000_000,
        "overlap_comm": True,
        "reduce_scatter": False,
    }
    third = with_defaults(zero(stage=3), 117_000_000, True)
    assert third["zero_optimization"] == {"stage": 3, "reduce_bucket_size": 25_000_000}


@pytest.mark.parametrize(
    "ds",
    [
        zero(stage=2, offload_optimizer={"device": "cpu"}),
        {**zero(stage=2), "optimizer": {"type": "Muon"}},
    ],
)
def test_offload_and_muon_keep_deepspeeds_way(ds):
    chosen = with_defaults(ds, 1000, True)
    assert "reduce_scatter" not in chosen["zero_optimization"]
    assert chosen["zero_optimization"]["overlap_comm"] is False
    assert "prescale_gradients" not in chosen
