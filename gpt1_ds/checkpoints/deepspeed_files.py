"""DeepSpeed's own checkpoint files: written through its engine, and read without running code.

The names of the files and the keys in them are those of DeepSpeed 0.19.8, which documents neither.
"""

import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from gpt1_ds.base.errors import DataError
from gpt1_ds.base.protocols import Engine, Json
from gpt1_ds.checkpoints.state import CheckpointManifest
from gpt1_ds.checkpoints.swap_files import hide_from_deepspeed, map_swapped
from gpt1_ds.checkpoints.writing import BlockBuffer, FileWriter
from gpt1_ds.distributed import collectives
from gpt1_ds.engine.internals import import_deepspeed

if TYPE_CHECKING:
    from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine

MAPPED_BYTES = 1 << 26
"""How much of the files' mapped content may stay in memory while weights are read."""


def write_deepspeed_files(engine: Engine, writer: FileWriter) -> None:
    """Run DeepSpeed's save, but let `writer` write its files.

    It does not stop at a file that cannot be written: the peers of this rank wait in a barrier
    at the end of DeepSpeed's save. The writer remembers the fault.
    """
    original = engine.checkpoint_engine
    engine.checkpoint_engine = _redirected(original, engine, writer)
    # DeepSpeed puts a script beside the checkpoints that unpickles whatever it is given. Version
    # 0.19.8 has no option against it; with one, this patch would go.
    private: Any = engine
    private._copy_recovery_script = lambda save_path: None
    try:
        folder = writer.folder
        with hide_from_deepspeed(engine):
            engine.save_checkpoint(
                str(folder.parent), tag=folder.name, client_state={}, save_latest=False
            )
    finally:
        engine.checkpoint_engine = original
        del private._copy_recovery_script


def _redirected(
    original: "CheckpointEngine", engine: Engine, writer: FileWriter
) -> "CheckpointEngine":
    """An engine of DeepSpeed's interface for storage: `original` makes the bytes, `writer` writes.

    The class is made here since its base class can be imported only after `import_deepspeed`.
    """
    from deepspeed.runtime.checkpoint_engine.checkpoint_engine import (
        CheckpointCommitInfo,
        CheckpointEngine,
    )

    class Redirected(CheckpointEngine):
        def create(self, info: CheckpointCommitInfo) -> None:
            original.create(info)

        def save(self, state_dict: Json, path: str) -> None:
            def write_content(file: BlockBuffer) -> None:
                original.save(map_swapped(engine, state_dict), file)

            writer.add(Path(path).name, write_content)

        def load(self, path: str, map_location: Any = None) -> Any:
            return original.load(path, map_location)

        def commit(self, info: CheckpointCommitInfo) -> Any:
            return original.commit(info)

    return Redirected()


def refuse_untrusted(folder: Path) -> None:
    """Unpickle this rank's share of the files, mapped, without running code.

    DataError on all ranks if one refuses: so no rank has begun to load by then.
    """
    fault = None
    for path in sorted(folder.iterdir())[collectives.rank() :: collectives.world_size()]:
        try:
            if path.suffix == ".safetensors":
                safetensors.safe_open(path, "pt")
            elif path.suffix == ".pt":
                _load(path)
        except (pickle.UnpicklingError, RuntimeError, safetensors.SafetensorError) as error:
            fault = untrusted(path, error)
    faults = [fault for fault in collectives.gather_json(fault) if fault]
    if faults:
        raise DataError(faults[0])


def untrusted(path: Path, error: Exception) -> str:
    reason = str(error).splitlines()[0]
    return f"{path}: untrusted content ({reason}); take another checkpoint"


def allow_known_classes() -> None:
    """Let weights-only unpickling make DeepSpeed's four harmless classes, and nothing else.

    The environment variable has torch deny full unpickling to DeepSpeed's own readers, too. It
    stays for the life of the process: nothing that is read later may run code either.
    """
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    import_deepspeed()
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    torch.serialization.add_safe_globals(
        [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]
    )


@torch.no_grad()  # Some flat tensors require gradients: a graph would hold them, and their maps.
def read_weights(folder: Path, manifest: CheckpointManifest) -> dict[str, Tensor]:
    """Every parameter in float32; DataError if a file holds more than tensors and plain values."""
    allow_known_classes()
    weights: dict[str, Tensor] = {}
    try:
        names = SavedParameters(folder, manifest).names()
        while len(weights) < len(names):
            # What was read of a mapped file stays in memory as long as the map does. So map the
            # files anew for every few parameters.
            saved = SavedParameters(folder, manifest)
            left = MAPPED_BYTES
            for name in names[len(weights) :]:
                weights[name] = saved.weight(name)
                left -= weights[name].nbytes
                if left < 0:
                    break
    except pickle.UnpicklingError as error:
        raise DataError(untrusted(folder, error)) from error
    return weights


class FlatPart(NamedTuple):
    """A flat tensor: number `part` of those that `rank` saved."""

    rank: int
    part: int


class Span(NamedTuple):
    """Elements `[start, start + length)` of a flat tensor."""

    where: FlatPart
    start: int
    length: int


class SavedParameter(NamedTuple):
    """Shape of a parameter, and the spans that hold its elements, in order."""

    shape: torch.Size
    spans: list[Span]


class SavedParameters:
    """A committed checkpoint, read by parameter name.

    Its files are mapped, so that a read takes only what it needs. Unpickling is weights-only:
    call `allow_known_classes` before.
    """

    def __init__(self, folder: Path, manifest: CheckpointManifest):
        stage = manifest.layout.zero_stage
        model = _load_model_states(folder, manifest)
        self.counters: dict[str, int] = {
            name: model[name] for name in ("global_steps", "global_samples", "skipped_steps")
        }
        self.flats: list[list[Tensor]] = []
        """By rank, its flat tensors of float32 weights."""
        self.states: list[dict[int, Json]] = []
        """By rank, the optimizer's state of each of these flat tensors."""
        self.scale: float | None = None
        """Loss scale of fp16."""
        self.group_step: int | None = None
        """Steps done, if the optimizer counts them for a whole group and not for each tensor."""
        self._parameters: dict[str, SavedParameter] = {}
        if stage == 0:
            self._read_without_zero(model, manifest.order)
        else:
            paths = []
            for rank in range(manifest.layout.world_size):
                pattern = f"*zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
                paths.append(next(folder.glob(pattern)))
            saved = [_load(path)["optimizer_state_dict"] for path in paths]
            self.scale = getattr(saved[0].get("loss_scaler"), "cur_scale", None)
            if stage == 3:
                self._read_zero3(model, saved)
            else:
                self._read_zero1_and_2(model, saved)

    def _read_without_zero(self, model: Json, order: list[str] | None) -> None:
        """One file of rank 0: the module, and the optimizer's state by number of the parameter.

        DeepSpeed's half precision wrappers keep float32 weights beside it: the fused one in
        `fp32_groups_flat`, the unfused one in `fp32_groups`.
        """
        module, saved = model["module"], model["optimizer"]
        optimizer = saved.get("optimizer_state_dict", saved)
        self.scale = saved.get("cur_scale")
        shapes = {name: module[name].shape for name in order or module}
        unfused = list(chain.from_iterable(saved.get("fp32_groups", [])))
        unfused = unfused or [module[name] for name in shapes]
        self._add_rank(saved.get("fp32_groups_flat", unfused), optimizer)
        self._note_spans(shapes, [FlatPart(0, part) for part in range(len(self.flats[0]))])

    def _read_zero1_and_2(self, model: Json, saved: list[Json]) -> None:
        """Each parameter group is one flat tensor, cut into equal shares for the ranks."""
        for of_rank in saved:
            self._add_rank(
                of_rank["single_partition_of_fp32_groups"], of_rank["base_optimizer_state"]
            )
        for part, shapes in enumerate(model["param_shapes"]):
            paddings = saved[0].get("param_alignment_paddings", {part: ()})[part]
            ranks = [FlatPart(rank, part) for rank in range(len(saved))]
            self._note_spans(shapes, ranks, paddings)

    def _read_zero3(self, model: Json, saved: list[Json]) -> None:
        """Each parameter is cut into equal shares; a rank's shares lie in its own flat tensors."""
        shapes: dict[str, torch.Size] = {}
        for group in model["param_shapes"]:
            shapes |= group
        for rank, of_rank in enumerate(saved):
            self._add_rank(of_rank["fp32_flat_groups"], of_rank["optimizer_state_dict"])
            parts = [FlatPart(rank, part) for part in range(len(self.flats[rank]))]
            self._note_spans(shapes, parts, shared_by=len(saved))

    def _add_rank(self, flats: list[Tensor], optimizer: Json) -> None:
        if not self.flats:
            self.group_step = optimizer["param_groups"][0].get("step")
        self.flats.append(flats)
        self.states.append(optimizer["state"])

    def _note_spans(
        self,
        shapes: Mapping[str, torch.Size],
        parts: list[FlatPart],
        paddings: Sequence[int] = (),
        shared_by: int = 1,
    ) -> None:
        """Note where each parameter lies, one after the other in the concatenation of `parts`.

        `paddings`: unused elements after each. `shared_by`: only one rank's share of each lies
        there, of that many equal shares; the last one is padded.
        """
        lengths = [self.flats[where.rank][where.part].numel() for where in parts]
        ends = [0, *accumulate(lengths)]
        start = 0
        paddings = paddings or [0] * len(shapes)
        for (name, shape), padding in zip(shapes.items(), paddings, strict=True):
            end = start - (-shape.numel() // shared_by)  # rounded up
            parameter = self._parameters.setdefault(name, SavedParameter(shape, []))
            for number, where in enumerate(parts):
                first, last = max(start, ends[number]), min(end, ends[number + 1])
                if first < last:
                    parameter.spans.append(Span(where, first - ends[number], last - first))
            start = end + padding

    def names(self) -> list[str]:
        return list(self._parameters)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter in float32, by name."""
        return ((name, self.weight(name)) for name in self._parameters)

    def weight(self, name: str) -> Tensor:
        return self._join(name, lambda where: self.flats[where.rank][where.part]).float()

    def state(self, name: str) -> Json:
        """The optimizer's state of one parameter.

        Tensors of its shape (moments), and scalars such as Adam's step.
        """
        first = self._parameters[name].spans[0].where
        # A flat tensor of ZeRO 1/2 is saved without its padding, its moments with it.
        least = self.flats[first.rank][first.part].numel()
        state: Json = {}
        for key, value in self.states[first.rank].get(first.part, {}).items():
            if torch.is_tensor(value) and value.dim() and value.numel() >= least:
                state[key] = self._moment(name, key)
            else:
                state[key] = value
        return state

    def _moment(self, name: str, key: str) -> Tensor:
        return self._join(name, lambda where: self.states[where.rank][where.part][key])

    def _join(self, name: str, flat: Callable[[FlatPart], Tensor]) -> Tensor:
        """The parameter's elements, out of one flat tensor for each span."""
        shape, spans = self._parameters[name]
        cuts = []
        for where, start, length in spans:
            cuts.append(flat(where).flatten()[start : start + length])
        return torch.cat(cuts)[: shape.numel()].view(shape)


def saved_batch(folder: Path, manifest: CheckpointManifest) -> int | None:
    """Windows or examples of a step under the DeepSpeed JSON of the start that made `folder`.

    Call `allow_known_classes` before.
    """
    ds = _load_model_states(folder, manifest).get("ds_config")
    return ds.get("train_batch_size") if isinstance(ds, dict) else None


def _load_model_states(folder: Path, manifest: CheckpointManifest) -> Json:
    prefix = "zero_pp_rank_0_" if manifest.layout.zero_stage == 3 else ""
    return _load(folder / f"{prefix}mp_rank_00_model_states.pt")


def _load(path: Path) -> Json:
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
