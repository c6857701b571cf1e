"""Tests of data_prep/reading/folders.py: no file below a corpus folder is forgotten in silence."""

import contextlib
import gzip
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep.reading.corpus import find_sources
from gpt1_ds.base.errors import DataError
from tests.support.cases_corpus import TARS, packed, texts


def test_endings_in_capitals_are_read(tmp_path: Path) -> None:
    (tmp_path / "A.TXT").write_text("one")
    (tmp_path / "B.Txt.GZ").write_bytes(gzip.compress(b"two"))
    (tmp_path / "NEWS.EN-1").write_text("three")
    (tmp_path / "R.JSONL").write_text('{"text": "four"}')
    assert list(texts(tmp_path).values()) == ["one", "two", "three", "four"]
    for suffix in (*TARS, ".zip"):
        path = packed(tmp_path / f"x{suffix}", {"A.TXT": b"one"})
        path = path.rename(tmp_path / f"X{suffix.upper()}")
        assert list(texts(path).values()) == ["one"]
        path.unlink()


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    corpus, other = tmp_path / "corpus", tmp_path / "other"
    for folder in (corpus / "real", other / "deep"):
        folder.mkdir(parents=True)
    (corpus / "real" / "a.txt").write_text("one")
    (other / "deep" / "b.txt").write_text("two")
    (corpus / "again").symlink_to("real")
    (corpus / "loop").symlink_to(".")
    (corpus / "up").symlink_to(other)
    (other / "back").symlink_to(corpus)
    (other / "deep" / "round").symlink_to(other)
    assert texts(corpus) == {"real/a.txt": "one", "up/deep/b.txt": "two"}
    (tmp_path / "linked").symlink_to(corpus)
    assert texts(tmp_path / "linked").keys() == {"real/a.txt", "up/deep/b.txt"}


def test_what_is_not_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "deep").mkdir()
    for name in ("b.pdf", "deep/c", ".d.txt", "deep/e.txt.Z", "f\udcff.doc"):
        (tmp_path / name).touch()
    (tmp_path / "gone.txt").symlink_to("nowhere")
    (tmp_path / "self.txt").symlink_to("self.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    (source,) = find_sources([f"c={tmp_path}"], [])
    assert source.passed_over == (
        ("hidden", ".d.txt"),
        ("link", "gone.txt"),
        ("link", "self.txt"),
        ("other_format", "b.pdf"),
        ("other_format", "deep/c"),
        ("other_format", "deep/e.txt.Z"),
        ("other_format", "f\ufffd.doc"),
        ("special", "pipe.txt"),
    )


@contextlib.contextmanager
def as_another_user() -> Iterator[None]:
    """The superuser may read everything."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


@pytest.mark.parametrize("mode", [0o000, 0o400])
def test_a_folder_that_cannot_be_read_is_refused(mode: int) -> None:
    corpus = Path(tempfile.mkdtemp())
    closed = corpus / "sub" / "closed"
    try:
        closed.mkdir(parents=True)
        (corpus / "b.txt").write_text("two")
        (closed / "a.txt").write_text("one")
        closed.chmod(mode)
        for folder in (corpus, closed.parent):
            folder.chmod(0o755)
        with as_another_user(), pytest.raises(DataError, match=f"{closed}.*: corpus 'c' cannot"):
            find_sources([f"c={corpus}"], [])
    finally:
        closed.chmod(0o700)
        shutil.rmtree(corpus)
