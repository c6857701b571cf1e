"""Every weight of an imported folder is in the run, or is told, or the import is refused."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from transformers import OpenAIGPTForSequenceClassification, OpenAIGPTLMHeadModel

from gpt1_ds.base.errors import DataError
from gpt1_ds.checkpoints.loading import load_weights
from gpt1_ds.interchange.equality import relative_difference
from tests.interchange.test_weights import openai_bpe, reference, released, run_export

__all__ = ["openai_bpe", "reference", "released"]
WEIGHTS = "model.safetensors"


def changed(reference: Path, folder: Path, **tensors: torch.Tensor) -> Path:
    """A copy of the reference with further tensors."""
    shutil.copytree(reference, folder)
    weights = safetensors.torch.load_file(folder / WEIGHTS)
    weights |= {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    safetensors.torch.save_file(weights, folder / WEIGHTS, {"format": "pt"})
    return folder


def test_logits_are_compared_with_the_source(reference, released, tmp_path, capsys, monkeypatch):
    for kind, source in (("--from-hf", reference), ("--from-openai", released)):
        run_export(kind, source, tmp_path / kind)
        assert "logits equal the source's within" in capsys.readouterr().out
    ours = torch.tensor([1.0, -2.0])
    assert relative_difference(ours, ours + 1e-4, "x") == pytest.approx(5e-5, rel=1e-2)
    with pytest.raises(DataError, match="x differ by 5.0e-02 of the largest"):
        relative_difference(ours, ours + 0.1, "x")
    monkeypatch.setitem(sys.modules, "transformers", None)
    run_export("--from-hf", reference, tmp_path / "alone")
    assert "not compared with the source" in capsys.readouterr().out


def test_an_untied_output_matrix_is_refused_and_a_tied_one_is_not(reference, tmp_path):
    model = OpenAIGPTLMHeadModel.from_pretrained(reference)
    embedding = model.transformer.tokens_embed.weight.detach().clone()
    tied = changed(reference, tmp_path / "tied", lm_head__weight=embedding.clone())
    run_export("--from-hf", tied, tmp_path / "out")
    for number, other in enumerate((embedding + 1e-3, embedding[:-1].clone(), embedding.half())):
        untied = changed(reference, tmp_path / f"untied-{number}", lm_head__weight=other)
        with pytest.raises(DataError, match=r"lm_head.weight is not the token embedding"):
            run_export("--from-hf", untied, tmp_path / "none")


@pytest.mark.parametrize("name", ["transformer.ln_f.weight", "multiple_choice_head.summary.weight"])
def test_a_tensor_that_has_no_place_is_refused(reference, tmp_path, name):
    stray = changed(reference, tmp_path / "hf", **{name.replace(".", "__"): torch.ones(2)})
    with pytest.raises(DataError, match="is no weight of this model"):
        run_export("--from-hf", stray, tmp_path / "out")


def test_a_classifiers_head_is_kept_beside_the_run(reference, tmp_path, capsys):
    model = OpenAIGPTForSequenceClassification.from_pretrained(reference, num_labels=3)
    model.config.pad_token_id = 0
    source = tmp_path / "classifier"
    shutil.copytree(reference, source)
    model.save_pretrained(source)
    run_export("--from-hf", source, tmp_path / "out")
    assert "score.weight lies beside it in head.safetensors" in capsys.readouterr().out
    head = safetensors.torch.load_file(tmp_path / "out" / "head.safetensors")
    assert head["score.weight"].equal(model.score.weight)
    run_export("--from-hf", reference, tmp_path / "plain")
    decoder, plain = load_weights(tmp_path / "out")[0], load_weights(tmp_path / "plain")[0]
    assert all(plain[name].equal(tensor) for name, tensor in decoder.items())


def test_arrays_after_the_decoders_are_told(released, tmp_path, capsys):
    shapes = json.loads((released / "params_shapes.json").read_text())
    (released / "params_shapes.json").write_text(json.dumps([*shapes, [128, 2], [2]]))
    last = np.load(released / "params_9.npy")
    np.save(released / "params_9.npy", np.concatenate([last, np.ones(258, np.float32)]))
    run_export("--from-openai", released, tmp_path / "out")
    assert "2 arrays after those of the decoder are left out" in capsys.readouterr().out
