"""Parts of the project on the device of `private_device.py`, compared with the CPU.

    python -m tests.support.cases_private_device SHARDS RUN SAMPLE FOLDER

Runs every case, one after the other, and prints {name: error, or empty} as JSON. SHARDS are small
shards, RUN a run that was trained on them, SAMPLE the embedded sample. FOLDER gets new runs.

An operator that meets tensors of both devices raises an error, in forward and in backward.
"""

import json
import sys
import time
import traceback
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

import gpt1_ds
from gpt1_ds.engine.optimizer import build_optimizer
from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.model.sampling import Sampling, generate
from gpt1_ds.settings.sections import OptimConfig
from gpt1_ds.tasks.heads import TaskModel
from tests.support.cases_private_run import (
    fine_tuning,
    pre_training,
    runs_with_dropout,
)
from tests.support.private_device import Given, make_device
from tests.support.private_run import join_group

SHAPE = GPTConfig(300, 2, 4, 32, 24, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
DROPPING = replace(SHAPE, embd_pdrop=0.2, attn_pdrop=0.2, resid_pdrop=0.2)
SPECIAL = {"pad": 0, "s": 1, "e": 2, "delim": 3, "eot": 4}
B, T = 3, 20
Case = Callable[[Given], None]


def equal(found: Tensor, expected: Tensor, rtol: float = 1e-4, atol: float = 1e-6) -> None:
    assert found.device.type == "private"
    torch.testing.assert_close(found.cpu(), expected, rtol=rtol, atol=atol)


def pair(given: Given, module: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The module on the CPU, and the same on the device."""
    return module, deepcopy(module).to(given.device)


def gradients(module: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    return found


def ids_and_keys(given: Given) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids_BT = torch.randint(0, SHAPE.vocab_size, (B, T + 1), generator=generator)
    return ids_BT, torch.randint(-(2**31), 2**31 - 1, (B, 2), dtype=torch.int32)


def trained_once(model: GPT, ids_BT: Tensor, keys_B2: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and the gradients."""
    place = model.wte.device
    ids_BT, keys_B2 = ids_BT.to(place), keys_B2.to(place)
    loss = model(ids_BT[:, :-1], ids_BT[:, 1:], dropout_keys_B2=keys_B2)[1].mean()
    loss.backward()
    return loss.detach(), gradients(model)


@torch.no_grad()
def scored(model: GPT, ids_BT: Tensor) -> Tensor:
    """Negative log-likelihoods, and whether a target is the likeliest token, (2, B, T)."""
    ids_BT = ids_BT.to(model.wte.device)
    return model(ids_BT[:, :-1], ids_BT[:, 1:], greedy=True)[1]


def devices_that_mix(given: Given) -> None:
    """The device itself: such an operator is an error, a copy and a number are none."""
    here, there = torch.ones(3), torch.ones(3, device=given.device)
    for act in (lambda: there + here, lambda: there[here > 0], lambda: there.add_(here)):
        try:
            act()
        except RuntimeError as error:
            assert "mixed devices: aten::" in str(error) or "two devices" in str(error), error
        else:
            raise AssertionError("not refused")
    equal(there + here.to(given.device) + torch.tensor(1.0), torch.full((3,), 3.0))


def decoder(given: Given) -> None:
    """Loss and gradients, with activation checkpointing and without; the likeliest tokens.

    Not the LSTM: away from the CPU torch takes a fused cell, for which the CPU has no kernel.
    """
    ids_BT, keys_B2 = ids_and_keys(given)
    for change in ({}, {"position_logits": True}):
        torch.manual_seed(0)
        ours, theirs = pair(given, GPT(replace(SHAPE, **change)).train())
        loss, expected = trained_once(ours, ids_BT, keys_B2)
        for theirs.activation_checkpointing in (False, True):
            found_loss, found = trained_once(theirs, ids_BT, keys_B2)
            equal(found_loss, loss)
            assert found.keys() == expected.keys() and len(found) > 7
            for name, gradient in expected.items():
                equal(found[name], gradient, atol=1e-5)
    found_2BT, expected_2BT = (scored(model.eval(), ids_BT) for model in (theirs, ours))
    equal(found_2BT, expected_2BT)


def dropout_in_training(given: Given) -> None:
    """Its masks come from the generator, which activation checkpointing puts back."""
    ids_BT, keys_B2 = ids_and_keys(given)
    for kind in ("vectors", "matrix"):
        torch.manual_seed(0)
        model = GPT(replace(DROPPING, embd_dropout=kind)).to(given.device).train()
        runs = []
        for model.activation_checkpointing in (False, True):
            torch.manual_seed(5)
            runs.append(trained_once(model, ids_BT, keys_B2))
        (loss, kept), (again, computed) = runs
        assert torch.equal(loss, again) and loss.isfinite()
        assert all(torch.equal(kept[name], gradient) for name, gradient in computed.items())
        torch.manual_seed(6)
        assert not torch.equal(trained_once(model, ids_BT, keys_B2)[0], loss)


def bfloat16(given: Given) -> None:
    ids_BT, keys_B2 = ids_and_keys(given)
    torch.manual_seed(0)
    ours, theirs = pair(given, GPT(SHAPE).bfloat16().train())
    loss, _ = trained_once(ours, ids_BT, keys_B2)
    found, found_gradients = trained_once(theirs, ids_BT, keys_B2)
    equal(found, loss, rtol=0.01)
    assert all(gradient.dtype == torch.bfloat16 for gradient in found_gradients.values())


def heads(given: Given) -> None:
    """Each kind of task: its losses, logits and gradients."""
    kinds = {
        "classification": (2, 1),
        "entailment": (3, 1),
        "similarity": (4, 2),
        "similarity_score": (1, 2),
        "multiple_choice": (1, 3),
        "token_classification": (5, 1),
    }
    for kind, (outputs, sequences) in kinds.items():
        torch.manual_seed(0)
        ours, theirs = pair(given, TaskModel(GPT(SHAPE), kind, outputs, "last", 0.0).train())
        ids_BST = torch.randint(5, 300, (B, sequences, T))
        inputs = ids_BST, torch.full((B, sequences), T - 1), targets(kind, outputs, sequences)
        keys_BS2 = torch.randint(-99, 99, (B, sequences, 2), dtype=torch.int32)
        sides = []
        for model in (ours, theirs):
            model.class_weights = [0.5] * outputs if kind.endswith("classification") else None
            place = model.gpt.wte.device
            words = [tensor.to(place) for tensor in (*inputs, ids_BST, keys_BS2)]
            task_loss, lm_loss, logits = model(*words)
            (task_loss + lm_loss).backward()
            results = [tensor.detach() for tensor in (task_loss, lm_loss, logits)]
            sides.append([*results, *gradients(model).values()])
        for expected, found in zip(*sides, strict=True):
            equal(found, expected, atol=1e-4)


def targets(kind: str, outputs: int, sequences: int) -> Tensor:
    if kind == "token_classification":
        return torch.randint(0, outputs, (B, T))
    width = sequences if kind == "multiple_choice" else outputs
    return torch.rand(B, width)


def cache(given: Given) -> None:
    """Continuations with the cache, past the context: greedy and drawn."""
    torch.manual_seed(0)
    ours, theirs = pair(given, GPT(SHAPE).eval())
    prompts = [[4, 7, 8], [4, 9, 10, 11, 12]]
    for sampling in (Sampling(), Sampling(temperature=1.0, top_k=20, top_p=0.9)):
        texts = [list(generate(model, SPECIAL, prompts, 30, sampling)) for model in (ours, theirs)]
        assert texts[0] == texts[1] and len(texts[0]) > 30


def optimizers(given: Given) -> None:
    """Three updates of both Adams."""
    ids_BT, keys_B2 = ids_and_keys(given)
    for kind in ("adamw", "openai_adam"):
        torch.manual_seed(0)
        sides = pair(given, GPT(SHAPE).train())
        for model in sides:
            optimizer = build_optimizer(model, OptimConfig(kind=kind, lr=1e-3))
            place = model.wte.device
            for _ in range(3):
                ids = ids_BT.to(place)
                loss = model(ids[:, :-1], ids[:, 1:], dropout_keys_B2=keys_B2.to(place))[1].mean()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            for state in optimizer.state.values():
                assert state["exp_avg"].device == place
        for expected, found in zip(*(model.parameters() for model in sides), strict=True):
            equal(found.detach(), expected.detach(), atol=1e-5)


def a_loaded_run(given: Given) -> None:
    """All that a run in Python offers."""
    texts = ["the cat sat", "a", "once upon a time there was a king " * 3]
    ours, theirs = (gpt1_ds.load(given.run, device=place) for place in ("cpu", given.device))
    assert theirs.gpt.wte.device == given.device
    for method in ("logits", "hidden", "attention"):
        expected, found = (list(getattr(model, method)(texts[:2])) for model in (ours, theirs))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for expected, found in zip(ours.score(texts), theirs.score(texts), strict=True):
        assert abs(expected - found) < 1e-4
    assert ours.generate(texts[:1]) == theirs.generate(texts[:1])


CASES: list[Case] = [
    devices_that_mix,
    decoder,
    dropout_in_training,
    bfloat16,
    heads,
    cache,
    optimizers,
    a_loaded_run,
    pre_training,
    runs_with_dropout,
    fine_tuning,
]


def main() -> None:
    given = Given(make_device(), *map(Path, sys.argv[1:5]))
    chosen, errors = sys.argv[5:], {}
    join_group()
    for case in CASES:
        if chosen and case.__name__ not in chosen:
            continue
        began = time.monotonic()
        try:
            case(given)
            errors[case.__name__] = ""
        except Exception:
            errors[case.__name__] = traceback.format_exc()
        print(f"{case.__name__}: {time.monotonic() - began:.1f} s", file=sys.stderr)
    print(json.dumps(errors))


if __name__ == "__main__":
    main()
