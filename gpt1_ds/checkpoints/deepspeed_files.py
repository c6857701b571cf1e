"""DeepSpeed's own checkpoint files: written through its engine, and opened without running code.

The names of the files and the keys in them are those of DeepSpeed 0.19.8, which documents neither.
"""

import os
import pickle
import re
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch
from torch.utils import serialization

from gpt1_ds.base.errors import DataError
from gpt1_ds.base.protocols import Engine, Json
from gpt1_ds.checkpoints.state import CheckpointManifest
from gpt1_ds.checkpoints.swap_files import hide_from_deepspeed, map_swapped
from gpt1_ds.checkpoints.writing import BlockBuffer, FileWriter
from gpt1_ds.distributed import collectives
from gpt1_ds.engine.internals import import_deepspeed, pickle_stages_by_value
from gpt1_ds.engine.update import skipped_steps

if TYPE_CHECKING:
    from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine

GETATTR = "builtins.getattr"
"""The name of `getattr` for torch's unpickler."""
OPTIMIZER_FILE = re.compile(r"\w*zero_pp_rank_(\d+)_mp_rank_00_optim_states\.pt")


def write_deepspeed_files(engine: Engine, writer: FileWriter) -> None:
    """Run DeepSpeed's save, but let `writer` write its files.

    It does not stop at a file that cannot be written: the peers of this rank wait in a barrier
    at the end of DeepSpeed's save. The writer remembers the fault.
    """
    skipped_steps(engine)  # DeepSpeed saves their number
    pickle_stages_by_value()
    original = engine.checkpoint_engine
    engine.checkpoint_engine = _redirected(original, engine, writer)
    # DeepSpeed puts a script beside the checkpoints that unpickles whatever it is given. Version
    # 0.19.8 has no option against it; with one, this patch would go.
    private: Any = engine
    private._copy_recovery_script = lambda save_path: None
    try:
        folder = writer.folder
        with hide_from_deepspeed(engine), quick_copies(engine.device):
            engine.save_checkpoint(
                str(folder.parent), tag=folder.name, client_state={}, save_latest=False
            )
    finally:
        engine.checkpoint_engine = original
        del private._copy_recovery_script


def quick_copies(device: torch.device) -> AbstractContextManager[None]:
    """Options of `torch.save` for tensors on a GPU: what is copied there, training waits for.

    Through pinned memory the copy has the full speed of the bus. The CRC of each tensor is left
    out: the manifest has a hash of the whole file, and torch reads such files like others (other
    programs for zip files call them damaged). On a CPU nothing changes, and no byte of the files.
    """
    if device.type != "cuda":
        return nullcontext()
    options = {"save.use_pinned_memory_for_d2h": True, "save.compute_crc32": False}
    patch = serialization.config.patch  # type: ignore[attr-defined]
    patched: AbstractContextManager[None] = patch(options)
    return patched


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


def refuse_untrusted(folder: Path, manifest: CheckpointManifest) -> None:
    """Unpickle this rank's share of the files in the manifest, mapped, without running code.

    DataError on all ranks if one refuses: so no rank has begun to load by then.
    """
    fault = None
    for name in sorted(manifest.files)[collectives.rank() :: collectives.world_size()]:
        path = folder / name
        try:
            if path.suffix == ".safetensors":
                safetensors.safe_open(path, "pt")
            elif path.suffix == ".pt":
                load_file(path)
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

    stages = dict(ZeroStageEnum.__members__)

    def stage_of_name(kind: type, name: str) -> object:
        """All that `getattr` may do here: how Python 3.11.0 to 3.11.3 wrote a stage."""
        if kind is not ZeroStageEnum or name not in stages:
            raise pickle.UnpicklingError(f"getattr of {kind}")
        return stages[name]

    torch.serialization.add_safe_globals(
        [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]
    )
    torch.serialization.add_safe_globals([(stage_of_name, GETATTR)])


def saved_batch(folder: Path, manifest: CheckpointManifest) -> int | None:
    """Windows or examples of a step under the DeepSpeed JSON of the start that made `folder`.

    Call `allow_known_classes` before.
    """
    ds = load_model_states(folder, manifest).get("ds_config")
    return ds.get("train_batch_size") if isinstance(ds, dict) else None


def load_model_states(folder: Path, manifest: CheckpointManifest) -> Json:
    prefix = "zero_pp_rank_0_" if manifest.layout.zero_stage == 3 else ""
    return load_file(folder / f"{prefix}mp_rank_00_model_states.pt")


def optimizer_files(manifest: CheckpointManifest) -> dict[int, str]:
    """Under ZeRO: the name of the file with the optimizer's state of each rank."""
    found = {}
    for name in manifest.files:
        if match := OPTIMIZER_FILE.fullmatch(name):
            found[int(match[1])] = name
    return found


def load_file(path: Path) -> Json:
    """The content of a file, mapped: only what is used of its tensors is read."""
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
