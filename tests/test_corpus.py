"""Tests of data_prep/corpus.py: every kind of source a user may have, and every way it may be bad."""

import gzip
import hashlib
import io
import json
import lzma
import tarfile
from pathlib import Path

import pytest

from data_prep.corpus import BLOCK_LINES, Document, SourceReader, find_sources
from gpt1_ds.errors import ConfigError, DataError


def read(path: Path) -> list[Document]:
    return [d for source in find_sources([f"c={path}"], []) for d in SourceReader(source).documents()]


def texts(path: Path) -> dict[str, str]:
    return {document.id: document.text for document in read(path)}


def packed(path: Path, members: dict[str, bytes], mode: str) -> Path:
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_a_folder_is_one_document_a_text_file(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "b.txt").write_text("Hard\nwrapped.\n\nTwo.")
    (tmp_path / "deep" / "a.txt").write_text("A book.")
    (tmp_path / ".hidden.txt").write_text("no")
    (tmp_path / "cover.jpg").write_bytes(b"\xff\xd8")
    assert texts(tmp_path) == {"b.txt": "Hard wrapped.\nTwo.", "deep/a.txt": "A book."}
    assert texts(tmp_path / "b.txt") == {"b.txt": "Hard wrapped.\nTwo."}


def test_sentence_file_is_cut_into_aligned_blocks(tmp_path: Path) -> None:
    lines = [f"sentence {i} ." for i in range(2 * BLOCK_LINES + 5)]
    (tmp_path / "books_large_p1.txt").write_text("\n".join(lines) + "\n")
    assert texts(tmp_path) == {
        "books_large_p1.txt#0": "\n".join(lines[:BLOCK_LINES]),
        "books_large_p1.txt#1": "\n".join(lines[BLOCK_LINES : 2 * BLOCK_LINES]),
        "books_large_p1.txt#2": "\n".join(lines[2 * BLOCK_LINES :]),
    }


def test_one_billion_word_is_a_document_a_line(tmp_path: Path) -> None:
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "news.en-00001-of-00100").write_text("One .\n\nTwo .\n")
    (tmp_path / "news.en.heldout-00000-of-00050").write_text("Three .\n")
    assert [(d.id, d.text, d.heldout) for d in read(tmp_path)] == [
        ("news.en.heldout-00000-of-00050#0", "Three .", True),
        ("training/news.en-00001-of-00100#0", "One .", False),
        ("training/news.en-00001-of-00100#2", "Two .", False),
    ]


def test_jsonl_rows(tmp_path: Path) -> None:
    rows = [{"text": "One\nbook.", "title": "x"}, {"text": "Two."}]
    (tmp_path / "c.jsonl").write_text("\n\n".join(json.dumps(row) for row in rows))
    assert texts(tmp_path) == {"c.jsonl#0": "One book.", "c.jsonl#2": "Two."}


@pytest.mark.parametrize("row", ["{", "[1]", '"text"', '{"content": "x"}', '{"text": 7}', "null"])
def test_jsonl_row_without_text_is_refused(tmp_path: Path, row: str) -> None:
    (tmp_path / "c.jsonl").write_text('{"text": "good"}\n' + row)
    with pytest.raises(DataError, match="c.jsonl: line 2 "):
        read(tmp_path)


@pytest.mark.parametrize("suffix, pack", [(".gz", gzip.compress), (".xz", lzma.compress)])
def test_packed_files_are_read_as_the_plain_ones(tmp_path: Path, suffix: str, pack) -> None:
    files = {"a.txt": b"A\nbook.", "news.en-1": b"One .\nTwo .\n", "r.jsonl": b'{"text": "x"}'}
    for name, data in files.items():
        (tmp_path / (name + suffix)).write_bytes(pack(data))
    assert list(texts(tmp_path).values()) == ["A book.", "One .", "Two .", "x"]


@pytest.mark.parametrize("suffix, mode", [(".tar", "w"), (".tar.gz", "w:gz"), (".tgz", "w:gz"), (".tar.xz", "w:xz")])
def test_archives_are_read_in_place(tmp_path: Path, suffix: str, mode: str) -> None:
    members = {
        "x/a.txt": b"A\nbook.",
        "x/notes.pdf": b"%PDF",
        "../../escape.txt.gz": gzip.compress(b"Escaped?"),
        "x/news.en.heldout-1": b"One .\n",
    }
    path = packed(tmp_path / f"all{suffix}", members, mode)
    assert [(d.id, d.text, d.heldout) for d in read(path)] == [
        (f"{path.name}/x/a.txt", "A book.", False),
        (f"{path.name}/../../escape.txt.gz", "Escaped?", False),
        (f"{path.name}/x/news.en.heldout-1#0", "One .", True),
    ]
    assert list(tmp_path.iterdir()) == [path]


def test_reader_accounts_for_every_byte(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.tar.gz", {"a.txt": b"text " * 100_000}, "w:gz")
    (source,) = find_sources([f"c={path}"], [])
    reader = SourceReader(source)
    list(reader.documents())
    assert reader.bytes_read == path.stat().st_size
    assert reader.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_bad_bytes_are_mended_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "news.en-1"
    path.write_bytes(b"caf\xe9 au lait\nnul\x00 byte\x00\n\xef\xbb\xbfmark\n  \n\x00\n")
    (source,) = find_sources([f"c={path}"], [])
    reader = SourceReader(source)
    assert [document.text for document in reader.documents()] == ["caf\ufffd au lait", "nul byte", "mark"]
    assert reader.counts == {"read": 5, "empty": 2, "invalid_utf8": 1, "nul": 3}


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.xz", "a.tar.gz", "a.tar.xz", "a.tar"])
@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"not this format at all" * 40])
def test_damaged_file_is_named(tmp_path: Path, name: str, damage) -> None:
    text = "".join(f"word {i * 7919}\n" for i in range(20_000)).encode()
    if ".tar" in name:
        packed(tmp_path / name, {"a.txt": text}, {"tar": "w"}.get(name.split(".")[-1], f"w:{name.split('.')[-1]}"))
    else:
        (tmp_path / name).write_bytes((gzip if name.endswith(".gz") else lzma).compress(text))
    (tmp_path / name).write_bytes(damage((tmp_path / name).read_bytes()))
    with pytest.raises(DataError, match=f"{name}: cannot be read"):
        read(tmp_path / name)


def test_file_that_vanishes_or_changes_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    (source,) = find_sources([f"c={path}"], [])
    path.write_text("another length")
    with pytest.raises(DataError, match="a.txt: changed while it was read"):
        list(SourceReader(source).documents())
    path.unlink()
    with pytest.raises(DataError, match="a.txt: cannot be read .*No such file"):
        list(SourceReader(source).documents())


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
    documents = SourceReader(source).documents()
    first = next(documents)
    assert first.id.startswith("books_large.tar.xz/books_large/") and len(first.text) > 100_000
    documents.close()
