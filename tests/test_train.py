"""Pre-training as a user starts it: the deepspeed launcher, two ranks, kills and stops on the way."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from gpt1_ds import checkpoint
from gpt1_ds.distributed import free_port
from tests.conftest import ROOT, run, succeed
from tests.ranks import die_with_parent

STEPS = 40
SMALL = ("model.preset=gpt1-tiny", "model.n_embd=32", "model.n_ctx=32", f"train.max_steps={STEPS}",
         "train.global_batch=4",
         "eval.every=20", "eval.batches=1", "checkpoint.every=8", "log.every=1", "optim.lr=1e-3",
         "schedule.warmup_steps=4", "run.name=run")  # fmt: skip


def command(shards: Path, runs: Path, *overrides: str) -> list[str]:
    return ["deepspeed", "--num_accelerators", "2", "--master_port", str(free_port()), "gpt1_ds/train.py",
            "--deepspeed_config", "ds_configs/cpu.json", *SMALL, f"data.shards={shards}", f"run.dir={runs}",
            *overrides]  # fmt: skip


def status(runs: Path) -> dict:
    return json.loads((runs / "run" / "status.json").read_text())


def steps_logged(runs: Path, split: str = "train") -> list[int]:
    path = runs / "run" / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [record["step"] for record in map(json.loads, lines) if record["split"] == split]


def ranks_of(launcher: int) -> list[int]:
    """Process ids of the training ranks below the launcher, by rank."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().decode().split("\0")
            parents = {int((entry / "stat").read_text().rpartition(")")[2].split()[1])}
            parents.add(int(Path(f"/proc/{min(parents)}/stat").read_text().rpartition(")")[2].split()[1]))
        except (OSError, ValueError):
            continue
        rank = next((word for word in words if word.startswith("--local_rank=")), None)
        if rank and launcher in parents:
            found[int(rank.partition("=")[2])] = int(entry.name)
    return [found[rank] for rank in sorted(found)]


def disturb(shards: Path, runs: Path, at_step: int, number: int, whom, *overrides: str) -> int:
    """Start the run, send signal `number` to `whom(launcher, ranks)` once `at_step` is logged and the checkpoint before
    it committed, and wait for its end."""
    log = open(runs / "log", "w+")
    process = subprocess.Popen(command(shards, runs, *overrides), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log,
                               stderr=subprocess.STDOUT, preexec_fn=die_with_parent)  # fmt: skip
    deadline = time.monotonic() + 120
    due = at_step // 8 * 8
    while max(steps_logged(runs), default=-1) < at_step or max(steps_logged(runs, "checkpoint"), default=0) < due:
        assert process.poll() is None and time.monotonic() < deadline, log.seek(0) or log.read()
        time.sleep(0.02)
    ranks = ranks_of(process.pid)
    assert len(ranks) == 2
    for pid in whom(process.pid, ranks):
        os.kill(pid, number)
    process.wait(timeout=90)
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in ranks) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks), "a rank outlived the run"
    return process.returncode


@pytest.fixture(scope="module")
def undisturbed(tiny_shards, tmp_path_factory):
    runs = tmp_path_factory.mktemp("undisturbed")
    cache = runs / "extensions"
    done = succeed(*command(tiny_shards, runs), TORCH_EXTENSIONS_DIR=str(cache), timeout_seconds=200)
    assert not cache.exists(), "nothing is compiled at start"
    assert "validation loss" in done.stdout
    return runs


def final_state(runs: Path) -> dict[str, torch.Tensor]:
    """Master weights and moments of both ranks."""
    folder = checkpoint.find(runs / "run")
    assert folder.name == f"step-{STEPS:08d}"
    tensors = {}
    for rank in (0, 1):
        path = folder / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        tensors |= {f"{rank}{name}": value for name, value in flatten(torch.load(path)["optimizer_state_dict"])}
    assert len(tensors) > 8
    return tensors


def flatten(value, name=""):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from flatten(item, f"{name}.{key}")
    if isinstance(value, torch.Tensor):
        yield name, value


def test_a_killed_and_a_stopped_run_end_with_the_weights_of_the_undisturbed_one(tiny_shards, undisturbed, tmp_path):
    checkpoint._allow_known_classes()
    assert disturb(tiny_shards, tmp_path, 11, signal.SIGKILL, lambda launcher, ranks: ranks[1:]) != 0
    assert (status(tmp_path)["state"], status(tmp_path)["exit_code"]) == ("failed", 5)
    committed = json.loads((checkpoint.find(tmp_path / "run") / "state.json").read_text())["step"]
    assert committed % 8 == 0 and committed >= 8

    assert disturb(tiny_shards, tmp_path, committed + 5, signal.SIGTERM, lambda launcher, ranks: ranks) != 0
    assert (status(tmp_path)["state"], status(tmp_path)["exit_code"]) == ("stopped", 75)
    stopped = status(tmp_path)["step"]
    assert checkpoint.find(tmp_path / "run").name == f"step-{stopped:08d}" and committed < stopped < STEPS

    done = succeed(*command(tiny_shards, tmp_path), timeout_seconds=200)
    assert f"steps    {stopped} of {STEPS} done" in done.stdout
    assert status(tmp_path) == {"state": "done", "step": STEPS, "exit_code": 0}
    ours, theirs = final_state(tmp_path), final_state(undisturbed)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    for split in ("train", "valid"):
        assert steps_logged(tmp_path, split) == steps_logged(undisturbed, split)
    ours, theirs = (
        [json.loads(line)["loss"] for line in (runs / "run/metrics.jsonl").read_text().splitlines() if "loss" in line]
        for runs in (tmp_path, undisturbed)
    )
    assert [loss for loss in ours] == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda number: number.name)
def test_a_signal_to_the_launcher_commits_and_stops(tiny_shards, tmp_path, number):
    """SIGTERM is passed on to the ranks; SIGUSR1 kills the launcher, which the ranks notice by themselves."""
    assert disturb(tiny_shards, tmp_path, 3, number, lambda launcher, ranks: [launcher], "train.max_steps=4000") != 0
    stopped = status(tmp_path)
    assert (stopped["state"], stopped["exit_code"]) == ("stopped", 75) and stopped["step"] >= 3
    assert checkpoint.find(tmp_path / "run").name == f"step-{stopped['step']:08d}"


@pytest.mark.parametrize("culprit", [0, 1])
def test_a_rank_that_hangs_is_named_within_the_timeout(tiny_shards, tmp_path, culprit):
    code = disturb(tiny_shards, tmp_path, 9, signal.SIGSTOP, lambda launcher, ranks: ranks[culprit:][:1],
                   "distributed.timeout_seconds=8")  # fmt: skip
    # The launcher ends the ranks that are left with SIGTERM, which one that hangs cannot see.
    assert code != 0 and (culprit == 0 or status(tmp_path)["exit_code"] == 5)
    [error] = [line for line in (tmp_path / "log").read_text().splitlines() if "lost a peer" in line]
    assert f"error: rank {1 - culprit}" in error and f"rank {culprit} is silent" in error
    assert int(checkpoint.find(tmp_path / "run").name.removeprefix("step-")) % 8 == 0


def test_the_run_folder_holds_what_the_design_says(undisturbed):
    folder = undisturbed / "run"
    assert {"config.yaml", "deepspeed.json", "metrics.jsonl", "status.json", "tokenizer", "checkpoints"} <= {
        path.name for path in folder.iterdir()
    }
    assert any(path.name.startswith("events.out.tfevents") for path in folder.iterdir())
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    first, *_, last = (json.loads(line) for line in lines if "loss" in line)
    assert first["split"] == "valid" and first["step"] == 0 and last["step"] == STEPS
    record = next(json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines() if "lr" in line)
    assert {"step", "split", "loss", "lr", "grad_norm", "tokens", "tokens_per_second", "mfu", "skipped_steps",
            "epoch"} <= set(record)  # fmt: skip
    assert last["loss"] < first["loss"] - 0.2


@pytest.fixture
def copy(undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "runs")
    return tmp_path / "runs"


def alone(shards: Path, runs: Path, *words: str):
    words = ("--deepspeed_config", "ds_configs/cpu.json", *SMALL, f"data.shards={shards}", f"run.dir={runs}", *words)
    return run("python", "gpt1_ds/train.py", *words)


def refused(done, exit_code: int, *words: str) -> None:
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == exit_code and len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    assert all(word in lines[0] for word in words), lines[0]


def test_a_finished_run_says_so_and_ends_well(tiny_shards, copy):
    before = (copy / "run" / "metrics.jsonl").read_text()
    done = succeed(*command(tiny_shards, copy), timeout_seconds=120)
    assert f"steps    {STEPS} of {STEPS} done" in done.stdout
    assert (copy / "run" / "metrics.jsonl").read_text() == before


def test_a_changed_model_is_refused_with_the_difference(tiny_shards, copy):
    refused(alone(tiny_shards, copy, "model.n_embd=64"), 2, "model.n_embd was 32, is 64", "--from-scratch")


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
    losses = [json.loads(line)["loss"] for line in (copy / "run" / "metrics.jsonl").read_text().splitlines()
              if '"train"' in line]  # fmt: skip
    assert max(losses[STEPS:]) < min(losses[: STEPS // 2])


def test_initial_weights_come_from_another_run(tiny_shards, undisturbed, tmp_path):
    words = (f"init.checkpoint={undisturbed / 'run'}", "train.max_steps=1", "optim.lr=1e-9")
    done = alone(tiny_shards, tmp_path, *words)
    assert done.returncode == 0, done.stderr
    before, after = checkpoint.load_weights(undisturbed / "run")[0], checkpoint.load_weights(tmp_path / "run")[0]
    assert before.keys() == after.keys()
    # One step at 1e-9, and no rounding to bf16, which DeepSpeed's own start would take the float32 weights through.
    assert all(torch.allclose(before[name], after[name], rtol=1e-7, atol=2e-9) for name in before)
    assert any(before[name].abs().max() > 0.05 for name in before), "an untrained model would pass too"


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
    path.write_bytes(path.read_bytes() + b"\x0a\x00")  # an empty piece: still a readable model, but another one
    refused(alone(shards, tmp_path), 3, "tokenizer")


def test_nan_weights_end_the_run_with_exit_code_4(tiny_shards, tmp_path):
    done = alone(tiny_shards, tmp_path, "optim.lr=1e30", "train.max_skipped=3", "optim.eps=1e-30")
    refused(done, 4, "loss is", "optim.lr")
    assert (status(tmp_path)["state"], status(tmp_path)["exit_code"]) == ("failed", 4)
