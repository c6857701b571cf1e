"""A subject's values: computed by functions, kept in a JSON file; and digests for long ones."""

import atexit
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

FOLDER = Path(__file__).resolve().parent
FIRST = 8
"""Values that are written out in front of the digest of an array."""

Compute = Callable[[], Any]


class Group:
    """The golden values of one subject, by name."""

    def __init__(self, name: str):
        self.name = name
        self.path = FOLDER / f"{name}.json"
        self.functions: dict[str, Compute] = {}

    def value(self, function: Compute) -> Compute:
        """Take a function's result as the value of the function's name."""
        self.functions[function.__name__] = function
        return function

    def compute(self, name: str) -> Any:
        """The value as the code gives it now, in the types that JSON has."""
        return json.loads(json.dumps(self.functions[name]()))

    def read(self) -> dict[str, Any]:
        return json.loads(self.path.read_text(encoding="utf-8"))

    def write(self) -> None:
        """One line for each value, so that a change is seen in a diff."""
        values = {name: self.compute(name) for name in sorted(self.functions)}
        lines = [f"{json.dumps(name)}: {_json(value)}" for name, value in values.items()]
        self.path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def _json(value: Any) -> str:
    """A dict of several entries has one entry a line."""
    if not isinstance(value, dict) or len(value) < 2:
        return json.dumps(value, ensure_ascii=False)
    entries = [f"  {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in value.items()]
    return "{\n" + ",\n".join(entries) + "\n}"


def digest(data: bytes | str) -> str:
    """64 bits of the SHA-256: enough to notice a change, and short."""
    data = data.encode() if isinstance(data, str) else data
    return hashlib.sha256(data).hexdigest()[:16]


def json_digest(value: Any) -> str:
    return digest(json.dumps(value, sort_keys=True, ensure_ascii=False))


def array(values: np.ndarray | Tensor | Sequence[int]) -> dict[str, Any]:
    """Shape, first values and digest of an array of integers; its byte order is little-endian."""
    if isinstance(values, Tensor):
        values = values.numpy()
    integers = np.asarray(values)
    assert integers.dtype.kind in "iub", integers.dtype
    integers = integers.astype("<u8" if integers.dtype.kind == "u" else "<i8")
    return {
        "shape": list(integers.shape),
        "first": integers.ravel()[:FIRST].tolist(),
        "digest": digest(integers.tobytes()),
    }


def bits(values: np.ndarray | Tensor) -> dict[str, Any]:
    """Shape, share of ones in 1/1000 and digest of an array of truth values."""
    if isinstance(values, Tensor):
        values = values.numpy()
    return {
        "shape": list(values.shape),
        "permille": int(values.sum()) * 1000 // values.size,
        "digest": digest(np.packbits(values).tobytes()),
    }


@cache
def scratch() -> Path:
    """A folder for this process, removed at its end."""
    folder = Path(tempfile.mkdtemp(prefix="golden-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
