"""The reduction of gradients in ZeRO 0 to 2, with one operator a bucket on each side of it.

These are changes to DeepSpeed's behaviour, of the kind of `internals.py`.
"""

from typing import Any

import torch
from torch import Tensor, nn

from gpt1_ds.base.protocols import Engine


def quicken_reduction(engine: Engine) -> None:
    """Replace DeepSpeed's buckets of gradients by ones with the same content and result.

    Why:    DeepSpeed copies each gradient into a bucket when it is ready, and out of it again after
            the reduction, each with some operators and a page of Python: for 12 layers 296 copies.
            Joined by one operator when the bucket is full, and read where they lie afterwards,
            they need none. One rank has nothing to reduce at all.
    Seen:   DeepSpeed 0.19.8.
    Ends:   with the engine, whose optimizer the changes are on.
    Until:  DeepSpeed joins the gradients of a bucket by one operator.
    """
    if engine.zero_optimization_stage() == 0:
        _quicken_without_zero(engine)
    if engine.zero_optimization_stage() not in (1, 2) or not _has_plain_buckets(engine):
        return
    zero = engine.optimizer
    reduction = BucketReduction(zero)
    zero.setup_buckets = reduction.begin
    zero.reduce_independent_p_g_buckets_and_remove_grads = reduction.add
    zero.reduce_ipg_grads = reduction.reduce
    # The end of the backward pass is a callback of autograd. DeepSpeed counts the parameters only
    # for versions of torch that have none.
    zero.should_refresh_expected_hook_count = lambda: False


def _quicken_without_zero(engine: Engine) -> None:
    ranks = torch.distributed.get_world_size()

    def reduce_in_place(bucket: list[Tensor], group: object, size: int | None = None) -> None:
        if ranks > 1:
            reduced = engine.allreduce_bucket(bucket, group, size)
            torch._foreach_copy_(bucket, engine.unflatten(reduced, bucket))

    engine.allreduce_and_copy = reduce_in_place


def _has_plain_buckets(engine: Engine) -> bool:
    """Whether a bucket is reduced as a whole, in the dtype of the gradients."""
    from deepspeed.runtime.torch_autocast import is_autocast_initialized
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    zero = engine.optimizer
    if type(zero) is not DeepSpeedZeroOptimizer:
        return False
    others = (
        is_autocast_initialized(),
        zero.cpu_offload,
        zero.zenflow,
        zero.has_moe_layers,
        zero.reduce_scatter,
        not zero.contiguous_gradients,
        zero.use_grad_accum_attribute,
        zero.autoep_folding_tp_group is not None,
        not hasattr(torch._C, "_current_graph_task_id"),
    )
    compact = map(zero._use_compact_grad_partition_buffer, range(len(zero.bit16_groups)))
    return not any(others) and not any(compact)


class BucketReduction:
    """The gradients that wait for a full bucket, in the order in which they became ready.

    A bucket is joined to one flat tensor and reduced in the stream of the reductions. The gradients
    that this rank's update needs are views of it.
    """

    def __init__(self, zero: Any):
        self.zero = zero
        self.ranks = torch.distributed.get_world_size(zero.dp_process_group)
        self.parameters: list[nn.Parameter] = []
        self.elements = 0

    def begin(self) -> None:
        """Before the first gradient of a backward pass."""
        if not self.zero.ready_for_gradients:
            self.zero.micro_step_id += 1
            self.zero.ready_for_gradients = True

    def add(self, parameter: nn.Parameter, _group: int) -> None:
        if self.ranks == 1:
            return
        size = parameter.numel()
        if self.parameters and self.elements + size > self.zero.reduce_bucket_size:
            self.reduce()
        self.parameters.append(parameter)
        self.elements += size

    def reduce(self, _dtype: torch.dtype | None = None) -> None:
        """Reduce what waits, if anything does."""
        if not self.parameters:
            return
        zero, parameters = self.zero, self.parameters
        self.parameters, self.elements = [], 0
        flat = zero.flatten([parameter.grad for parameter in parameters])
        self._reduce_in_own_stream(flat, zero.get_param_comm_dtype(parameters[0]))
        parts = flat.split([parameter.numel() for parameter in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            if zero.is_param_in_current_partition[zero.get_param_id(parameter)]:
                parameter.grad = part.view_as(parameter)
            elif zero.partition_gradients:
                parameter.grad = None

    def _reduce_in_own_stream(self, flat: Tensor, dtype: torch.dtype) -> None:
        from deepspeed.accelerator import get_accelerator

        zero, accelerator = self.zero, get_accelerator()
        if not zero.overlap_comm or accelerator.resolves_data_dependency():
            zero.gradient_reduction_w_predivide(flat, dtype)
            return
        stream = zero.reduction_stream
        stream.wait_stream(accelerator.current_stream())
        with accelerator.stream(stream):
            zero.gradient_reduction_w_predivide(flat, dtype)
        flat.record_stream(stream)  # its memory may not be given away before the reduction is done
