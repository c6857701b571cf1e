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
    zero._release_ipg_buffers = reduction.end
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
    that this rank's update needs are views of it. The backward pass goes on meanwhile, but does not
    get further ahead than one bucket: so two of them are in memory at most.
    """

    def __init__(self, zero: Any):
        from deepspeed.accelerator import get_accelerator

        self.zero = zero
        self.accelerator = get_accelerator()
        self.ranks = torch.distributed.get_world_size(zero.dp_process_group)
        self.has_streams = not self.accelerator.resolves_data_dependency()
        self.parameters: list[nn.Parameter] = []
        self.elements = 0
        self.sources: set[torch.Stream] = set()
        """Streams in which the waiting gradients were computed; with torch.compile there can be
        several (DeepSpeed's issue 8061)."""
        self.in_flight: tuple[Tensor, torch.Stream] | None = None
        """The bucket that is being reduced, and the stream to which its memory goes back."""

    def begin(self) -> None:
        """Before the first gradient of a backward pass."""
        if not self.zero.ready_for_gradients:
            self.zero.micro_step_id += 1
            self.zero.ready_for_gradients = True

    def end(self) -> None:
        """After the last gradient of a backward pass."""
        self._wait_for_flight()
        self.zero.ready_for_gradients = False

    def add(self, parameter: nn.Parameter, _group: int) -> None:
        if self.ranks == 1:
            return
        size = parameter.numel()
        if self.parameters and self.elements + size > self.zero.reduce_bucket_size:
            self.reduce()
        self.parameters.append(parameter)
        self.elements += size
        if self.has_streams:
            self.sources.add(self.accelerator.current_stream())

    def reduce(self, _dtype: torch.dtype | None = None) -> None:
        """Reduce what waits, if anything does."""
        if not self.parameters:
            return
        zero, parameters = self.zero, self.parameters
        self.parameters, self.elements = [], 0
        gradients = [each.grad for each in parameters if each.grad is not None]
        self._wait_for_sources(gradients)
        flat = zero.flatten(gradients)
        self._reduce_in_own_stream(flat, zero.get_param_comm_dtype(parameters[0]))
        parts = flat.split([parameter.numel() for parameter in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            if zero.is_param_in_current_partition[zero.get_param_id(parameter)]:
                parameter.grad = part.view_as(parameter)
            elif zero.partition_gradients:
                parameter.grad = None

    def _wait_for_sources(self, gradients: list[Tensor]) -> None:
        """Let the current stream read gradients of other streams."""
        if not self.has_streams:
            return
        current = self.accelerator.current_stream()
        others = self.sources - {current}
        self.sources.clear()
        for stream in others:
            current.wait_stream(stream)
        if others:
            for gradient in gradients:
                gradient.record_stream(current)  # its memory may not be given away before

    def _reduce_in_own_stream(self, flat: Tensor, dtype: torch.dtype) -> None:
        zero, accelerator = self.zero, self.accelerator
        if not zero.overlap_comm or not self.has_streams:
            zero.gradient_reduction_w_predivide(flat, dtype)
            return
        self._wait_for_flight()
        current = accelerator.current_stream()
        zero.reduction_stream.wait_stream(current)
        with accelerator.stream(zero.reduction_stream):
            zero.gradient_reduction_w_predivide(flat, dtype)
        self.in_flight = flat, current

    def _wait_for_flight(self) -> None:
        """Let go of the bucket in flight: what its stream does from here on comes after it.

        `record_stream` in place of this gives its memory back when the host next finds the
        reduction done. The host is ahead of the device, so many buckets would pile up.
        """
        if self.in_flight:
            _, stream = self.in_flight
            stream.wait_stream(self.zero.reduction_stream)
            self.in_flight = None
