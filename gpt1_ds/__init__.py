"""GPT-1 (Radford et al. 2018) as a distributed training system on DeepSpeed.

    import gpt1_ds

    model = gpt1_ds.load("runs/gpt1")
    model.generate(["The captain looked at the sea and"])

The import is light: torch is loaded with the first use of one of the names in `__all__`. The page
docs/python.md describes them.
"""

import importlib
from typing import TYPE_CHECKING, Any

from gpt1_ds.base.beginning import begin
from gpt1_ds.base.version import VERSION as __version__

if TYPE_CHECKING:
    from gpt1_ds.runs.trained_model import Prediction, TrainedModel, load

begin()

__all__ = ["Prediction", "TrainedModel", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module("gpt1_ds.runs.trained_model"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
