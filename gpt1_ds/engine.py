"""The only `deepspeed.initialize`."""

from typing import Any

from torch import nn

from gpt1_ds import distributed, optim
from gpt1_ds.config import PretrainConfig


def initialize(module: nn.Module, config: PretrainConfig, ds: dict[str, Any]):
    """A DeepSpeed engine around `module`; `ds` comes from `deepspeed_config.resolve`.

    Without an `optimizer` section in `ds` the run's own optimizer goes in, so that nothing is compiled at start.
    """
    deepspeed = distributed.import_deepspeed()
    client = None if "optimizer" in ds else optim.build(module, config.optim)
    parameters = optim.parameter_groups(module, config.optim.weight_decay) if client is None else None
    engine, *_ = deepspeed.initialize(
        model=module, optimizer=client, model_parameters=parameters, config=ds, dist_init_required=False
    )
    distributed.set_timeouts(config.distributed.timeout_seconds)
    return engine
