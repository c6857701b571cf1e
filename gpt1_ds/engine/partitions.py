"""The layout of ZeRO-3's gathers and reductions, with operators that do not grow with the ranks.

These are changes to DeepSpeed's behaviour, of the kind of `internals.py`. A bucket is seen as a
matrix: a row for each rank, and in it a stretch of columns for each parameter.
"""

from typing import Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from gpt1_ds.base.protocols import Engine
from gpt1_ds.engine.internals import replaced


class Part(Protocol):
    """This rank's elements of a parameter."""

    dtype: torch.dtype
    ds_numel: int


class Parameter(Protocol):
    """A parameter as ZeRO-3 keeps it."""

    data: Tensor
    ds_tensor: Part
    ds_numel: int
    ds_shape: torch.Size
    ds_status: object


class Gather(Protocol):
    """DeepSpeed's `AllGatherCoalescedHandle`: parameters that are being gathered in one bucket."""

    allgather_handle: dist.Work
    params: list[Parameter]
    partitions: list[Tensor]
    """The row of each rank; they follow one another in one tensor."""
    world_size: int
    use_secondary_tensor: bool
    quantization: object
    complete: bool
    data_buffer: list[list[Tensor]]

    def wait_by_rank(self, handle_dependency: bool) -> None: ...


def quicken_partitions(engine: Engine) -> None:
    """Let ZeRO-3 lay buckets out by whole parameters, with the same content and result.

    Why:    DeepSpeed lays them out by parameter and rank, in Python: 150 parameters make 77,000
            slices in each direction on 512 ranks, half a second of the host for a micro-batch.
    Seen:   DeepSpeed 0.19.8 (`reduce_scatter_coalesced`, `AllGatherCoalescedHandle.wait`).
    Ends:   with the engine. The handle's method stays: it has the same result for every engine.
    Until:  DeepSpeed does the same.
    """
    if engine.zero_optimization_stage() != 3:
        return
    from deepspeed.runtime.zero import stage3
    from deepspeed.runtime.zero.partition_parameters import AllGatherCoalescedHandle

    zero = engine.optimizer
    name = "_DeepSpeedZeroOptimizer_Stage3__avg_scatter_grads"
    average = getattr(zero, name)

    def averaged(*arguments: object) -> list[Tensor]:
        with replaced(stage3, "reduce_scatter_coalesced", reduce_scatter):
            return average(*arguments)

    setattr(zero, name, averaged)
    by_rank = AllGatherCoalescedHandle.wait
    if by_rank is not wait:
        AllGatherCoalescedHandle.wait = wait
        AllGatherCoalescedHandle.wait_by_rank = by_rank


def reduce_scatter(tensors: list[Tensor], group: dist.ProcessGroup | None = None) -> list[Tensor]:
    """The mean over the ranks of this rank's part of each tensor, flat; one message in all.

    A part is ceil(elements / ranks) elements; the last ones may be shorter, or empty.
    """
    from deepspeed.runtime.comm.coalesced_collectives import _torch_reduce_scatter_fn

    ranks, rank = dist.get_world_size(group), dist.get_rank(group)
    columns = [-(-tensor.numel() // ranks) for tensor in tensors]
    rows = [_rows(tensor, ranks, width) for tensor, width in zip(tensors, columns, strict=True)]
    bucket = rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)
    bucket.div_(ranks)
    own = bucket[rank]
    _torch_reduce_scatter_fn(bucket.view(-1), own, group=group)
    parts = own.split(columns)
    sizes = [
        min(width, max(0, tensor.numel() - rank * width))
        for tensor, width in zip(tensors, columns, strict=True)
    ]
    return [part[:size] for part, size in zip(parts, sizes, strict=True)]


def _rows(tensor: Tensor, ranks: int, width: int) -> Tensor:
    flat = tensor.view(-1)
    missing = ranks * width - flat.numel()
    return (F.pad(flat, (0, missing)) if missing else flat).view(ranks, width)


def wait(handle: Gather, handle_dependency: bool = True) -> None:
    """`AllGatherCoalescedHandle.wait`: the gathered parameters, each copied out of the bucket."""
    from deepspeed.accelerator import get_accelerator
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    if handle.complete or handle.quantization or handle.use_secondary_tensor:
        handle.wait_by_rank(handle_dependency)
        return
    handle.allgather_handle.wait()
    first = handle.partitions[0]
    bucket = first.as_strided((handle.world_size, first.numel()), (first.numel(), 1))
    begin = 0
    for parameter in handle.params:
        end = begin + parameter.ds_tensor.ds_numel
        whole = bucket[:, begin:end].clone(memory_format=torch.contiguous_format).view(-1)
        whole = whole[: parameter.ds_numel].view(parameter.ds_shape)
        parameter.data = whole.to(parameter.ds_tensor.dtype)
        parameter.ds_status = ZeroParamStatus.AVAILABLE
        begin = end
    handle.complete = True
    accelerator = get_accelerator()
    if accelerator.is_synchronized_device():
        return
    if handle_dependency:
        bucket.record_stream(accelerator.current_stream())
    else:
        handle.data_buffer.append(handle.partitions)
