"""Data preparation: the embedded sample, its tokenizer and shards, and which documents validate."""

import contextlib
import importlib.metadata
import io
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from data_prep.build_shards import main as build_shards
from data_prep.inspect_shards import documents
from data_prep.sample import main as write_sample
from data_prep.train_tokenizer import main as train_tokenizer
from gpt1_ds.data.manifest import SPLITS, read_manifest
from tests.golden.store import Group, digest, json_digest, scratch

PREPARED = Group("prepared")

MEGABYTES = "0.2"


def quietly(main: Callable[[list[str]], Any], *words: object) -> str:
    """Run a command in this process; what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        main([str(word) for word in words])
    return printed.getvalue()


@cache
def sample() -> Path:
    """The embedded sample, small."""
    folder = scratch() / "sample"
    quietly(write_sample, "--megabytes", MEGABYTES, "--out", folder)
    return folder


@cache
def tokenizer_folder() -> Path:
    """A SentencePiece model of 512 pieces of the sample."""
    folder = scratch() / "tokenizer"
    corpus = f"books={sample() / 'books' / 'train'}"
    quietly(train_tokenizer, "--corpus", corpus, "--vocab-size", 512, "--out", folder)
    return folder


@cache
def shards() -> Path:
    """The sample's stories, with its own validation books, in several shards."""
    out = scratch() / "shards"
    books = sample() / "books"
    options = ["--tokenizer", tokenizer_folder(), "--shard-tokens", 70_000, "--out", out]
    corpora = ["--corpus", f"books={books / 'train'}", "--validation", f"books={books / 'valid'}"]
    quietly(build_shards, *options, *corpora)
    return out


def lines(first: int, last: int) -> list[str]:
    """Sentences that differ, some of them alike but for one word."""
    animals = ("badger", "heron", "otter", "wren", "hedgehog")
    return [f"Line {n} is about the {animals[n % 5]} of house {n * n}." for n in range(first, last)]


@cache
def mixed_shards() -> Path:
    """Corpora of several layouts, whose validation documents are chosen by hash or held out."""
    out, source = scratch() / "mixed-shards", scratch() / "mixed"
    (source / "notes").mkdir(parents=True)
    for number, line in enumerate(lines(0, 40)):
        (source / "notes" / f"{number:02d}.txt").write_text(f"{line}\n\nAnd so it went on.\n")
    (source / "news.en-00001-of-00100").write_text("\n".join(lines(100, 160) + lines(100, 110)))
    published = source / "lm1b"
    published.mkdir()
    (published / "news.en-00001-of-00100").write_text("\n".join(lines(200, 220)))
    (published / "news.en.heldout-00000-of-00050").write_text("\n".join(lines(218, 225)))
    corpora = {
        "notes": source / "notes",
        "news": source / "news.en-00001-of-00100",
        "lm1b": published,
    }
    options = ["--tokenizer", tokenizer_folder(), "--validation-fraction", 0.2, "--out", out]
    for name, path in corpora.items():
        options += ["--corpus", f"{name}={path}"]
    quietly(build_shards, *options)
    return out


def hashes(folder: Path) -> dict[str, str]:
    """Of every file, by its path below `folder`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): digest(path.read_bytes()) for path in files}


@PREPARED.value
def sample_books() -> dict[str, str]:
    return hashes(sample() / "books")


@PREPARED.value
def sample_tasks() -> dict[str, str]:
    """One digest a labelled set."""
    folders = sorted((sample() / "tasks").iterdir())
    return {folder.name: json_digest(hashes(folder)) for folder in folders}


@PREPARED.value
def sample_marker() -> str:
    return (sample() / "sample.json").read_text(encoding="utf-8")


@PREPARED.value
def tokenizer_model() -> str:
    return digest((tokenizer_folder() / "tokenizer.model").read_bytes())


def shard_files(root: Path) -> dict[str, Any]:
    """Bytes, tokens, documents and hash of every shard as they lie on the disk."""
    files = {}
    for shard in read_manifest(root).shards():
        data = (root / shard.file).read_bytes()
        files[shard.file] = [len(data), shard.tokens, shard.documents, digest(data)]
    return files


@PREPARED.value
def sample_shards() -> dict[str, Any]:
    return shard_files(shards())


@PREPARED.value
def mixed_shards_files() -> dict[str, Any]:
    return shard_files(mixed_shards())


def manifest_digest(root: Path) -> str:
    """Of the bytes of manifest.json, without the version of ftfy that is recorded there."""
    text = (root / "manifest.json").read_text(encoding="utf-8")
    recorded = f'"ftfy": "{importlib.metadata.version("ftfy")}"'
    assert recorded in text
    return digest(text.replace(recorded, '"ftfy": ""'))


@PREPARED.value
def manifests() -> dict[str, str]:
    return {"sample": manifest_digest(shards()), "mixed": manifest_digest(mixed_shards())}


@PREPARED.value
def manifest_keys() -> list[str]:
    manifest = read_manifest(mixed_shards())
    return [*sorted(manifest.tokenizer), *sorted(manifest.preparation["settings"])]


@PREPARED.value
def validation_documents() -> dict[str, Any]:
    """Of each corpus: how it is split, and the documents that validate."""
    root, split = mixed_shards(), "valid"
    manifest = read_manifest(root)
    found = {}
    for corpus, record in manifest.preparation["corpora"].items():
        names = [spans[0].document for spans in documents(root, manifest, split, corpus)]
        found[corpus] = [record["split"], record["dropped"], names]
    return found


@PREPARED.value
def documents_in_order() -> dict[str, str]:
    """Digest of the documents' names of each corpus and split, in the order of the shards."""
    root = mixed_shards()
    manifest = read_manifest(root)
    found = {}
    for split in SPLITS:
        for corpus in manifest.splits[split]:
            names = [spans[0].document for spans in documents(root, manifest, split, corpus)]
            found[f"{split}/{corpus}"] = f"{len(names)}, {digest(' '.join(names))}"
    return found
