"""What all ranks of a start must have in common: settings, code, versions, environment.

`rendezvous.Meeting.compare` compares it before anything is built.
"""

import hashlib
import os
import platform
from importlib import metadata
from pathlib import Path

import torch

from gpt1_ds.base.protocols import Json
from gpt1_ds.checkpoints.folder import MANIFEST, checkpoint_folders
from gpt1_ds.runs.directory import flat
from gpt1_ds.runs.remote_run import local_run
from gpt1_ds.settings.loading import to_dict
from gpt1_ds.settings.sections import PretrainConfig

PLACES = ("data.shards", "data.cache", "data.cache_bytes", "init.checkpoint", "task.data")
"""Settings that may differ, because each machine may have copies of its own.

Their content is compared instead: that of shards in `opening.sound_manifest`, that of a checkpoint
by `checkpoint_facts`, that of a task as the hashes of its examples.
"""
NVME_PATH = "nvme_path"
"""This setting of the JSON may differ too: the local disk of a machine."""
ENVIRONMENT = (
    "DS_ACCELERATOR",  # DeepSpeed's device, and with it the backend of collectives
    "NVIDIA_TF32_OVERRIDE",  # the precision of matrix products on a GPU
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)
"""Variables that change what a rank computes or how it communicates.

MASTER_ADDR and MASTER_PORT are not among them: ranks that meet have the same, however it is
spelled. Variables of threads, caches and network interfaces may differ between machines.
"""


def start_facts(config: PretrainConfig, ds: Json, from_scratch: bool) -> Json:
    """Every fact by its name, as a message shows it."""
    facts = {name: value for name, value in flat(to_dict(config)).items() if name not in PLACES}
    for name, value in flat(_without_nvme_path(ds)).items():
        facts[f"--deepspeed_config {name}"] = value
    facts["--from-scratch"] = from_scratch
    facts["the code of gpt1_ds"] = f"{installed_version('gpt1-ds')} with sha256 {_code_sha256()}"
    facts["the version of Python"] = ".".join(platform.python_version_tuple()[:2])
    for package in ("torch", "deepspeed"):
        facts[f"the version of {package}"] = installed_version(package)
    facts["the device"] = "GPU" if torch.cuda.is_available() else "CPU"
    for name in ENVIRONMENT:
        facts[f"environment variable {name}"] = os.environ.get(name)
    return facts


def checkpoint_facts(checkpoint: Path | str) -> Json:
    """Which checkpoint `init.checkpoint` names, by the hash of its manifest."""
    path = Path(local_run(checkpoint))
    folders = [path, *checkpoint_folders(path / "checkpoints")]
    manifest = next((each / MANIFEST for each in folders if (each / MANIFEST).is_file()), None)
    content = manifest.read_bytes() if manifest else b""  # the command itself reports that
    return {"the content of init.checkpoint": hashlib.sha256(content).hexdigest()[:12]}


def _without_nvme_path(value: Json) -> Json:
    kept = {}
    for name, item in value.items():
        if name != NVME_PATH:
            kept[name] = _without_nvme_path(item) if isinstance(item, dict) else item
    return kept


def installed_version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _code_sha256() -> str:
    """One hash of all source files of this package."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]
