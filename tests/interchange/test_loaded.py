"""An exported folder, loaded by `gpt1_ds.load` without transformers."""

import json

import pytest
import torch

import gpt1_ds
from gpt1_ds.base.errors import DataError
from tests.interchange.test_weights import run_export
from tests.support.fine_tuning import save_tuned


def test_an_export_is_loaded_as_the_run_itself(tiny_run, sample, tmp_path):
    data = sample / "tasks" / "SNLI"
    run = save_tuned(tmp_path / "run", tiny_run, name="snli", data=str(data))
    ours = gpt1_ds.load(run)
    run_export(run, tmp_path / "out")
    theirs = gpt1_ds.load(tmp_path / "out")
    pairs = [("A man sleeps.", "He is awake."), ("The old miller went home.", "He went.")]
    assert theirs.predict(pairs) == ours.predict(pairs)
    assert torch.equal(theirs.logits(["The old"])[0], ours.logits(["The old"])[0])
    # Without the head it is the decoder alone, as a folder of transformers is.
    (tmp_path / "out" / "head.safetensors").unlink()
    assert gpt1_ds.load(tmp_path / "out").task is None
    (tmp_path / "out" / "head.safetensors").write_bytes(b"\x08")
    with pytest.raises(DataError, match="head.safetensors: cannot be read"):
        gpt1_ds.load(tmp_path / "out")
    config = tmp_path / "out" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "gpt2"}))
    with pytest.raises(DataError, match="is not this model: openai-gpt"):
        gpt1_ds.load(tmp_path / "out")
