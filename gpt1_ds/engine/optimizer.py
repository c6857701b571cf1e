"""Parameter groups, the two Adams, and the learning-rate schedule as a pure function of the step."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from gpt1_ds.engine.internals import AdamW
from gpt1_ds.settings.sections import OptimConfig, ScheduleConfig


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decay on matrices, embeddings included; none on biases and LayerNorm gains (section 4.1 of the paper)."""
    parameters = dict(module.named_parameters())
    matrices = {name for name, parameter in parameters.items() if parameter.ndim > 1}
    groups = [
        {
            "params": [parameters[name] for name in parameters if name in matrices],
            "weight_decay": weight_decay,
        },
        {
            "params": [parameters[name] for name in parameters if name not in matrices],
            "weight_decay": 0.0,
        },
    ]
    assert sum(len(group["params"]) for group in groups) == len(parameters)
    return groups


def build_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    groups = parameter_groups(module, config.weight_decay)
    settings = {"lr": config.lr, "betas": tuple(config.betas), "eps": config.eps}
    if config.kind == "openai_adam":
        return OpenAIAdam(groups, **settings)
    return AdamW(groups, fused=True, **settings)


class OpenAIAdam(torch.optim.Optimizer):
    """Adam as released with GPT-1 (`opt.py` of openai/finetune-transformer-lm).

    Epsilon joins the uncorrected second moment, and the decay stands inside the update, so that the bias correction
    multiplies it too (about 0.32 at the first step), unlike AdamW's.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float = 0.01,
    ):
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            (beta1, beta2), eps, decay = group["betas"], group["eps"], group["weight_decay"]
            for p in (p for p in group["params"] if p.grad is not None):
                state = self.state[p]
                if not state:
                    state["step"] = torch.zeros((), dtype=torch.float32)
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
                state["step"] += 1
                t = state["step"].item()
                state["exp_avg"].lerp_(p.grad, 1 - beta1)
                state["exp_avg_sq"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
                update = state["exp_avg"] / (state["exp_avg_sq"].sqrt() + eps) + decay * p
                p.sub_(update, alpha=group["lr"] * math.sqrt(1 - beta2**t) / (1 - beta1**t))


def warmup_steps(schedule: ScheduleConfig, total_steps: int) -> int:
    if schedule.warmup_steps is not None:
        return schedule.warmup_steps
    return round(schedule.warmup_fraction * total_steps)


def lr_at(step: int, total_steps: int, peak: float, schedule: ScheduleConfig) -> float:
    """Rate of optimizer step `step`, counted from 0: linear from 0 over the warm-up, then by `schedule.kind`.

    The cosine is over the steps after the warm-up; OpenAI's fine-tuning code takes it over the whole run instead.
    """
    warmup = warmup_steps(schedule, total_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    remaining = {
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        "linear": 1 - progress,
        "constant": 1.0,
        "wsd": min(
            1.0, (total_steps - step) / max(1, round(schedule.decay_fraction * total_steps))
        ),
    }[schedule.kind]
    return peak * remaining


def set_lr(engine, config, step: int, total_steps: int) -> float:
    """The rate of `step` (see `lr_at`), given to the engine's optimizer: to each parameter group its share of it."""
    lr = lr_at(step, total_steps, config.optim.lr, config.schedule)
    for group, share in zip(engine.optimizer.param_groups, engine.lr_shares, strict=True):
        group["lr"] = share * lr
    return lr
