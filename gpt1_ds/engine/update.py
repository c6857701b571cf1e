"""The optimizer step of ZeRO 0 to 2 in few operators, and without a wait for the device.

These are changes to DeepSpeed's behaviour, of the kind of `internals.py`. They are on objects of
the engine and end with it. Other layouts (ZeRO-3, offload, Muon, half precision without ZeRO) keep
DeepSpeed's own step.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gpt1_ds.base.protocols import Engine
from gpt1_ds.engine.optimizer import AdamW

NO_MICRO_STEP = -1
"""What DeepSpeed's optimizers count from (`INITIAL_MICRO_STEP_ID`)."""


def quicken_update(engine: Engine) -> None:
    """Replace the optimizer's step by one with the same result, where the layout is known.

    Why:    DeepSpeed looks at each gradient in turn, first for values that are not finite, then for
            its norm, and asks the device for an answer four times. For 12 layers on one rank that
            is 2,285 operators, which take the host of a GPU longer than the GPU needs for the step.
    Seen:   DeepSpeed 0.19.8.
    Ends:   with the engine, whose objects the changes are on.
    Until:  DeepSpeed takes norms by `torch._foreach_norm` and leaves the answer on the device.
    """
    engine.late_skips = []
    optimizer = engine.optimizer
    if engine.zero_optimization_stage() in (1, 2):
        if _is_known_partition(engine):
            optimizer.step = PartitionUpdate(engine)
    elif not hasattr(optimizer, "overflow"):
        # Plain float32: DeepSpeed puts no wrapper around the optimizer, so that nothing would look
        # at the gradients.
        optimizer.step = WholeUpdate(engine)
        engine.clip_fp32_gradients = lambda: None  # type: ignore[method-assign]


def before_update(engine: Engine, action: Callable[[], None]) -> None:
    """Call `action` at the end of each step's last backward pass, before anything is updated.

    Why:    `checkpoints/replicas.py` looks at the weights there. torch's own hook of the inner
            optimizer comes too late under ZeRO-3, which has let go of whole parameters by then.
    Seen:   DeepSpeed 0.19.8.
    Ends:   with the engine.
    Until:  DeepSpeed has a hook before the step of its optimizers.
    """
    step = engine.optimizer.step

    def with_action(*args: object, **options: object) -> object:
        action()
        return step(*args, **options)

    engine.optimizer.step = with_action


def was_skipped(engine: Engine, skipped_before: int) -> bool | Tensor:
    """Whether the last step was left out because its gradients were not finite.

    A flag on the device, if the host does not know it yet; `skipped_before` is `skipped_steps`
    before the step.
    """
    return engine.late_skips[-1] if engine.late_skips else engine.skipped_steps > skipped_before


def skipped_steps(engine: Engine) -> int:
    """Number of steps that were left out so far. Waits for the device."""
    if engine.late_skips:
        engine.skipped_steps += int(torch.stack(engine.late_skips).sum())
        engine.late_skips.clear()
    return engine.skipped_steps


def _is_known_partition(engine: Engine) -> bool:
    """Whether the optimizer has the layout that `PartitionUpdate` reads."""
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    zero = engine.optimizer
    if type(zero) is not DeepSpeedZeroOptimizer:
        return False
    others = (
        zero.cpu_offload,
        zero.zenflow,
        zero.has_moe_layers,
        zero.model_parallel_group is not None,
        zero.low_precision_master_weights_and_grads,
        zero.torch_autocast_gradscaler,
        not zero.compute_grad_norm,
        zero.dtype == torch.bfloat16 and not zero.check_grad_overflow,
        engine.wall_clock_breakdown(),
        "muon" in type(zero.optimizer).__name__.lower(),
    )
    padded = any(any(padding) for padding in zero.round_robin_bit16_padding)
    return not any(others) and not padded


class Update:
    """What both updates share: whether the host may wait for the verdict on the gradients.

    Where it may not, the optimizer gets the verdict as a tensor: torch's fused AdamW then changes
    nothing (`found_inf`, made for torch's GradScaler), and the verdict is counted later, by
    `skipped_steps`. It waits on a CPU, where that costs nothing; for fp16, whose loss
    scale follows from the verdict; and for optimizers that take no such tensor.
    """

    def __init__(self, engine: Engine, inner: Any, scaled: bool):
        self.engine = engine
        self.inner = inner
        self.late = engine.device.type != "cpu" and isinstance(inner, AdamW) and not scaled

    def skips(self, finite: Tensor) -> bool:
        """Whether the host shall leave out the update; False if the optimizer does that itself."""
        if not self.late:
            return not finite.item()
        skipped = finite.logical_not()
        self.engine.late_skips.append(skipped)
        self.inner.found_inf = skipped.float()
        return False


class PartitionUpdate(Update):
    """The step of `DeepSpeedZeroOptimizer` (ZeRO 1 and 2), bit for bit.

    A norm that is not finite tells as much as DeepSpeed's search for such values: an element that
    is not finite makes it so. The sum over ranks carries it to all of them.
    """

    def __init__(self, engine: Engine):
        zero = engine.optimizer
        super().__init__(engine, zero.optimizer, scaled=engine.fp16_enabled())
        self.zero = zero

    @torch.no_grad()
    def __call__(self, closure: Callable[[], float] | None = None) -> None:
        zero = self.zero
        zero.micro_step_id = NO_MICRO_STEP
        norm = self._norm()
        finite = norm.isfinite()
        norm = torch.where(finite, norm, float("inf"))
        zero.overflow = self.skips(finite)
        scale = zero.loss_scale
        zero._update_scale(zero.overflow)
        if zero.overflow:
            zero._global_grad_norm = float("inf")
            self._release()
            return
        zero._global_grad_norm = norm / scale
        gradients = self._flat_gradients()
        self._release()
        self._unscale_and_clip(gradients, norm)
        self._update(gradients)
        self._gather()

    def _norm(self) -> Tensor:
        """The norm of all gradients of all ranks, times the loss scale."""
        from deepspeed import comm
        from deepspeed.runtime.zero.utils import get_norm_dtype

        zero = self.zero
        squares = []
        for number, parameters in enumerate(zero.params_in_partition):
            whole = zero.averaged_gradients[number]
            parts = [part for part in whole if not getattr(part, "_zero_padding", False)]
            norms = torch._foreach_norm(parts[: len(parameters)], 2, dtype=get_norm_dtype())
            square = torch.stack(norms).pow(2).sum().float() if norms else whole[0].new_zeros(())
            squares.append(square.float())
        total = torch.stack(squares)
        if comm.get_world_size(group=zero.dp_process_group) > 1:
            comm.all_reduce(total, group=zero.dp_process_group)
        return torch.linalg.vector_norm(total.pow(0.5))

    def _flat_gradients(self) -> list[Tensor]:
        """This rank's part of the gradients of each group, in the dtype of the master weights."""
        zero = self.zero
        flats = []
        for number, master in enumerate(zero.single_partition_of_fp32_groups):
            flat = zero._get_preflattened_grad_partition(number)
            if flat is None:
                flat = zero.flatten(zero.averaged_gradients[number])
            assert flat.numel() == zero.partition_size[number]
            flats.append(flat.to(master.dtype))
        return flats

    def _release(self) -> None:
        """Let go of the gradients by parameter: the flat ones are the only ones needed now."""
        zero = self.zero
        zero._release_preflattened_grad_buffers()
        zero.zero_grad(set_to_none=True)
        for number in zero.averaged_gradients:
            zero.averaged_gradients[number] = None
            zero.all_grad_tensors[number] = None

    def _unscale_and_clip(self, gradients: list[Tensor], norm: Tensor) -> None:
        zero = self.zero
        scale = zero.loss_scale
        if zero.clip_grad > 0.0:
            clip = ((norm / scale) + 1e-6) / zero.clip_grad
            scale = clip.clamp(min=1.0) * scale
        elif scale == 1.0:
            return
        for gradient in gradients:
            gradient.mul_(1.0 / scale)

    def _update(self, gradients: list[Tensor]) -> None:
        zero = self.zero
        masters = zero.single_partition_of_fp32_groups
        for master, gradient in zip(masters, gradients, strict=True):
            master.grad = gradient
        self.inner.step()
        zero._lazy_init_hp_params_optimizer_state()
        for master in masters:
            master.grad = None

    def _gather(self) -> None:
        """Round the master weights to the weights of the model, and gather those of all ranks."""
        from deepspeed.runtime.utils import all_gather_dp_groups

        zero = self.zero
        for number, master in enumerate(zero.single_partition_of_fp32_groups):
            group = zero.real_dp_process_group[number]
            rank = torch.distributed.get_rank(group)
            zero.parallel_partitioned_bit16_groups[number][rank].data.copy_(master.data)
        all_gather_dp_groups(
            groups_flat=zero.bit16_groups_flat,
            partitioned_param_groups=zero.parallel_partitioned_bit16_groups,
            dp_process_group=zero.real_dp_process_group,
            start_alignment_factor=zero.nccl_start_alignment_factor,
            allgather_bucket_size=zero.allgather_bucket_size,
        )


class WholeUpdate(Update):
    """The step of a plain optimizer in float32 without ZeRO, with clipping and a verdict.

    The engine reads `overflow` after each step and counts the steps left out in `skipped_steps`.
    """

    def __init__(self, engine: Engine):
        super().__init__(engine, engine.optimizer, scaled=False)
        self.step = engine.optimizer.step
        self.inner.overflow = False

    @torch.no_grad()
    def __call__(self, closure: Callable[[], float] | None = None) -> object:
        parameters = self.engine.module.parameters()
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = self.inner._global_grad_norm = self._norm(gradients)
        self._clip(gradients, norm)
        self.inner.overflow = self.skips(norm.isfinite())
        return None if self.inner.overflow else self.step(closure)

    def _norm(self, gradients: list[Tensor]) -> Tensor:
        """The mean of the ranks' norms before clipping, as DeepSpeed's `clip_grad_norm_` takes it.

        The ranks have the same gradients. An element that is not finite makes the norm so. The
        engine reads it as `_global_grad_norm`.
        """
        from deepspeed import comm
        from deepspeed.utils import groups

        norm = torch.stack(torch._foreach_norm(gradients, 2)).pow(2).sum().pow(0.5)
        if self.engine.gradient_clipping() <= 0.0:
            return norm
        ranks = groups._get_data_parallel_group()
        if comm.get_world_size(group=ranks) > 1:
            norm = norm / comm.get_world_size(group=ranks)
            comm.all_reduce(norm, group=ranks)
        return norm

    def _clip(self, gradients: list[Tensor], norm: Tensor) -> None:
        largest = self.engine.gradient_clipping()
        if largest > 0.0:
            share = torch.full_like(norm, largest) / (norm + 1e-6)
            torch._foreach_mul_(gradients, share.clamp(max=1.0))
