"""The model is the one of the paper: shape, initial weights, causality, plain formulas."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from gpt1_ds.engine.counting import counted
from gpt1_ds.model.gpt import GPT, GPTConfig

TINY = GPTConfig(vocab_size=300, n_layer=2, n_head=4, n_embd=32, n_ctx=24)


def test_parameter_count_of_the_release():
    assert GPTConfig(vocab_size=40_478).parameters == 116_534_784


def test_parameter_count_is_what_the_module_has():
    padding = (TINY.padded_vocab_size - TINY.vocab_size) * TINY.n_embd
    assert sum(p.numel() for p in GPT(TINY).parameters()) == TINY.parameters + padding
    assert TINY.padded_vocab_size % 128 == 0


def test_initialisation_table():
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=2000, n_layer=1, n_head=4, n_embd=256, n_ctx=128))
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            rows = parameter[:2000]
            assert abs(rows.std() - 0.02) < 5e-4 and abs(rows.mean()) < 5e-4, name
        else:
            expected = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
            assert (parameter == expected).all(), name
    assert (model.wte[2000:] == 0).all()


def plain_gpt(state: dict, config: GPTConfig, ids: torch.Tensor) -> torch.Tensor:
    """Logits by the formulas of the paper, one step a line.

    It shares nothing with the model's code but the weights.
    """
    x = state["wte"][ids] + state["wpe"][: ids.shape[1]]
    B, T, C = x.shape
    width = C // config.n_head
    for layer in range(config.n_layer):
        prefix = f"blocks.{layer}."
        names = [name for name in state if name.startswith(prefix)]
        block = {name.removeprefix(prefix): state[name] for name in names}
        qkv = x @ block["attn.c_attn.weight"].T + block["attn.c_attn.bias"]
        heads = []
        for head in range(config.n_head):
            firsts = [part * C + head * width for part in range(3)]
            q, k, v = (qkv[..., first : first + width] for first in firsts)
            scores = q @ k.transpose(1, 2) / math.sqrt(width)
            scores = scores - 1e9 * torch.ones(T, T).triu(1)
            heads.append(scores.softmax(-1) @ v)
        a = torch.cat(heads, -1) @ block["attn.c_proj.weight"].T + block["attn.c_proj.bias"]
        x = plain_norm(x + a, block["ln_1.weight"], block["ln_1.bias"])
        h = x @ block["mlp.c_fc.weight"].T + block["mlp.c_fc.bias"]
        h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        m = h @ block["mlp.c_proj.weight"].T + block["mlp.c_proj.bias"]
        x = plain_norm(x + m, block["ln_2.weight"], block["ln_2.bias"])
    return (x @ state["wte"].T)[..., : config.vocab_size]


def plain_norm(x: torch.Tensor, gain: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return gain * (x - mean) / torch.sqrt(variance + 1e-5) + bias


@pytest.mark.parametrize("length", [1, 7, 24])
def test_loss_and_gradients_equal_a_plain_rewrite(length):
    torch.manual_seed(1)
    model = GPT(TINY).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # As if trained: no zero bias, no unit gain.
            parameter.add_(torch.randn_like(parameter) * 0.1)
    ids = torch.randint(0, 300, (3, length + 1))
    _, nll = model(ids[:, :-1], ids[:, 1:])
    logits = plain_gpt(dict(model.named_parameters()), TINY, ids[:, :-1])
    plain = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    torch.testing.assert_close(nll.flatten(), plain, rtol=1e-5, atol=1e-5)
    parameters = list(model.parameters())
    grads = torch.autograd.grad(nll.mean(), parameters)
    plain_grads = torch.autograd.grad(plain.mean(), parameters)
    for ours, theirs in zip(grads, plain_grads, strict=True):
        torch.testing.assert_close(ours[:300], theirs[:300], rtol=1e-4, atol=1e-6)


def test_no_state_sees_the_future():
    torch.manual_seed(0)
    model = GPT(TINY).eval()
    ids = torch.randint(0, 300, (1, 20))
    changed = ids.clone()
    changed[0, 12] = (changed[0, 12] + 1) % 300
    before, after = model(ids)[0], model(changed)[0]
    assert torch.equal(before[:, :12], after[:, :12])
    assert not torch.equal(before[:, 12:], after[:, 12:])


def test_cached_logits_equal_uncached_ones():
    torch.manual_seed(0)
    model = GPT(TINY).eval()
    ids = torch.randint(0, 300, (2, 20))
    cache = []
    model(ids[:, :9], cache=cache, logits=True)
    for position in range(9, 20):
        _, cached = model(ids[:, position : position + 1], cache=cache, logits=True)
        _, whole = model(ids[:, : position + 1], logits=True)
        torch.testing.assert_close(cached, whole, rtol=1e-5, atol=1e-5)
    assert cached.shape == (2, 300)


def gradients(model: GPT, ids: torch.Tensor, keys: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    model(ids[:, :-1], ids[:, 1:], dropout_keys_B2=keys)[1].mean().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def test_activation_checkpointing_changes_no_bit():
    torch.manual_seed(0)
    model, ids = GPT(TINY), torch.randint(0, 300, (2, 20))
    keys = torch.randint(-(2**31), 2**31, (2, 2), dtype=torch.int32)
    plain = gradients(model, ids, keys)
    model.activation_checkpointing = True
    assert all(map(torch.equal, plain, gradients(model, ids, keys)))


def test_dropout_of_a_sequence_does_not_depend_on_its_batch():
    torch.manual_seed(0)
    model, ids = GPT(TINY), torch.randint(0, 300, (4, 20))
    keys = torch.randint(-(2**31), 2**31, (4, 2), dtype=torch.int32)
    whole = model(ids, dropout_keys_B2=keys)[0]
    part = model(ids[2:], dropout_keys_B2=keys[2:])[0]
    torch.testing.assert_close(part, whole[2:], rtol=1e-5, atol=1e-5)


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    model = GPT(TINY)
    ids = torch.randint(0, 300, (1, 20))
    assert not torch.equal(model(ids)[0], model(ids)[0])
    model.eval()
    assert torch.equal(model(ids)[0], model(ids)[0])


def operators_of_a_step(train: bool = True, **change) -> Counter:
    """Of forward and backward on a device that is no CPU; the dropout keys are on the CPU."""
    keys = torch.ones(2, 2, dtype=torch.int32)
    ids = torch.zeros(2, 21, dtype=torch.int64, device="meta")
    with torch.device("meta"):
        model = GPT(replace(TINY, **change)).train(train)
    with counted() as counts:
        model(ids[:, :-1], ids[:, 1:], dropout_keys_B2=keys)[1].mean().backward()
    return counts.operators


def test_away_from_a_cpu_dropout_keys_are_neither_mixed_nor_copied():
    """Training has the operators of no training, and those of torch's dropout at each place."""
    without = operators_of_a_step(train=False)
    nothing = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
    assert operators_of_a_step(**nothing) == without
    places = 1 + 3 * TINY.n_layer
    assert operators_of_a_step() - without == {
        "bernoulli_": places,
        "div_": places,
        "mul": 2 * places,
    }
