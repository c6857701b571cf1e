"""What a result of fine-tuning was made from, and what differs from what a start asks for.

`made_from` in result.json holds the settings that decide a result, the hash of the initial weights,
the hashes of the examples, and the version of the code. Results of earlier versions lack it; for
them config.yaml is compared.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import yaml

from gpt1_ds.base.protocols import Json
from gpt1_ds.checkpoints.state import CheckpointState
from gpt1_ds.runs.directory import flat
from gpt1_ds.runs.start_facts import installed_version
from gpt1_ds.settings.loading import to_dict
from gpt1_ds.settings.sections import FinetuneConfig
from gpt1_ds.tasks.examples import Example

SECTIONS = ("run.", "model.", "train.", "optim.", "schedule.", "eval.", "init.", "task.")
FREE = (
    "run.name",
    "run.dir",
    "model.preset",  # the numbers that it stands for are compared
    "train.micro_batch",
    "train.max_skipped",
    "train.activation_checkpointing",
    "train.compile",
    "train.cuda_graphs",
    "train.deterministic",
)
"""Settings of these sections that change no result."""
PLACES = {"init.checkpoint": "init_sha256", "task.data": "data"}
"""Settings that are paths, and the hashes that are compared in place of the paths."""
DIGEST_CHARACTERS = 12


def deciding_settings(config: FinetuneConfig) -> Json:
    """Each `section.key` that a result depends on."""
    return _deciding(to_dict(config))


def _deciding(sections: Json) -> Json:
    named = flat(sections).items()
    return {name: value for name, value in named if name.startswith(SECTIONS) and name not in FREE}


def examples_digest(examples: Sequence[Example]) -> str:
    """Number and hash of the examples of a split, as read from its file."""
    digest = hashlib.sha256()
    for example in examples:
        content = [example.texts, example.label, example.part]
        digest.update(json.dumps(content, default=str).encode() + b"\n")
    return f"{len(examples)} examples, sha256 {digest.hexdigest()[:DIGEST_CHARACTERS]}"


def made_from(config: FinetuneConfig, facts: CheckpointState) -> Json:
    """The content of `made_from` in result.json."""
    return {
        "version": installed_version("gpt1-ds"),
        "settings": deciding_settings(config),
        "tokenizer_sha256": facts.tokenizer_sha256,
        "init_sha256": facts.init_sha256,
        "data": facts.data,
    }


def facts_of_run(folder: Path) -> Json:
    """What the result in `folder` was made from, as far as its files tell; empty if unreadable."""
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        facts = result.get("made_from")
        if isinstance(facts, dict):
            return facts
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        return {"settings": _deciding(config)}
    except (OSError, ValueError, AttributeError, RecursionError, yaml.YAMLError):
        return {}


def differences(before: Json, now: Json) -> list[str]:
    """`NAME BEFORE, now NOW` of what differs; what either side does not know is not compared."""
    was, is_now = _comparable(before), _comparable(now)
    for path, known in PLACES.items():
        if _known(before, known) and _known(now, known):
            was.pop(path, None)
    return [
        f"{name} {was[name]}, now {value}"
        for name, value in is_now.items()
        if name in was and was[name] != value
    ]


def _known(facts: Json, name: str) -> bool:
    return facts.get(name) is not None


def _comparable(facts: Json) -> Json:
    settings, data = facts.get("settings"), facts.get("data")
    found = dict(settings) if isinstance(settings, dict) else {}
    if isinstance(data, dict):
        found |= {f"data of {split}": digest for split, digest in data.items()}
    for name in ("init_sha256", "tokenizer_sha256"):
        if _known(facts, name):
            found[name.replace("_", " ")] = str(facts[name])[:DIGEST_CHARACTERS]
    return found
