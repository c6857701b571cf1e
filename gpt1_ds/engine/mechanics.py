"""Which DeepSpeed JSON a run takes that names none."""

from typing import NamedTuple

import torch

from gpt1_ds.engine.peak import has_bfloat16_instructions


class Mechanics(NamedTuple):
    name: str
    """Of a shipped DeepSpeed JSON."""
    why: str


def default_mechanics() -> Mechanics:
    """The shipped DeepSpeed JSON for this machine's device."""
    if torch.cuda.is_available():
        return Mechanics("zero2_bf16", "there is a GPU")
    if has_bfloat16_instructions():
        return Mechanics("cpu", "there is no GPU, and the CPU has bfloat16 instructions")
    return Mechanics("cpu_fp32", "there is no GPU, and the CPU has no bfloat16 instructions")
