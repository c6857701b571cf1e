"""The only `deepspeed.initialize`."""

import os
from typing import Any

from torch import nn

from gpt1_ds import distributed, optim
from gpt1_ds.config import PretrainConfig


def initialize(module: nn.Module, config: PretrainConfig, ds: dict[str, Any]):
    """A DeepSpeed engine around `module`; `ds` comes from `deepspeed_config.resolve`.

    Without an `optimizer` section in `ds` the run's own optimizer goes in, so that nothing is compiled at start.
    """
    os.environ.setdefault("DS_SKIP_CUDA_CHECK", "1")
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel("WARNING")
    client = None if "optimizer" in ds else optim.build(module, config.optim)
    parameters = optim.parameter_groups(module, config.optim.weight_decay) if client is None else None
    engine, *_ = deepspeed.initialize(
        model=module, optimizer=client, model_parameters=parameters, config=ds, dist_init_required=False
    )
    distributed.set_timeouts(config.distributed.timeout_seconds)
    return engine
