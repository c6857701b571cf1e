"""The domain of every number of every section, held against hostile values; and of `plan`."""

import dataclasses
import math
import types
import typing

import pytest

from gpt1_ds.base.errors import ConfigError
from gpt1_ds.plan import main as plan
from gpt1_ds.settings.loading import load
from gpt1_ds.settings.sections import FinetuneConfig, PretrainConfig

COUNT, COUNT_OR_ZERO = (1, 2**53), (0, 2**53)
TINY = 5e-324
POSITIVE, NUMBER = (TINY, 1e38), (0, 1e38)
SHARE, SHARE_BELOW_1 = (0, 1), (0, math.nextafter(1, 0))
DOMAINS = {
    "run.seed": (0, 2**64 - 1),
    "model.n_layer": (1, 10_000),
    "model.n_head": (1, 10_000),
    "model.n_embd": (1, 10_000_000),
    "model.n_ctx": (1, 10_000_000),
    "model.embd_pdrop": SHARE_BELOW_1,
    "model.attn_pdrop": SHARE_BELOW_1,
    "model.resid_pdrop": SHARE_BELOW_1,
    "data.cache_bytes": COUNT,
    "train.max_steps": COUNT,
    "train.epochs": (TINY, 1e18),
    "train.tokens": (TINY, 1e18),
    "train.flops": (TINY, 1e30),
    "train.global_batch": COUNT,
    "train.batch_warmup_steps": (0, 10_000_000),
    "train.batch_start": COUNT,
    "train.micro_batch": COUNT,
    "train.grad_clip": NUMBER,
    "train.max_skipped": COUNT,
    "train.spike_nats": POSITIVE,
    "train.max_rollbacks": COUNT_OR_ZERO,
    "optim.lr": POSITIVE,
    "optim.eps": POSITIVE,
    "optim.weight_decay": NUMBER,
    "schedule.decay_fraction": SHARE,
    "schedule.warmup_steps": COUNT_OR_ZERO,
    "schedule.total_steps": COUNT,
    "schedule.warmup_fraction": SHARE,
    "eval.every": COUNT,
    "eval.batches": COUNT,
    "eval.zero_shot_every": COUNT,
    "eval.zero_shot_sample": COUNT,
    "checkpoint.every": COUNT,
    "checkpoint.keep": COUNT,
    "checkpoint.keep_every": COUNT,
    "checkpoint.stall_seconds": (TINY, 1e9),
    "checkpoint.mirror_keep": COUNT,
    "log.every": COUNT,
    "log.samples_every": COUNT,
    "log.slow_ratio": POSITIVE,
    "log.profile": COUNT,
    "distributed.timeout_seconds": (TINY, 1e9),
    "task.lm_coef": SHARE,
    "task.task_coef": SHARE,
    "task.clf_pdrop": SHARE_BELOW_1,
    "task.max_examples": COUNT,
    "task.n_transfer": (-1, 2**53),
    "task.patience": COUNT,
}
HOSTILE = {
    ".inf": math.inf,
    "-.inf": -math.inf,
    ".nan": math.nan,
    "-1": -1,
    "-2": -2,
    "0": 0,
    "1": 1,
    "1.0e+30": 1e30,
    "1e999": math.inf,
    str(2**64): 2**64,
    str(10**400): math.inf,
    "true": None,
    "x": None,
    "[]": None,
    "{}": None,
    "[1]": None,
    "2024-13-45": None,
    "0123": None,
    "1:30": None,
}
"""What is typed, and the number that it is; None: no number."""
NEIGHBOURS = {
    "model.n_embd": ["model.n_head=1"],
    "train.epochs": ["train.max_steps=1"],
    "train.batch_warmup_steps": ["train.batch_start=1"],
    "eval.zero_shot_every": ["eval.zero_shot=[blimp]"],
}
"""Other settings that make a value of this one possible."""


def numbers(cls: type[PretrainConfig]) -> dict[str, tuple[type, bool]]:
    """Every setting of one number: its type, and whether it may be null."""
    found = {}
    for section in dataclasses.fields(cls):
        hints = typing.get_type_hints(type(getattr(cls(), section.name)))
        for key, hint in hints.items():
            options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
            kinds = [option for option in options if option in (int, float)]
            if kinds:
                found[f"{section.name}.{key}"] = (kinds[0], type(None) in options)
    return found


def accepted(cls: type[PretrainConfig], name: str, text: str) -> bool:
    is_of_others = cls is FinetuneConfig and name.startswith("eval.zero_shot")
    neighbours = [] if is_of_others else NEIGHBOURS.get(name, [])
    try:
        load(cls, None, [*neighbours, f"{name}={text}"])
    except ConfigError as error:
        assert name in str(error) and "\n" not in str(error)
        return False
    return True


def test_every_number_has_a_domain():
    assert set(numbers(FinetuneConfig)) == set(DOMAINS)


@pytest.mark.parametrize("cls", [PretrainConfig, FinetuneConfig])
def test_no_number_outside_its_domain_is_accepted(cls):
    for name, (kind, nullable) in numbers(cls).items():
        low, high = DOMAINS[name]
        if cls is FinetuneConfig and name in (
            "train.tokens",
            "train.flops",
            "train.batch_warmup_steps",
            "eval.zero_shot_every",
        ):
            low, high = (0, 0) if name == "train.batch_warmup_steps" else (math.inf, -math.inf)
        assert accepted(cls, name, "null") == nullable, name
        for text, number in HOSTILE.items():
            whole = kind is float or (text.lstrip("-").isdigit() and number != math.inf)
            right = number is not None and whole and low <= number <= high
            assert accepted(cls, name, text) == right, f"{name}={text[:30]}"


def test_each_end_of_a_domain_belongs_to_it():
    for name, (low, high) in DOMAINS.items():
        cls = FinetuneConfig if name.startswith("task.") else PretrainConfig
        if name in ("train.batch_warmup_steps", "train.global_batch") or "model.n_" in name:
            high = low  # beside the other settings
        heads = ["model.n_head=1"] if name == "model.n_embd" else []
        for end in (low, high):
            load(cls, None, [*NEIGHBOURS.get(name, []), *heads, f"{name}={end!r}"])


OPTIONS = {
    "--nodes": (int, 1, 10**6),
    "--gpus-per-node": (int, 1, 10**6),
    "--gpu-memory": (float, TINY, 1e38),
    "--host-memory": (float, TINY, 1e38),
    "--tflops": (float, TINY, 1e38),
    "--utilization": (float, TINY, 1),
    "--network": (float, TINY, 1e38),
    "--nvlink": (float, TINY, 1e38),
    "--price": (float, TINY, 1e38),
    "--tokens": (int, 1, 2**53),
}
TYPED = {"inf": math.inf, "nan": math.nan, "-1": -1, "0": 0, "1": 1, "1e30": 1e30, "x": None}


def test_options_of_plan(capsys):
    """Every number among them; `=` since argparse takes -1 for an option."""
    for option, (kind, low, high) in OPTIONS.items():
        for text, number in (TYPED | {str(2**64): 2**64, "1e-300": 1e-300}).items():
            whole = kind is float or text.lstrip("-").isdigit()
            right = number is not None and whole and low <= number <= high
            try:
                plan([f"{option}={text}", "train.max_steps=1", "train.epochs=1e9"])
            except ConfigError as error:
                assert option in str(error) and "\n" not in str(error)
                assert not right, (option, text)
            else:
                assert right, (option, text)
    assert "ZeRO" in capsys.readouterr().out


def test_numbers_in_lists_and_mappings():
    for value in (".inf", ".nan", "-1", "1e39"):
        with pytest.raises(ConfigError, match=r"data\.weights\.b is .*; it must be"):
            load(PretrainConfig, None, [f"data.weights={{a: 1, b: {value}}}"])
        with pytest.raises(ConfigError, match=r"optim\.betas is .*; give two numbers"):
            load(PretrainConfig, None, [f"optim.betas=[0.9, {value}]"])
