"""The report page: complete without some files of a run, escaped, shown in a real browser."""

import json
import re
import shutil
from html import unescape
from pathlib import Path

import pytest

from gpt1_ds import report
from gpt1_ds.base.errors import DataError
from gpt1_ds.base.files import file_sha256
from gpt1_ds.reports.run_files import RunFiles
from tests.conftest import succeed
from tests.support.report_runs import lines, make_fine_tuning, make_run


@pytest.fixture
def run(tmp_path) -> Path:
    return make_run(tmp_path / "<run>")


def page(*runs: Path, out: Path) -> str:
    report.main([*map(str, runs), "--out", str(out)])
    return out.read_text(encoding="utf-8")


def text_of(html: str) -> str:
    body = re.sub(r"(?s)<style>.*?</style>|<script.*?</script>", "", html)
    return " ".join(unescape(re.sub("<[^>]*>", " ", body)).split())


def test_what_the_files_say_is_in_the_tables(run, tmp_path):
    shown = text_of(page(run, out=tmp_path / "page.html"))
    for words in (
        "parameters 42,816",
        "steps 20",
        "tokens 2,000",
        "training loss 3.0000",
        "wall time 20 h 0 min",
        "validation loss, bo<ks 4.0000 (perplexity 54.6)",
        "tokens a second, median 50",
        "starts 2",
        "checkpoints 1; 2.0 MB, training stood 1.5 s",
        "train/bo<ks 123,456 abc",
        "optim.lr 0.001",
        "seed 7",
        "zero_optimization.stage 2",
        "2001-09-09 01:46:40 UTC 2 10 h 0 min",
        "6 8 9.5",
        "20 2,000,000 1.50",
        'He said <b>"&"</b> <script>alert(1)</script> @@BODY@@',
    ):
        assert words in shown, (words, shown)


def test_nothing_from_files_is_markup_and_nothing_is_loaded(run, tmp_path):
    html = page(run, out=tmp_path / "page.html")
    for word in ("<run>", "bo<ks", "<b>", "<script>alert"):
        assert word not in html
    assert html.count("</script>") == 2 and "NaN" not in html and "@@TITLE" not in html
    assert (
        not re.search(r"""(src|href)\s*=|url\(|@import|fetch\(""", html)
        and "default-src 'none'" in html
    )


def test_runs_side_by_side_show_where_they_differ(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "elsewhere" / run.name)
    (other / "config.yaml").write_text("run: {seed: 7}\noptim: {lr: 0.002}\n")
    html = page(run, other, out=tmp_path / "page.html")
    differing = [text_of(row) for row in re.findall("<tr class=.differs.*?</tr>", html)]
    assert differing == ["optim.lr 0.001 0.002", "data.shards s"]
    titles = [text_of(title) for title in re.findall("<h2>.*?</h2>", html)]
    assert titles[:2] == ["Settings that differ", "Numbers"]
    settings = re.search("(?s)<summary>config.yaml</summary>.*?</table>", html)[0]
    names = re.findall('<th scope="row">(.*?)</th>', settings)
    assert names == ["optim.lr", "data.shards", "run.seed"], "those that differ come first"
    assert f"elsewhere/{run.name}" in text_of(html), (
        "two runs of one name are told apart by their folders"
    )


def test_runs_of_the_same_folder_and_settings(run, tmp_path):
    html = page(run, run, out=tmp_path / "page.html")
    assert "None: the runs have the same settings." in html
    assert f"{run.parent.name}/{run.name} (2)" in text_of(html)


def test_changed_settings_are_in_the_table_of_starts(tmp_path):
    html = page(make_fine_tuning(tmp_path / "run"), out=tmp_path / "page.html")
    assert "changed settings" in text_of(html) and "optim.lr 0.001 -&gt; 0.05" in html


def test_a_task_run_shows_its_scores_and_confusion(tmp_path):
    folder = tmp_path / "sst2"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text(lines({"step": 5, "split": "task", "accuracy": 0.75}))
    confusion = {"classes": ["bad", "good"], "counts": [[3, 1], [0, 4]]}
    result = {
        "task": "sst2",
        "score": 0.75,
        "metrics": {"accuracy": 0.75},
        "majority": 0.5,
        "init": "none",
        "examples": {"train": 8, "dev": 8},
        "splits": {"test": {"accuracy": 0.5}},
        "confusion": confusion,
    }
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "predictions-dev.tsv").write_text(
        "index\tgold\tprediction\n0\tgood\tgood\n1\tbad\tgood\n"
    )
    shown = text_of(page(folder, out=tmp_path / "page.html"))
    for words in (
        "dev accuracy 0.7500",
        "test accuracy 0.5000",
        "majority 0.5000",
        "bad 3 1",
        "good 0 4",
        "predictions-dev.tsv: the first errors index gold prediction 1 bad good",
    ):
        assert words in shown, shown


@pytest.mark.parametrize("damage", ["alone", "garbled"])
def test_files_that_are_missing_or_damaged_are_left_out(run, tmp_path, damage):
    for path in [
        path for path in run.rglob("*") if path.is_file() and path.name != "metrics.jsonl"
    ]:
        path.write_bytes(b"\xff{[") if damage == "garbled" else path.unlink()
    assert "training loss 3.0000" in text_of(page(run, out=tmp_path / "page.html"))
    assert RunFiles(run).place(9) == [9, 900.0, 32400.0, None]


def test_a_folder_that_is_no_run_is_refused(run, tmp_path):
    with pytest.raises(DataError, match="no metrics.jsonl"):
        report.main([str(tmp_path)])
    (run / "metrics.jsonl").write_text(lines({"step": 0, "split": "start", "seconds": 0}) + '{"ste')
    with pytest.raises(DataError, match="nothing is logged yet"):
        report.main([str(run)])
    (run / "metrics.jsonl").write_text(lines({"step": 1, "split": "train", "loss": 1.0}))
    with pytest.raises(DataError, match="--out .*: No such file"):
        report.main([str(run), "--out", str(tmp_path / "absent" / "page.html")])


def test_the_command_writes_into_the_run(run):
    assert succeed("python", "-m", "gpt1_ds.report", run).stdout.strip() == str(run / "report.html")
    assert (run / "report.html").read_text().startswith("<!doctype html>")


RESULT = {
    "task": "sst2",
    "metric": "accuracy",
    "score": 0.5,
    "metrics": {"accuracy": 0.5},
    "majority": 0.5,
    "examples": {"train": 4, "dev": 2},
    "init": "none",
}
DAMAGED = [
    ("checkpoints/step-00000020/state.json", '{"model": {"n_layer": 2, "bogus": 1}}', "bogus"),
    ("checkpoints/step-00000020/state.json", '{"model": {"n_layer": "x"}}', "model is not one"),
    ("checkpoints/step-00000020/state.json", '{"data": {"train/b": "5"}}', "train/b are 5"),
    ("checkpoints/step-00000020/state.json", "[" * 100_000, "state.json: cannot be read"),
    ("config.yaml", "run:\ndata:\n", "config.yaml: the section run has no keys"),
    ("config.yaml", "run: &a {b: *a}\n", "config.yaml: cannot be read"),
    ("config.yaml", "run: [unclosed\n", "config.yaml: cannot be read"),
    ("config.yaml", "run: {1: 2, 2020-01-01: x}\n", ""),
    ("result.json", '{"score": 1}', "result.json: no task, metric, metrics"),
    ("result.json", json.dumps(RESULT | {"score": "high"}), 'score is "high"'),
    ("result.json", json.dumps(RESULT | {"metrics": {"accuracy": "x"}}), "metrics is"),
    ("result.json", json.dumps(RESULT | {"examples": None, "splits": []}), "splits is []"),
    ("result.json", json.dumps(RESULT | {"task": "\ud800"}), ""),
    ("result.json", json.dumps(RESULT | {"majority": 10**400}), "majority is 1000"),
    (
        "result.json",
        json.dumps(RESULT | {"confusion": {"classes": ["a"], "counts": [[1, 2]]}}),
        "confusion is",
    ),
    ("result.json", "[1]", "result.json: not an object with keys"),
    ("status.json", '{"state": {"x": 1}, "exit_code": "?"}', ""),
    ("status.json", "", "status.json: cannot be read"),
    ("skipped.jsonl", '{"from_step": "x", "loss": [1]}\n3\n', ""),
    ("predictions-dev.tsv", "index\n1\tx\ty\n", ""),
]
ODD_RECORDS = [
    {"step": 2, "split": "start"},
    {"step": 2, "split": "start", "time": 1e300, "elapsed_seconds": None},
    {"step": 2, "split": "checkpoint"},
    {"step": 2, "split": "checkpoint", "bytes": None, "seconds": "x"},
    {"step": "x", "split": "train", "loss": 3},
    {"step": 4, "split": ["train"], "loss": 3},
    {"step": 4, "split": "valid", "corpus": ["b"], "loss": 3},
    {"step": 4, "split": "train", "loss": 10**400, "tokens": "x", "skipped_steps": "x"},
]


@pytest.mark.parametrize(("file", "content", "said"), DAMAGED)
def test_a_damaged_file_leaves_the_rest_of_the_page_and_is_told(
    run, tmp_path, capsys, file, content, said
):
    (run / file).write_text(content)
    shown = text_of(page(run, out=tmp_path / "page.html"))
    assert "training loss 3.0000" in shown and "wall time 20 h" in shown
    warnings = capsys.readouterr().err
    assert said in warnings and (not said or said in shown)
    assert all(line.startswith("warning: ") for line in warnings.splitlines())


def test_odd_records_leave_the_rest_of_the_page(run, tmp_path):
    with (run / "metrics.jsonl").open("a") as file:
        file.write("\n[1]\n" + lines(*ODD_RECORDS))
    shown = text_of(page(run, out=tmp_path / "page.html"))
    assert "validation loss, bo<ks 4.0000" in shown and "wall time 20 h" in shown


def test_files_that_do_not_belong_to_the_result_are_told(run, tmp_path, capsys):
    for split in ("dev", "test"):
        (run / f"predictions-{split}.tsv").write_text("index\tgold\tprediction\n")
    settings = {"optim.lr": 0.002, "run.seed": 7, "task.patience": None}
    files = {"predictions-dev.tsv": file_sha256(run / "predictions-dev.tsv")}
    made = {"files": files, "made_from": {"settings": settings}}
    (run / "result.json").write_text(json.dumps(RESULT | made))
    shown = text_of(page(run, out=tmp_path / "page.html"))
    assert "made with optim.lr 0.002, config.yaml has 0.001" in shown
    assert "predictions-test.tsv: not of the run" in shown and "predictions-dev.tsv:" not in shown
    assert capsys.readouterr().err.count("warning: ") == 2
