"""Tests of data_prep/reading/formats.py: the documents of each format, and any encoding."""

import json
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from data_prep.reading import formats
from data_prep.reading.corpus import find_sources
from data_prep.reading.formats import BLOCK_LINES
from gpt1_ds.base.errors import DataError
from tests.support.cases_corpus import PACK, documents_of, read, reader, texts


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


def test_jsonl_with_marks_and_of_two_texts(tmp_path: Path) -> None:
    """Tools of Windows write a mark; a second `text` would hide the first."""
    mark = b"\xef\xbb\xbf"
    row = b'{"text": "one", "meta": {"text": "no"}}\n'
    (tmp_path / "c.jsonl").write_bytes(mark + row + mark + b'{"text": "two"}\n')
    assert texts(tmp_path) == {"c.jsonl#0": "one", "c.jsonl#1": "two"}
    (tmp_path / "c.jsonl").write_bytes(row + b'{"text": "one", "text": "two"}\n')
    with pytest.raises(DataError, match="c.jsonl: line 2 "):
        read(tmp_path)


def test_jsonl_row_beyond_all_measure_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(formats, "ROW_BYTES", 1000)
    (tmp_path / "c.jsonl").write_text(json.dumps({"text": "x" * 2000}))
    with pytest.raises(DataError, match="c.jsonl: line 1 is longer than"):
        read(tmp_path)


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


def test_parquet_columns(tmp_path: Path) -> None:
    path, rows = tmp_path / "c.parquet", pyarrow.array(["one", "two", "one"])
    kinds = (pyarrow.string(), pyarrow.large_string(), pyarrow.string_view())
    for column in [*(rows.cast(kind) for kind in kinds), rows.dictionary_encode()]:
        pyarrow.parquet.write_table(pyarrow.table({"text": column}), path)
        assert list(texts(path).values()) == ["one", "two", "one"]
    latin = pyarrow.array([b"R\xc9UNION", b"fine"], pyarrow.binary()).buffers()
    column = pyarrow.Array.from_buffers(pyarrow.string(), 2, latin)
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), path)
    assert list(texts(path).values()) == ["RÉUNION", "fine"]
    pyarrow.parquet.write_table(pyarrow.table({"text": rows[:0]}), path)
    assert texts(path) == {}
    nested = (["x"], {"s": "x"}, b"x", 1.5)
    for column in nested:
        pyarrow.parquet.write_table(pyarrow.table({"text": [column]}), path)
        with pytest.raises(
            DataError, match="c.parquet: its column 'text' is .*, but must hold str"
        ):
            read(path)
    twice = pyarrow.Table.from_arrays([rows, rows], names=["text", "text"])
    pyarrow.parquet.write_table(twice, path)
    with pytest.raises(DataError, match="c.parquet: has 2 columns 'text'"):
        read(path)


@pytest.mark.parametrize("suffix", PACK)
def test_packed_files_are_read_as_the_plain_ones(tmp_path: Path, suffix: str) -> None:
    files = {"a.txt": b"A\nbook.", "news.en-1": b"One .\nTwo .\n", "r.jsonl": b'{"text": "x"}'}
    for name, data in files.items():
        (tmp_path / (name + suffix)).write_bytes(PACK[suffix](data))
    assert list(texts(tmp_path).values()) == ["A book.", "One .", "Two .", "x"]


@pytest.mark.parametrize("name", ["a.txt", "news.en-1", "books_large_p1.txt", "c.jsonl"])
@pytest.mark.parametrize("unit", ["Some words, ", "A line.\n", "A paragraph.\n\n", "É"])
def test_long_document_comes_in_fragments_and_whole(
    tmp_path: Path, monkeypatch, name: str, unit: str
) -> None:
    """Its words stay whole, but for a single word that is longer than half a fragment."""
    text = unit * 3000 if name in ("a.txt", "c.jsonl") else unit.replace("\n", " ") * 3000
    (tmp_path / name).write_text(
        json.dumps({"text": text}, ensure_ascii=False) if name == "c.jsonl" else text
    )
    (whole,) = read(tmp_path)
    for size in (997, 4096):
        monkeypatch.setattr(formats, "FRAGMENT_BYTES", size)
        (source,) = find_sources([f"c={tmp_path}"], [])
        sizes = [len(fragment.text.encode()) for fragment in reader(source).fragments()]
        assert len(sizes) > 1 and max(sizes) <= 2 * size
        (document,) = documents_of(reader(source))
        space = "" if unit == "É" else " "
        assert (
            space.join(document.text.split()) == space.join(whole.text.split()) and not document.bad
        )
        if unit == "A paragraph.\n\n" and name in ("a.txt", "c.jsonl"):
            assert document.text == whole.text


# What is not clean UTF-8.


def counted(path: Path, bad_text: str = "mend") -> tuple[list[str], Counter[str], list[bool]]:
    (source,) = find_sources([f"c={path}"], [])
    source_reader = reader(source, bad_text)
    documents = documents_of(source_reader)
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
