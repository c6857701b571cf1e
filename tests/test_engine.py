"""Every shipped DeepSpeed JSON trains on two real ranks, and the stages agree with each other."""

import pytest

from tests.test_deepspeed_config import EXPECTED, FOLDER

STEPS = 12
NO_DROPOUT = ["model.embd_pdrop=0", "model.attn_pdrop=0", "model.resid_pdrop=0"]


@pytest.mark.parametrize("name", sorted(set(EXPECTED) - {"zero2_fp16"}))
def test_shipped_configs_train(ranks, tiny_shards, name):
    results = ranks(2).run("tests.cases_engine:trained", str(FOLDER / f"{name}.json"), str(tiny_shards), [], STEPS)
    losses, valid_loss = results[0]
    assert results[1] == results[0]
    assert losses[0] == pytest.approx(6.26, abs=0.15), "an untrained model is near ln(512 pieces)"
    assert losses[-1] < losses[0] - 0.3 and valid_loss < losses[0] - 0.3


@pytest.mark.parametrize("kind", ["adamw", "openai_adam"])
def test_float32_losses_agree_over_ranks_accumulation_and_optimizer_wrapping(ranks, tiny_shards, kind):
    """Tolerance 2e-4: the order of float32 sums differs, and Adam's first updates amplify it."""
    overrides = [*NO_DROPOUT, f"optim.kind={kind}"]
    path, shards = str(FOLDER / "zero0_fp32.json"), str(tiny_shards)
    one = ranks(1).run("tests.cases_engine:trained", path, shards, overrides, STEPS)[0][0]
    two = ranks(2).run("tests.cases_engine:trained", path, shards, overrides, STEPS)[0][0]
    accumulated = ranks(2).run("tests.cases_engine:trained", path, shards, [*overrides, "train.micro_batch=1"], STEPS)[
        0
    ][0]
    assert two == pytest.approx(one, rel=2e-4) and accumulated == pytest.approx(one, rel=2e-4)
    assert one[-1] < one[0] - 0.3


def test_bf16_stages_agree(ranks, tiny_shards):
    """ZeRO 1, 2 and 3 partition the same update: without dropout, losses agree within the rounding of bf16."""
    runs = [
        ranks(2).run("tests.cases_engine:trained", str(FOLDER / f"{name}.json"), str(tiny_shards), NO_DROPOUT, STEPS)[
            0
        ][0]
        for name in ("zero1_bf16", "zero2_bf16", "zero3_bf16", "zero2_offload")
    ]
    for losses in runs[1:]:
        assert losses == pytest.approx(runs[0], rel=5e-3)
