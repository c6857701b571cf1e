"""Sampling and perplexity from a checkpoint, through the commands and through the functions."""

import math
import re
from pathlib import Path

import pytest
import torch

from gpt1_ds import checkpoint, generate
from tests.conftest import run, succeed


@pytest.fixture(scope="module")
def trained(tiny_shards, tmp_path_factory) -> Path:
    runs = tmp_path_factory.mktemp("generate")
    succeed("python", "gpt1_ds/train.py", "--deepspeed_config", "ds_configs/cpu.json", f"data.shards={tiny_shards}",
            f"run.dir={runs}", "run.name=run", "model.preset=gpt1-tiny", "model.n_ctx=32", "train.max_steps=60",
            "train.global_batch=8", "optim.lr=3e-3", "schedule.warmup_steps=10", "eval.batches=null")  # fmt: skip
    return runs / "run"


def test_greedy_continuation_equals_one_without_a_cache_within_the_context(trained):
    model, tokenizer = generate.load(trained)
    ids = torch.tensor([[tokenizer.special_ids["eot"], *tokenizer.encode("the old")]])
    new = generate.generate(model, ids, 20, 0.0, 0, tokenizer, torch.Generator())
    whole = ids
    with torch.no_grad():
        for _ in range(20):
            logits = model(whole, logits=True)[1]
            logits[:, [tokenizer.special_ids[name] for name in ("pad", "s", "e", "delim")]] = -math.inf
            whole = torch.cat([whole, logits.argmax(-1, keepdim=True)], 1)
    assert torch.equal(new, whole[:, ids.shape[1] :])


def test_the_context_slides(trained):
    model, tokenizer = generate.load(trained)
    ids = torch.tensor([[tokenizer.special_ids["eot"]] * 2, tokenizer.encode("the old")[:2]])
    new = generate.generate(model, ids, 100, 1.0, 20, tokenizer, torch.Generator().manual_seed(0))
    assert new.shape == (2, 100) and not (new < 4).any()


def test_the_command_continues_the_prompt_and_its_seed_repeats(trained):
    words = ("python", "-m", "gpt1_ds.generate", trained, "--prompt", "The Old", "--max-new-tokens", 12, "--seed")
    first, again, other = (succeed(*words, seed).stdout for seed in (1, 1, 2))
    assert first == again != other and first.startswith("the old")
    assert succeed(*words, 1, "--num-samples", 2).stdout.count("the old") == 2


def test_perplexity_command_agrees_with_the_trainings_own_validation(trained, tiny_shards):
    out = succeed("python", "-m", "gpt1_ds.eval", trained, "--data", tiny_shards).stdout
    loss = float(re.search(r"books: ([\d.]+) nats", out)[1])
    logged = re.findall(r'"split": "valid".*"loss": ([\d.]+)', (trained / "metrics.jsonl").read_text())
    assert loss == pytest.approx(float(logged[-1]), rel=5e-3)  # bf16 weights there, float32 here


@pytest.mark.parametrize("module", ["generate", "eval"])
def test_a_folder_without_checkpoint_is_refused(tmp_path, tiny_shards, module):
    extra = ("--data", tiny_shards) if module == "eval" else ()
    done = run("python", "-m", f"gpt1_ds.{module}", tmp_path, *extra)
    assert done.returncode == 3 and str(tmp_path) in done.stderr and done.stderr.count("\n") == 1


def test_an_unknown_corpus_is_named(trained, tiny_shards):
    done = run("python", "-m", "gpt1_ds.eval", trained, "--data", tiny_shards, "--corpus", "boks")
    assert done.returncode == 3 and "did you mean 'books'" in done.stderr


def test_find_prefers_the_newest(trained):
    assert checkpoint.find(trained).name == "step-00000060"
