"""Parameters that get their memory one at a time, so that no rank holds a whole model in float32.

A model that is made `without_memory` has only shapes. Its values are drawn in
float32, the same on every rank. Of each one a rank keeps at once what it trains with: the values in
the precision of the run, and under ZeRO-3 only its share of them.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gpt1_ds.base.protocols import Json
from gpt1_ds.distributed import collectives
from gpt1_ds.engine.internals import import_deepspeed
from gpt1_ds.settings.deepspeed_json import precision

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class Undrawn(TorchFunctionMode):
    """Constructors set no values: what ends with "_" changes a tensor in place.

    On the meta device it would change nothing, but import torch's compiler, which takes a second
    and 200 MB.
    """

    def __torch_function__(
        self,
        function: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        name = function.__name__
        if name == "__setitem__" or (name.endswith("_") and not name.endswith("__")):
            return args[0] if args else None
        return function(*args, **(kwargs or {}))


@contextmanager
def without_memory() -> Iterator[None]:
    """Modules that are made in the block have shapes and no memory."""
    with torch.device("meta"), Undrawn():
        yield


@runtime_checkable
class Drawn(Protocol):
    """A module that knows the values its constructor would give its parameters."""

    def initial_values(self) -> Iterator[tuple[str, Tensor]]:
        """Name and float32 value of each parameter, in order, drawn from the global generator."""
        ...


def build(module: nn.Module, ds: Json) -> None:
    """Give the parameters of a `Drawn` module that was made `without_memory` their initial values.

    Any other module stays as it is. All ranks call.
    """
    if not any(parameter.is_meta for parameter in module.parameters()):
        return
    assert isinstance(module, Drawn)
    dtype, device = DTYPES[precision(ds)], collectives.device()
    # For Muon DeepSpeed sorts the parameters by shape, which those that are cut no longer have.
    muon = ds.get("optimizer", {}).get("type", "").lower() == "muon"
    partition = None
    if ds.get("zero_optimization", {}).get("stage") == 3 and not muon:
        partition = partition_at_once(ds)
    # Where parameters are cut, all of them lie here before: with memory of its own for each, the
    # shares would keep the allocator from using it again.
    room = torch.empty(_largest(module) if partition else 0, dtype=dtype, device=device)
    for name, value in module.initial_values():
        owner, _, own_name = name.rpartition(".")
        place = room[: value.numel()] if partition else room.new_empty(value.numel())
        parameter = nn.Parameter(place.view(value.shape).copy_(value))
        setattr(module.get_submodule(owner), own_name, parameter)
        if partition is not None:
            partition(parameter)


def _largest(module: nn.Module) -> int:
    return max(parameter.numel() for parameter in module.parameters())


class Partitioned(Protocol):
    """A parameter that DeepSpeed has cut."""

    def convert_to_zero_parameters(self, parameters: list[nn.Parameter]) -> None: ...


def partition_at_once(ds: Json) -> Callable[[nn.Parameter], None]:
    """A function that cuts a parameter into the ranks' shares, of which it keeps this rank's.

    Why:    DeepSpeed cuts the parameters when the engine is built, so every rank holds the whole
            model until then. Its context `zero.Init` does it in the constructors, before ours has
            drawn the values; and it takes GPU number LOCAL_RANK, which is none of the visible ones
            where each rank sees only its own.
    Seen:   DeepSpeed 0.19.8.
    Ends:   LOCAL_RANK is changed only while `zero.Init` is made.
    Until:  DeepSpeed builds an engine around a model on the meta device.
    """
    deepspeed = import_deepspeed()
    cut: list[Partitioned] = []

    def partition(parameter: nn.Parameter) -> None:
        if cut:
            # The method that DeepSpeed itself calls for parameters that come later.
            cut[0].convert_to_zero_parameters([parameter])
            return
        local_rank = os.environ["LOCAL_RANK"]
        if torch.cuda.is_available():
            os.environ["LOCAL_RANK"] = str(torch.cuda.current_device())
        try:
            holder = nn.ParameterList([parameter])
            deepspeed.zero.Init(module=holder, config_dict_or_path=ds, dtype=parameter.dtype)
        finally:
            os.environ["LOCAL_RANK"] = local_rank
        cut.append(cast(Partitioned, parameter))

    return partition


def whole_shape(parameter: nn.Parameter) -> torch.Size:
    """The shape of a parameter, of which this rank may hold only a share.

    Why:    under ZeRO-3 a parameter that is cut has no elements of its own.
    Seen:   DeepSpeed 0.19.8: `ds_shape`.
    Ends:   nothing is changed.
    Until:  DeepSpeed has a public name for it.
    """
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape
