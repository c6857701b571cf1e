"""The formula of the memory, term by term, with sums made by hand for a small shape."""

import pytest

from gpt1_ds.engine.memory import (
    activation_bytes,
    bucket_bytes,
    mean_keys,
    model_states,
    state_bytes,
    state_parts,
    zero_variant,
)
from gpt1_ds.model.gpt import GPTConfig

SHAPE = GPTConfig(vocab_size=100, n_layer=3, n_head=2, n_embd=8, n_ctx=10)


@pytest.mark.parametrize(
    ("zero", "precision", "ranks", "on_rank", "on_host"),
    [
        # Of 1,000 parameters: masters and moments (12 bytes), weights (2), gradients (2), and the
        # larger of the step's float32 gradients (8) and what is there in the backward pass:
        # buckets, under ZeRO-3 whole weights too. Without ZeRO the all-reduce has a copy of the
        # gradients. Offload may have the last two at once.
        ("0", "bf16", 4, 12_000 + 2000 + 2000 + 8000, 0),
        ("0", "fp32", 4, 8000 + 4000 + 4000 + 4000, 0),
        ("1", "bf16", 1, 12_000 + 2000 + 2000 + 8000, 0),
        ("1", "bf16", 8, 1500 + 2000 + 2000 + 2000, 0),
        ("1", "bf16", 2, 6000 + 2000 + 2000 + 4000, 0),
        ("2", "bf16", 8, 1500 + 2000 + 250 + 2000, 0),
        ("2", "fp16", 2, 6000 + 2000 + 1000 + 4000, 0),
        ("3", "bf16", 1, 12_000 + 2000 + 2000 + 8000, 0),
        ("3", "bf16", 4, 3000 + 500 + 500 + 4000 + 2000, 0),
        ("3", "fp32", 4, 3000 + 1000 + 1000 + 8000 + 4000, 0),
        ("1+offload", "bf16", 4, 2000 + 2000, 5000 + 2000),
        ("2+offload", "bf16", 4, 2000 + 2000, 5000 + 500),
        ("3+offload", "bf16", 4, 4000 + 2000, 5000 + 500 + 500),
    ],
)
def test_states(zero, precision, ranks, on_rank, on_host):
    parts = state_parts(1000, int(zero[0]), precision, ranks)
    assert state_bytes(parts, zero) == (on_rank, on_host)


def test_a_bucket_holds_a_gigabyte_at_most():
    assert state_parts(1e10, 1, "bf16", 100).passing == 20e9 + 1e9
    assert state_parts(1e10, 3, "bf16", 100).passing == 0.2e9 + 2e9 + 2e9


def test_the_gradient_of_the_tied_matrix_is_whole_where_gradients_are_divided():
    def tied(stage: int, ranks: int) -> float:
        return state_parts(1000, stage, "bf16", ranks, tied=100).tied

    assert [tied(stage, 4) for stage in range(4)] == [0, 0, 200, 200]
    assert tied(2, 1) == 0, "a rank alone has all gradients anyway"
    states = model_states(SHAPE, zero(stage=2), "bf16", 4)
    assert states.tied == 2 * SHAPE.padded_vocab_size * SHAPE.n_embd
    assert states.of_buckets == bucket_bytes(zero(stage=2), SHAPE.parameters, "bf16", 4)


def zero(**keys):
    return {"zero_optimization": keys, "bf16": {"enabled": True}}


def test_bytes_of_the_buckets_of_a_json():
    own = zero(stage=2, reduce_bucket_size=300)
    assert bucket_bytes(zero(stage=1), 1000, "bf16", 4) == 2000
    assert bucket_bytes(zero(stage=2), 1000, "bf16", 4) == 4000
    assert bucket_bytes(zero(stage=2), 1000, "bf16", 1) == 0
    assert bucket_bytes(zero(stage=1, reduce_scatter=True), 1000, "bf16", 1) == 4000
    assert bucket_bytes(zero(stage=2, overlap_comm=True), 1000, "fp32", 4) == 8000
    halves = zero(stage=2, overlap_comm=True, reduce_bucket_size=500)
    assert bucket_bytes(halves, 1000, "fp32", 4) == 3 * 2000
    assert bucket_bytes(zero(stage=3, overlap_comm=False), 1000, "bf16", 4) == 4000
    cut = zero(stage=2, overlap_comm=True, reduce_scatter=True)
    assert bucket_bytes(cut, 1000, "bf16", 4) == 6000
    assert bucket_bytes(own, 1000, "bf16", 4) == 1200
    assert bucket_bytes(zero(stage=1), 117e6, "bf16", 4, on_gpu=True) == 25e6 * 2 * 2
    assert bucket_bytes({}, 1000, "fp32", 4) == 4000 and bucket_bytes({}, 1000, "fp32", 1) == 0
    assert bucket_bytes({}, 1e10, "bf16", 4) == 5e8 * 2
    assert state_parts(1000, 1, "bf16", 4, 500.0).of_buckets == 500


def test_zero_plus_plus_keeps_a_second_share_of_the_weights():
    """hpZ: one for each group of ranks, beside two buckets."""
    eight = zero(stage=3, zero_hpz_partition_size=8)
    assert bucket_bytes(eight, 1000, "bf16", 64) == 4000 + 2000 / 8
    assert bucket_bytes(eight, 1000, "bf16", 4) == 4000 + 2000 / 4
    assert bucket_bytes(zero(stage=2, zero_hpz_partition_size=8), 1000, "bf16", 64) == 4000


def test_activations_with_a_flash_kernel():
    """A token: 3 layers of 8 channels at 34 bytes, 8 + 128 values of the head, the embedding."""
    per_token = 3 * 8 * 34 + 136 * 2 + 8 * 3
    assert activation_bytes(SHAPE, 4, "bf16", False) == 40 * per_token + 3 * 40 * 128 * 4
    # 1,000 tokens: the head's logits exist for 512 rows only.
    assert activation_bytes(SHAPE, 100, "bf16", False) == 1000 * per_token + 3 * 512 * 128 * 4


def test_activations_without_a_flash_kernel():
    """Two heads keep weights of 4 bytes and masks of 2 for all 10 keys of the one block."""
    per_token = 3 * (8 * (16 * 4 + 2 * 2) + 2 * 6 * 10) + 136 * 4 + 8 * 6
    assert (
        activation_bytes(SHAPE, 4, "fp32", False, flash=False) == 40 * per_token + 3 * 16 * 128 * 4
    )


def test_a_query_keeps_the_keys_up_to_the_end_of_its_block():
    assert mean_keys(512) == (512 + 128) / 2 and mean_keys(128) == 128 and mean_keys(10) == 10
    assert mean_keys(200) == (128 * 128 + 72 * 200) / 200


def test_activation_checkpointing_keeps_the_blocks_inputs_and_one_block():
    per_token = 3 * 8 * 2 + 8 * 34 + 136 * 2 + 8 * 3
    assert activation_bytes(SHAPE, 4, "bf16", True) == 40 * per_token + 3 * 40 * 128 * 4


def test_stage_and_offload_of_a_deepspeed_json():
    def of(**zero) -> str:
        return zero_variant({"zero_optimization": zero})

    assert zero_variant({}) == "0" and of() == "0" and of(stage=2) == "2"
    assert of(stage=2, offload_optimizer={"device": "cpu"}) == "2+offload"
    assert of(stage=3, offload_param={"device": "nvme"}) == "3+offload"
    assert of(stage=3, offload_param={"device": "none"}, offload_optimizer={}) == "3"
