"""eval --overlap: the sets below a folder against real shards, and what the report quotes."""

import json
import shutil
from pathlib import Path

import pytest

from gpt1_ds import eval as evaluate
from gpt1_ds import report
from gpt1_ds.base.errors import UserError
from gpt1_ds.runs import overlap
from gpt1_ds.tasks.overlap import words_of
from tests.reports.test_page import text_of
from tests.support.benchmark_files import make_benchmarks

LONG_AGO = "never before has anyone written these very words in this peculiar order today"


@pytest.fixture
def sets(sample: Path, tmp_path: Path) -> Path:
    """SST-2 with sentences of the training text, BLiMP and LAMBADA without any."""
    stories = sorted((sample / "books" / "train").glob("*.txt"))
    words = stories[0].read_text(encoding="utf-8").split()
    rows = [
        " ".join(words[40:60]).upper(),  # 20 words of it
        f"{LONG_AGO} {' '.join(words[100:113])}",  # 13 in a row
        f"{LONG_AGO} {' '.join(words[100:112])}",  # 12 are too few
        " ".join(words[200:208]),  # a short one, whole
        " ".join(words[200:207]),  # too short
        LONG_AGO,
    ]
    assert all(len(words_of(word)) == 1 for word in words[40:212])
    folder = make_benchmarks(tmp_path / "tasks") / "SST-2"
    folder.mkdir()
    lines = ["sentence\tlabel", *(f"{row}\t{place % 2}" for place, row in enumerate(rows))]
    (folder / "dev.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "train.tsv").write_text("sentence\tlabel\nbad\t0\ngood\t1\n")
    return tmp_path / "tasks"


@pytest.mark.parametrize("block_tokens", [overlap.BLOCK_TOKENS, 1500])
def test_examples_of_the_training_text_are_counted_and_quoted(
    tiny_run, tiny_shards, sets, tmp_path, capsys, monkeypatch, block_tokens
):
    monkeypatch.setattr(overlap, "BLOCK_TOKENS", block_tokens)
    shards, out = tmp_path / "shards", tmp_path / "found.tsv"
    shutil.copytree(tiny_shards, shards)
    evaluate.main(["--overlap", str(shards), "--data", str(sets), "--out", str(out)])
    rows = {tuple(row.split()[:2]): row.split()[2:] for row in capsys.readouterr().out.splitlines()}
    assert rows["sst2", "dev"] == ["6", "5", "3", "60.00"]
    assert rows["sst2", "train"] == ["2", "0", "0"]
    assert rows["blimp", "all"][2] == rows["lambada", "all"][2] == "0"
    found = [line.split("\t")[:3] for line in out.read_text().splitlines()[1:]]
    assert found == [["sst2", "dev", index] for index in ("0", "1", "3")]
    # A second measure of one set leaves the rows of the others.
    before = json.loads((shards / "overlap.json").read_text())
    shutil.rmtree(sets / "SST-2")
    evaluate.main(["--overlap", str(shards), "--data", str(sets)])
    after = json.loads((shards / "overlap.json").read_text())
    assert {row["name"] for row in after["sets"]} == {row["name"] for row in before["sets"]}
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace(str(tiny_shards), str(shards)))
    page = tmp_path / "page.html"
    report.main([str(run), "--out", str(page)])
    shown = text_of(page.read_text(encoding="utf-8"))
    assert "set split examples measured occur % " in shown and "sst2 dev 6 5 3 60.00" in shown
    for damage, told in (
        ({**after, "sets": [{"name": 1}]}, "overlap.json: is damaged"),
        ({**after, "data": {"train/books": "7 tokens"}}, "overlap.json: of other shards"),
    ):
        (shards / "overlap.json").write_text(json.dumps(damage))
        report.main([str(run), "--out", str(page)])
        shown = text_of(page.read_text(encoding="utf-8"))
        assert told in shown and "sst2 dev 6" not in shown


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--overlap {shards} --data {empty}", "none of the sets is there"),
        ("--overlap {empty} --data {sets}", "no such shard manifest"),
        ("runs/a --overlap {shards}", "--overlap needs no run"),
        ("--overlap {shards} --lines", "--lines does not go with --overlap"),
        ("--overlap {shards} --data {sets} --out {empty}", "choose another file"),
    ],
)
def test_bad_usage_gets_one_line(tiny_shards, sets, tmp_path, words, says):
    (tmp_path / "empty").mkdir()
    shutil.copytree(tiny_shards, tmp_path / "shards")
    places = {"shards": tmp_path / "shards", "empty": tmp_path / "empty", "sets": sets}
    with pytest.raises(UserError, match=says) as error:
        evaluate.main(words.format(**places).split())
    assert "\n" not in str(error.value)
