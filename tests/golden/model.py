"""The model: initial weights, learning rates, and the bytes that training needs."""

from typing import Any

import torch
from torch import Tensor, nn

from gpt1_ds.engine.memory import activation_bytes, state_bytes, state_parts
from gpt1_ds.engine.optimizer import lr_at, parameter_groups, warmup_steps
from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.settings.sections import ScheduleConfig
from gpt1_ds.tasks.heads import TaskModel
from tests.golden.store import Group, bits

MODEL = Group("model")

SHAPE = {"vocab_size": 300, "n_layer": 2, "n_head": 2, "n_embd": 48, "n_ctx": 16}


def drawn(parameter: Tensor) -> dict[str, Any]:
    """The first values to five digits and all signs.

    The last bits depend on the vector instructions that torch chooses for the processor.
    """
    values = parameter.detach()
    first = [round(value, 5) for value in values.flatten()[:3].tolist()]
    return {"first": first, "positive": bits(values > 0)}


def initial(module: nn.Module) -> dict[str, Any]:
    return {name: drawn(parameter) for name, parameter in module.named_parameters()}


@MODEL.value
def initial_weights() -> dict[str, Any]:
    torch.manual_seed(42)
    return initial(GPT(GPTConfig(**SHAPE)))


@MODEL.value
def initial_weights_of_the_lstm() -> dict[str, Any]:
    torch.manual_seed(42)
    return initial(GPT(GPTConfig(**SHAPE, kind="lstm")))


@MODEL.value
def initial_weights_of_heads() -> dict[str, Any]:
    """Drawn after the decoder's."""
    heads = {}
    for kind, outputs in (("classification", 2), ("multiple_choice", 1), ("similarity", 6)):
        torch.manual_seed(42)
        model = TaskModel(GPT(GPTConfig(**SHAPE)), kind, outputs, "last", 0.1)
        heads[kind] = initial(model.head)
    return heads


@MODEL.value
def decayed_parameters() -> list[list[str]]:
    """Names of each group of the optimizer."""
    model = GPT(GPTConfig(**SHAPE))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, 0.01)
    return [[names[id(parameter)] for parameter in group["params"]] for group in groups]


def rates(schedule: ScheduleConfig, total: int) -> list[str]:
    """To 12 digits: the last ones are those of the C library's cosine."""
    steps = [0, 1, 2, 9, 10, 11, total // 3, total // 2, total - 11, total - 2, total - 1, total]
    return [f"{lr_at(step, total, 2.5e-4, schedule):.11e}" for step in steps]


@MODEL.value
def learning_rates() -> dict[str, Any]:
    kinds = ("cosine", "linear", "constant", "wsd")
    schedules = {kind: ScheduleConfig(kind=kind, warmup_steps=10) for kind in kinds}
    schedules["linear, no warm-up"] = ScheduleConfig(kind="linear", warmup_steps=0)
    schedules["cosine, share"] = ScheduleConfig(warmup_steps=None, warmup_fraction=0.05)
    schedules["wsd, long decay"] = ScheduleConfig(kind="wsd", warmup_steps=5, decay_fraction=0.4)
    return {name: rates(schedule, 200) for name, schedule in schedules.items()}


@MODEL.value
def steps_of_warm_up() -> list[int]:
    share = ScheduleConfig(warmup_steps=None, warmup_fraction=0.002)
    given = ScheduleConfig(warmup_steps=2000)
    totals = (1, 249, 250, 251, 10_000, 1_234_567)
    return [*(warmup_steps(share, total) for total in totals), warmup_steps(given, 10_000)]


@MODEL.value
def parameters_and_flops() -> dict[str, list[int]]:
    shapes = {
        "gpt1": GPTConfig(40_478),
        "lstm": GPTConfig(40_478, kind="lstm"),
        "small": GPTConfig(**SHAPE),
    }
    found = {}
    for name, shape in shapes.items():
        found[name] = [shape.parameters, shape.flops_per_token, shape.padded_vocab_size]
    return found


@MODEL.value
def bytes_of_model_states() -> dict[str, list[int]]:
    """(on a rank, on its host), rounded; by stage, precision and ranks."""
    values = {}
    for stage in ("0", "1", "2", "2+offload", "3", "3+offload"):
        for precision in ("fp32", "bf16"):
            for ranks in (1, 16):
                parts = state_parts(116_534_784, int(stage[0]), precision, ranks)
                found = state_bytes(parts, stage)
                values[f"ZeRO {stage}, {precision}, {ranks} ranks"] = [round(n) for n in found]
    return values


@MODEL.value
def bytes_of_activations() -> dict[str, int]:
    values = {}
    for precision in ("fp32", "bf16"):
        for checkpointing in (False, True):
            for flash in (False, True):
                name = f"{precision}, checkpointing {checkpointing}, flash {flash}"
                found = activation_bytes(GPTConfig(40_478), 8, precision, checkpointing, flash)
                values[name] = round(found)
    return values
