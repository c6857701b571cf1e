"""state.json and MANIFEST.json: a round trip keeps bytes and unknown keys; errors name a key."""

import json
from pathlib import Path

import pytest

from gpt1_ds.base.errors import DataError
from gpt1_ds.checkpoints.folder import read_checkpoint_manifest, read_state
from gpt1_ds.checkpoints.saving import save_weights
from gpt1_ds.checkpoints.state import CheckpointManifest, CheckpointState, FileSeal, Layout, digest

SOURCE = Path("step-00000003", "state.json")
MODEL = {"vocab_size": 1000, "n_layer": 2}
CURSOR = {"epoch": 1, "index": 24}
PRETRAINED = {
    "step": 3,
    "cursor": CURSOR,
    "losses": {"rollbacks": 0},
    "model": MODEL,
    "tokenizer_sha256": "ab" * 32,
    "seed": 1,
    "data": {"books": "cd" * 32},
}
FINE_TUNED = {
    "step": 3,
    "cursor": CURSOR,
    "best": None,
    "model": MODEL,
    "tokenizer_sha256": "ab" * 32,
    "seed": 1,
    "init": "none",
    "task": {"name": "sst2"},
}
IMPORTED = {"step": 0, "model": MODEL, "tokenizer_sha256": "ab" * 32, "imported": "/hf"}
STATES = {"pretrained": PRETRAINED, "fine-tuned": FINE_TUNED, "imported": IMPORTED}


@pytest.mark.parametrize("kind", STATES)
def test_a_state_is_written_as_it_was_read(kind):
    value = STATES[kind]
    for content in (value, {**value, "of_a_newer_version": [1]}):
        state = CheckpointState.from_json(content, SOURCE)
        assert json.dumps(state.to_json()) == json.dumps(content)


def test_unknown_keys_in_a_section_are_told_and_not_used(capsys):
    newer = {**PRETRAINED, "model": {**MODEL, "rope": 1}, "cursor": {**CURSOR, "shard": "x"}}
    state = CheckpointState.from_json(newer, SOURCE)
    assert state == CheckpointState.from_json(PRETRAINED, SOURCE)
    told = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[2].split()[0] for line in told] == ["model.rope", "cursor.shard"]


@pytest.mark.parametrize("kind", ["pretrained", "fine-tuned"])
@pytest.mark.parametrize("key", ["step", "cursor", "model", "tokenizer_sha256"])
def test_a_missing_key_is_named_with_its_file(kind, key):
    content = {name: item for name, item in STATES[kind].items() if name != key}
    with pytest.raises(DataError, match=f"step-00000003/state.json: the key '{key}' is missing"):
        CheckpointState.from_json(content, SOURCE)


@pytest.mark.parametrize("content", [[], "x", None, {**PRETRAINED, "cursor": {"place": 1}}])
def test_what_is_no_state_is_a_data_error(content):
    with pytest.raises(DataError, match="state.json: .*; take another checkpoint"):
        CheckpointState.from_json(content, SOURCE)


def test_a_manifest_is_written_as_it_was_read_and_its_hash_must_hold():
    content = {
        "step": 3,
        "world_size": 2,
        "zero_stage": 0,
        "precision": "bf16",
        "places": [7, 8],
        "order": ["wte", "wpe"],
        "config_hash": digest(PRETRAINED),
        "files": {"state.json": {"bytes": 5, "sha256": "ef" * 32}},
    }
    content["sha256"] = digest(content)
    manifest = CheckpointManifest.from_json(content)
    assert manifest.layout == Layout(2, 0, "bf16", [7, 8])
    assert manifest.files == {"state.json": FileSeal(5, "ef" * 32)}
    assert json.dumps(manifest.to_json()) == json.dumps(content)
    with pytest.raises(ValueError, match="sha256"):
        CheckpointManifest.from_json({**content, "step": 4})


def test_a_manifest_of_an_early_version_lacks_the_layout():
    content = {"step": 3, "world_size": 2, "zero_stage": 1, "config_hash": "", "files": {}}
    manifest = CheckpointManifest.from_json({**content, "sha256": digest(content)})
    assert manifest.layout == Layout(2, 1, None, None)


def test_a_checkpoint_of_weights_alone_says_so(tmp_path):
    save_weights(tmp_path, {}, CheckpointState.from_json(IMPORTED, SOURCE))
    folder = tmp_path / "checkpoints" / "step-00000000"
    assert json.loads((folder / "state.json").read_text()) == IMPORTED
    assert read_state(folder).imported == "/hf"
    manifest = read_checkpoint_manifest(folder)
    assert manifest.layout.zero_stage is None and manifest.config_hash == digest(IMPORTED)
    keys = json.loads((folder / "MANIFEST.json").read_text())
    assert list(keys) == ["step", "world_size", "zero_stage", "config_hash", "files", "sha256"]
