"""One rule for line breaks: a text has the same ids by whichever way it comes in.

With OpenAI's original pipeline a line break is a token, in shards too.
"""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data_prep import build_shards, train_tokenizer
from data_prep.building import encoding
from data_prep.reading import corpus
from data_prep.verify_shards import iter_samples, verify
from gpt1_ds.data.manifest import MANIFEST, read_manifest
from gpt1_ds.data.openai_bpe import OPENAI_FILES
from gpt1_ds.data.tokenizer import Tokenizer, load_tokenizer
from gpt1_ds.model.gpt import GPT, GPTConfig
from gpt1_ds.model.sampling import sample_text
from gpt1_ds.runs import texts
from gpt1_ds.settings.sections import TaskConfig
from gpt1_ds.tasks import TASKS, build_task

TEXT = " \n\nDon't go, said she.\n\n \t\nThe sea was high ...\r\nand the crew slept.\n\u2603\n\n"
LONG = {letter: f"The {letter} chapter. " * 15 for letter in "abc"}
"""Paragraphs that are long enough to be compared with others."""


def original(shared_data: Path, folder: Path) -> Path:
    """OpenAI's files with the original pipeline."""
    folder.mkdir()
    for name in OPENAI_FILES:
        shutil.copyfile(shared_data / "openai_bpe" / name, folder / name)
    (folder / "pipeline.json").write_text('{"openai_pipeline": "original"}')
    return folder


def sentencepiece(folder: Path) -> Path:
    (folder.parent / "words.txt").write_text((TEXT + LONG["a"]) * 20)
    source = f"a={folder.parent / 'words.txt'}"
    train_tokenizer.main(["--corpus", source, "--vocab-size", "320", "--out", str(folder)])
    return folder


@pytest.fixture(params=["original", "sentencepiece"])
def tokenizer(request, tmp_path: Path) -> Tokenizer:
    folder = tmp_path / "tok"
    if request.param == "original":
        return load_tokenizer(original(request.getfixturevalue("shared_data"), folder))
    return load_tokenizer(sentencepiece(folder))


def shards_of(texts: dict[str, str], tokenizer: Tokenizer, folder: Path) -> Path:
    """Shards of these documents, as they are."""
    (folder / "books").mkdir(parents=True)
    for name, text in texts.items():
        (folder / "books" / f"{name}.txt").write_bytes(text.encode())
    tokenizer.copy_to(folder / "tok")
    options = f"--tokenizer {folder}/tok --corpus books={folder}/books --out {folder}/out"
    build_shards.main([*options.split(), "--clean", "none", "--validation-fraction", "0"])
    return folder / "out"


def documents(shards: Path, tokenizer: Tokenizer) -> list[list[int]]:
    """The ids of each document of the shards, in their order."""
    samples = []
    for shard in read_manifest(shards).shards():
        samples += [sample.tokens for sample in iter_samples(shards / shard.file)]
    ids_T = np.concatenate(samples)
    ends = np.flatnonzero(ids_T == tokenizer.special_ids["eot"])
    return [part[:-1].tolist() for part in np.split(ids_T, ends + 1)[:-1]]


def test_a_text_has_the_same_ids_by_every_way_in(tokenizer: Tokenizer, tmp_path: Path):
    ids = tokenizer.encode(TEXT)
    if tokenizer.newline_id is not None:
        assert ids.count(tokenizer.newline_id) == 3
    shards = shards_of({"story": TEXT}, tokenizer, tmp_path)
    assert documents(shards, tokenizer) == [ids] and verify(shards) == []

    (tmp_path / "story.txt").write_bytes(TEXT.encode())
    eot = tokenizer.special_ids["eot"]
    text = texts.read_text(tmp_path / "story.txt", lines=False, tokenizer=tokenizer)
    assert [document.tolist() for document in text.documents] == [[eot, *ids]]

    torch.manual_seed(0)
    gpt = GPT(GPTConfig(tokenizer.vocab_size, n_layer=1, n_head=1, n_embd=8, n_ctx=64))
    sample = sample_text(SimpleNamespace(module=gpt), tokenizer, TEXT, max_new_tokens=1)
    assert sample.startswith(tokenizer.decode(ids))

    passage = {"article": TEXT, "questions": ["q?"], "options": [[*"wxyz"]], "answers": ["A"]}
    (tmp_path / "1.txt").write_text(json.dumps(passage))
    example = TASKS["race"].read(tmp_path / "1.txt", "dev")
    first = TASKS["race"].encode(example, tokenizer, 512)[0].sequences[0]
    assert first[1 : len(ids) + 1] == ids

    own = TaskConfig(name="own", kind="classification", columns=["t", "l"], labels=["n", "y"])
    (tmp_path / "dev.jsonl").write_text(json.dumps({"t": TEXT, "l": "y"}))
    task = build_task(own)
    encoded = task.encode(task.read(tmp_path / "dev.jsonl", "dev"), tokenizer, 512)
    assert encoded[0].sequences[0][1:-1] == ids


@pytest.mark.parametrize("dropped", ["a", "b", "c", "ab", "bc", "ac"])
def test_a_dropped_paragraph_takes_one_line_break_along(
    shared_data: Path, tmp_path: Path, dropped: str
):
    tokenizer = load_tokenizer(original(shared_data, tmp_path / "openai"))
    earlier = {f"0{letter}": f"First.\n{LONG[letter]}" for letter in dropped}
    shards = shards_of(earlier | {"story": "\n".join(LONG.values())}, tokenizer, tmp_path)
    left = "\n".join(text for letter, text in LONG.items() if letter not in dropped)
    found = documents(shards, tokenizer)
    assert found == [*map(tokenizer.encode, earlier.values()), tokenizer.encode(left)]
    assert verify(shards) == []


def test_documents_in_many_pieces_have_the_same_ids(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(corpus, "READ_BYTES", 64)
    monkeypatch.setattr(encoding, "_BATCH_CHARACTERS", 100)
    tokenizer = load_tokenizer(original(shared_data, tmp_path / "openai"))
    stories = {name: TEXT * count for name, count in (("a", 1), ("b", 7), ("c", 2))}
    shards = shards_of(stories, tokenizer, tmp_path)
    assert documents(shards, tokenizer) == [tokenizer.encode(text) for text in stories.values()]


def test_shards_without_line_breaks_are_read_and_told(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """As an early version made them."""
    tokenizer = load_tokenizer(original(shared_data, tmp_path / "openai"))
    shards = shards_of({"story": TEXT}, tokenizer, tmp_path)
    manifest = json.loads((shards / MANIFEST).read_text())
    assert read_manifest(shards).newline_id == 40477 == tokenizer.newline_id
    manifest["splits"]["valid"] = manifest["splits"]["train"]
    (shards / MANIFEST).write_text(json.dumps(manifest))
    capsys.readouterr()
    (text,) = texts.read_shards(shards, None, tokenizer)
    assert len(text.documents[0]) > 20 and "early version" not in capsys.readouterr().out
    del manifest["preparation"]["settings"]["newline_token"]
    (shards / MANIFEST).write_text(json.dumps(manifest))
    (text,) = texts.read_shards(shards, None, tokenizer)
    assert len(text.documents[0]) > 20
    assert "made by an early version, without the token of line breaks" in capsys.readouterr().out
