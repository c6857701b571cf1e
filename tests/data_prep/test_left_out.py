"""What no document of a corpus has: in the manifest of a build and in its table."""

import json
from pathlib import Path

import pytest

from data_prep import build_shards, verify_shards
from gpt1_ds.data.manifest import read_manifest


def build(tokenizer: Path, corpus: Path, out: Path) -> None:
    options = ["--tokenizer", str(tokenizer), "--corpus", f"c={corpus}"]
    build_shards.main([*options, "--validation-fraction", "0", "--out", str(out)])


def test_what_is_cut_or_passed_over_is_told(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    corpus.mkdir()
    head = "*** START OF THE PROJECT GUTENBERG EBOOK A ***"
    (corpus / "a.txt").write_text(f"{head}the winter garden")
    (corpus / "b.txt").write_bytes(b"%PDF-1.4 no text")
    (corpus / "old.doc").touch()
    for number in range(30):
        (corpus / f".{number:02d}").touch()
    build(tokenizer, corpus, out)
    record = read_manifest(out).preparation["corpora"]["c"]
    assert record["cut"] == {"gutenberg": len(head)}
    assert record["passed_over"] == {"hidden": 30, "other_format": 1, "binary": 1}
    assert len(record["passed_over_first"]) == 20
    told = (
        f"; cut: {len(head)} characters by gutenberg; passed over: 1 binary, 30 hidden,"
        " 1 other_format (.00, .01"
    )
    printed = capsys.readouterr().out
    assert told in printed and ", ..)" in printed
    verify_shards.main([str(out), "--stats", "--picture", str(tmp_path / "d.png")])
    assert told in capsys.readouterr().out


def test_a_manifest_without_these_records_is_read(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Older ones, and those of corpora of which nothing was left out, have none."""
    (tmp_path / "a.txt").write_text("the winter garden")
    build(tokenizer, tmp_path / "a.txt", tmp_path / "out")
    record = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert not {"cut", "passed_over"} & record["preparation"]["corpora"]["c"].keys()
    assert "dropped: nothing\n" in capsys.readouterr().out
