"""Tests of data_prep/corpus.py and formats.py: every kind of source a user may have, and every way it may be bad."""

import bz2
import gzip
import hashlib
import io
import json
import lzma
import random
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from data_prep.reading import corpus, formats
from data_prep.reading.cleaning import DEFAULT_STEPS, Cleaning
from data_prep.reading.corpus import Piece, Source, SourceReader, find_sources, in_ranges
from data_prep.reading.formats import BLOCK_LINES
from gpt1_ds.base.errors import ConfigError, DataError


def reader(source: Source, bad_text: str = "mend") -> SourceReader:
    return SourceReader(source, Cleaning({"c": DEFAULT_STEPS}, bad_text))


def joined(pieces: list[Piece]) -> list[Piece]:
    """Whole documents."""
    documents, parts = [], []
    for piece in pieces:
        parts.append(piece.text)
        if piece.last:
            documents.append(piece._replace(text="\n".join(part for part in parts if part)))
            parts = []
    assert not parts, "a document was not ended"
    return documents


def read(path: Path) -> list[Piece]:
    return [
        d
        for source in find_sources([f"c={path}"], [])
        for d in joined(list(reader(source).pieces()))
    ]


def texts(path: Path) -> dict[str, str]:
    return {document.id: document.text for document in read(path)}


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


PACK = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}
TARS = [".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tar.zst"]


def packed(path: Path, members: dict[str, bytes]) -> Path:
    """An archive of the kind that its name says."""
    if path.suffix == ".zip":
        return zipped(path, members)
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    kind = {".tgz": ".gz", ".txz": ".xz"}.get(path.suffix, path.suffix)
    path.write_bytes(PACK[kind](data.getvalue()) if kind in PACK else data.getvalue())
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


@pytest.mark.parametrize("suffix", PACK)
def test_packed_files_are_read_as_the_plain_ones(tmp_path: Path, suffix: str) -> None:
    files = {"a.txt": b"A\nbook.", "news.en-1": b"One .\nTwo .\n", "r.jsonl": b'{"text": "x"}'}
    for name, data in files.items():
        (tmp_path / (name + suffix)).write_bytes(PACK[suffix](data))
    assert list(texts(tmp_path).values()) == ["A book.", "One .", "Two .", "x"]


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
    list(source_reader.pieces())
    assert source_reader.bytes_read == path.stat().st_size
    assert source_reader.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


# What is not clean UTF-8.


def counted(path: Path, bad_text: str = "mend") -> tuple[list[str], Counter[str], list[bool]]:
    (source,) = find_sources([f"c={path}"], [])
    source_reader = reader(source, bad_text)
    documents = joined(list(source_reader.pieces()))
    return [d.text for d in documents], source_reader.counts, [d.bad for d in documents]


def test_bad_bytes_are_mended_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "news.en-1"
    path.write_bytes(b"\xef\xbb\xbfmark\ncaf\xe9 au lait\nnul\x00 byte\x00\n  \n\x00\n")
    found, counts, bad = counted(path)
    assert found == ["mark", "caf\ufffd au lait", "nul byte"] and bad == [False, True, True]
    assert counts == {"read": 5, "empty": 2, "invalid_utf8": 1, "nul": 3}


def test_latin_1_is_told_from_damaged_utf_8(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("Caf\xe9, \x93na\xefve\x94.".encode("latin-1"))
    (tmp_path / "broken.txt").write_bytes("Café, naïve.".encode()[:-4])
    assert counted(tmp_path / "latin.txt")[:2] == (
        ['Café, "naïve".'],
        {"read": 1, "empty": 0, "latin1": 1},
    )
    assert counted(tmp_path / "broken.txt")[:2] == (
        ["Café, na\ufffd"],
        {"read": 1, "empty": 0, "invalid_utf8": 1},
    )


@pytest.mark.parametrize(
    "encoding, mark",
    [("utf-16", ""), ("utf-16-le", ""), ("utf-16-be", ""), ("utf-16-be", "\ufeff")],
)
def test_utf_16_is_converted(tmp_path: Path, encoding: str, mark: str) -> None:
    (tmp_path / "news.en-1").write_bytes(
        (mark + "One café .\r\nTwo 龍 🙂 .\n" * 3).encode(encoding)
    )
    found, counts, bad = counted(tmp_path / "news.en-1")
    assert found == ["One café .", "Two 龍 🙂 ."] * 3 and counts["utf16"] == 1 and all(bad)


def test_policy_may_refuse_bad_text(tmp_path: Path) -> None:
    (tmp_path / "news.en-1").write_bytes(b"fine\ncaf\xe9\n")
    with pytest.raises(
        DataError, match="news.en-1: document news.en-1#1 is not clean UTF-8 text.*--bad-text"
    ):
        counted(tmp_path / "news.en-1", "refuse")


def test_bad_text_in_json_is_mended(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_bytes(b'{"text": "caf\xe9"}\n{"text": "a \\ud83d b"}\n')
    assert texts(tmp_path) == {"c.jsonl#0": "café", "c.jsonl#1": "a \ufffd b"}


# Other formats, and large ones.


def test_parquet_rows(tmp_path: Path) -> None:
    rows = ["One\nbook.", None, "", "Two."] * 50
    pyarrow.parquet.write_table(
        pyarrow.table({"text": rows, "title": ["x"] * 200}),
        tmp_path / "c.parquet",
        row_group_size=30,
    )
    assert texts(tmp_path) == {
        f"c.parquet#{i}": " ".join(t.split()) for i, t in enumerate(rows) if t
    }
    for column in ({"content": rows}, {"text": [1] * 3}):
        pyarrow.parquet.write_table(pyarrow.table(column), tmp_path / "c.parquet")
        with pytest.raises(DataError, match="c.parquet: its column 'text' is"):
            read(tmp_path)


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
    monkeypatch.setattr(formats, "PIECE_BYTES", 10_000)
    (source,) = find_sources([f"c={tmp_path}"], [])
    ranges = in_ranges(source)
    assert len(ranges) > (2 if name.startswith("books") else 10)
    assert [r.begin for r in ranges[1:]] + [source.bytes] == [r.end for r in ranges]
    readers = [reader(r) for r in ranges]
    assert [d for one in readers for d in joined(list(one.pieces()))] == whole
    assert {one.sha256 for one in readers} == {
        hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    }
    assert [one.bytes_read for one in readers] == [r.range_bytes for r in ranges]


@pytest.mark.parametrize("name", ["a.txt", "news.en-1", "books_large_p1.txt", "c.jsonl"])
@pytest.mark.parametrize("unit", ["Some words, ", "A line.\n", "A paragraph.\n\n", "É"])
def test_long_document_comes_in_pieces_and_whole(
    tmp_path: Path, monkeypatch, name: str, unit: str
) -> None:
    """Cut anywhere, its words are the same; only a single word longer than half a piece is parted."""
    text = unit * 3000 if name in ("a.txt", "c.jsonl") else unit.replace("\n", " ") * 3000
    (tmp_path / name).write_text(
        json.dumps({"text": text}, ensure_ascii=False) if name == "c.jsonl" else text
    )
    (whole,) = read(tmp_path)
    for size in (997, 4096):
        monkeypatch.setattr(formats, "PIECE_BYTES", size)
        (source,) = find_sources([f"c={tmp_path}"], [])
        pieces = list(reader(source).pieces())
        assert len(pieces) > 1 and max(len(piece.text.encode()) for piece in pieces) <= 2 * size
        (document,) = joined(pieces)
        space = "" if unit == "É" else " "
        assert (
            space.join(document.text.split()) == space.join(whole.text.split()) and not document.bad
        )
        if unit == "A paragraph.\n\n" and name in ("a.txt", "c.jsonl"):
            assert document.text == whole.text


def test_jsonl_row_beyond_all_measure_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(formats, "ROW_BYTES", 1000)
    (tmp_path / "c.jsonl").write_text(json.dumps({"text": "x" * 2000}))
    with pytest.raises(DataError, match="c.jsonl: line 1 is longer than"):
        read(tmp_path)


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
        list(reader(source).pieces())
    path.unlink()
    with pytest.raises(DataError, match="a.txt: cannot be read .*No such file"):
        list(reader(source).pieces())


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
    pieces = reader(source).pieces()
    first = next(pieces)
    assert first.id.startswith("books_large.tar.xz/books_large/") and len(first.text) > 100_000
    pieces.close()
