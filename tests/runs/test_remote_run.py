"""A run behind a URL: what is downloaded, what is checked, and what is said if it is not there."""

import json
import shutil
from pathlib import Path

import pytest

import gpt1_ds
from gpt1_ds.base.errors import ConfigError, DataError
from gpt1_ds.checkpoints.state import CheckpointManifest, FileSeal
from tests.support.fine_tuning import save_tuned
from tests.support.loopback import serve

TEXTS = ["The old miller went to the river."]


@pytest.fixture
def served(tiny_run: Path, tmp_path: Path):
    """A server of a copy of the run, and of a fine-tuned run."""
    folder = tmp_path / "served"
    shutil.copytree(tiny_run, folder / "runs" / "tiny")
    tuned = save_tuned(folder / "runs" / "sst2", tiny_run, name="sst2", data="nowhere")
    (tuned / "best" / "checkpoints" / "latest").write_text("step-00000000\n")
    save_tuned(folder / "runs" / "imported", tiny_run, name="sst2", data="nowhere")
    with serve(folder) as server:
        yield server


def asked(served) -> list[str]:
    names = [Path(path.partition("?")[0]).name for path, _ in served.requests]
    served.requests.clear()
    return names


def test_a_run_a_checkpoint_and_a_fine_tuned_run_are_loaded(tiny_run, served, tmp_path):
    cache = str(tmp_path / "cache")
    here = gpt1_ds.load(tiny_run)
    there = gpt1_ds.load(f"{served.url}/runs/tiny/?signature=x", cache=cache)
    assert there.score(TEXTS) == here.score(TEXTS)
    assert there.folder.name == here.folder.name
    assert any(name.endswith("model_states.pt") for name in asked(served))
    again = gpt1_ds.load(f"{served.url}/runs/tiny/?signature=x", cache=cache)
    assert again.score(TEXTS) == here.score(TEXTS)
    assert set(asked(served)) == {"latest", "MANIFEST.json", "tokenizer.model"}
    step = sorted((tiny_run / "checkpoints").glob("step-*"))[0].name
    one = gpt1_ds.load(f"{served.url}/runs/tiny/checkpoints/{step}", cache=cache)
    assert one.folder.name == step and "latest" not in asked(served)
    tuned = gpt1_ds.load(f"{served.url}/runs/sst2", cache=cache)
    local = gpt1_ds.load(served.folder / "runs" / "sst2")
    assert tuned.predict(TEXTS) == local.predict(TEXTS)
    # An imported folder has no file `latest`.
    imported = gpt1_ds.load(f"{served.url}/runs/imported/best", cache=cache)
    assert imported.predict(TEXTS) == local.predict(TEXTS)


def test_a_file_that_differs_from_its_hash_is_refused(served, tmp_path):
    path = next((served.folder / "runs/sst2/best/checkpoints").glob("*/model.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="model.safetensors differs from its sha256; restore it"):
        gpt1_ds.load(f"{served.url}/runs/sst2", cache=str(tmp_path / "cache"))
    for manifest in (served.folder / "runs/tiny/checkpoints").glob("*/MANIFEST.json"):
        manifest.write_text(manifest.read_text().replace('"step"', '"stop"'))
    with pytest.raises(DataError, match="MANIFEST.json is missing or damaged; restore it there"):
        gpt1_ds.load(f"{served.url}/runs/tiny", cache=str(tmp_path / "cache"))


def test_a_manifest_cannot_name_a_file_elsewhere(served, tmp_path):
    folder = next((served.folder / "runs/sst2/best/checkpoints").glob("step-*"))
    manifest = CheckpointManifest.from_json(json.loads((folder / "MANIFEST.json").read_text()))
    manifest.files["../../../../escaped"] = FileSeal(1, "0" * 64)
    (folder / "MANIFEST.json").write_text(json.dumps(manifest.to_json()))
    with pytest.raises(DataError, match="names a file elsewhere, ../../../../escaped"):
        gpt1_ds.load(f"{served.url}/runs/sst2", cache=str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("path", "says"),
    [
        (
            "/nowhere",
            r"/nowhere\?\*\*\*: no checkpoints/latest there; give the address of a run folder",
        ),
        ("/runs/tiny/checkpoints/step-00000001", r"MANIFEST.json\?\*\*\*: is not there"),
    ],
)
def test_what_is_not_there_is_told_in_one_line(served, tmp_path, path, says):
    with pytest.raises(DataError, match=says) as caught:
        gpt1_ds.load(f"{served.url}{path}?token=secret", cache=str(tmp_path / "cache"))
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


def test_a_pointer_to_no_checkpoint_and_an_unknown_scheme(served, tmp_path):
    (served.folder / "runs/tiny/checkpoints/latest").write_text("../../elsewhere\n")
    with pytest.raises(DataError, match="checkpoints/latest names no checkpoint"):
        gpt1_ds.load(f"{served.url}/runs/tiny", cache=str(tmp_path / "cache"))
    with pytest.raises(ConfigError, match="the address gopher://x/y: not a URL of file, http"):
        gpt1_ds.load("gopher://x/y")
