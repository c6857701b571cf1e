"""Every shipped DeepSpeed JSON trains on two real ranks, and the stages agree with each other."""

import json
from pathlib import Path

import pytest

from tests.settings.test_deepspeed_json import EXPECTED, FOLDER
from tests.support.ranks import RankError

STEPS = 12
TRAINED = "tests.support.cases_engine:trained"


@pytest.mark.parametrize("name", sorted(set(EXPECTED) - {"zero2_fp16"}))
def test_shipped_configs_train(ranks, tiny_shards, name):
    results = ranks(2).run(TRAINED, str(FOLDER / f"{name}.json"), str(tiny_shards), [], STEPS)
    losses, valid_loss = results[0]
    assert results[1] == results[0]
    assert losses[0] == pytest.approx(6.26, abs=0.15), "an untrained model is near ln(512 pieces)"
    assert losses[-1] < losses[0] - 0.3 and valid_loss < losses[0] - 0.3


@pytest.mark.parametrize("name", ["zero2_bf16", "zero3_bf16"])
def test_a_bucket_is_as_large_as_the_model(ranks, tiny_shards, name):
    arguments = str(FOLDER / f"{name}.json"), str(tiny_shards)
    size, parameters, same = ranks(1).run("tests.support.cases_engine:buckets", *arguments)[0]
    assert size == parameters and same


def test_zero3_leaves_no_other_rounding_to_the_next_run_of_its_process(ranks, tiny_shards):
    ranks(1).close()
    before, _, after = (
        ranks(1).run(TRAINED, str(FOLDER / f"{name}.json"), str(tiny_shards), [], 4)
        for name in ("zero2_bf16", "zero3_bf16", "zero2_bf16")
    )
    assert after == before


def test_a_rank_that_sees_one_device_takes_it(ranks, tiny_shards):
    """As under `srun --gpus-per-task=1`, where the local rank is no number of a device."""
    arguments = str(FOLDER / "cpu_fp32.json"), str(tiny_shards)
    assert ranks(1).run("tests.support.cases_engine:devices_set", *arguments) == [[0]]


def test_what_deepspeed_refuses_beyond_our_rules_is_one_line(ranks, tiny_shards, tmp_path):
    path = tmp_path / "ds.json"
    for ds, words in (
        ({"optimizer": {"type": "SGD", "params": {"momentun": 1}}}, "momentun"),
        ({"data_types": {"param_dtype": "bf16"}}, "param_dtype"),
        ({"zero_optimization": {"stage": 3, "compute_grad_norm": False}}, "compute_grad_norm"),
    ):
        path.write_text(json.dumps(ds))
        arguments = str(path), str(tiny_shards)
        line = ranks(1).run("tests.support.cases_engine:refused", *arguments)[0]
        assert line.startswith("--deepspeed_config: DeepSpeed refuses it: ") and words in line
        assert "\n" not in line


def losses(ranks, shards: Path, count: int, config: Path | str, *overrides: str) -> list[float]:
    """Of each step, dropout on: it follows the window's place in the order, not the rank."""
    path = config if isinstance(config, Path) else FOLDER / f"{config}.json"
    return ranks(count).run(TRAINED, str(path), str(shards), overrides, STEPS)[0][0]


@pytest.mark.parametrize("kind", ["adamw", "openai_adam"])
def test_float32_losses_agree_over_ranks_and_accumulation(ranks, tiny_shards, kind):
    """Tolerance 2e-4: the order of float32 sums differs, and Adam's first updates amplify it."""
    one = losses(ranks, tiny_shards, 1, "zero0_fp32", f"optim.kind={kind}")
    assert one[-1] < one[0] - 0.3
    for micro_batch in (4, 2, 1):  # accumulation 1, 2, 4
        overrides = [f"optim.kind={kind}", f"train.micro_batch={micro_batch}"]
        other = losses(ranks, tiny_shards, 2, "zero0_fp32", *overrides)
        assert other == pytest.approx(one, rel=2e-4)


def test_float32_stages_agree(ranks, tiny_shards, tmp_path):
    """Tolerance 2e-4, as above: each stage adds up the same gradients in its own order."""
    whole = losses(ranks, tiny_shards, 2, "zero0_fp32")
    path = tmp_path / "ds.json"
    for stage in (1, 2, 3):
        path.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
        assert losses(ranks, tiny_shards, 2, path) == pytest.approx(whole, rel=2e-4)


def test_bf16_stages_agree(ranks, tiny_shards):
    """ZeRO 1, 2 and 3 divide the same update: losses agree within the rounding of bf16.

    They do so on one rank as on two.
    """
    first = losses(ranks, tiny_shards, 2, "zero1_bf16")
    on_two = [(2, name) for name in ("zero2_bf16", "zero3_bf16", "zero2_offload")]
    for count, name in [*on_two, (1, "zero1_bf16"), (1, "zero3_bf16")]:
        assert losses(ranks, tiny_shards, count, name) == pytest.approx(first, rel=5e-3)


def test_zero_plus_plus_trains_as_zero_3_does(ranks, tiny_shards, tmp_path):
    """Every pair of four ranks keeps the parameters whole (hpZ).

    The quantised parts of ZeRO++ need the kernels of a GPU.
    """
    zero = {"stage": 3, "zero_hpz_partition_size": 2}
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": zero, "bf16": {"enabled": True}}))
    in_pairs = losses(ranks, tiny_shards, 4, path)
    assert in_pairs == pytest.approx(losses(ranks, tiny_shards, 4, "zero3_bf16"), rel=5e-3)
    assert in_pairs[-1] < in_pairs[0] - 0.3


def test_less_memory_or_compiled_blocks_train_alike(ranks, tiny_shards):
    """Activation checkpointing and torch.compile change the losses by rounding alone."""
    for name, options in (
        ("zero2_bf16", ("activation_checkpointing", "compile")),
        ("zero3_bf16", ("activation_checkpointing",)),
    ):
        plain = losses(ranks, tiny_shards, 2, name)
        for option in options:
            changed = losses(ranks, tiny_shards, 2, name, f"train.{option}=true")
            assert changed == pytest.approx(plain, rel=5e-3)


def train_lines(metrics: list[dict]) -> list[dict]:
    return [line for line in metrics if line["split"] == "train"]


def test_a_growing_batch_is_the_same_on_any_ranks(ranks, tiny_shards, tmp_path):
    """2 to 8 windows in multiples of 2: 1 and 2 ranks agree; a kill on the way changes nothing."""
    pretrain = "tests.support.cases_losses:pretrain"
    ramp = ["train.batch_start=2", "train.batch_warmup_steps=9", "train.max_steps=12"]
    windows = [2, 4, 6, 10, 14, 18, 24, 30, 36, 44, 52, 60]
    for layout in ("zero0_fp32", "zero2_bf16", "zero3_bf16"):
        common = str(FOLDER / f"{layout}.json"), str(tiny_shards), str(tmp_path)
        exact, metrics, _ = ranks(2).run(pretrain, *common, f"two-{layout}", ramp)[0]
        lines = train_lines(metrics)
        assert [line["tokens"] // 32 for line in lines] == windows
        metrics = ranks(1).run(pretrain, *common, f"one-{layout}", ramp)[0][1]
        one = [line["loss"] for line in train_lines(metrics)]
        tolerance = 2e-4 if "fp32" in layout else 5e-3
        assert one == pytest.approx([line["loss"] for line in lines], rel=tolerance)
    with pytest.raises(RankError):
        ranks(2).run(pretrain, *common, "killed", ramp, [0, 0], [], 6)
    again, metrics, _ = ranks(2).run(pretrain, *common, "killed", ramp)[0]
    assert again == exact and train_lines(metrics)[-1]["tokens"] == 60 * 32


@pytest.mark.parametrize(
    ("kind", "stage", "lr"),
    [
        ("AdamW", 2, 3e-3),
        ("Adam", 1, 3e-3),
        ("Muon", 1, 3e-3),
        ("Muon", 2, 3e-3),
        ("NAdam", 0, 3e-3),
        ("NAdam", 3, 3e-3),
    ],
)
def test_optimizers_of_the_json_train(ranks, tiny_shards, tmp_path, kind, stage, lr):
    auto = dict.fromkeys(["lr", "weight_decay"], "auto")
    if kind != "Muon":
        auto |= {"betas": "auto", "eps": "auto"}
    own = {} if kind == "NAdam" else {"torch_adam": True}
    if kind == "Muon":
        own |= {"muon_lr": 3e-2, "adam_lr": 3e-3}
    sections = {
        "zero_optimization": {"stage": stage},
        "bf16": {"enabled": stage > 0},
        "zero_allow_untested_optimizer": True,
        "optimizer": {"type": kind, "params": {**auto, **own}},
    }
    (tmp_path / "ds.json").write_text(json.dumps(sections))
    found = losses(ranks, tiny_shards, 2, tmp_path / "ds.json", f"optim.lr={lr}")
    assert found[-1] < found[0] - 0.05


@pytest.mark.parametrize("stage", [1, 2])
def test_muon_takes_the_blocks_matrices_at_its_own_rate(ranks, tiny_shards, tmp_path, stage):
    """Embeddings, gains and biases are Adam's; each half keeps its share of the schedule."""
    params = {
        "lr": "auto",
        "weight_decay": "auto",
        "muon_lr": 0.03,
        "adam_lr": 0.006,
        "torch_adam": True,
    }
    sections = {"zero_optimization": {"stage": stage}, "bf16": {"enabled": True}}
    sections["optimizer"] = {"type": "Muon", "params": params}
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(sections))
    arguments = str(path), str(tiny_shards), ["optim.lr=3e-3", "schedule.kind=linear"], 4
    (kept, rates), _ = ranks(2).run("tests.support.cases_engine:rates_and_moments", *arguments)
    muon = {name for name, keys in kept.items() if "momentum_buffer" in keys}
    of_blocks = {name for name in kept if name.startswith("blocks.")}
    assert muon == {name for name in of_blocks if ".ln_" not in name and "bias" not in name}
    assert len(muon) == 8 and {"wte", "wpe"} < kept.keys() - muon
    assert all("exp_avg_sq" in kept[name] for name in kept.keys() - muon)
    for step, groups in enumerate(rates):
        warm = min((step + 1) / 2, 1 - (step - 2) / 98 if step >= 2 else 1)
        assert sorted(set(groups)) == pytest.approx([0.006 * warm, 0.03 * warm])


def test_float16_with_a_dynamic_loss_scale_trains_as_bf16_does(ranks, tiny_shards):
    """The scale starts at 2^16 and the first steps overflow; DeepSpeed keeps the steps it skips."""
    arguments = TRAINED, str(FOLDER / "zero2_fp16.json"), str(tiny_shards), [], STEPS
    half = ranks(2).run("tests.support.cases_engine:in_float16", *arguments)[0][0]
    assert half[-1] < half[0] - 0.3
    assert half[0] == pytest.approx(losses(ranks, tiny_shards, 2, "zero2_bf16")[0], rel=5e-3)
