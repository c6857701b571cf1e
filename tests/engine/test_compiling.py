"""Compiled blocks: how many graphs, and when none; CUDA graphs of blocks, up to their recording."""

from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor import config as inductor_config

from gpt1_ds.engine import compiling
from gpt1_ds.engine.compiling import TRIAL, TrainingBlock, compile_blocks, take_recorded
from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.model.sampling import generate

TINY = GPTConfig(vocab_size=300, n_layer=2, n_head=2, n_embd=32, n_ctx=64)
DEEP = GPTConfig(vocab_size=300, n_layer=12, n_head=2, n_embd=32, n_ctx=64)
LIMIT = torch._dynamo.config.recompile_limit


class Graphs:
    """A compiler that counts graphs and runs them as they are."""

    def __init__(self) -> None:
        torch._dynamo.reset()
        counters.clear()
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        self.count += 1
        return graph.forward

    def new(self) -> int:
        """Graphs since the last call. None has a break in it."""
        assert not counters["graph_break"] and not counters["unimplemented"]
        count, self.count = self.count, 0
        return count


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


@pytest.mark.parametrize("checkpointing", [False, True])
def test_one_graph_serves_all_blocks_and_all_training_steps(checkpointing):
    graphs, model = Graphs(), model_of_a_gpu(DEEP)
    model.activation_checkpointing = checkpointing
    compile_blocks(list(model.blocks), (4, 64), False, graphs)
    assert graphs.new() == 1
    step(model, 4, 64)
    assert graphs.new() == 0
    step(model, 4, 64, train=False)
    assert graphs.new() == 1  # no gradients
    sample(model, 5)
    assert graphs.new() == 1  # one sequence of any length
    for prompt in (9, 40):
        sample(model, prompt)
    step(model, 4, 64)
    step(model, 4, 64, train=False)
    assert graphs.new() == 0 and LIMIT == 8


def test_one_graph_serves_all_lengths_of_fine_tuning():
    graphs, model = Graphs(), model_of_a_gpu(TINY)
    compile_blocks(list(model.blocks), TRIAL, True, graphs)
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
    compile_blocks(list(model.train().blocks), (2, 20), False)
    assert all("forward" in vars(block) for block in model.blocks)
    for checkpointing in (False, True):
        model.activation_checkpointing = checkpointing
        torch.testing.assert_close(gradients(model, ids, keys), plain, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(ids[:, :-1], ids[:, 1:])[1], valid)


def test_without_a_compiler_the_blocks_run_uncompiled_and_a_line_says_so(tmp_path, capsys):
    """torch's compiler finds no g++, as with a PATH that has none."""
    torch._dynamo.reset()
    model, ids = GPT(TINY), torch.zeros(2, 9, dtype=torch.int64)
    missing = {"cpp.cxx": (str(tmp_path / "g++"),), "force_disable_caches": True}
    with inductor_config.patch(missing):
        compile_blocks(list(model.blocks), (2, 9), False)
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("train.compile: the blocks run uncompiled, as that failed: ")
    assert "No working C++ compiler found" in said
    assert said.endswith("needs a compiler such as g++, and on a GPU gcc and triton"), said
    assert not any("forward" in vars(block) for block in model.blocks)
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


def test_recorded_blocks_compute_training_steps_of_their_shape_alone():
    """Everything but the recording, which needs a GPU: what it would record is called instead."""
    torch.manual_seed(0)
    model, ids = GPT(TINY), torch.randint(0, 300, (2, 21))
    keys = torch.randint(-(2**31), 2**31, (2, 2), dtype=torch.int32)
    plain = gradients(model, ids, keys)
    special, prompts = {"eot": 4}, [[4, 9, 10]]
    tokens = list(generate(model.eval(), special, prompts, 9))
    calls = []
    for block in model.train().blocks:
        original = GPT(TINY).blocks[0]
        original.load_state_dict(block.state_dict())
        for name, parameter in block.named_parameters():
            owner, _, last = name.rpartition(".")
            original.get_submodule(owner).register_parameter(last, parameter)
        recorded = TrainingBlock(original)
        take_recorded(
            block,
            lambda x, keys, run=recorded: calls.append(x.shape) or run(x, keys),
            torch.Size((2, 20, 32)),
        )
    assert all(map(torch.equal, gradients(model, ids, keys), plain))
    assert calls == [torch.Size((2, 20, 32))] * len(model.blocks)
    calls.clear()
    model(ids[:, :-2], ids[:, 1:-1])[1].mean().backward()  # another shape
    with torch.no_grad():
        model(ids[:, :-1])
    assert list(generate(model.eval(), special, prompts, 9)) == tokens
    assert not calls
