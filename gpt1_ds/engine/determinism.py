"""`train.deterministic`: torch takes only algorithms that give the same bits each time.

A CPU does so anyway. On a GPU some kernels add in the order in which their threads happen to end,
such as flash attention's gradient of the queries where a sequence has several blocks of keys.

| part                         | with the switch                                               |
|------------------------------|---------------------------------------------------------------|
| flash attention              | adds in a fixed order, with more memory                       |
| memory-efficient attention   | does not split the keys                                       |
| cuDNN's attention            | is not taken; `rendezvous` has switched it off in any case    |
| index_put, scatter_add, ..   | torch sorts, or takes another kernel                          |
| cuBLAS                       | has a workspace of a fixed size, by an environment variable   |
| NCCL                         | torch sets `NCCL_ALGO=^NVLS`: NVLink's switches add in any    |
|                              | order                                                         |
| torch.compile                | chooses reductions without timing them                        |
| any other kernel             | torch raises an error, which `base.errors` makes one line     |
"""

import os

import torch

from gpt1_ds.base.errors import ConfigError
from gpt1_ds.settings.sections import PretrainConfig

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
"""cuBLAS reads it at its first product."""
LARGE, SMALL = ":4096:8", ":16:8"
"""The two sizes with which cuBLAS is deterministic: 24 MB, or less memory and perhaps less speed.

torch's LSTM is documented to be deterministic with the small one.
"""


def choose_algorithms(config: PretrainConfig) -> None:
    """Let torch take deterministic algorithms alone, or any, as `config.train.deterministic` says.

    Call it before the process group exists and before anything is computed on a GPU. ConfigError if
    the user has given cuBLAS another workspace.
    """
    wanted = config.train.deterministic
    if wanted:
        _fix_workspace(SMALL if config.model.kind == "lstm" else LARGE)
    if wanted != torch.are_deterministic_algorithms_enabled():  # the call imports the compiler
        torch.use_deterministic_algorithms(wanted)
        # Filling new memory costs a pass over it, and would only matter to code that reads what
        # nobody has written.
        fills = not wanted  # torch's default, without effect while the switch is off
        torch.utils.deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]


def _fix_workspace(size: str) -> None:
    given = os.environ.get(WORKSPACE) or size
    if given not in (LARGE, SMALL):
        raise ConfigError(
            f"train.deterministic is true but {WORKSPACE} is {given}, with which cuBLAS may add in "
            f"any order; unset it, or give {LARGE} or {SMALL}"
        )
    os.environ[WORKSPACE] = given
