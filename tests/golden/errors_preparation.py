"""Errors of data preparation: options, corpora, shard directories."""

import json
import shutil
from functools import partial
from pathlib import Path

from data_prep.build_shards import main as build_shards
from data_prep.download import main as download
from data_prep.download import unpack
from data_prep.inspect_shards import main as inspect_shards
from data_prep.sample import main as write_sample
from data_prep.trace import main as trace
from data_prep.train_tokenizer import main as train_tokenizer
from data_prep.verify_shards import main as verify_shards
from gpt1_ds.data.manifest import read_manifest
from tests.golden.prepared import mixed_shards, sample, tokenizer_folder
from tests.golden.refusals import Act, add, add_commands, write
from tests.golden.store import Group

PREPARATION_ERRORS = Group("errors_preparation")

TOKENIZER = {
    "no NAME=PATH": "--corpus books --out {tmp}/tok",
    "bad NAME": "--corpus b.b=/absent --out {tmp}/tok",
    "absent corpus": "--corpus books=/absent --out {tmp}/tok",
    "empty folder": "--corpus books={tmp} --out {tmp}/tok",
}
SAMPLE = {
    "no size": "--megabytes 0 --out {tmp}/sample",
    "too large": "--megabytes 251 --out {tmp}/sample",
    "out of reach": "--megabytes 0.1 --out /dev/null/sample",
}
DOWNLOAD = {"unknown set": "sst3 --out {tmp}", "nothing like it": "xyzzy --out {tmp}"}
TRACE = {"step 0": "{tmp} --step 0", "no run": "{tmp}/absent --step 1"}
VERIFY = {"no manifest": "{tmp}"}
INSPECT = {"no manifest": "{tmp}"}
BUILD = {
    "fraction of 1": "--validation-fraction 1",
    "similarity above 1": "--near-duplicates 1.5",
    "shards below a sample": "--shard-tokens 100",
    "negative length": "--duplicate-paragraphs -1",
    "unknown step": "--clean unwrapp",
    "step of no corpus": "--clean web=ftfy",
    "validation of no corpus": "--validation web=/absent",
    "absent validation": "--validation books=/absent",
}
JSONL = {
    "row that is no object": "[1]\n",
    "row without text": '{"text": "good"}\n{"txt": "bad"}\n',
    "row whose text is no string": '{"text": 5}\n',
}


def corpus(tmp: Path, name: str = "books.txt", text: str | bytes = "Some text.\n") -> str:
    return f"books={write(tmp / 'corpus' / name, text)}"


def build(tmp: Path, *words: str, given: str | None = None) -> None:
    """Build shards of one small corpus, or of the one that is given."""
    options = ["--tokenizer", str(tokenizer_folder()), "--out", str(tmp / "shards")]
    build_shards([*options, "--corpus", given or corpus(tmp), *words])


def with_option(line: str, tmp: Path) -> None:
    build(tmp, *line.split())


def with_row(rows: str, tmp: Path) -> None:
    build(tmp, given=corpus(tmp, "rows.jsonl", rows))


def with_bad_text(tmp: Path) -> None:
    build(tmp, "--bad-text", "refuse", given=corpus(tmp, text=b"caf\xe9\n"))


def without_tokenizer(tmp: Path) -> None:
    build_shards(["--tokenizer", str(tmp), "--corpus", corpus(tmp), "--out", str(tmp / "shards")])


def into_a_full_folder(tmp: Path) -> None:
    write(tmp / "shards" / "novel.txt", "A novel.")
    build(tmp)


def with_other_settings(tmp: Path) -> None:
    build(tmp)
    build(tmp, "--shard-tokens", "70000")


def with_other_sources(tmp: Path) -> None:
    build(tmp)
    build(tmp, given=corpus(tmp, text="Other text, and more of it.\n"))


def of_blank_text(tmp: Path) -> None:
    build(tmp, given=corpus(tmp, text=" \n \n"))


def of_no_known_format(tmp: Path) -> None:
    build(tmp, given=corpus(tmp, "books.pdf"))


def of_two_files_of_a_name(tmp: Path) -> None:
    other = write(tmp / "other" / "books.txt", "Other text.\n")
    build(tmp, "--corpus", f"books={other}")


def with_damaged_archive(tmp: Path) -> None:
    build(tmp, given=corpus(tmp, "books.txt.gz", b"no gzip"))


BUILD_ACTS: dict[str, Act] = {
    "bad text refused": with_bad_text,
    "no tokenizer": without_tokenizer,
    "full folder": into_a_full_folder,
    "other settings": with_other_settings,
    "other sources": with_other_sources,
    "blank text": of_blank_text,
    "unknown format": of_no_known_format,
    "two files of a name": of_two_files_of_a_name,
    "damaged archive": with_damaged_archive,
}


def learn(tmp: Path, *words: str) -> None:
    """Train a tokenizer on a book of the sample."""
    book = sample() / "books" / "train" / "0001.txt"
    train_tokenizer(["--corpus", f"books={book}", "--out", str(tmp / "tok"), *words])


TOKENIZER_ACTS: dict[str, Act] = {
    "no piece": lambda tmp: learn(tmp, "--vocab-size", "0"),
    "too few pieces": lambda tmp: learn(tmp, "--vocab-size", "270"),
    "too many pieces": lambda tmp: learn(tmp, "--vocab-size", "100000"),
    "no bytes": lambda tmp: learn(tmp, "--sample-bytes", "0"),
    "out of reach": lambda tmp: train_tokenizer(
        ["--corpus", corpus(tmp), "--vocab-size", "280", "--out", "/dev/null/tok"]
    ),
}


def damaged(tmp: Path) -> Path:
    """A copy of the shards, one of them with another byte."""
    root = Path(shutil.copytree(mixed_shards(), tmp / "shards"))
    path = root / read_manifest(root).shards()[0].file
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    return root


def with_manifest(key: str, value: object, tmp: Path) -> None:
    """Verify shards whose manifest has another entry."""
    root = Path(shutil.copytree(mixed_shards(), tmp / "shards"))
    manifest = json.loads((root / "manifest.json").read_text())
    (root / "manifest.json").write_text(json.dumps(manifest | {key: value}))
    verify_shards([str(root)])


def no_archive(tmp: Path) -> None:
    unpack(write(tmp / "set.zip", "no archive"), tmp / "out", "https://host/set.zip")


READING_ACTS: dict[str, Act] = {
    "damaged shard": lambda tmp: verify_shards([str(damaged(tmp))]),
    "manifest of another version": partial(with_manifest, "version", 99),
    "manifest with another split": partial(with_manifest, "splits", {"dev": {}}),
    "no such corpus": lambda tmp: inspect_shards([str(mixed_shards()), "--corpus", "new"]),
    "no such document": lambda tmp: inspect_shards([str(mixed_shards()), "--document", "emma.txt"]),
    "download that is no archive": no_archive,
}

add_commands(PREPARATION_ERRORS, "sample", write_sample, SAMPLE)
add_commands(PREPARATION_ERRORS, "download", download, DOWNLOAD)
add_commands(PREPARATION_ERRORS, "trace", trace, TRACE)
add_commands(PREPARATION_ERRORS, "verify", verify_shards, VERIFY)
add_commands(PREPARATION_ERRORS, "inspect", inspect_shards, INSPECT)
add_commands(PREPARATION_ERRORS, "tokenizer", train_tokenizer, TOKENIZER)
add(PREPARATION_ERRORS, "tokenizer", TOKENIZER_ACTS)
add(PREPARATION_ERRORS, "build", {name: partial(with_option, BUILD[name]) for name in BUILD})
add(PREPARATION_ERRORS, "build", {name: partial(with_row, JSONL[name]) for name in JSONL})
add(PREPARATION_ERRORS, "build", BUILD_ACTS)
add(PREPARATION_ERRORS, "shards", READING_ACTS)
