"""Sampling: tokens of a given seed, and continuations against a plain loop without a cache."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gpt1_ds.data.tokenizer import load_tokenizer
from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.model.sampling import GREEDY, Sampling, generate, sample_text
from tests.conftest import ROOT

CASES = "tests.support.cases_engine"
SPECIAL = {"pad": 0, "s": 1, "e": 2, "delim": 3, "eot": 4}
AMONG_ALL = Sampling(temperature=1.0)


def model_of(vocab_size: int, n_ctx: int, spread: float) -> GPT:
    """Far from uniform by `spread`; all tokens alike where it is 0."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size, n_layer=1, n_head=2, n_embd=16, n_ctx=n_ctx)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(spread > 0).add_(torch.randn_like(parameter) * spread)
    return model


def continuations(
    model: GPT,
    prompts: list[list[int]],
    count: int,
    sampling: Sampling = GREEDY,
    **seed: int,
) -> list[list[int]]:
    new: list[list[int]] = [[] for _ in prompts]
    for row, token in generate(model, SPECIAL, prompts, count, sampling, **seed):
        new[row].append(token)
    return new


def test_tokens_of_a_seed():
    """All 36 tokens are equally likely; <eot> ends the first continuation after 5."""
    alike = model_of(40, 8, 0.0)
    drawn = [[29, 13, 20, 6, 12], [36, 15, 5, 6, 23]]
    assert continuations(alike, [[4], [4, 7]], 6, AMONG_ALL) == drawn
    assert continuations(alike, [[4], [4, 7]], 6, AMONG_ALL, seed=0) == drawn
    drawn = [[19, 15, 19, 13, 39, 9], [24, 20, 5, 30, 9, 21]]
    assert continuations(alike, [[4], [4, 7]], 6, AMONG_ALL, seed=3) == drawn


@torch.inference_mode()
def plain(model: GPT, prompt: list[int], count: int) -> list[int]:
    """Greedy, without a cache: a full context begins anew with its newer half."""
    n_ctx = model.config.n_ctx
    text = prompt[-n_ctx:]
    start, length = 0, len(text)
    while len(text) < length + count:
        if len(text) - start > n_ctx:
            start = len(text) - n_ctx // 2
        logits_V = model(torch.tensor([text[start:]]), logits=True)[1][0]
        logits_V[:4] = -torch.inf
        token = int(logits_V.argmax())
        if token == 4:
            break
        text.append(token)
    return text[length:]


@pytest.mark.parametrize("count", [1, 2, 40])
def test_greedy_continuations_equal_a_plain_loop(count: int):
    model = model_of(50, 9, 0.4)
    prompts = [[4, 7], [4, *range(20, 30)], [4, 9, 11, 30], [4, *range(10, 18)], [4]]
    prompts += [[4, 5 + number] for number in range(30)]
    expected = [plain(model, prompt, count) for prompt in prompts]
    assert continuations(model, prompts, count) == expected
    assert len({*map(tuple, expected)}) > 3


def chosen(temperature: float, top_k: int, top_p: float) -> set[int]:
    logits_V = torch.tensor([0.125, 0.5, 0.0625, 0.25, 0.0625]).log()
    generator = torch.Generator().manual_seed(0)
    sampling = Sampling(temperature, top_k, top_p)
    return {sampling.choose(logits_V, generator) for _ in range(500)}


def test_no_new_token_is_no_work():
    assert continuations(model_of(40, 8, 0.0), [[4], [4, 7]], 0) == [[], []]


def test_which_tokens_may_be_chosen():
    assert chosen(1.0, 0, 1.0) == chosen(1.0, 5, 1.0) == chosen(1.0, 99, 1.0) == {0, 1, 2, 3, 4}
    assert chosen(0.0, 0, 1.0) == chosen(1.0, 1, 1.0) == {1}
    assert chosen(1.0, 2, 1.0) == {1, 3}
    assert chosen(1.0, 3, 1.0) == {0, 1, 3}
    # The likeliest have 0.5, 0.75 and 0.875 together: the one that reaches top_p is the last.
    assert chosen(1.0, 0, 0.5) == {1}
    assert chosen(1.0, 0, 0.51) == chosen(1.0, 0, 0.75) == {1, 3}
    assert chosen(1.0, 0, 0.76) == {0, 1, 3}


def test_temperature_divides_the_logits():
    """Of 1/3 and 2/3 at a temperature of 1/2: 1/5 and 4/5."""
    generator = torch.Generator().manual_seed(0)
    logits_V = torch.tensor([1.0, 2.0]).log()
    sampling = Sampling(temperature=0.5)
    ones = sum(sampling.choose(logits_V, generator) for _ in range(4000))
    assert ones / 4000 == pytest.approx(0.8, abs=0.03)


def test_a_temperature_or_top_p_beyond_float32_is_a_limit():
    """Near 0 only the likeliest is drawn, near infinity all alike; a silent token never is."""
    for temperature in (1e-300, 1e-50, 1e-38):
        assert chosen(temperature, 0, 1.0) == {1}
    assert chosen(1.0, 0, 1e-300) == {1}
    assert chosen(1e300, 0, 1.0) == {0, 1, 2, 3, 4}
    logits_V = torch.tensor([0.0, -torch.inf, 1.0])
    generator = torch.Generator().manual_seed(0)
    drawn = [Sampling(1e300).choose(logits_V, generator) for _ in range(200)]
    assert set(drawn) == {0, 2}


def test_training_goes_on_after_a_sample(ranks, tiny_shards: Path):
    """With the same losses; under ZeRO-3 the sample's forward passes gather the weights."""
    ds = str(ROOT / "ds_configs" / "zero3_bf16.json")
    losses, text = ranks(2).run(f"{CASES}:trained_with_a_sample", ds, str(tiny_shards))[0]
    assert text.startswith("the")
    assert losses == ranks(2).run(f"{CASES}:trained", ds, str(tiny_shards), [], 4)[0][0]


def test_the_sample_of_a_run_in_training(tokenizer: Path):
    """120 tokens at temperature 0.8 of the 40 likeliest, after <eot> and the prompt."""
    codec = load_tokenizer(tokenizer)
    model = model_of(codec.vocab_size, 32, 0.5).train()
    text = sample_text(SimpleNamespace(module=model), codec, "the garden")
    assert model.training
    model.eval()
    prompt = [codec.special_ids["eot"], *codec.encode("the garden")]
    sampling = Sampling(temperature=0.8, top_k=40, top_p=1.0)
    tokens = generate(model, codec.special_ids, [prompt], 120, sampling, seed=0)
    new = [token for _, token in tokens]
    assert len(new) == 120 and text == codec.decode([*prompt, *new])
