"""Tests of data_prep/reading/corpus.py: every kind of source a user may have, good and bad."""

import gzip
import hashlib
import io
import json
import random
import tarfile
from itertools import chain
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from data_prep.reading import corpus, formats
from data_prep.reading.corpus import find_sources, in_ranges
from gpt1_ds.base.errors import ConfigError, DataError
from tests.support.cases_corpus import PACK, TARS, documents_of, packed, read, reader, texts


def test_a_folder_is_one_document_a_text_file(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "b.txt").write_text("Hard\nwrapped.\n\nTwo.")
    (tmp_path / "deep" / "a.txt").write_text("A book.")
    (tmp_path / ".hidden.txt").write_text("no")
    (tmp_path / "cover.jpg").write_bytes(b"\xff\xd8")
    assert texts(tmp_path) == {"b.txt": "Hard wrapped.\nTwo.", "deep/a.txt": "A book."}
    assert texts(tmp_path / "b.txt") == {"b.txt": "Hard wrapped.\nTwo."}


@pytest.mark.parametrize("suffix", [*TARS, ".zip"])
def test_archives_are_read_in_place(tmp_path: Path, suffix: str) -> None:
    members = {
        "x/a.txt": b"A\nbook.",
        "x/notes.pdf": b"%PDF",
        "x/._a.txt": b"what macOS adds to archives",
        "../../escape.txt.gz": gzip.compress(b"Escaped?"),
        "x/news.en.heldout-1": b"One .\n",
    }
    path = packed(tmp_path / f"all{suffix}", members)
    assert [(d.id, d.text, d.heldout) for d in read(path)] == [
        (f"{path.name}/x/a.txt", "A book.", False),
        (f"{path.name}/../../escape.txt.gz", "Escaped?", False),
        (f"{path.name}/x/news.en.heldout-1#0", "One .", True),
    ]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", [".tar.gz", ".zip"])
def test_reader_accounts_for_every_byte(tmp_path: Path, suffix: str) -> None:
    path = packed(tmp_path / f"a{suffix}", {"a.txt": b"text " * 100_000})
    (source,) = find_sources([f"c={path}"], [])
    source_reader = reader(source)
    list(source_reader.fragments())
    assert source_reader.bytes_read == path.stat().st_size
    assert source_reader.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_one_billion_word_official_archive(tmp_path: Path) -> None:
    top = "1-billion-word-language-modeling-benchmark-r13output"
    train, held = (
        f"{top}/training-monolingual.tokenized.shuffled",
        f"{top}/heldout-monolingual.tokenized.shuffled",
    )
    members = {
        f"{top}/README": b"not text of the corpus",
        f"{train}/news.en-00001-of-00100": b"One .\n",
        f"{held}/news.en.heldout-00000-of-00050": b"Two .\n",
        f"{held}/news.en-00000-of-00100": b"Three .\n",
    }
    path = packed(tmp_path / f"{top}.tar.gz", members)
    assert [(d.text, d.heldout) for d in read(path)] == [
        ("One .", False),
        ("Two .", True),
        ("Three .", True),
    ]


def test_links_and_hostile_names_in_archives_reach_nothing(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("not part of the corpus")
    (tmp_path / "c").mkdir()
    with tarfile.open(tmp_path / "c" / "all.tar", "w") as tar:
        for name, kind in (
            ("link.txt", tarfile.SYMTYPE),
            ("hard.txt", tarfile.LNKTYPE),
            ("fifo.txt", tarfile.FIFOTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "../secret.txt"
            tar.addfile(info)
        for name in ("/etc/cron.d/a.txt", "../../up.txt", "pipe:touch canary.txt", "b\udcff.txt"):
            info = tarfile.TarInfo(name)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"text"))
    ids = list(texts(tmp_path / "c"))
    assert ids == [
        f"all.tar/{name}"
        for name in ("/etc/cron.d/a.txt", "../../up.txt", "pipe:touch canary.txt", "b\ufffd.txt")
    ]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["all.tar", "c", "secret.txt"]


@pytest.mark.parametrize("name", ["news.en-1", "books_large_p1.txt", "c.jsonl"])
def test_large_plain_file_is_read_in_ranges(tmp_path: Path, monkeypatch, name: str) -> None:
    rng = random.Random(3)
    lines = [
        " ".join(rng.choices(["one", "two", "three"], k=rng.randrange(20))) for _ in range(25_003)
    ]
    lines = [json.dumps({"text": line}) for line in lines] if name == "c.jsonl" else lines
    (tmp_path / name).write_text("\n".join(lines))
    whole = read(tmp_path)
    monkeypatch.setattr(corpus, "SPLIT_BYTES", 30_000)
    monkeypatch.setattr(corpus, "READ_BYTES", 10_000)
    monkeypatch.setattr(formats, "FRAGMENT_BYTES", 10_000)
    (source,) = find_sources([f"c={tmp_path}"], [])
    ranges = in_ranges(source)
    assert len(ranges) > (2 if name.startswith("books") else 10)
    assert [r.begin for r in ranges[1:]] + [source.bytes] == [r.end for r in ranges]
    readers = [reader(r) for r in ranges]
    assert list(chain.from_iterable(map(documents_of, readers))) == whole
    assert {one.sha256 for one in readers} == {
        hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    }
    assert [one.bytes_read for one in readers] == [r.range_bytes for r in ranges]


@pytest.mark.parametrize(
    "name", [*(f"a.txt{s}" for s in PACK), *(f"all{s}" for s in TARS), "all.zip", "r.parquet"]
)
@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"not this format at all" * 40]
)
def test_damaged_file_is_named(tmp_path: Path, name: str, damage) -> None:
    text = "".join(f"word {i * 7919}\n" for i in range(20_000)).encode()
    if name.startswith("all"):
        packed(tmp_path / name, {"a.txt": text})
    elif name == "r.parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": text.decode().split()}), tmp_path / name)
    else:
        (tmp_path / name).write_bytes(PACK[Path(name).suffix](text))
    (tmp_path / name).write_bytes(damage((tmp_path / name).read_bytes()))
    with pytest.raises(DataError, match=f"{name}: cannot be read"):
        read(tmp_path / name)


def test_file_that_vanishes_or_changes_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    (source,) = find_sources([f"c={path}"], [])
    path.write_text("another length")
    with pytest.raises(DataError, match="a.txt: changed while it was read"):
        list(reader(source).fragments())
    path.unlink()
    with pytest.raises(DataError, match="a.txt: cannot be read .*No such file"):
        list(reader(source).fragments())


@pytest.mark.parametrize("value", ["books", "=x", "a/b=x", "a b=x", "books="])
def test_malformed_option(value: str) -> None:
    with pytest.raises(ConfigError, match="must be NAME=PATH"):
        find_sources([value], [])


def test_corpora_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{tmp_path}/nowhere: corpus 'c' is not there"):
        find_sources([f"c={tmp_path}/nowhere"], [])
    with pytest.raises(DataError, match="holds no text"):
        find_sources([f"c={tmp_path}"], [])
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DataError, match="holds no text"):
        find_sources([f"c={tmp_path}"], [])
    (tmp_path / "image.png").write_bytes(b"png")
    with pytest.raises(DataError, match="image.png: corpus 'c' is of no known format"):
        find_sources([f"c={tmp_path / 'image.png'}"], [])


def test_one_corpus_may_have_several_paths(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.txt").write_text(name)
    paths = [f"c={tmp_path / 'two'}", f"c={tmp_path / 'one'}"]
    assert [source.name for source in find_sources(paths, [])] == ["two.txt", "one.txt"]
    (tmp_path / "two" / "one.txt").write_text("clash")
    with pytest.raises(ConfigError, match="two of its paths hold a file named one.txt"):
        find_sources(paths, [])


def test_validation_path_needs_its_corpus(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    sources = find_sources([f"c={tmp_path}"], [f"c={tmp_path}"])
    assert [source.validation for source in sources] == [False, True]
    with pytest.raises(ConfigError, match="no --corpus d=PATH"):
        find_sources([f"c={tmp_path}"], [f"d={tmp_path}"])


def test_real_archive_is_read_in_place(shared_data: Path) -> None:
    (source,) = find_sources([f"c={shared_data / 'books_large.tar.xz'}"], [])
    fragments = reader(source).fragments()
    first = next(fragments)
    assert first.id.startswith("books_large.tar.xz/books_large/") and len(first.text) > 100_000
    fragments.close()
