"""Tests of data_prep/reading/decoding.py: the whole document decides its encoding."""

import gzip
import random
import zipfile
from pathlib import Path

import pytest

from data_prep.reading import decoding, formats
from data_prep.reading.cleaning import Cleaning
from data_prep.reading.corpus import SourceReader, find_sources
from gpt1_ds.base.errors import DataError
from tests.support.cases_corpus import documents_of, packed, reader

LATIN = "L'été, à l'hôtel: «ça» coûte 5 £. "
PAIR = "Â£"
"""In Windows-1252, its bytes are those of a UTF-8 pound sign."""


def mended(path: Path, data: bytes) -> tuple[str, dict[str, int]]:
    """The only text of a file, and what was counted about its bytes."""
    path.write_bytes(data)
    (source,) = find_sources([f"c={path}"], [])
    source_reader = SourceReader(source, Cleaning({"c": ("unwrap",)}))  # ftfy would mend it too.
    found = " ".join(document.text for document in documents_of(source_reader))
    counts = {name: count for name, count in source_reader.counts.items() if count}
    del counts["read"]
    return " ".join(found.split()), counts


def test_a_few_sequences_do_not_decide(tmp_path: Path) -> None:
    text = f"{PAIR}1. {LATIN}{PAIR}2."
    for name in ("a.txt", "news.en-1", "books_large_p1.txt"):
        assert mended(tmp_path / name, text.encode("cp1252")) == (text, {"latin1": 1})
    data = (LATIN * 3).encode()
    for broken in (b"\xff", b"\xc3", b"\xe2\x80"):
        found, counts = mended(tmp_path / "a.txt", b"x" + broken + data + broken + b" y")
        assert found == ("x\ufffd" + LATIN * 3 + "\ufffd y") and counts == {"invalid_utf8": 2}


def test_one_line_does_not_decide_for_the_others(tmp_path: Path) -> None:
    lines = [f"{PAIR}9 for all", "caf\xe9 one", "caf\xe9 two"]
    found, counts = mended(tmp_path / "news.en-1", "\n".join(lines).encode("cp1252"))
    assert found.split()[-4:] == ["caf\xe9", "one", "caf\xe9", "two"] and counts == {"latin1": 2}
    utf8 = "één\ntwéé\ndrié\n".encode()
    found, counts = mended(tmp_path / "news.en-2", utf8 + b"caf\xe9\n")
    assert found == "één twéé drié caf\ufffd" and counts == {"invalid_utf8": 1}


@pytest.mark.parametrize("size", [256, 1000])
def test_a_long_document_does_not_change_its_mind(tmp_path: Path, monkeypatch, size: int) -> None:
    monkeypatch.setattr(formats, "FRAGMENT_BYTES", size)
    plain = "Only plain words here.\n" * 100
    text = f"{plain}{PAIR}7.\n{plain}" + f"{LATIN}\n" * 200
    assert mended(tmp_path / "a.txt", text.encode("cp1252")) == (
        " ".join(text.split()),
        {"latin1": 1},
    )
    data = f"{plain}{LATIN * 50}{plain}".encode() + b"caf\xe9. " * 3 + plain.encode()
    found, counts = mended(tmp_path / "a.txt", data)
    assert found.count("caf\ufffd.") == 3 and "hôtel" in found and counts == {"invalid_utf8": 3}
    monkeypatch.setattr(decoding, "HELD_BYTES", 4 * size)
    text = plain + f"{LATIN}\n" * 300
    assert mended(tmp_path / "a.txt", text.encode("cp1252"))[0] == " ".join(text.split())


@pytest.mark.parametrize("encoding", ["utf-32", "utf-16", "utf-8-sig"])
def test_marked_text(tmp_path: Path, encoding: str) -> None:
    assert mended(tmp_path / "a.txt", LATIN.strip().encode(encoding))[0] == LATIN.strip()


def zip_data(path: Path) -> bytes:
    with zipfile.ZipFile(path, "w") as archive:  # stored: all of it could be decoded
        archive.writestr("a.xhtml", "<p>words and more words</p>" * 200)
    return path.read_bytes()


def binary_files(folder: Path) -> dict[str, bytes]:
    noise = random.Random(1).randbytes(5000)
    return {
        "gzip": gzip.compress(b"short"),
        "zip": zip_data(folder / "made.zip"),
        "tar": packed(folder / "made.tar", {"a.txt": b"words " * 900}).read_bytes(),
        "pdf": b"%PDF-1.4\n1 0 obj << /Type /Catalog >> endobj\n",
        "png": b"\x89PNG\r\n\x1a\n" + noise,
        "noise": noise,
        "noise behind words": b"Some words in front. " * 50 + noise * 2,
        "many nuls": b"a\0\0\0" * 500 + b"end",
    }


def test_binary_data_are_no_text(tmp_path: Path) -> None:
    for name, data in binary_files(tmp_path).items():
        for file in ("a.txt", "a.txt.gz"):
            path = tmp_path / file
            path.write_bytes(gzip.compress(data) if file.endswith(".gz") else data)
            (source,) = find_sources([f"c={path}"], [])
            source_reader = reader(source)
            assert documents_of(source_reader) == [], name
            assert source_reader.passed_over == [("binary", file)], name
            assert source_reader.bytes_read == path.stat().st_size
            with pytest.raises(DataError, match=f"{path}: {file} is binary data, no text"):
                documents_of(reader(source, "refuse"))


def test_text_with_some_control_characters_is_text(tmp_path: Path) -> None:
    for data in (
        b"\x1b[1mred\x1b[0m " * 50,
        b"b\bbo\bol\bld\bd text " * 9,
        b"words " * 9 + bytes(900),
    ):
        found, _ = mended(tmp_path / "a.txt", data)
        assert len(found.split()) >= 9
    assert mended(tmp_path / "a.txt", b"PKZIP and %PDF and BZh9 are names")[0].startswith("PKZIP")
