"""Import from transformers and OpenAI, export of tokenizers, and refused inputs."""

import json
import os
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    OpenAIGPTTokenizer,
)

from data_prep import train_tokenizer
from gpt1_ds import export
from gpt1_ds.base.errors import ConfigError, DataError
from gpt1_ds.checkpoints.loading import load_weights
from gpt1_ds.data.openai_bpe import OPENAI_FILES
from gpt1_ds.data.tokenizer import Tokenizer, load_tokenizer
from gpt1_ds.interchange.safetensors_files import INDEX
from gpt1_ds.interchange.tokenizer_json import tokenizer_config_json, tokenizer_json
from gpt1_ds.interchange.weights import to_theirs
from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.runs.trained import load_gpt
from tests.support.released import openai_arrays, small_bpe

NASTY = [
    "<e>",
    "a <e> b $5 <s><pad><eot> <unk> <0x41> <delim>",
    "  two   spaces ",
    "",
    "  ",
    "\t\n",
    "\r\n crlf\r\n",
    "\ufb01 \u2122\ufe0f \u2460 \uff21\uff22\uff23 \u00dcn\u00ef",
    "\u2581 literal \u2581\u2581x",
    "\u200bzero\u200dwidth\ufeff",
    "A\u0301 e\u0301 E\u0301\u0327 Q\u0301 \u0301",
    "\U0001f469\u200d\U0001f467 \U0001f44d\U0001f3fd \u2764\ufe0f \U0001f1eb\U0001f1f7",
    "......... -------",
    "\ud55c \u65e5\u672c\u8a9e \ufdfa",
    "\x00\x01\x7f\x85",
    "\u00df \u017f \u0130stanbul \u0131 \u03a3\u03c2",
    "\u212a \u00c5 \u00bd",
    'it\'s (well) \\ "$"',
]


def run_export(*argv: object) -> None:
    export.main([str(word) for word in argv])


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert not [name for name in ours if not torch.equal(ours[name], theirs[name])]


@pytest.fixture(scope="module")
def openai_bpe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small vocabulary in OpenAI's two files."""
    return small_bpe(tmp_path_factory.mktemp("bpe"))


@pytest.fixture(scope="module")
def reference(openai_bpe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-1 of transformers' own making, with its own tokenizer, as save_pretrained leaves
    them."""
    folder = tmp_path_factory.mktemp("reference")
    rows = len(json.loads((openai_bpe / OPENAI_FILES[0]).read_text()))
    torch.manual_seed(1)
    config = OpenAIGPTConfig(vocab_size=rows, n_positions=32, n_embd=128, n_layer=2, n_head=2)
    OpenAIGPTLMHeadModel(config).save_pretrained(folder)
    vocab, merges = (str(openai_bpe / name) for name in OPENAI_FILES)
    OpenAIGPTTokenizer(vocab=vocab, merges=merges).save_pretrained(folder)
    return folder


def check_ids(ours: Tokenizer, folder: Path, texts: list[str]) -> None:
    theirs = AutoTokenizer.from_pretrained(folder)
    assert {
        name: theirs.convert_tokens_to_ids(f"<{name}>") for name in ours.special_ids
    } == ours.special_ids
    assert (theirs.eos_token, theirs.pad_token, len(theirs)) == ("<eot>", "<pad>", ours.vocab_size)
    ids = ours.encode_batch(texts)
    differing = [
        text
        for text, mine, its in zip(texts, ids, theirs(texts)["input_ids"], strict=True)
        if mine != its
    ]
    assert not differing, differing[:5]
    if ours.kind == "sentencepiece":
        assert [ours.decode(row) for row in ids] == [theirs.decode(row) for row in ids]


def real_lines(shared_data: Path) -> list[str]:
    """Every line of the held-out books and of a labelled set, and some with our control pieces as
    text."""
    files = [
        *sorted((shared_data / "books" / "valid").glob("*.txt")),
        shared_data / "tasks" / "SST-2" / "dev.tsv",
    ]
    lines = [line for file in files for line in file.read_text(encoding="utf-8").split("\n")]
    return [*lines, "he said <e> and paid $ 5", "<e>", "$"]


def write_tokenizer(ours: Tokenizer, source: Path, folder: Path) -> Path:
    (folder / "config.json").write_text('{"model_type": "openai-gpt"}')
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(ours, source)))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config_json(32)))
    return folder


def test_a_cased_vocabulary_has_the_same_ids_in_transformers(tmp_path):
    (tmp_path / "text.txt").write_text("The Old and the old Sailor told Ann. " * 50)
    source = tmp_path / "tok"
    options = f"--corpus a={tmp_path}/text.txt --vocab-size 310 --case keep --out {source}"
    train_tokenizer.main(options.split())
    ours = load_tokenizer(source)
    assert ours.encode("The Old") != ours.encode("the old") and not ours.folds_case
    check_ids(ours, write_tokenizer(ours, source, tmp_path), [*NASTY, "The Old SAILOR", "\u0130 I"])


def test_openais_bpe_has_the_same_ids_in_transformers(openai_bpe, tmp_path):
    ours = load_tokenizer(openai_bpe)
    check_ids(ours, write_tokenizer(ours, openai_bpe, tmp_path), [*NASTY, "the old and <unk> it\\"])


def test_every_line_of_real_text_has_the_same_ids_of_openais_bpe(shared_data, tmp_path):
    ours = load_tokenizer(shared_data / "openai_bpe")
    check_ids(
        ours, write_tokenizer(ours, shared_data / "openai_bpe", tmp_path), real_lines(shared_data)
    )


def test_hugging_face_to_ours_to_hugging_face_is_bitwise(reference, tmp_path):
    run_export("--from-hf", reference, tmp_path / "ours")
    run_export(tmp_path / "ours", tmp_path / "theirs")
    before, after = (
        safetensors.torch.load_file(folder / "model.safetensors")
        for folder in (reference, tmp_path / "theirs")
    )
    rows = len(before["transformer.tokens_embed.weight"])
    new = after["transformer.tokens_embed.weight"][rows:].clone()
    after["transformer.tokens_embed.weight"] = after["transformer.tokens_embed.weight"][:rows]
    same({name: tensor for name, tensor in before.items() if name != "lm_head.weight"}, after)
    assert new.shape == (5, 128) and 0.01 < new.std() < 0.03
    old, now = (
        AutoTokenizer.from_pretrained(reference),
        AutoTokenizer.from_pretrained(tmp_path / "theirs"),
    )
    text = "the old and <unk> it is 5 $ qu"
    assert old.encode(text) == now.encode(text) and len(now) == len(old) + 5


@pytest.fixture
def released(reference, openai_bpe, tmp_path) -> Path:
    """The reference model as OpenAI would have released it."""
    folder = tmp_path / "model"
    shutil.copytree(openai_bpe, folder)
    weights = safetensors.torch.load_file(reference / "model.safetensors")
    openai_arrays(
        folder, {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}, 2
    )
    return folder


def test_openais_arrays_are_the_same_model(reference, released, tmp_path):
    run_export("--from-openai", released, tmp_path / "openai")
    run_export("--from-hf", reference, tmp_path / "hf")
    (ours, state), (theirs, _) = (load_weights(tmp_path / name) for name in ("openai", "hf"))
    same(ours, theirs)
    assert load_tokenizer(tmp_path / "openai" / "tokenizer").sha256 == state.tokenizer_sha256
    gpt = load_gpt(tmp_path / "openai")[0]
    ids = torch.arange(40)[None] % 32
    with torch.no_grad():
        logits = gpt(ids[:, :32])[0] @ gpt.wte[:100].T
        torch.testing.assert_close(
            logits, AutoModelForCausalLM.from_pretrained(reference)(ids[:, :32]).logits[..., :100]
        )


@pytest.mark.parametrize(
    "kind, beside, option, expected",
    [
        ("--from-openai", None, None, "original"),
        ("--from-openai", "transformers", None, "transformers"),
        ("--from-openai", None, "transformers", "transformers"),
        ("--from-hf", None, None, "transformers"),
        ("--from-hf", "original", None, "original"),
        ("--from-hf", "original", "transformers", "transformers"),
    ],
)
def test_imported_weights_get_the_text_pipeline_they_were_trained_with(
    reference, released, tmp_path, capsys, kind, beside, option, expected
):
    source = {"--from-openai": released, "--from-hf": reference}[kind]
    shutil.copytree(source, tmp_path / "source")
    if beside:
        (tmp_path / "source" / "pipeline.json").write_text(f'{{"openai_pipeline": "{beside}"}}\n')
    options = ["--openai-pipeline", option] if option else []
    run_export(kind, tmp_path / "source", tmp_path / "out", *options)
    assert f"; text pipeline {expected}" in capsys.readouterr().out
    tokenizer = load_tokenizer(tmp_path / "out" / "tokenizer")
    tokenizer.check_choice("openai", expected)
    _, state = load_weights(tmp_path / "out")
    assert state.tokenizer_sha256 == tokenizer.sha256
    assert (tokenizer.newline_id in tokenizer.encode("the\nold")) == (expected == "original")


def test_a_wrong_choice_of_the_pipeline_is_one_line(reference, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(reference, copy)
    (copy / "pipeline.json").write_text('{"openai_pipeline": "spacy"}')
    with pytest.raises(DataError, match=f"{copy}/pipeline.json: .*none of transformers, original"):
        run_export("--from-hf", copy, tmp_path / "out")
    with pytest.raises(ConfigError, match="--openai-pipeline goes with --from-hf"):
        run_export("--openai-pipeline", "original", reference, tmp_path / "out")


def test_the_released_shapes_are_gpt1(shared_data):
    shapes = json.loads((shared_data / "openai_bpe" / "params_shapes.json").read_text())
    config = GPTConfig(40478)
    with torch.device("meta"):
        wanted = {
            name: to_theirs(name, t, config)[1].shape
            for name, t in GPT(config).state_dict().items()
        }
    assert len(shapes) == 146 and shapes[:2] == [[512, 768], [40478, 768]]
    assert sorted(tuple(shape[-2:]) for shape in shapes) == sorted(
        tuple(shape) for shape in wanted.values()
    )


class Canary:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


HF_FAULTS = {
    "no config": (lambda d: (d / "config.json").unlink(), "config.json"),
    "other architecture": (lambda d: edit(d / "config.json", model_type="gpt2"), "openai-gpt"),
    "other activation": (lambda d: edit(d / "config.json", afn="relu"), "relu"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "model.safetensors"),
    "truncated": (lambda d: truncate(d / "model.safetensors"), "safetensors"),
    "not safetensors": (lambda d: (d / "model.safetensors").write_bytes(b"x" * 64), "safetensors"),
    "wrong shape": (
        lambda d: edit(d / "config.json", n_positions=31),
        "positions_embed.weight is (32, 128)",
    ),
    "missing layer": (
        lambda d: edit(d / "config.json", n_layer=3),
        "h.2.attn.c_attn.weight is missing",
    ),
    "layer too many": (lambda d: edit(d / "config.json", n_layer=1), "is no weight of this model"),
    "no such heads": (lambda d: edit(d / "config.json", n_head=3), "no model has the shape"),
    "unknown tokenizer": (
        lambda d: (d / "tokenizer.json").write_text('{"model": {"type": "Unigram"}}'),
        "no tokenizer known",
    ),
    "no tokenizer": (lambda d: (d / "tokenizer.json").unlink(), "no tokenizer known"),
    "index of nothing": (
        lambda d: (d / INDEX).write_text('{"weight_map": {"a": "../b.safetensors"}}'),
        "b.safetensors",
    ),
    "index damaged": (lambda d: (d / INDEX).write_text("{"), "safetensors"),
}


@pytest.mark.parametrize("fault", HF_FAULTS)
def test_a_bad_hugging_face_folder_is_one_line(reference, tmp_path, fault):
    damage, says = HF_FAULTS[fault]
    shutil.copytree(reference, tmp_path / "hf")
    damage(tmp_path / "hf")
    with pytest.raises(DataError, match=re.escape(says)) as caught:
        run_export("--from-hf", tmp_path / "hf", tmp_path / "out")
    assert str(tmp_path / "hf") in str(caught.value) and list(tmp_path.iterdir()) == [
        tmp_path / "hf"
    ]


OPENAI_FAULTS = {
    "missing array": (lambda d: (d / "params_3.npy").unlink(), "params_3.npy"),
    "truncated array": (lambda d: truncate(d / "params_3.npy"), "params_0..9"),
    "no shapes": (lambda d: (d / "params_shapes.json").unlink(), "params_shapes.json"),
    "wrong shapes": (
        lambda d: (d / "params_shapes.json").write_text("[[32, 128], [7, 128]]"),
        "asks for 4992",
    ),
    "doubles": (
        lambda d: np.save(d / "params_9.npy", np.load(d / "params_9.npy").astype(float)),
        "float64",
    ),
    "no vocabulary": (lambda d: (d / OPENAI_FILES[0]).unlink(), "tokenizer"),
    "other vocabulary": (lambda d: (d / OPENAI_FILES[0]).write_text('{"<unk>": 0}'), "openai"),
}


@pytest.mark.parametrize("fault", OPENAI_FAULTS)
def test_a_bad_openai_folder_is_one_line(released, tmp_path, fault):
    damage, says = OPENAI_FAULTS[fault]
    damage(released)
    with pytest.raises(DataError, match=f"(?i){re.escape(says)}"):
        run_export("--from-openai", released, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_hostile_pickles_are_refused(reference, released, tmp_path):
    canary, folder = Canary(tmp_path / "sung"), tmp_path / "hf"
    shutil.copytree(reference, folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(canary))
    with pytest.raises(DataError, match="pickled weights are not read"):
        run_export("--from-hf", folder, tmp_path / "out")
    np.save(released / "params_0.npy", np.array([canary], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="allow_pickle"):
        run_export("--from-openai", released, tmp_path / "out")
    assert not canary.path.exists()
    np.load(released / "params_0.npy", allow_pickle=True)
    assert canary.path.exists(), "the canary would have sung"
