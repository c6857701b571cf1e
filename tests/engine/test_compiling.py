"""Compiled blocks: how many graphs, and when none; CUDA graphs of blocks, up to their recording."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch._inductor import config as inductor_config

from gpt1_ds.engine import compiling
from gpt1_ds.engine.compiling import (
    TRIAL,
    TrainingSpan,
    blocks_of_a_graph,
    compile_blocks,
    plain_spans,
    take_recorded,
)
from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.model.sampling import generate
from tests.support.cases_compiling import Graphs

TINY = GPTConfig(vocab_size=300, n_layer=2, n_head=2, n_embd=32, n_ctx=64)
DEEP = GPTConfig(vocab_size=300, n_layer=6, n_head=2, n_embd=32, n_ctx=64)
LIMIT = torch._dynamo.config.recompile_limit


def model_of_a_gpu(config: GPTConfig) -> GPT:
    """On a device that is no CPU, so that the kernels choose as on a GPU; it computes nothing."""
    with torch.device("meta"):
        return GPT(config)


def step(model: GPT, sequences: int, tokens: int, train: bool = True) -> None:
    model.train(train)
    ids = torch.zeros(sequences, tokens + 1, dtype=torch.int64, device=model.wte.device)
    with torch.set_grad_enabled(train):
        loss = model(ids[:, :-1], ids[:, 1:])[1].mean()
    if train:
        loss.backward()


def sample(model: GPT, prompt: int) -> None:
    """A prompt of so many tokens, and three more with the cache."""
    cache = []
    model.eval()
    with torch.no_grad():
        for tokens in (prompt, 1, 1, 1):
            ids = torch.zeros(1, tokens, dtype=torch.int64, device=model.wte.device)
            model(ids, cache=cache, logits=True)


@pytest.mark.parametrize(("count", "checkpointing"), [(6, False), (3, False), (1, True)])
def test_one_graph_serves_all_spans_and_all_training_steps(count, checkpointing):
    graphs, model = Graphs(), model_of_a_gpu(DEEP)
    model.activation_checkpointing = checkpointing
    compile_blocks(model, count, (4, 64), False, graphs)
    assert graphs.new() == 1 and len(model.spans) == DEEP.n_layer // count
    step(model, 4, 64)
    assert graphs.new() == 0
    step(model, 4, 64, train=False)
    assert graphs.new() == 1  # no gradients
    for prompt in (5, 9, 40):
        sample(model, prompt)
    step(model, 4, 64)
    step(model, 4, 64, train=False)
    assert graphs.new() == 0 and LIMIT == 8


def test_one_graph_serves_all_lengths_of_fine_tuning():
    graphs, model = Graphs(), model_of_a_gpu(TINY)
    compile_blocks(model, 2, TRIAL, True, graphs)
    for tokens in (13, 17, 29, 33, 47, 50, 64):
        step(model, 4, tokens)
        step(model, 32, tokens)
    assert graphs.new() == 1
    for tokens in (13, 64, 17):
        step(model, 6, tokens, train=False)
    assert graphs.new() == 1


def gradients(model: GPT, ids: torch.Tensor, keys: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    model(ids[:, :-1], ids[:, 1:], dropout_keys_B2=keys)[1].mean().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def test_compiled_blocks_drop_the_same_elements():
    """float32, to the rounding of another order of operations; with activation checkpointing, too.

    Validation has no gradients, and on a CPU other operators.
    """
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, ids = GPT(TINY), torch.randint(0, 300, (2, 21))
    keys = torch.randint(-(2**31), 2**31, (2, 2), dtype=torch.int32)
    plain = gradients(model, ids, keys)
    with torch.no_grad():
        valid = model.eval()(ids[:, :-1], ids[:, 1:])[1]
    for count, checkpointing in ((2, False), (1, True)):
        model.activation_checkpointing = checkpointing
        compile_blocks(model.train(), count, (2, 20), False)
        assert len(model.spans) == 2 // count
        torch.testing.assert_close(gradients(model, ids, keys), plain, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(ids[:, :-1], ids[:, 1:])[1], valid)


def test_without_a_compiler_the_blocks_run_uncompiled_and_a_line_says_so(tmp_path, capsys):
    """torch's compiler finds no g++, as with a PATH that has none."""
    torch._dynamo.reset()
    model, ids = GPT(TINY), torch.zeros(2, 9, dtype=torch.int64)
    missing = {"cpp.cxx": (str(tmp_path / "g++"),), "force_disable_caches": True}
    with inductor_config.patch(missing):
        compile_blocks(model, 2, (2, 9), False)
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("train.compile: the blocks run uncompiled, as that failed: ")
    assert "No working C++ compiler found" in said
    assert said.endswith("needs a compiler such as g++, and on a GPU gcc and triton"), said
    assert not model.spans
    model(ids, ids)[1].mean().backward()


def engine(device: str, stage: int) -> SimpleNamespace:
    return SimpleNamespace(device=torch.device(device), zero_optimization_stage=lambda: stage)


def test_auto_compiles_on_cuda_once_results_are_compared(capsys, monkeypatch):
    """Until then one line says how to switch it on."""
    assert not compiling._is_compiled("auto", engine("cpu", 0), False)
    assert not compiling._is_compiled("auto", engine("cuda", 3), False)
    assert capsys.readouterr().out == ""
    assert not compiling._is_compiled("auto", engine("cuda", 2), False)
    said = capsys.readouterr().out
    assert said.startswith("train.compile is auto") and "train.compile=true" in said
    monkeypatch.setattr(compiling, "EQUAL_ON_GPU", True)
    assert compiling._is_compiled("auto", engine("cuda", 2), False)
    assert not compiling._is_compiled("auto", engine("cuda", 3), False)
    assert not compiling._is_compiled("auto", engine("cpu", 0), False)
    assert compiling._is_compiled("true", engine("cpu", 0), False)
    assert not compiling._is_compiled("false", engine("cuda", 0), False)
    assert capsys.readouterr().out == ""
    assert not compiling._is_compiled("true", engine("cpu", 0), True)
    assert "fine-tuning on a CPU" in " ".join(capsys.readouterr().out.split())


def test_recorded_spans_compute_training_steps_of_their_shape_alone():
    """Everything but the recording, which needs a GPU: what it would record is called instead."""
    torch.manual_seed(0)
    model, ids = GPT(TINY), torch.randint(0, 300, (2, 21))
    keys = torch.randint(-(2**31), 2**31, (2, 2), dtype=torch.int32)
    plain = gradients(model, ids, keys)
    special, prompts = {"eot": 4}, [[4, 9, 10]]
    tokens = list(generate(model.eval(), special, prompts, 9))
    calls = []
    spans, parts = plain_spans(model.train(), 1), []
    for block, span in zip(model.blocks, spans, strict=True):
        part = TrainingSpan(torch.nn.ModuleList([block]), span.run)
        assert set(part.parameters()) == set(block.parameters())
        parts.append(lambda x, keys, run=part: calls.append(x.shape) or run(x, keys))
    take_recorded(model, spans, parts, torch.Size((2, 20, 32)))
    assert all(map(torch.equal, gradients(model, ids, keys), plain))
    assert calls == [torch.Size((2, 20, 32))] * len(model.blocks)
    calls.clear()
    model(ids[:, :-2], ids[:, 1:-1])[1].mean().backward()  # another shape
    with torch.no_grad():
        model(ids[:, :-1])
    assert list(generate(model.eval(), special, prompts, 9)) == tokens
    assert not calls


@pytest.mark.parametrize(
    ("layers", "stage", "ranks", "bucket_blocks", "checkpointing", "count"),
    [
        (12, 1, 1, 1, False, 12),
        (12, 0, 8, 0, False, 12),
        (12, 2, 8, 3.5, False, 3),  # a bucket of 25 million elements and the paper's blocks
        (12, 1, 8, 99, False, 12),
        (12, 1, 8, 0.5, False, 1),
        (12, 1, 1, 1, True, 1),
        (24, 1, 1, 1, False, 12),
        (13, 1, 1, 1, False, 1),
    ],
)
def test_a_graph_ends_where_a_bucket_is_full(
    monkeypatch, layers, stage, ranks, bucket_blocks, checkpointing, count
):
    with torch.device("meta"):
        model = GPT(replace(TINY, n_layer=layers))
    model.activation_checkpointing = checkpointing
    size = sum(parameter.numel() for parameter in model.blocks[0].parameters())
    described = engine("cuda", stage)
    described.zero_reduce_bucket_size = lambda: int(bucket_blocks * size)
    monkeypatch.setattr(compiling.collectives, "world_size", lambda: ranks)
    assert blocks_of_a_graph(described, model) == count


@pytest.mark.parametrize("overrides", [[], ["train.activation_checkpointing=true"]])
def test_zero_3_gathers_whole_blocks_around_their_graph(ranks, tiny_shards, tmp_path, overrides):
    """Same bits, and a graph each for the trial, training and validation.

    Validation has another product on a CPU (`kernels.linear`).
    """
    path = tmp_path / "ds.json"
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0, "stage3_max_live_parameters": 0}
    path.write_text(json.dumps({"zero_optimization": zero}))
    case = "tests.support.cases_compiling:gathered_blocks"
    for plain, compiled, counts in ranks(2).run(case, str(path), str(tiny_shards), overrides):
        assert compiled[:2] == plain[:2]
        assert compiled[2] == pytest.approx(plain[2], rel=1e-5)
        trial, trained, validated, breaks, held = counts
        assert (trial, trained, validated) == (1, 2, 3) and breaks == 0
        assert held == 0
