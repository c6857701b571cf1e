"""Dropout: keys of places, masks, where a model drops, keys of fine-tuning's sequences."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.model.kernels import causal_attention, dropout, keep_mask, site_keys
from gpt1_ds.tasks.heads import TaskModel, dropout_keys
from tests.golden.store import Group, array, bits

DROPOUT = Group("dropout")

KEYS_B2 = torch.tensor([[1, 2], [-3, 4], [2**31 - 1, -(2**31)]], dtype=torch.int32)


@DROPOUT.value
def keys_of_places() -> dict[str, Any]:
    return array(site_keys(KEYS_B2, 40))


@DROPOUT.value
def masks() -> dict[str, Any]:
    """By probability and shape; an odd number of elements too."""
    shapes = ((3, 64), (3, 7, 5), (3, 2, 33, 33))
    values = {}
    for p in (0.0, 0.1, 0.25, 0.5, 0.9):
        for shape in shapes:
            mask = keep_mask(torch.Size(shape), p, KEYS_B2)
            values[f"p {p}, shape {list(shape)}"] = bits(mask != 0)
    return values


@DROPOUT.value
def kept_by_dropout() -> dict[str, Any]:
    """In float32 and bfloat16; the kept values are scaled by the same number."""
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    found = {}
    for name, kind in kinds.items():
        kept = dropout(torch.ones(3, 500, dtype=kind), 0.5, KEYS_B2)
        found[name] = [sorted(set(kept.flatten().tolist())), bits(kept != 0)]
    return found


@DROPOUT.value
def weights_kept_by_attention() -> dict[str, Any]:
    """All visible tokens have one weight; unit vectors as values show which weights are kept."""
    tokens = 300
    alike_BHTD = torch.zeros(3, 2, tokens, tokens)
    unit_BHTD = torch.eye(tokens).expand(3, 2, tokens, tokens)
    return bits(causal_attention(alike_BHTD, alike_BHTD, unit_BHTD, 0.3, KEYS_B2) != 0)


@cache
def small_model() -> GPT:
    torch.manual_seed(0)
    shape = GPTConfig(100, n_layer=2, n_head=2, n_embd=32, n_ctx=16)
    return GPT(shape).train()


def kept_in(model: GPT, run: Any) -> dict[str, Tensor]:
    """Where the output of each dropping place is not zero, while `run` runs."""
    kept: dict[str, Tensor] = {}

    def note(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            kept[name] = (output[0] if isinstance(output, tuple) else output) != 0

        return hook

    def note_input(module: Any, inputs: Any) -> None:
        kept["embedding"] = inputs[0] != 0

    hooks = [model.blocks[0].register_forward_pre_hook(note_input)]
    for number, block in enumerate(model.blocks):
        hooks.append(block.attn.register_forward_hook(note(f"block {number}, attention")))
        hooks.append(block.mlp.register_forward_hook(note(f"block {number}, mlp")))
    run()
    for hook in hooks:
        hook.remove()
    return kept


@DROPOUT.value
def kept_in_a_model() -> dict[str, Any]:
    """Which key is which place's."""
    model = small_model()
    ids_BT = torch.arange(48).view(3, 16)
    kept = kept_in(model, lambda: model(ids_BT, dropout_keys_B2=KEYS_B2))
    return {name: bits(mask) for name, mask in kept.items()}


def head_inputs(kind: str) -> Tensor:
    """What the head of a task in training gets."""
    outputs = 1 if kind == "multiple_choice" else 3
    model = TaskModel(small_model(), kind, outputs, "last", 0.4).train()
    seen: list[Tensor] = []
    model.head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    ids_BST, end_BS = torch.arange(96).view(3, 2, 16), torch.full((3, 2), 15)
    if kind == "token_classification":
        ids_BST, end_BS = ids_BST[:, :1], end_BS[:, :1]
    targets = torch.zeros(3, 2) if kind == "multiple_choice" else torch.zeros(3, 3)
    if kind == "token_classification":
        targets = torch.zeros(3, 16, dtype=torch.long)
    keys_BS2 = dropout_keys(42, 7, [5, 6, 7], ids_BST.shape[1])
    model(ids_BST, end_BS, targets, None, keys_BS2)
    return seen[0]


@DROPOUT.value
def kept_before_heads() -> dict[str, Any]:
    kinds = ("classification", "similarity", "multiple_choice", "token_classification")
    return {kind: bits(head_inputs(kind) != 0) for kind in kinds}


@DROPOUT.value
def keys_of_fine_tuning() -> dict[str, Any]:
    """By seed, step, examples and sequences; of no example the key of the blank one."""
    return {
        "two sequences": array(dropout_keys(42, 7, [5, 1, 900_000], 2)),
        "four sequences": array(dropout_keys(1, 0, range(32), 4)),
        "no example": array(dropout_keys(42, 7, [], 1)),
    }
