"""Reads and writes safetensors: one `model.safetensors`, or shards with an index file."""

import json
from pathlib import Path

import safetensors
from torch import Tensor

from gpt1_ds.base.errors import DataError
from gpt1_ds.base.files import write_atomically
from gpt1_ds.base.protocols import Json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
HEADER_ALIGNMENT = 8
"""The format requires a header of a multiple of this many bytes."""


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of `model.safetensors`, or of the shards that its index names.

    Raises DataError if a file is missing or damaged, or if there are only pickled weights.
    """
    tensors = {}
    try:
        for name in sorted(_names(folder)):
            path = folder / Path(name).name
            if not path.exists() and list(folder.glob("*.bin")):
                raise DataError(
                    f"{folder}: pickled weights are not read, they may run code; "
                    "save them as safetensors"
                )
            with safetensors.safe_open(path, "pt") as file:
                for key in file.keys():  # noqa: SIM118 (the handle is not a mapping)
                    tensors[key] = file.get_tensor(key)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise _broken(folder, error) from error
    except safetensors.SafetensorError as error:
        raise _broken(folder, error) from error
    return tensors


def _names(folder: Path) -> set[str]:
    index = folder / INDEX
    if not index.exists():
        return {WEIGHTS}
    return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())


def _broken(folder: Path, error: Exception) -> DataError:
    return DataError(f"{folder}: no whole weights in safetensors ({error}); fetch the folder again")


def write_weights(folder: Path, tensors: dict[str, Tensor], shard_bytes: int) -> None:
    """Write one file, or shards of at most `shard_bytes` and their index.

    A larger tensor gets its own shard.
    """
    shards = _shards(tensors, shard_bytes)
    if len(shards) == 1:
        write_safetensors(folder / WEIGHTS, shards[0], {"format": "pt"})
        return
    file_of: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / file, shard, {"format": "pt"})
        file_of |= dict.fromkeys(shard, file)
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": file_of}
    write_atomically(folder / INDEX, json.dumps(index, indent=2))


def _shards(tensors: dict[str, Tensor], shard_bytes: int) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write float32 tensors or views of them. Only one at a time is copied to be contiguous.

    safetensors' own writer would need a copy of all tensors.
    """
    header: Json = {"__metadata__": metadata}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % HEADER_ALIGNMENT)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.detach().contiguous().numpy().data.cast("B"))
