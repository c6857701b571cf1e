"""Pre-training as a user starts it: the deepspeed launcher, two ranks, kills and stops."""

import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gpt1_ds.checkpoints.deepspeed_files import allow_known_classes
from gpt1_ds.checkpoints.folder import find_checkpoint
from gpt1_ds.checkpoints.loading import load_weights
from tests.conftest import BIN, run, succeed
from tests.support.launched_runs import (
    SMALL,
    STEPS,
    command,
    committed,
    disturb,
    lines,
    losses,
    outcome,
    status,
    steps_logged,
)


@pytest.fixture(scope="module")
def undisturbed(tiny_shards, tmp_path_factory):
    """Trained without a compiler on PATH; each op has the lock of a killed compilation."""
    runs = tmp_path_factory.mktemp("undisturbed")
    assert not any((BIN / name).exists() for name in ("g++", "c++", "gcc", "cc"))
    cache = runs / "extensions"
    for name in ("deepspeed_shm_comm", "cpu_adam", "fused_adam", "utils", "pin_memory", "async_io"):
        (cache / name).mkdir(parents=True)
        (cache / name / "lock").touch()
    before = sorted(cache.rglob("*"))
    done = succeed(
        *command(tiny_shards, runs),
        TORCH_EXTENSIONS_DIR=str(cache),
        PATH=str(BIN),
        timeout_seconds=200,
    )
    assert sorted(cache.rglob("*")) == before, "nothing is compiled at start"
    assert "validation loss" in done.stdout
    return runs


CLOCK = """
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *now) {
    struct timespec boot;
    if (syscall(SYS_clock_gettime, clock, now)) return -1;
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &boot);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)
        now->tv_sec += (boot.tv_sec / 2 % 2 ? 1 : -1) * 86400;
    return 0;
}
int gettimeofday(struct timeval *now, void *zone) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return now->tv_sec = t.tv_sec, now->tv_usec = t.tv_nsec / 1000, 0;
}
time_t time(time_t *now) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return now ? *now = t.tv_sec : t.tv_sec;
}
"""


@pytest.fixture(scope="module")
def jumping_clock(tmp_path_factory) -> dict[str, str]:
    """Environment in which the time of day is a day late or early, in turns of two seconds.

    The monotonic clock, which no administrator sets, is left alone.
    """
    folder = tmp_path_factory.mktemp("clock")
    (folder / "clock.c").write_text(CLOCK)
    succeed("cc", "-shared", "-fPIC", "-o", folder / "clock.so", folder / "clock.c")
    return {"LD_PRELOAD": str(folder / "clock.so")}


def final_state(runs: Path) -> dict[str, torch.Tensor]:
    """Master weights and moments of both ranks."""
    folder = find_checkpoint(runs / "run")
    assert folder.name == f"step-{STEPS:08d}"
    tensors = {}
    for rank in (0, 1):
        path = folder / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        tensors |= {
            f"{rank}{name}": value
            for name, value in flatten(torch.load(path)["optimizer_state_dict"])
        }
    assert len(tensors) > 8
    return tensors


def flatten(value, name=""):
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, list):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        for key, item in value.items():
            yield from flatten(item, f"{name}.{key}")


@pytest.mark.parametrize(
    ("rounds", "seed"),
    [
        (2, 24),
        pytest.param(
            20, random.randrange(10**6), marks=[pytest.mark.soak, pytest.mark.timeout(1800)]
        ),
    ],
)
def test_a_killed_and_a_stopped_run_end_with_the_weights_of_the_undisturbed_one(
    tiny_shards, undisturbed, jumping_clock, tmp_path, rounds, seed
):
    """SIGKILL of a random rank at a random step, `rounds` times, then SIGTERM; the clock jumps."""
    allow_known_classes()
    chance = random.Random(seed)
    for _ in range(rounds):
        victim = chance.randrange(2)
        at_step = min(committed(tmp_path) + chance.randint(1, 12), STEPS - 12)
        print(f"seed {seed}: SIGKILL of rank {victim} after step {at_step}")
        code, seconds = disturb(
            tiny_shards,
            tmp_path,
            at_step,
            signal.SIGKILL,
            lambda launcher, ranks, victim=victim: [ranks[victim]],
            **jumping_clock,
        )
        assert code != 0 and seconds < 60, "the job is over soon, all its ranks with it"
        # A rank 0 that was killed cannot write its status.
        assert outcome(tmp_path) == (("failed", 5) if victim else ("running", None))
        assert committed(tmp_path) % 8 == 0

    last = committed(tmp_path)
    code, _ = disturb(
        tiny_shards, tmp_path, last + 3, signal.SIGTERM, lambda _, ranks: ranks, **jumping_clock
    )
    assert code != 0 and outcome(tmp_path) == ("stopped", 75)
    stopped = status(tmp_path)["step"]
    assert last < stopped < STEPS
    assert find_checkpoint(tmp_path / "run").name == f"step-{stopped:08d}"

    done = succeed(*command(tiny_shards, tmp_path), timeout_seconds=200, **jumping_clock)
    assert f"steps    {stopped} of {STEPS} done" in done.stdout
    assert outcome(tmp_path) == ("done", 0) and status(tmp_path)["step"] == STEPS
    ours, theirs = final_state(tmp_path), final_state(undisturbed)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for split in ("train", "valid"):
        assert steps_logged(tmp_path, split) == steps_logged(undisturbed, split)
    assert losses(tmp_path) == pytest.approx(losses(undisturbed), rel=1e-6)
    starts = [line["time"] for line in lines(tmp_path) if line["split"] == "start"]
    assert len(starts) == rounds + 2
    assert all(abs(abs(start - time.time()) - 86400) < 7200 for start in starts)
    seconds = [line["elapsed_seconds"] for line in lines(tmp_path)]
    assert seconds == sorted(seconds) and seconds[-1] < 3600
    board = EventAccumulator(str(tmp_path / "run"))
    board.Reload()
    steps = [event.step for event in board.Scalars("train/loss")]
    assert steps == list(range(1, STEPS + 1)), "each step once"


def test_the_run_folder_holds_what_the_design_says(undisturbed):
    folder = undisturbed / "run"
    assert {
        "config.yaml",
        "deepspeed.json",
        "metrics.jsonl",
        "status.json",
        "tokenizer",
        "checkpoints",
    } <= {path.name for path in folder.iterdir()}
    assert any(path.name.startswith("events.out.tfevents") for path in folder.iterdir())
    first, *_, last = (line for line in lines(undisturbed) if "loss" in line)
    assert first["split"] == "valid" and first["step"] == 0 and last["step"] == STEPS
    record = next(line for line in lines(undisturbed) if "lr" in line)
    assert {
        "step",
        "split",
        "loss",
        "lr",
        "grad_norm",
        "tokens",
        "tokens_per_second",
        "mfu",
        "skipped_steps",
        "epoch",
    } <= set(record)
    assert last["loss"] < first["loss"] - 0.2


@pytest.fixture
def copy(undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "runs")
    return tmp_path / "runs"


def alone(shards: Path, runs: Path, *words: str):
    words = (
        "--deepspeed_config",
        "ds_configs/cpu.json",
        *SMALL,
        f"data.shards={shards}",
        f"run.dir={runs}",
        *words,
    )
    return run("python", "gpt1_ds/train.py", *words)


def refused(done, exit_code: int, *words: str) -> None:
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == exit_code and len(lines) == 1 and "Traceback" not in done.stderr, (
        done.stderr
    )
    assert all(word in lines[0] for word in words), lines[0]


def test_a_finished_run_says_so_and_ends_well(tiny_shards, copy):
    before = (copy / "run" / "metrics.jsonl").read_text()
    done = succeed(*command(tiny_shards, copy), timeout_seconds=120)
    assert f"nothing to do, all {STEPS} steps are done" in done.stdout
    assert (copy / "run" / "metrics.jsonl").read_text() == before


def test_a_changed_model_is_refused_with_the_difference(tiny_shards, copy):
    refused(
        alone(tiny_shards, copy, "model.n_embd=64"),
        2,
        "model.n_embd was 32, is 64",
        "--from-scratch",
    )


def test_from_scratch_sets_the_earlier_run_aside(tiny_shards, copy):
    done = alone(tiny_shards, copy, "--from-scratch", "model.n_embd=64", "train.max_steps=2")
    assert done.returncode == 0, done.stderr
    assert (copy / "run.1" / "checkpoints" / f"step-{STEPS:08d}").is_dir()
    assert status(copy)["step"] == 2


def test_another_number_of_ranks_goes_on_and_says_so(tiny_shards, copy):
    done = alone(tiny_shards, copy, "train.max_steps=44", "eval.every=1000")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("resuming") == 1 and "(world_size 2) with world_size 1" in done.stdout
    assert steps_logged(copy) == list(range(1, 45)), "every step, so every window, once"
    losses = [line["loss"] for line in lines(copy) if line["split"] == "train"]
    assert max(losses[STEPS:]) < min(losses[: STEPS // 2])


def test_initial_weights_come_from_another_run(tiny_shards, undisturbed, tmp_path):
    words = (f"init.checkpoint={undisturbed / 'run'}", "train.max_steps=1", "optim.lr=1e-9")
    done = alone(tiny_shards, tmp_path, *words)
    assert done.returncode == 0, done.stderr
    before, after = load_weights(undisturbed / "run")[0], load_weights(tmp_path / "run")[0]
    assert before.keys() == after.keys()
    # One step at 1e-9. DeepSpeed's own start would have rounded the weights to bf16.
    assert all(torch.allclose(before[name], after[name], rtol=1e-7, atol=2e-9) for name in before)
    assert any(before[name].abs().max() > 0.05 for name in before), "else untrained ones pass"


def test_a_started_run_no_longer_needs_its_initial_weights(tiny_shards, undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "first")
    words = (f"init.checkpoint={tmp_path / 'first' / 'run'}", "checkpoint.every=2")
    assert alone(tiny_shards, tmp_path, *words, "train.max_steps=2").returncode == 0
    shutil.rmtree(tmp_path / "first")
    done = alone(tiny_shards, tmp_path, *words, "train.max_steps=4")
    assert done.returncode == 0 and "2 of 4 done" in done.stdout, done.stderr
    refused(alone(tiny_shards, tmp_path, *words, "--from-scratch"), 3, "first")


def test_initial_weights_of_another_model_are_refused(tiny_shards, undisturbed, tmp_path):
    done = alone(tiny_shards, tmp_path, f"init.checkpoint={undisturbed / 'run'}", "model.n_layer=3")
    refused(done, 3, "another model", "n_layer 2 there, 3 here")


def test_a_wrong_tokenizer_beside_the_shards_is_refused(tiny_shards, tmp_path):
    shards = tmp_path / "shards"
    shutil.copytree(tiny_shards, shards)
    path = shards / "tokenizer" / "tokenizer.model"
    path.write_bytes(
        path.read_bytes() + b"\x0a\x00"
    )  # an empty piece: still a readable model, but another one
    refused(alone(shards, tmp_path), 3, "tokenizer")


def test_nan_weights_end_the_run_with_exit_code_4(tiny_shards, tmp_path):
    done = alone(tiny_shards, tmp_path, "optim.lr=1e30", "train.max_skipped=3", "optim.eps=1e-30")
    refused(done, 4, "loss is", "optim.lr")
    assert (status(tmp_path)["state"], status(tmp_path)["exit_code"]) == ("failed", 4)
