"""Learning rates, parameter groups and one step of each optimizer, with values made by hand."""

import math
from types import SimpleNamespace

import deepspeed
import pytest
import torch

from gpt1_ds.engine.internals import muon_for_blocks_alone
from gpt1_ds.engine.optimizer import (
    OpenAIAdam,
    build_optimizer,
    lr_at,
    parameter_groups,
    set_lr,
    warmup_steps,
)
from gpt1_ds.engine.update import WholeUpdate
from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.settings.sections import OptimConfig, PretrainConfig, ScheduleConfig


def rates(total_steps: int, schedule: ScheduleConfig, steps: tuple[int, ...]) -> list[float]:
    return [lr_at(step, total_steps, 8.0, schedule) for step in steps]


def test_cosine():
    """4 steps of warm-up, then a half period over 6: cos of 0, 60, 120, 150 and 180 degrees."""
    schedule = ScheduleConfig(kind="cosine", warmup_steps=4)
    assert rates(10, schedule, (0, 1, 3)) == [2.0, 4.0, 8.0]
    assert rates(10, schedule, (4, 6, 8, 9, 10, 99)) == pytest.approx(
        [8.0, 6.0, 2.0, 4 * (1 - math.sqrt(3) / 2), 0.0, 0.0]
    )


def test_linear():
    schedule = ScheduleConfig(kind="linear", warmup_steps=2)
    assert rates(10, schedule, (0, 1, 2, 4, 6, 9, 10, 11)) == [
        4.0,
        8.0,
        8.0,
        6.0,
        4.0,
        1.0,
        0.0,
        0.0,
    ]
    assert rates(10, ScheduleConfig(kind="linear", warmup_steps=0), (0, 5)) == [8.0, 4.0]


def test_constant():
    assert rates(10, ScheduleConfig(kind="constant", warmup_steps=2), (0, 1, 2, 9, 99)) == [
        4.0,
        8.0,
        8.0,
        8.0,
        8.0,
    ]


def test_warm_up_stable_decay():
    """The last 4 of 20 steps fall: from 4/4 at 16 to 1/4 at 19."""
    schedule = ScheduleConfig(kind="wsd", warmup_steps=2, decay_fraction=0.2)
    assert rates(20, schedule, (0, 1, 2, 15, 16, 17, 18, 19, 20)) == [
        4.0,
        8.0,
        8.0,
        8.0,
        8.0,
        6.0,
        4.0,
        2.0,
        0.0,
    ]


def test_a_warm_up_as_long_as_the_run():
    assert rates(4, ScheduleConfig(warmup_steps=4), (3, 4)) == [8.0, 8.0]
    assert rates(4, ScheduleConfig(warmup_steps=9), (0, 8)) == [8 / 9, 8.0]


def test_steps_of_the_warm_up():
    assert warmup_steps(ScheduleConfig(warmup_steps=0), 1000) == 0
    assert warmup_steps(ScheduleConfig(warmup_steps=7), 1000) == 7
    assert warmup_steps(ScheduleConfig(warmup_steps=None, warmup_fraction=0.002), 1000) == 2
    assert warmup_steps(ScheduleConfig(warmup_steps=None, warmup_fraction=0.002), 100) == 0


def test_each_group_gets_its_share_of_the_rate():
    config = PretrainConfig(
        optim=OptimConfig(lr=8.0), schedule=ScheduleConfig(kind="constant", warmup_steps=4)
    )
    optimizer = SimpleNamespace(param_groups=[{}, {}])
    assert set_lr(SimpleNamespace(optimizer=optimizer, lr_shares=[1.0, 0.1]), config, 1, 10) == 4.0
    assert optimizer.param_groups == [{"lr": 4.0}, {"lr": 0.4}]


def test_groups_of_parameters():
    model = GPT(GPTConfig(vocab_size=200, n_layer=2, n_head=2, n_embd=16, n_ctx=8))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, plain = parameter_groups(model, 0.25)
    matrices = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
    expected = {"wte", "wpe"} | {
        f"blocks.{block}.{name}.weight" for block in range(2) for name in matrices
    }
    assert {names[id(parameter)] for parameter in decayed["params"]} == expected
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.25, 0.0)
    assert len(decayed["params"]) == 10 and len(plain["params"]) == len(names) - 10
    with muon_for_blocks_alone(deepspeed):
        deepspeed.set_optimizer_flags(SimpleNamespace(optimizer_name="muon"), model)
    marked = {name for name, parameter in model.named_parameters() if parameter.use_muon}
    assert marked == expected - {"wte", "wpe"}


def step_once(kind: str) -> float:
    """A weight of 1 with the gradient 2; rate 0.1, betas 0.5 and 0.75, epsilon 1, decay 0.5."""
    layer = torch.nn.Linear(1, 1, bias=False).double()
    torch.nn.init.ones_(layer.weight)
    config = OptimConfig(kind=kind, lr=0.1, betas=[0.5, 0.75], eps=1.0, weight_decay=0.5)
    optimizer = build_optimizer(layer, config)
    layer.weight.grad = torch.full_like(layer.weight, 2.0)
    optimizer.step()
    return layer.weight.item()


def test_one_step_of_adamw():
    """Both moments, corrected, are those of the gradient: 2 / (2 + 1)."""
    assert step_once("adamw") == pytest.approx(1 * (1 - 0.1 * 0.5) - 0.1 * 2 / 3)


def test_adamw_is_one_kernel():
    optimizer = build_optimizer(torch.nn.Linear(1, 1), OptimConfig())
    assert optimizer.defaults["fused"] is True


def test_one_step_of_openais_adam():
    """Both moments are 1: the update is 1 / (1 + 1) + 0.5, the correction sqrt(0.25) / 0.5."""
    assert step_once("openai_adam") == pytest.approx(1 - 0.1 * (0.5 + 0.5) * 1.0)


def test_defaults_of_openais_adam():
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = OpenAIAdam([weight, torch.nn.Parameter(torch.ones(1))], 0.1, (0.9, 0.999), 1e-8)
    assert optimizer.defaults["weight_decay"] == 0.01
    weight.grad = torch.ones(1)
    optimizer.step()
    state = optimizer.state[weight]
    assert state["step"].item() == 1.0 and state["step"].dtype == torch.float32
    assert (state["exp_avg"].item(), state["exp_avg_sq"].item()) == pytest.approx((0.1, 0.001))
    assert len(optimizer.state) == 1, "no state without a gradient"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_with_a_gradient_that_is_not_finite_is_left_out(bad: float):
    layer = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    engine = SimpleNamespace(
        optimizer=optimizer,
        module=layer,
        device=torch.device("cpu"),
        gradient_clipping=lambda: 0.0,
    )
    optimizer.step = WholeUpdate(engine)
    assert optimizer.overflow is False
    before = layer.weight.clone()
    layer.weight.grad = torch.tensor([[1.0, bad]])
    optimizer.step()
    assert optimizer.overflow and torch.equal(layer.weight, before)
    layer.weight.grad = torch.tensor([[1.0, 2.0]])
    optimizer.step()
    assert not optimizer.overflow
    torch.testing.assert_close(layer.weight, before - torch.tensor([[1.0, 2.0]]))
