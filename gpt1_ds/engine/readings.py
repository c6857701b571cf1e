"""Figures of a step that are read from the engine for the log: loss scale, norms of each block."""

import math

from torch import Tensor

from gpt1_ds.base.protocols import Engine


def loss_scale(engine: Engine) -> dict[str, float]:
    """The loss scale of fp16, as `{"loss_scale": ..}`; empty in other precisions."""
    if not engine.fp16_enabled():
        return {}
    return {"loss_scale": float(engine.optimizer.loss_scale)}


def grad_norm(engine: Engine) -> float | None:
    """The global norm of the last step's gradients, before clipping.

    None if the DeepSpeed JSON switches it off (`compute_grad_norm`), and if it is not finite.
    """
    norm = engine.get_global_grad_norm()
    return None if norm is None or not math.isfinite(norm) else float(norm)


def layer_norms(engine: Engine) -> dict[str, float]:
    """L2 norms of the weights and of the unclipped gradients of each embedding and block.

    Keys are `weight_norm/GROUP` and `grad_norm/GROUP`; a group is `block-00`, `block-01`, .. or the
    name of a parameter outside the blocks. Every rank calls this after the last backward of a step
    and before `engine.step()`, which clears the gradients. It gathers each tensor in turn, which
    costs as much as one more reduction of the model.
    """
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad

    squares: dict[str, float] = {}

    def add(key: str, tensor: Tensor | None) -> None:
        if tensor is not None:
            square = tensor.detach().float().square().sum().item()
            squares[key] = squares.get(key, 0.0) + square

    for name, parameter in engine.module.named_parameters():
        group = _group_of(name)
        weight = safe_get_full_fp32_param(parameter)
        gradient = safe_get_full_grad(parameter)
        add(f"weight_norm/{group}", parameter if weight is None else weight)
        add(f"grad_norm/{group}", gradient)
    return {key: round(value**0.5, 6) for key, value in squares.items()}


def _group_of(name: str) -> str:
    words = name.split(".")
    if "blocks" not in words:
        return words[-1]
    number = int(words[words.index("blocks") + 1])
    return f"block-{number:02d}"
