"""The content of a checkpoint's `state.json` and `MANIFEST.json`.

No other module knows the keys of these files.
"""

import hashlib
import json
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import NamedTuple

from gpt1_ds.base.errors import DataError
from gpt1_ds.base.protocols import Json
from gpt1_ds.data.order import Cursor
from gpt1_ds.distributed import collectives
from gpt1_ds.model.gpt import GPTConfig

NEEDED = ("step", "model", "tokenizer_sha256")


@dataclass(frozen=True, kw_only=True)
class CheckpointState:
    """What `state.json` holds; the order of the fields is the order of the keys in the file.

    Pre-training sets `losses`, `data` and `order`; fine-tuning sets `best`, `init` and `task`; an
    imported folder sets `imported` and has neither a cursor nor a seed.
    """

    step: int
    """Optimizer steps done."""
    cursor: Cursor = Cursor()
    """The place in the data where the next step begins."""
    losses: Json | None = None
    """`LossHistory.to_dict()`."""
    best: Json | None = None
    """The record of the best dev score so far; None before the first score."""
    model: Json
    """`dataclasses.asdict` of the `GPTConfig`."""
    tokenizer_sha256: str
    seed: int | None = None
    data: dict[str, str] | None = None
    """A fingerprint of the shards of each corpus; fine-tuning: of the examples of train and dev."""
    order: str | None = None
    """`kind` of the `WindowOrder`; None: grouped-1, as in early versions, or fine-tuning."""
    init: str | None = None
    """The checkpoint whose weights fine-tuning began with, or "none"."""
    init_sha256: str | None = None
    """The hash of its manifest."""
    at_words: int | None = None
    """The one of `checkpoint.at_words` that this step reached: the checkpoint is kept for good."""
    task: Json | None = None
    """Name, kind, classes and config of the task."""
    imported: str | None = None
    """The folder that `gpt1_ds.export` imported the weights from."""
    unknown: Json = field(default_factory=dict)
    """Keys that a newer version of this project wrote; `to_json` writes them back."""

    @classmethod
    def from_json(cls, value: object, source: Path) -> "CheckpointState":
        """The state in `value`, the content of the file `source`.

        DataError, which names the file and the key, if a key is missing that every run writes.
        """
        if not isinstance(value, dict):
            raise DataError(f"{source}: not a JSON object; take another checkpoint")
        needed = NEEDED if "imported" in value else (*NEEDED, "cursor")
        for name in needed:
            if name not in value:
                raise DataError(f"{source}: the key {name!r} is missing; take another checkpoint")
        known = {name: value[name] for name in STATE_KEYS if name in value}
        unknown = {name: value[name] for name in value if name not in STATE_KEYS}
        known["model"] = _known_part(value, "model", GPTConfig, source)
        cursor = _known_part(value, "cursor", Cursor, source)
        if "cursor" in value and cursor.keys() != {"epoch", "index"}:
            raise DataError(f"{source}: the key 'cursor' is damaged; take another checkpoint")
        known["cursor"] = Cursor(**cursor)
        return cls(**known, unknown=unknown)

    def to_json(self) -> Json:
        """The object to write, without the keys that do not apply to this kind of run."""
        value: Json = {name: getattr(self, name) for name in STATE_KEYS}
        value["cursor"] = self.cursor.to_dict() if self.imported is None else None
        written_as_null = "best" if self.task is not None else None
        content: Json = {}
        for name, item in value.items():
            if item is not None or name == written_as_null:
                content[name] = item
        return content | self.unknown


def _known_part(value: Json, section: str, known: type, source: Path) -> Json:
    """The section without the keys of a newer version, which rank 0 tells."""
    part = value.get(section) or {}
    if not isinstance(part, dict):
        raise DataError(f"{source}: the key {section!r} is {part!r}; take another checkpoint")
    names = [item.name for item in fields(known)]
    unknown = [f"{section}.{name}" for name in part if name not in names]
    if unknown and collectives.is_main():
        text = f"{', '.join(unknown)} not known to this version, and not used"
        print(f"warning: {source}: {text}", file=sys.stderr)
    return {name: item for name, item in part.items() if name in names}


STATE_KEYS = tuple(item.name for item in fields(CheckpointState) if item.name != "unknown")


class FileSeal(NamedTuple):
    """Size and hash of a file of the checkpoint."""

    bytes: int
    sha256: str


class Layout(NamedTuple):
    """Which rank keeps which elements of which parameter, and in which precision.

    DeepSpeed itself loads a checkpoint only into the layout that wrote it.
    """

    world_size: int
    zero_stage: int | None
    """None in a checkpoint of weights alone, which DeepSpeed did not write."""
    precision: str | None = None
    """bf16, fp16 or fp32."""
    places: list[int] | None = None
    """One number a rank: a CRC of where each slice of a parameter lies on it."""


@dataclass(frozen=True)
class CheckpointManifest:
    """What `MANIFEST.json` holds; the file makes a folder a committed checkpoint."""

    step: int
    layout: Layout
    config_hash: str
    """`digest` of the state."""
    files: dict[str, FileSeal]
    order: list[str] | None = None
    """Without ZeRO, the names of the parameters in the optimizer's order."""

    @classmethod
    def from_json(cls, value: Json) -> "CheckpointManifest":
        """The manifest in `value`; ValueError or KeyError if its own hash does not hold."""
        content = {name: item for name, item in value.items() if name != "sha256"}
        if value["sha256"] != digest(content):
            raise ValueError("the manifest differs from its sha256")
        layout = Layout(
            value["world_size"], value["zero_stage"], value.get("precision"), value.get("places")
        )
        files = {}
        for name, seal in value["files"].items():
            files[name] = FileSeal(seal["bytes"], seal["sha256"])
        return cls(value["step"], layout, value["config_hash"], files, value.get("order"))

    def to_json(self) -> Json:
        """The object to write; its last key is the hash of all the others."""
        content: Json = {"step": self.step, **self.layout._asdict(), "order": self.order}
        if self.layout.zero_stage is None:
            for name in ("precision", "places", "order"):
                del content[name]
        content["config_hash"] = self.config_hash
        content["files"] = {name: seal._asdict() for name, seal in self.files.items()}
        return content | {"sha256": digest(content)}


def digest(value: Json) -> str:
    """SHA-256 of a JSON object, the same for any order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
