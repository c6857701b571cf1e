"""Where each parameter lies in the flat tensors of a live DeepSpeed optimizer.

Every attribute of `engine.optimizer` that this file reads is internal to DeepSpeed 0.19.8.
DeepSpeed's public functions (`safe_get_full_fp32_param` and its kin) gather one whole tensor on
all ranks and know no offsets. If they gave each rank its own slice, this file would go.
"""

import zlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpt1_ds.base.protocols import Engine
from gpt1_ds.checkpoints.state import Layout
from gpt1_ds.checkpoints.swap_files import ResidentPart
from gpt1_ds.distributed import collectives


@dataclass
class FlatSlice:
    """Elements `[start, start + length)` of a parameter, which this rank's optimizer updates.

    They lie in the flat tensor `flat`, number `part` of the optimizer's, from `offset` on.
    """

    name: str
    start: int
    length: int
    flat: Tensor
    part: int
    offset: int

    def weights(self) -> Tensor:
        """A view of these elements in `flat`."""
        return self.of_flat(self.flat)

    def of_flat(self, tensor: Tensor) -> Tensor:
        """A view of these elements in a moment of the shape of `flat`."""
        return tensor.detach().view(-1)[self.offset : self.offset + self.length]

    def of_parameter(self, tensor: Tensor) -> Tensor:
        """These elements of the whole parameter, or of a moment of its shape."""
        return tensor.flatten()[self.start : self.start + self.length]


def flat_slices(engine: Engine) -> list[FlatSlice]:
    """What this rank's optimizer updates, in its order."""
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    stage = engine.zero_optimization_stage()
    if stage == 3:
        return _slices_of_zero3(engine, names)
    if stage > 0:
        return _slices_of_zero1_and_2(engine, names)
    return _slices_without_zero(engine, names)


def _slices_of_zero3(engine: Engine, names: dict[int, str]) -> list[FlatSlice]:
    """A rank has an equal share of each parameter.

    `fp16_groups` lists the parameters of each sub-group, whatever their precision;
    `fp32_partitioned_groups_flat` holds this rank's shares of them, one after the other.
    `partition_numel` is the size of a share, with padding; `ds_numel` that of the parameter.
    """
    optimizer = engine.optimizer
    found = []
    for part, group in enumerate(optimizer.fp16_groups):
        offset = 0
        for p in group:
            share = p.partition_numel()
            start = share * collectives.rank()
            length = min(share, p.ds_numel - start)
            if length > 0:
                flat = optimizer.fp32_partitioned_groups_flat[part]
                found.append(FlatSlice(names[id(p)], start, length, flat, part, offset))
            offset += share
    return found


def _slices_of_zero1_and_2(engine: Engine, names: dict[int, str]) -> list[FlatSlice]:
    """A rank has an equal share of each group of parameters.

    `_hp_mapping` of a parameter tells where this rank's share of it begins: in the parameter (`lp`,
    low precision) and in the flat tensor (`hp`, high precision). It is None if there is no share.
    `BF16_Optimizer`, which DeepSpeed takes if bf16 gradients accumulate in float32, has other
    names for the groups than `DeepSpeedZeroOptimizer`.
    """
    optimizer = engine.optimizer
    if hasattr(optimizer, "bf16_groups"):
        groups, flats = optimizer.bf16_groups, optimizer.fp32_groups_flat_partition
    else:
        groups, flats = optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups
    found = []
    for part, group in enumerate(groups):
        for p in group:
            if p._hp_mapping is None:
                continue
            lp, hp = p._hp_mapping.lp_fragment_address, p._hp_mapping.hp_fragment_address
            name = names[id(p)]
            found.append(FlatSlice(name, lp.start, lp.numel, flats[part], part, hp.start))
    return found


def _slices_without_zero(engine: Engine, names: dict[int, str]) -> list[FlatSlice]:
    """Every rank has all parameters; float32 weights lie in one of three places.

    Plain float32: in the parameters themselves. Half precision: in one tensor for each parameter
    (`fp32_groups`), or, if the optimizer is fused, one for each group (`fp32_groups_flat`).
    """
    optimizer = engine.optimizer
    groups = getattr(optimizer, "fp16_groups", None)
    groups = groups or [group["params"] for group in optimizer.param_groups]
    masters = getattr(optimizer, "fp32_groups", groups)
    fused = getattr(optimizer, "fp32_groups_flat", None)
    found = []
    for part, group in enumerate(groups):
        offset = 0
        for p, master in zip(group, masters[part], strict=True):
            name = names[id(p)]
            if fused:
                found.append(FlatSlice(name, 0, p.numel(), fused[part], part, offset))
                offset += p.numel()
            else:
                found.append(FlatSlice(name, 0, p.numel(), master, len(found), 0))
    return found


def layout(engine: Engine, places: list[int] | None = None) -> Layout:
    """The layout of this run. All ranks call it, unless `places` has the `place_crc` of each."""
    precision = "fp32"
    if engine.bfloat16_enabled():
        precision = "bf16"
    elif engine.fp16_enabled():
        precision = "fp16"
    if places is None:
        places = collectives.gather_numbers([place_crc(engine)])[:, 0].tolist()
    return Layout(
        collectives.world_size(),
        engine.zero_optimization_stage(),
        precision,
        places,
    )


def place_crc(engine: Engine) -> int:
    """A CRC of where each slice of a parameter lies on this rank."""
    places = [[s.name, s.start, s.length, s.part, s.offset] for s in flat_slices(engine)]
    return zlib.crc32(repr([type(engine.optimizer).__name__, places]).encode())


def n_parameters(engine: Engine) -> int:
    """`ds_numel`: the whole size of a parameter that ZeRO-3 has partitioned, and so is empty."""
    return sum(getattr(p, "ds_numel", p.numel()) for p in engine.module.parameters())


@torch.no_grad()
def non_finite(engine: Engine) -> str | None:
    """The first of this rank's weights and moments with an element that is not finite, if any.

    Only elements of parameters count: the padding of a ZeRO-3 share is memory that nobody set.
    """
    optimizer, flags, seen = engine.basic_optimizer, {}, set()
    with ResidentPart(engine) as resident:
        for flat_slice in flat_slices(engine):
            resident.load(flat_slice.part)
            weights = flat_slice.weights()
            seen.add((weights.data_ptr(), weights.numel()))
            flags[flat_slice.name] = _is_finite(weights)
            for key, value in optimizer.state.get(flat_slice.flat, {}).items():
                if torch.is_tensor(value) and value.dim():
                    flags[f"{key} of {flat_slice.name}"] = _is_finite(flat_slice.of_flat(value))
    for name, parameter in engine.module.named_parameters():
        own = _own_elements(parameter)
        # In float32 without ZeRO the optimizer's weights are the module's.
        if (own.data_ptr(), own.numel()) not in seen:
            flags[f"the module's {name}"] = _is_finite(own)
    finite = torch.stack([flag.to(collectives.device()) for flag in flags.values()]).tolist()
    return next((name for name, fine in zip(flags, finite, strict=True) if not fine), None)


def _is_finite(tensor: Tensor) -> Tensor:
    """Whether all elements are finite, on the device of `tensor`; it takes no memory."""
    if not tensor.numel() or not tensor.is_floating_point():
        return torch.tensor(True)
    return torch.stack(torch.aminmax(tensor)).isfinite().all()


def _own_elements(parameter: Any) -> Tensor:
    """The elements of a parameter on this rank: under ZeRO-3 its share, without padding.

    A share that lies on NVMe is empty here.
    """
    if not hasattr(parameter, "ds_tensor"):
        return parameter.view(-1)
    real = parameter.ds_numel - parameter.partition_numel() * collectives.rank()
    return parameter.ds_tensor.view(-1)[: max(0, real)]


def replicated(engine: Engine) -> dict[str, Tensor]:
    """Views of what every rank keeps a whole copy of, by name, in the same order on all ranks.

    ZeRO-0: weights and the optimizer's state. ZeRO-1 and 2: the module's weights, which each step
    gathers. ZeRO-3: the small parameters that stay gathered (`ds_persist`). Always: buffers.
    """
    found = {f"the buffer {name}": buffer for name, buffer in engine.module.named_buffers()}
    stage = engine.zero_optimization_stage()
    if not stage:
        optimizer, seen = engine.basic_optimizer, set()
        for flat_slice in flat_slices(engine):
            found[flat_slice.name] = flat_slice.weights()
            seen.add(flat_slice.weights().data_ptr())
            for key, value in optimizer.state.get(flat_slice.flat, {}).items():
                if torch.is_tensor(value):
                    own = flat_slice.of_flat(value) if value.dim() else value
                    found[f"{key} of {flat_slice.name}"] = own
    for name, parameter in engine.module.named_parameters():
        whole = parameter.detach()
        if stage == 3 and not _stays_gathered(parameter):
            continue
        if stage or whole.data_ptr() not in seen:
            found[f"the module's {name}"] = whole
    return found


def _stays_gathered(parameter: Any) -> bool:
    return bool(parameter.ds_persist and parameter.numel() == parameter.ds_numel)


def whole_weights(engine: Engine) -> dict[str, Tensor]:
    """Every parameter whole and in float32, on each rank's device: what a checkpoint would hold.

    All ranks call. Without ZeRO-3, float32 parameters are the tensors of the module themselves.
    Otherwise each rank gets a copy, 4 bytes a parameter: its share of each parameter, and zeros
    that the bits of the other ranks' shares are added to. `ds_shape` is the shape of a parameter
    that ZeRO-3 has partitioned.
    """
    parameters = dict(engine.module.named_parameters())
    is_float32 = all(parameter.dtype == torch.float32 for parameter in parameters.values())
    if is_float32 and engine.zero_optimization_stage() < 3:
        return {name: parameter.detach() for name, parameter in parameters.items()}
    weights = {}
    for name, parameter in parameters.items():
        shape = getattr(parameter, "ds_shape", parameter.shape)
        weights[name] = torch.zeros(shape, device=collectives.device())
    with ResidentPart(engine) as resident:
        for flat_slice in flat_slices(engine):
            resident.load(flat_slice.part)
            own = flat_slice.of_parameter(weights[flat_slice.name].view(-1))
            own.copy_(flat_slice.weights())
    if engine.zero_optimization_stage():
        for name, own in weights.items():
            weights[name] = collectives.all_sum(own.view(torch.int32)).view(torch.float32)
    return weights


def release_gathered(engine: Engine) -> None:
    """ZeRO-3: give up the whole parameters that are gathered on this rank at the moment.

    They would keep the old weights. The method is what DeepSpeed calls before it saves or loads.
    """
    if hasattr(engine.optimizer, "checkpoint_event_prologue"):
        engine.optimizer.checkpoint_event_prologue()


def round_to_module(engine: Engine) -> None:
    """Set the module's parameters, perhaps bf16, from the optimizer's float32 weights.

    As DeepSpeed does at the end of a step: for ZeRO-3 sub-group by sub-group, where an entry None
    of `fp16_partitioned_groups_flat` means that the sub-group's parameters are swapped out, too;
    the epilogue gathers again what stays gathered.
    """
    optimizer = engine.optimizer
    stage = engine.zero_optimization_stage()
    if stage == 3:
        with ResidentPart(engine) as resident:
            for part, flat in enumerate(optimizer.fp32_partitioned_groups_flat):
                resident.load(part)
                if optimizer.fp16_partitioned_groups_flat[part] is None:
                    optimizer._partitioned_params_swap_out(part)
                else:
                    optimizer.fp16_partitioned_groups_flat[part].data.copy_(flat.data)
                    optimizer._unflatten_partitioned_parameters(part)
        optimizer.checkpoint_event_epilogue()
    elif stage > 0:
        optimizer.update_lp_params()
    else:
        parameters = dict(engine.module.named_parameters())
        for flat_slice in flat_slices(engine):
            parameters[flat_slice.name].data.view(-1).copy_(flat_slice.weights())


def set_counters(engine: Engine, counters: dict[str, int]) -> None:
    """Public attributes of the engine, which only DeepSpeed's own load sets otherwise."""
    engine.global_steps = counters["global_steps"]
    engine.global_samples = counters["global_samples"]
    engine.skipped_steps = counters["skipped_steps"]


def set_loss_scale(engine: Engine, scale: float) -> None:
    """Without ZeRO the scale lies in `loss_scale_config`, with ZeRO in `loss_scaler`."""
    optimizer = engine.optimizer
    scaler = getattr(optimizer, "loss_scale_config", None) or optimizer.loss_scaler
    scaler.cur_scale = scale
