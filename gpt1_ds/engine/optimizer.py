"""Parameter groups, the two Adams, and the learning rate as a pure function of the step."""

import inspect
import math
from collections.abc import Callable, Iterable

import torch
from torch import nn

from gpt1_ds.base.protocols import Engine, Json
from gpt1_ds.engine.building import whole_shape
from gpt1_ds.settings.sections import OptimConfig, PretrainConfig, ScheduleConfig


def parameter_groups(module: nn.Module, weight_decay: float) -> list[Json]:
    """Two groups: matrices, embeddings included, with decay; biases and LayerNorm gains without.

    Source: section 4.1 of the paper.
    """
    parameters = list(module.parameters())
    matrices = [parameter for parameter in parameters if len(whole_shape(parameter)) > 1]
    others = [parameter for parameter in parameters if len(whole_shape(parameter)) <= 1]
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


def build_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer that `optim.kind` names, over `parameter_groups`."""
    groups = parameter_groups(module, config.weight_decay)
    beta1, beta2 = config.betas
    if config.kind == "openai_adam":
        return OpenAIAdam(groups, lr=config.lr, betas=(beta1, beta2), eps=config.eps)
    return AdamW(groups, lr=config.lr, betas=(beta1, beta2), eps=config.eps, fused=True)


class AdamW(torch.optim.AdamW):
    """torch's AdamW without the decorators of its `step`.

    Why:    the decorator that switches gradients off imports torch's compiler, which takes a
            second, only to tell it that no graph may contain the step.
    Seen:   torch 2.13.
    Ends:   nothing of torch's is changed: this is a subclass.
    Until:  torch asks whether the compiler is in use before it imports it.
    """

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


class OpenAIAdam(torch.optim.Optimizer):
    """Adam as released with GPT-1 (`opt.py` of openai/finetune-transformer-lm).

    It differs from AdamW in two places: epsilon is added to the square root of the second moment
    before the bias correction, and the decay is part of the update, so that the bias correction
    (about 0.32 at the first step) multiplies the decay too.
    """

    def __init__(
        self,
        params: Iterable[Json],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float = 0.01,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, p: nn.Parameter, group: Json) -> None:
        beta1, beta2 = group["betas"]
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(p)
            state["exp_avg_sq"] = torch.zeros_like(p)
        state["step"] += 1
        t = state["step"].item()
        state["exp_avg"].lerp_(p.grad, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
        direction = state["exp_avg"] / (state["exp_avg_sq"].sqrt() + group["eps"])
        update = direction + group["weight_decay"] * p
        p.sub_(update, alpha=group["lr"] * math.sqrt(1 - beta2**t) / (1 - beta1**t))


def warmup_steps(schedule: ScheduleConfig, total_steps: int) -> int:
    """Steps of linear warm-up: as given, or a share of all steps."""
    if schedule.warmup_steps is not None:
        return schedule.warmup_steps
    return round(schedule.warmup_fraction * total_steps)


def lr_at(step: int, total_steps: int, peak: float, schedule: ScheduleConfig) -> float:
    """Rate of optimizer step `step`, counted from 0: the warm-up, then `schedule.kind`.

    Cosine and linear fall over the steps after the warm-up. With `schedule.progress=absolute` the
    rate is that of OpenAI's `opt.py` (`warmup_cosine` and so on): a function of step / total_steps,
    0 at the first step, and they fall over all steps, of which the warm-up hides the first ones.
    """
    if schedule.progress == "absolute":
        return _lr_as_released(step, total_steps, peak, schedule)
    warmup = warmup_steps(schedule, total_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    return peak * _share(step, total_steps, progress, schedule)


def _lr_as_released(step: int, total_steps: int, peak: float, schedule: ScheduleConfig) -> float:
    warmup = schedule.warmup_fraction
    if schedule.warmup_steps is not None:
        warmup = schedule.warmup_steps / total_steps
    progress = step / total_steps
    if warmup > 0 and progress <= warmup:
        return peak * progress / warmup
    return peak * _share(step, total_steps, min(1.0, progress), schedule)


def _share(step: int, total_steps: int, progress: float, schedule: ScheduleConfig) -> float:
    """The share of the peak rate at `progress`, in [0, 1]."""
    if schedule.kind == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if schedule.kind == "linear":
        return 1 - progress
    if schedule.kind == "wsd":
        decay_steps = max(1, round(schedule.decay_fraction * total_steps))
        return min(1.0, max(0, total_steps - step) / decay_steps)
    return 1.0


def set_lr(engine: Engine, config: PretrainConfig, step: int, total_steps: int) -> float:
    """Set the rate of `step` in the engine's optimizer and return it (see `lr_at`).

    `total_steps` is that of the run, for a schedule that has none of its own. Each parameter group
    gets its share of the rate (`internals.keep_lr_shares`).
    """
    schedule = config.schedule
    lr = lr_at(step, schedule.total_steps or total_steps, config.optim.lr, schedule)
    for group, share in zip(engine.optimizer.param_groups, engine.lr_shares, strict=True):
        group["lr"] = share * lr
    return lr
