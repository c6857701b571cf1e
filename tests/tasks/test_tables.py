"""Publishers' tables: rows are numbered as an editor numbers them, and each fault names its row."""

import json
from pathlib import Path

import pytest

from gpt1_ds.base.errors import DataError
from gpt1_ds.tasks.tables import Table, label_index, read_lines

PAIR = Table(("a", "b"), "label")


def read(path: Path, text: str, table: Table = PAIR) -> list[tuple]:
    """(texts, label) of each example; here a label is its text and its place."""
    path.write_bytes(text.encode())
    examples = table(path, lambda label, where: (label, where.replace(str(path), "FILE")))
    return [(example.texts, example.label) for example in examples]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "train.tsv"


def test_rows_count_from_1_with_the_header(path):
    assert read(path, "a\tb\tlabel\nx\ty\t1\n\nz\tw\t0\n") == [
        (("x", "y"), ("1", "FILE row 2")),
        (("z", "w"), ("0", "FILE row 4")),
    ]
    assert list(read_lines(path)) == [(1, "a\tb\tlabel"), (2, "x\ty\t1"), (3, ""), (4, "z\tw\t0")]


def test_a_column_more_than_needed_and_in_another_order(path):
    assert read(path, "label\tid\tb\ta\n1\t7\ty\tx\n") == [(("x", "y"), ("1", "FILE row 2"))]


def test_a_header_of_the_texts_alone_is_that_of_a_test_file(path):
    assert read(path, "b\ta\ny\tx\n") == [(("x", "y"), (None, "FILE row 2, column 'label'"))]


def test_rows_of_a_file_without_a_header(path):
    table = Table(("a", "b"), "label", header=("id", "label", "a", "b"))
    assert read(path, "7\t1\tx\ty\n8\t0\tz\tw\tmore\n", table) == [
        (("x", "y"), ("1", "FILE row 1")),
        (("z", "w"), ("0", "FILE row 2")),
    ]
    assert read(path, "label\tb\ta\n1\ty\tx\n", table) == [(("x", "y"), ("1", "FILE row 2"))]
    with pytest.raises(DataError, match=r"row 2: 3 columns, expected 4 \(id, label, a, b\)"):
        read(path, "7\t1\tx\ty\n8\t0\tz\n", table)


@pytest.mark.parametrize(("row", "count"), [("x\ty\t1\t2", 4), ("x\ty", 2)])
def test_rows_of_another_width(path, row, count):
    with pytest.raises(DataError, match=rf"row 3: {count} columns, expected 3 \(a, b, label\)"):
        read(path, f"a\tb\tlabel\nx\ty\t1\n{row}\n")


def test_columns_that_are_missing(path):
    with pytest.raises(
        DataError,
        match=r"row 1: no column 'b' in the header \(fields between tabs\); choose from: a, l",
    ):
        read(path, "a\tl\nx\t1\n")
    comma = Table(("a", "b"), "label", delimiter=",")
    with pytest.raises(
        DataError, match=r"row 1: no column 'a' in the header \(fields between commas\)"
    ):
        read(path, "a\tb\tlabel\n", comma)
    with pytest.raises(DataError, match="row 2: no column 'b'; choose from: a, label"):
        read(path, '{"a": "x", "b": "y"}\n{"a": "x", "label": 1}\n')


def test_empty_fields(path):
    with pytest.raises(DataError, match="row 2: column 'b' is empty; fill it or remove the row"):
        read(path, "a\tb\tlabel\nx\t \t1\n")
    with pytest.raises(DataError, match="row 2: column 'a' is empty"):
        read(path, "a\tb\tlabel\n\ty\t1\n")
    assert read(path, "a\tb\tlabel\nx\ty\t \n") == [
        (("x", "y"), (None, "FILE row 2, column 'label'"))
    ]


def test_a_broken_file_leaves_out_labelled_rows_that_lack_a_field(path, capsys):
    table = Table(("a", "b"), "label", broken=True)
    rows = ["a\tb\tlabel", "x\ty\t1", "x\t\t1", "x\ty", "z\tw\t0", "x\ty\t1\t2"]
    assert read(path, "\n".join(rows), table) == [
        (("x", "y"), ("1", "FILE row 2")),
        (("z", "w"), ("0", "FILE row 5")),
    ]
    said = capsys.readouterr().out
    assert f"warning: {path} row 3 lacks a field; 3 such rows are left out" in said
    # A test file has no label: all of its rows are predicted, also those that lack a field.
    assert read(path, "a\tb\nx\t\n", table) == [(("x", ""), (None, "FILE row 2, column 'label'"))]
    with pytest.raises(DataError, match="row 2: 1 columns, expected 2"):
        read(path, "a\tb\nx\n", table)
    assert capsys.readouterr().out == ""


def test_other_spellings_of_a_label(path):
    table = Table(("a", "b"), "label", spelling={"yes": "1", "-": None})
    assert read(path, "a\tb\tlabel\nx\ty\tyes\nx\ty\t-\nx\ty\t0\n", table) == [
        (("x", "y"), ("1", "FILE row 2")),
        (("x", "y"), ("0", "FILE row 4")),
    ]


def test_comma_separated_rows_are_numbered_by_their_first_line(path):
    table = Table(("a", "b"), "label", delimiter=",")
    text = 'a,b,label\n"x, x",y,1\n\n"two\nlines",w,0\nx,y,1\n'
    assert read(path, text, table) == [
        (("x, x", "y"), ("1", "FILE row 2")),
        (("two\nlines", "w"), ("0", "FILE row 4")),
        (("x", "y"), ("1", "FILE row 6")),
    ]
    with pytest.raises(
        DataError, match="row 3: .*; close its quotes, and double those inside a field"
    ):
        read(path, 'a,b,label\nx,y,1\n"x,y,1\n', table)
    with pytest.raises(DataError, match="row 2: .*; close its quotes"):
        read(path, 'a,b,label\n"x"x,y,1\n', table)


def test_json_lines(path):
    lines = [{"a": "x", "b": ["y", "y"], "label": 1}, {"a": "z", "b": "w", "label": None}]
    assert read(path, "\n\n".join(map(json.dumps, lines))) == [
        (("x", "y y"), ("1", "FILE row 1")),
        (("z", "w"), (None, "FILE row 3, column 'label'")),
    ]
    for broken in ("[1]", "{"):
        with pytest.raises(DataError, match="row 2: not a JSON object .*; write one a line"):
            read(path, f"{json.dumps(lines[0])}\n{broken}\n")


def test_files_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(DataError, match="nowhere.tsv: No such file"):
        list(read_lines(tmp_path / "nowhere.tsv"))
    (tmp_path / "latin.tsv").write_bytes(b"a\nb\nc\n" * 20_000 + b"\xe9\n")
    with pytest.raises(
        DataError, match=r"latin.tsv: not UTF-8 after row \d{5}; convert the file to UTF-8"
    ):
        list(read_lines(tmp_path / "latin.tsv"))
    (tmp_path / "first.tsv").write_bytes(b"\xe9\n")
    with pytest.raises(DataError, match="first.tsv: not UTF-8 after row 0;"):
        list(read_lines(tmp_path / "first.tsv"))


def test_an_empty_file_has_no_rows(path):
    assert read(path, "") == [] and read(path, "\n\n") == []


def test_labels_have_numbers():
    assert [label_index(label, ("no", "yes"), "x") for label in ("no", "yes")] == [0, 1]
    with pytest.raises(DataError, match="here: unknown label 'maybe'; choose from: no, yes"):
        label_index("maybe", ("no", "yes"), "here")
