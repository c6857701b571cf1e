"""The plan against memory and time of a real step on this CPU."""

import dataclasses
import json

import pytest
import torch

from gpt1_ds.base.errors import ConfigError
from gpt1_ds.engine.host_time import MEASURED_ON
from gpt1_ds.engine.memory import (
    StateBytes,
    activation_bytes,
    head_bytes,
    state_bytes,
    state_parts,
    zero_variant,
)
from gpt1_ds.engine.peak import has_bfloat16_instructions
from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.plan import main
from gpt1_ds.runs.estimate import ZERO_VARIANTS, Cluster, Job, best, check_seconds, estimate
from gpt1_ds.settings.sections import PRESETS
from tests.conftest import run, succeed
from tests.support.cases_plan import MICRO_BATCH, VOCAB_SIZE


def kept_bytes(shape: GPTConfig, windows: int, dtype: torch.dtype, checkpointing: bool) -> int:
    """Storage that autograd really keeps from a forward, parameters left out."""
    model = GPT(shape).to(dtype)
    model.activation_checkpointing = checkpointing
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    ids_BT = torch.randint(0, shape.vocab_size, (windows, shape.n_ctx + 1))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(ids_BT[:, :-1], ids_BT[:, 1:])
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize(
    "layers, heads, width, context", [(2, 4, 128, 256), (6, 8, 256, 512), (3, 2, 64, 128)]
)
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_activations_are_what_autograd_keeps(layers, heads, width, context, precision):
    shape = GPTConfig(2000, layers, heads, width, context)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    # The plan adds the float32 logits of the head's rows, which are freed within the forward.
    passing = head_bytes(shape, 4, flash=False)
    planned = activation_bytes(shape, 4, precision, False, flash=False) - passing
    assert planned == pytest.approx(kept_bytes(shape, 4, dtype, False), rel=0.08)


def test_processes_take_the_memory_and_time_planned():
    """Two fresh processes: the difference of their peaks, to 25 %, in which the imports cancel.

    The time of one step follows from the other's by their matrix products, to a factor of 2. A CPU
    without bfloat16 instructions takes minutes for such steps: there it is one step of fewer
    tokens.
    """
    n_ctx, steps = (256, 3) if has_bfloat16_instructions() else (64, 1)
    small = GPTConfig(VOCAB_SIZE, 4, 8, 256, n_ctx)
    large = GPTConfig(VOCAB_SIZE, 8, 8, 512, n_ctx)
    measured, planned = [], []
    for shape in (small, large):
        sizes = (shape.n_layer, shape.n_embd, 1, n_ctx, steps)
        command = ("python", "-m", "tests.support.cases_plan", *sizes)
        output = succeed(*command, timeout_seconds=200).stdout
        measured.append(json.loads(output.splitlines()[-1]))
        states = state_parts(shape.parameters, 1, "bf16", 1).total
        planned.append(states + activation_bytes(shape, MICRO_BATCH, "bf16", False, flash=False))
    difference = measured[1]["bytes"] - measured[0]["bytes"]
    assert planned[1] - planned[0] == pytest.approx(difference, rel=0.25)
    tflops = small.flops_per_token * MICRO_BATCH * n_ctx / measured[0]["seconds"] / 1e12
    one = Cluster(nodes=1, gpus_per_node=1, tflops=tflops, utilization=1.0)
    seconds = estimate(Job(large, "bf16", MICRO_BATCH), one, "1", MICRO_BATCH).seconds.products
    assert 0.5 < seconds / measured[1]["seconds"] < 2


def test_states_of_each_stage_are_those_of_the_zero_paper():
    """Rajbhandari et al. 2020, figure 1: 7.5 B parameters on 64 GPUs: 120, 31.4, 16.6, 1.9 GB.

    DeepSpeed adds the larger of the gradients of the step (8 bytes a parameter of the rank's share)
    and the buckets, with the weights that ZeRO-3 has gathered.
    """
    gigabytes = [state_parts(7.5e9, stage, "bf16", 64).total / 1e9 for stage in range(4)]
    paper = [120 + 60, 31.4 + 1, 16.6 + 1, 1.9 + 4]
    assert gigabytes == pytest.approx(paper, abs=0.1)


def test_offload_moves_states_to_the_host():
    """ZeRO 2 keeps the weights on the device; ZeRO 3 moves them too. One rank has no buckets."""

    def moved(stage: int, precision: str, ranks: int) -> StateBytes:
        return state_bytes(state_parts(1e9, stage, precision, ranks), f"{stage}+offload")

    assert moved(2, "bf16", 1) == (2e9, 20e9 + 2e9)
    assert moved(3, "bf16", 1) == (0, 20e9 + 2e9 + 2e9)
    assert moved(3, "fp32", 4) == (2e9 + 4e9, 3e9 + 1e9 + 1e9)


def test_the_zero_variant_of_a_json():
    offload = {"stage": 3, "offload_param": {"device": "cpu"}}
    none = {"stage": 2, "offload_optimizer": {"device": "none"}}
    found = [zero_variant(ds) for ds in ({}, {"zero_optimization": none})]
    assert found == ["0", "2"] and zero_variant({"zero_optimization": offload}) == "3+offload"


def test_more_of_zero_takes_less_memory_and_what_is_chosen_fits():
    cluster = Cluster()
    shape = GPTConfig(40_005, **PRESETS["13b"])
    job = Job(shape, "bf16", 64)
    sizes = [estimate(job, cluster, stage, 1).gpu_bytes for stage in "0123"]
    assert sizes == sorted(sizes, reverse=True)
    assert estimate(job, cluster, "0", 1).misfit.startswith("340 of 80 GB")
    for name in PRESETS:
        found = best(Job(GPTConfig(40_005, **PRESETS[name]), "bf16", 64), cluster)
        assert found is not None and found.gpu_bytes < 80e9
        assert found.zero_variant in ZERO_VARIANTS


GPT1 = GPTConfig(40_005, **PRESETS["gpt1"])


def test_no_step_is_shorter_than_the_host_needs():
    """At 4,096 GPUs a step of GPT-1 is bound by the host, not by 2 ms of matrix products."""
    job = Job(GPT1, "bf16", 4096)
    found = estimate(job, Cluster(nodes=512), "1", 1)
    assert found.seconds.products < 0.002 < found.seconds.host <= found.seconds.step
    speed = 4096 * 512 / found.seconds.step
    assert speed < 422e6 / 2  # which the plan promised when it knew no host
    deeper = estimate(Job(dataclasses.replace(GPT1, n_layer=24), "bf16", 4096), Cluster(), "1", 1)
    assert deeper.seconds.host > 1.5 * estimate(job, Cluster(), "1", 1).seconds.host
    often = estimate(job, Cluster(), "1", 1).seconds, estimate(job, Cluster(), "1", 4).seconds
    assert often[0].host > 3 * often[1].host


def test_a_checkpoint_stops_training_for_rank_0s_copy():
    """Under ZeRO-1 and 2 rank 0 copies the module too; under ZeRO-3 only its share."""
    job = Job(GPTConfig(40_005, **PRESETS["13b"]), "bf16", 64)
    cluster = Cluster(nodes=8)
    whole, shared = (estimate(job, cluster, stage, 1).save_seconds for stage in "13")
    assert whole == pytest.approx(13.5, abs=0.5) and shared == pytest.approx(1.2, abs=0.2)
    hurried = dataclasses.replace(job, checkpoint_every=1)
    slow = dataclasses.replace(cluster, storage=0.5)
    assert estimate(hurried, slow, "3", 1).save_seconds > 30  # the disk is not done by then


def test_the_check_of_the_shards_is_shared_out():
    one = check_seconds(3e9, Cluster(nodes=1, gpus_per_node=1))
    assert one == pytest.approx(2.0) and check_seconds(3e9, Cluster()) == pytest.approx(0.75)


def test_table_and_sweep(tiny_shards, capsys):
    main([f"data.shards={tiny_shards}", "model.preset=gpt1-tiny", "train.max_steps=100"])
    table = capsys.readouterr().out
    assert "100 updates of 8,192 tokens" in table and table.count(" yes") == len(ZERO_VARIANTS)
    assert "one bucket, which nothing hides" in table and "of shards checked in" in table
    assert MEASURED_ON in table and "host-bound" in table
    main(["--gpu-memory", "20", "model.preset=13b", "--tokens", "1000000000"])
    assert "of 20 GB a GPU, mostly model states" in capsys.readouterr().out
    main(["--sweep"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 + 4 * len(PRESETS) and MEASURED_ON in lines[-1]
    assert all(line.split()[1] == "4096" for line in lines[4::4])
    assert lines[4].startswith("gpt1 ") and float(lines[4].split()[7].replace(",", "")) < 211e6


@pytest.mark.parametrize(
    "arguments", [["--nodes", "0"], ["--utilization", "1.5"], ["train.global_batch=63"]]
)
def test_bad_clusters_are_refused(arguments):
    with pytest.raises(ConfigError):
        main(arguments)


def test_runs_as_a_command():
    assert "13b" in run("python", "-m", "gpt1_ds.plan", "--sweep", timeout_seconds=60).stdout
