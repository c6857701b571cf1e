"""Tests of data_prep/building/duplicates.py by whole builds: what is dropped and what stays."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep import build_shards
from data_prep.building import duplicates, encoding
from data_prep.verify_shards import verify
from gpt1_ds.data.manifest import read_manifest
from tests.conftest import ROOT
from tests.support import cases_shards
from tests.support.cases_shards import (
    assert_same_files,
    documents,
    make_corpora,
    make_tokenizer,
)

RNG = random.Random(7)


def paragraph(words: int = 60) -> str:
    return cases_shards.paragraph(RNG, words)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    corpora = make_corpora(tmp_path_factory.mktemp("corpora"))
    return make_tokenizer(corpora, tmp_path_factory.mktemp("tok"))


def build(tokenizer: Path, out: Path, *options: object) -> dict[str, dict[str, int]]:
    """What was dropped, by corpus."""
    build_shards.main(["--tokenizer", str(tokenizer), "--out", str(out), *map(str, options)])
    assert verify(out) == []
    corpora = read_manifest(out).preparation["corpora"]
    return {name: record["dropped"] for name, record in corpora.items()}


def write(folder: Path, **books: list[str]) -> Path:
    folder.mkdir()
    for name, paragraphs in books.items():
        (folder / f"{name}.txt").write_text("\n\n".join(paragraphs))
    return folder


def test_long_paragraphs_are_dropped_where_they_come_again(tokenizer: Path, tmp_path: Path) -> None:
    shared, own, short = paragraph(), [paragraph() for _ in range(6)], "Chapter one."
    one = write(tmp_path / "one", a=[short, shared, own[0], shared], b=[short, own[1], own[2]])
    two = write(
        tmp_path / "two", c=[shared, own[1]], d=[own[3], shared, own[4], own[5]], e=[shared]
    )
    corpora = ("--corpus", f"x={one}", "--corpus", f"y={two}", "--validation-fraction", 0)
    dropped = build(tokenizer, tmp_path / "out", *corpora)
    assert dropped["x"]["duplicate_paragraphs"] == 1 and dropped["x"]["duplicate"] == 0
    # Nothing is left of c, and e is a copy of a paragraph as a whole.
    assert dropped["y"]["duplicate_paragraphs"] == 1 and dropped["y"]["duplicate"] == 2
    found = documents(tmp_path / "out", "train", "x") | documents(tmp_path / "out", "train", "y")
    kept = {
        "a": [short, shared, own[0]],
        "b": [short, own[1], own[2]],
        "d": [own[3], own[4], own[5]],
    }
    assert found == {f"{name}.txt": " ".join(parts).lower() for name, parts in kept.items()}
    text = read_manifest(tmp_path / "out").preparation["corpora"]["y"]["text"]["train"]
    assert abs(text["text_bytes"] - len(" ".join(kept["d"]))) <= 1
    dropped = build(tokenizer, tmp_path / "all", *corpora, "--duplicate-paragraphs", 0)
    assert dropped["y"]["duplicate_paragraphs"] == 0


def test_held_out_copy_stays_and_the_training_copy_goes(tokenizer: Path, tmp_path: Path) -> None:
    text, other = [paragraph() for _ in range(3)], [paragraph() for _ in range(3)]
    train = write(tmp_path / "train", a=text, b=[other[0], text[0]], c=other[1:])
    valid = write(tmp_path / "valid", z=text)
    dropped = build(
        tokenizer, tmp_path / "out", "--corpus", f"x={train}", "--validation", f"x={valid}"
    )["x"]
    assert (dropped["duplicate"], dropped["duplicate_paragraphs"]) == (1, 1)
    assert documents(tmp_path / "out", "valid", "x") == {"z.txt": " ".join(text)}
    assert documents(tmp_path / "out", "train", "x") == {
        "b.txt": other[0],
        "c.txt": " ".join(other[1:]),
    }


def test_near_duplicates_go_on_request(tokenizer: Path, tmp_path: Path) -> None:
    words = paragraph(400).split()
    near, far = words.copy(), words.copy()
    near[100] = near[300] = "entirely"
    far[::3] = ["other"] * len(far[::3])
    texts = {"a": words, "b": near, "c": far, "d": paragraph(400).split()}
    corpus = write(tmp_path / "c", **{name: [" ".join(text)] for name, text in texts.items()})
    options = ("--corpus", f"x={corpus}", "--validation-fraction", 0)
    assert build(tokenizer, tmp_path / "exact", *options)["x"]["near_duplicate"] == 0
    dropped = build(tokenizer, tmp_path / "near", *options, "--near-duplicates", 0.8)["x"]
    assert dropped["near_duplicate"] == 1 and dropped["duplicate"] == 0
    assert documents(tmp_path / "near", "train", "x").keys() == {"a.txt", "c.txt", "d.txt"}


def test_number_of_buckets_and_parts_changes_nothing(
    tokenizer: Path, tmp_path: Path, monkeypatch
) -> None:
    paragraphs = [paragraph(40) for _ in range(200)]
    books = {f"b{i:02d}": RNG.choices(paragraphs, k=20) + [paragraph(2000)] for i in range(40)}
    (tmp_path / "in").mkdir()
    lines = "\n".join(RNG.choices([paragraph(5) for _ in range(300)] + paragraphs[:50], k=500))
    (tmp_path / "in" / "news.en-1").write_text(lines)
    books_folder = write(tmp_path / "b", **books)
    options = ("--corpus", f"b={books_folder}", "--corpus", f"n={tmp_path / 'in'}")
    options += ("--shard-tokens", 70_000, "--near-duplicates", 0.5)
    dropped = build(tokenizer, tmp_path / "one", *options)
    assert min(dropped["b"]["duplicate_paragraphs"], dropped["n"]["duplicate"]) > 100
    monkeypatch.setattr(duplicates, "BUCKET_RECORDS", 200)
    monkeypatch.setattr(encoding, "PART_TOKENS", 40_000)
    monkeypatch.setattr(encoding, "PART_DOCUMENTS", 100)
    monkeypatch.setattr(encoding, "_BATCH_CHARACTERS", 3000)
    build(tokenizer, tmp_path / "many", *options)
    assert_same_files(tmp_path / "one", tmp_path / "many")


def peak_megabytes(arguments: list[str]) -> float:
    """Highest resident memory of a build in a process of its own.

    It is VmHWM of /proc, since ru_maxrss would include the memory of the process that started it.
    """
    code = (
        "import sys; from data_prep import build_shards; build_shards.main(sys.argv[1:]);"
        "print(int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) / 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return float(done.stdout.split()[-1])


@pytest.mark.parametrize(
    "megabytes, name",
    [
        (100, "news.en-1"),
        pytest.param(1000, "book.txt", marks=[pytest.mark.soak, pytest.mark.timeout(1800)]),
    ],
)
def test_one_huge_document_takes_less_than_1_gb(
    tokenizer: Path, tmp_path: Path, megabytes: int, name: str
) -> None:
    """A line of 100 MB; with `make soak` a book of 1 GB, of many lines."""
    space = " " if name == "news.en-1" else "\n"
    words = [paragraph(2000).replace(".", "") + space for _ in range(50)]
    size = 0
    with open(tmp_path / name, "w") as file:
        while size < megabytes * 1e6:
            size += file.write(RNG.choice(words))
    options = ["--tokenizer", str(tokenizer), "--corpus", f"c={tmp_path / name}"]
    options += ["--duplicate-paragraphs", "0"]
    assert peak_megabytes([*options, "--out", str(tmp_path / "out")]) < 1000
    entry = read_manifest(tmp_path / "out").splits["train"]["c"]
    assert entry.documents == 1 and entry.tokens > size / 8
    assert verify(tmp_path / "out") == []
