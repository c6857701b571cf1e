"""Parameter groups, both Adams against their formulas, and the schedule."""

import math

import pytest
import torch

from gpt1_ds.engine.optimizer import build_optimizer, lr_at, parameter_groups, warmup_steps
from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.settings.sections import OptimConfig, ScheduleConfig

MODEL = GPTConfig(vocab_size=200, n_layer=1, n_head=2, n_embd=16, n_ctx=8)


def test_decay_is_on_matrices_and_embeddings_only():
    model = GPT(MODEL)
    decayed, plain = parameter_groups(model, 0.01)
    names = {id(p): name for name, p in model.named_parameters()}
    decayed_names = {names[id(p)] for p in decayed["params"]}
    assert decayed_names >= {"wte", "wpe", "blocks.0.attn.c_attn.weight"}
    assert all(names[id(p)].endswith("bias") or "ln_" in names[id(p)] for p in plain["params"])
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.01, 0.0)
    assert len(decayed["params"]) + len(plain["params"]) == len(names)


@pytest.mark.parametrize("kind", ["adamw", "openai_adam"])
def test_five_updates_equal_the_formulas(kind):
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 2).double()
    optimizer = build_optimizer(layer, OptimConfig(kind=kind, lr=0.01, weight_decay=0.1))
    expected = {name: p.detach().clone() for name, p in layer.named_parameters()}
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in expected.items()}
    for t in range(1, 6):
        for name, parameter in layer.named_parameters():
            gradient = torch.randn_like(parameter)
            parameter.grad = gradient
            decay = 0.1 if parameter.ndim > 1 else 0.0
            m = 0.9 * moments[name][0] + 0.1 * gradient
            v = 0.999 * moments[name][1] + 0.001 * gradient**2
            moments[name] = (m, v)
            p = expected[name]
            if kind == "adamw":
                p = p - 0.01 * decay * p
                p = p - 0.01 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
            else:
                rate = 0.01 * math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
                p = p - rate * (m / (v.sqrt() + 1e-8) + decay * p)
            expected[name] = p
        optimizer.step()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-9, atol=1e-9)


def test_the_papers_schedule():
    schedule = ScheduleConfig()
    rates = [lr_at(step, 10_000, 2.5e-4, schedule) for step in range(10_000)]
    assert rates[0] == pytest.approx(2.5e-4 / 2000)
    assert rates[1999] == pytest.approx(2.5e-4) == max(rates)
    assert rates[6000] == pytest.approx(1.25e-4) and rates[-1] < 1e-10 * 100
    assert all(a > b for a, b in zip(rates[2000:], rates[2001:], strict=False))


def test_warm_up_stable_decay():
    wsd = ScheduleConfig(kind="wsd", warmup_steps=10, decay_fraction=0.2)
    rates = [lr_at(step, 100, 3.0, wsd) for step in range(100)]
    assert rates == pytest.approx([3.0 * min((s + 1) / 10, 1, (100 - s) / 20) for s in range(100)])
    no_decay = ScheduleConfig(kind="wsd", decay_fraction=0.0, warmup_steps=0)
    assert lr_at(99, 100, 1.0, no_decay) == 1.0


def test_linear_and_constant_schedules():
    linear = ScheduleConfig(kind="linear", warmup_steps=None, warmup_fraction=0.1)
    assert warmup_steps(linear, 100) == 10
    assert lr_at(55, 100, 1.0, linear) == pytest.approx(0.5)
    assert lr_at(99, 100, 1.0, ScheduleConfig(kind="constant", warmup_steps=0)) == 1.0
