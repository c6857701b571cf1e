"""DeepSpeed's own checkpoint files: written through its engine, and read without running code."""

import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate, zip_longest
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from gpt1_ds.base.errors import DataError
from gpt1_ds.checkpoints.swap_files import hide_from_deepspeed, map_swapped
from gpt1_ds.checkpoints.writing import CheckpointFiles
from gpt1_ds.distributed import collectives
from gpt1_ds.engine.internals import import_deepspeed


def write_deepspeed_files(engine, files: CheckpointFiles) -> None:
    """DeepSpeed's save, into `files`; it goes on where a file of this rank fails: its peers wait in a barrier."""
    write = engine.checkpoint_engine.save

    def redirected(state_dict, path):
        files.add(Path(path).name, lambda file: write(map_swapped(engine, state_dict), file))

    engine.checkpoint_engine.save = redirected
    engine._copy_recovery_script = lambda _: (
        None
    )  # a script that unpickles anything has no place in a run's folder
    try:
        folder = files.folder
        with hide_from_deepspeed(engine):
            engine.save_checkpoint(
                str(folder.parent), tag=folder.name, client_state={}, save_latest=False
            )
    finally:
        engine.checkpoint_engine.save = write


def refuse_untrusted(folder: Path) -> None:
    """Unpickle this rank's share of the files, mapped, before any rank loads: a refusal must be everyone's."""
    fault = None
    for path in sorted(folder.iterdir())[collectives.rank() :: collectives.world_size()]:
        try:
            if path.suffix == ".safetensors":
                safetensors.safe_open(path, "pt")
            elif path.suffix == ".pt":
                torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (pickle.UnpicklingError, RuntimeError, safetensors.SafetensorError) as error:
            fault = (
                f"{path}: untrusted content ({str(error).splitlines()[0]}); take another checkpoint"
            )
    if faults := [fault for fault in collectives.gather_json(fault) if fault]:
        raise DataError(faults[0])


def allow_known_classes() -> None:
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    import_deepspeed()
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    torch.serialization.add_safe_globals(
        [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]
    )


class SavedParameters:
    """A committed checkpoint read by parameter name; files are mapped, so that only what is asked for is read.

    Unpickling is weights-only, after `checkpoint` has allowed DeepSpeed's harmless classes.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]):
        stage, ranks = manifest["zero_stage"], range(manifest["world_size"])
        model = _load(
            folder / f"{'zero_pp_rank_0_' if stage == 3 else ''}mp_rank_00_model_states.pt"
        )
        self.counters = {
            name: model[name] for name in ("global_steps", "global_samples", "skipped_steps")
        }
        self.spans: dict[str, tuple[torch.Size, list[tuple[int, int, int, int]]]] = {}
        """Of each parameter its shape and, in order, (rank, part, offset, length) of where its elements lie."""
        if stage == 0:
            module, saved = model["module"], model["optimizer"]
            self.optimizer, self.scale = (
                saved.get("optimizer_state_dict", saved),
                saved.get("cur_scale"),
            )
            shapes = {name: module[name].shape for name in manifest.get("order") or module}
            unfused = sum(saved.get("fp32_groups", []), []) or [module[name] for name in shapes]
            self.flats = [saved.get("fp32_groups_flat", unfused)]
            self.states = [self.optimizer["state"]]
            self._lay(shapes, [(0, part) for part in range(len(self.flats[0]))])
            return
        paths = [
            next(folder.glob(f"*zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")) for rank in ranks
        ]
        saved = [_load(path)["optimizer_state_dict"] for path in paths]
        flats, optimizer = "single_partition_of_fp32_groups", "base_optimizer_state"
        if stage == 3:
            flats, optimizer = "fp32_flat_groups", "optimizer_state_dict"
        self.optimizer, self.scale = (
            saved[0][optimizer],
            getattr(saved[0].get("loss_scaler"), "cur_scale", None),
        )
        self.flats, self.states = (
            [of[flats] for of in saved],
            [of[optimizer]["state"] for of in saved],
        )
        if stage == 3:
            shapes = {
                name: shape for group in model["param_shapes"] for name, shape in group.items()
            }
            for rank in ranks:
                self._lay(
                    shapes,
                    [(rank, part) for part in range(len(self.flats[rank]))],
                    shared_by=len(ranks),
                )
        else:
            for part, shapes in enumerate(model["param_shapes"]):
                paddings = saved[0].get("param_alignment_paddings", {part: ()})[part]
                self._lay(shapes, [(rank, part) for rank in ranks], paddings)

    def _lay(
        self,
        shapes: Mapping[str, torch.Size],
        parts: list[tuple[int, int]],
        paddings=(),
        shared_by=1,
    ) -> None:
        """Note where parameters, or a rank's equal share of each, lie end to end in `parts`, (rank, part)."""
        ends = [0, *accumulate(self.flats[rank][part].numel() for rank, part in parts)]
        start = 0
        for (name, shape), padding in zip_longest(shapes.items(), paddings, fillvalue=0):
            end = start - (-shape.numel() // shared_by)
            for n, part in enumerate(parts):
                first, last = max(start, ends[n]), min(end, ends[n + 1])
                if first < last:
                    self.spans.setdefault(name, (shape, []))[1].append(
                        (*part, first - ends[n], last - first)
                    )
            start = end + padding

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter in float32."""
        return (
            (name, self._join(name, lambda rank, part: self.flats[rank][part]).float())
            for name in self.spans
        )

    def state(self, name: str) -> dict[str, Any]:
        """The optimizer's state of one parameter: tensors of its shape, and scalars such as Adam's step."""
        rank, part, _, _ = self.spans[name][1][0]
        # A flat tensor of ZeRO 1/2 is saved without its padding, its moments with it.
        return {
            key: self._join(name, lambda rank, part, key=key: self.states[rank][part][key])
            if torch.is_tensor(value)
            and value.dim()
            and value.numel() >= self.flats[rank][part].numel()
            else value
            for key, value in self.states[rank].get(part, {}).items()
        }

    def _join(self, name: str, flat: Callable[[int, int], Tensor]) -> Tensor:
        shape, spans = self.spans[name]
        cuts = [
            flat(rank, part).flatten()[start : start + length]
            for rank, part, start, length in spans
        ]
        return torch.cat(cuts)[: shape.numel()].view(shape)


def _load(path: Path) -> Mapping[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
