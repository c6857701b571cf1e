"""Train and dev are never the same rows in silence, and no file that looks like a split is."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt1_ds.base.errors import ConfigError, DataError
from gpt1_ds.settings.sections import TaskConfig
from gpt1_ds.tasks import LABELLED, TASKS, Task, build_task
from gpt1_ds.tasks.splits import files_passed_over, oddities, read_splits

ROWS = [(f"text {n}", n % 2) for n in range(200)]


def own(**keys: object) -> Task:
    own_keys = {"kind": "classification", "columns": ["text", "label"], "labels": ["0", "1"]}
    return build_task(TaskConfig(**{"name": "mine", **own_keys, **keys}))


def tsv(rows: list[tuple]) -> str:
    return "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows)


def csv(rows: list[tuple]) -> str:
    return "text,label\n" + "".join(f'"{text}",{label}\n' for text, label in rows)


def jsonl(rows: list[tuple]) -> str:
    return "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows)


def array(rows: list[tuple]) -> str:
    return json.dumps([{"text": text, "label": label} for text, label in rows], indent=1)


def said(task: Task, source: Path) -> list[str]:
    return oddities(task, source, read_splits(task, source))


@pytest.mark.parametrize("name", ["all.tsv", "sst2"])
def test_one_file_is_divided_by_the_hash_of_its_texts(tmp_path: Path, name: str):
    """The same rows are dev in any order of the file; the line says how many."""
    task = own() if name == "all.tsv" else TASKS["sst2"]
    path = tmp_path / "all.tsv"
    header = "text\tlabel\n" if name == "all.tsv" else "sentence\tlabel\n"
    path.write_text(header + tsv(ROWS).partition("\n")[2])
    splits = read_splits(task, path)
    assert splits.keys() == {"train", "dev"} and not set(splits["train"]) & set(splits["dev"])
    assert len(splits["train"]) + len(splits["dev"]) == 200 and 8 < len(splits["dev"]) < 35
    [line] = oddities(task, path, splits)
    assert f"{len(splits['dev'])} of its 200 examples are held out" in line
    shuffled = random.Random(0).sample(ROWS, 200)
    path.write_text(header + tsv(shuffled).partition("\n")[2])
    assert set(read_splits(task, path)["dev"]) == set(splits["dev"])
    assert len(task.read(path, "dev")) == 200  # a run is scored on all of a file


def test_few_rows_leave_neither_side_empty(tmp_path: Path):
    for count in (2, 3, 5):
        path = tmp_path / "all.tsv"
        path.write_text(tsv(ROWS[:count]))
        splits = read_splits(own(), path)
        assert splits["train"] and splits["dev"] and not set(splits["train"]) & set(splits["dev"])
        (tmp_path / "train.tsv").write_text(tsv(ROWS[:count]))
        assert own().read(tmp_path, "train") == splits["train"]
    path.write_text(tsv([("same", 0)] * 5))
    with pytest.raises(DataError, match="all.tsv: one text in 5 rows; a dev set needs another"):
        read_splits(own(), path)


def test_one_folder_of_passages_is_divided_and_has_no_test_set(tmp_path: Path):
    for split in ("train", "dev"):
        (tmp_path / split / "high").mkdir(parents=True)
    page = {"questions": [f"q {n}" for n in range(40)], "options": [list("abcd")] * 40}
    for split, name in (("train", "1"), ("train", "2"), ("dev", "3")):
        text = json.dumps({"article": name, "answers": ["A"] * 40} | page)
        (tmp_path / split / "high" / f"{name}.txt").write_text(text)
    task = TASKS["race"]
    splits = read_splits(task, tmp_path / "train")
    assert splits.keys() == {"train", "dev"} and not set(splits["train"]) & set(splits["dev"])
    assert "held out" in said(task, tmp_path / "train")[0]
    (tmp_path / "README.txt").write_text("about the passages")  # makes no test set of all passages
    assert {name: len(examples) for name, examples in read_splits(task, tmp_path).items()} == {
        "train": 80,
        "dev": 40,
    }


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("validation.jsonl", jsonl),
        ("valid.tsv", tsv),
        ("val.csv", csv),
        ("validation.csv", csv),
        ("dev.json", array),
        ("dev.JSON", jsonl),
        ("val.ndjson", jsonl),
    ],
)
def test_a_dev_file_is_known_by_each_usual_name(
    tmp_path: Path, name: str, written: Callable[[list[tuple]], str]
):
    (tmp_path / "train.tsv").write_text(tsv(ROWS[:150]))
    (tmp_path / name).write_text(written(ROWS[150:]))
    splits = read_splits(own(), tmp_path)
    assert (len(splits["train"]), len(splits["dev"])) == (150, 50)
    assert said(own(), tmp_path) == []


def test_a_publishers_task_knows_them_too(tmp_path: Path):
    """MRPC would otherwise hold out a tenth, and SST-2 would have no dev file."""
    for name, columns in (("mrpc", "Quality\t#1 String\t#2 String"), ("sst2", "label\tsentence")):
        texts = "a {}\tb" if name == "mrpc" else "a {}"
        for file in ("train.tsv", "validation.tsv"):
            rows = "".join(f"{n % 2}\t{texts.format(file + str(n))}\n" for n in range(30))
            (tmp_path / file).write_text(f"{columns}\n{rows}")
        splits = read_splits(TASKS[name], tmp_path)
        assert [len(splits["train"]), len(splits["dev"])] == [30, 30]


def test_files_of_a_publisher_that_are_not_read_are_named_where_they_lie(tmp_path: Path):
    """CoLA has an out-of-domain dev set. GLUE keeps the publisher's files in a folder below."""
    (tmp_path / "original" / "raw").mkdir(parents=True)
    for name in ("in_domain_train", "in_domain_dev", "out_of_domain_dev", "original/raw/dev"):
        (tmp_path / f"{name}.tsv").write_text("x\t1\t\ta b\nx\t0\t*\tc d\n")
    task = TASKS["cola"]
    assert files_passed_over(task, tmp_path) == "out_of_domain_dev.tsv, original/raw/dev.tsv"
    assert files_passed_over(task, tmp_path / "out_of_domain_dev.tsv") == ""
    lines = oddities(task, tmp_path, read_splits(task, tmp_path))
    assert any("out_of_domain_dev.tsv, original/raw/dev.tsv passed over" in line for line in lines)


@pytest.mark.parametrize(
    "rows, labels",
    [
        ("a fine film\nno fun\n", [None, None]),
        ("0\ta fine film\n1\tno fun\n", [None, None]),
        ("a fine film\t1\nno fun\t0\n", [1, 0]),
        ("index\tsentence\n0\ta fine film\n1\tno fun\n", [None, None]),
    ],
)
def test_a_test_file_of_sst2_needs_no_header(tmp_path: Path, rows: str, labels: list):
    (tmp_path / "test.tsv").write_text(rows)
    examples = TASKS["sst2"].read(tmp_path, "test")
    assert [example.texts for example in examples] == [("a fine film",), ("no fun",)]
    assert [example.label for example in examples] == labels
    (tmp_path / "test.tsv").write_text("sentences\tlabel\na\t1\n")
    with pytest.raises(DataError, match="no column 'sentence' in the header"):
        TASKS["sst2"].read(tmp_path, "test")


def test_files_that_look_like_splits_are_named_if_they_are_passed_over(tmp_path: Path):
    (tmp_path / "train.tsv").write_text(tsv(ROWS[:100]))
    (tmp_path / "train.bak").write_text("not read")
    (tmp_path / "dev.tsv").write_text(tsv(ROWS[100:]))
    for name in ("validation.jsonl", "train_2.tsv", "Test-old.csv", "train.parquet", "notes.txt"):
        (tmp_path / name).write_text("")
    [line] = said(own(), tmp_path)
    assert "Test-old.csv, train.parquet, train_2.tsv, validation.jsonl passed over" in line
    assert "notes.txt" not in line and "train.bak" not in line
    assert own().path(tmp_path, "train") == tmp_path / "train.tsv"
    for name in ("train.tsv", "train.bak"):
        (tmp_path / name).unlink()
    with pytest.raises(DataError, match="train.parquet: such files are not read; write .tsv"):
        own().read(tmp_path, "train")


@pytest.mark.parametrize(
    ("dev", "line"),
    [
        (ROWS[:100], "every dev example is in train too"),
        (random.Random(0).sample(ROWS[:100], 40), "every dev example is in train too"),
        (ROWS[80:120], "20 of 40 dev examples are in train too"),
        (ROWS[100:], None),
    ],
)
def test_rows_of_dev_that_are_in_train_are_said(tmp_path: Path, dev: list, line: str | None):
    (tmp_path / "train.tsv").write_text(tsv(ROWS[:100]))
    (tmp_path / "dev.jsonl").write_text(jsonl(dev))
    (tmp_path / "test.csv").write_text(csv([("text 7", 0), ("other", 1)]))
    found = said(own(), tmp_path)
    assert found.pop() == "1 of 2 test examples are in train too"
    assert [text.startswith(line or "?") for text in found] == [True] * bool(line)


def test_a_file_that_the_user_names_must_be_there(tmp_path: Path):
    (tmp_path / "train.tsv").write_text(tsv(ROWS))
    for split in ("dev", "test"):
        task = own(files={split: "mine.tsv"})
        with pytest.raises(DataError, match=f"no {split} file; expected mine.tsv"):
            read_splits(task, tmp_path)
    (tmp_path / "part[1].tsv").write_text(tsv(ROWS[:20]))  # a name, not a pattern
    task = own(files={"dev": "part[1].tsv", "test": str(tmp_path / "part[1].tsv")})
    assert [len(examples) for examples in read_splits(task, tmp_path).values()] == [200, 20, 20]
    with pytest.raises(ConfigError, match="task.files.dev is ''"):
        own(files={"dev": ""})


def test_odd_labels_are_said(tmp_path: Path):
    three = ["0", "1", "other"]
    (tmp_path / "train.tsv").write_text(tsv(ROWS[:100]))
    (tmp_path / "dev.tsv").write_text(tsv(ROWS[100:]))
    (tmp_path / "test.tsv").write_text(tsv([("x", -1), ("y", 1)]))
    found = said(own(labels=three, metrics=["f1"]), tmp_path)
    assert found == [
        "train has no example of the label other",
        "dev has no example of the label other, which counts as 0 in its f1",
        "1 of 2 test examples lack a label; no score of it",
    ]
    (tmp_path / "test.tsv").write_text(tsv([("x", -1), ("y", -1)]))
    assert {example.label for example in read_splits(own(), tmp_path)["test"]} == {None}
    (tmp_path / "dev.tsv").write_text(tsv([("x", -1)]))
    with pytest.raises(DataError, match=r"dev.tsv row 2: unknown label '-1'; choose from: 0, 1"):
        own().read(tmp_path, "dev")


def test_labels_that_are_all_alike_are_said(tmp_path: Path):
    words = own(kind="token_classification", labels=["PER"])
    scores = own(kind="similarity_score", columns=["a", "b", "y"])
    for name, text in (("tags", "{}\tO\n\nb\tO\n\n"), ("scores", "a\tb\ty\n{}\tb\t1\nc{}\tb\t1\n")):
        (tmp_path / name).mkdir()
        ending = "conll" if name == "tags" else "tsv"
        for split in ("train", "dev"):
            (tmp_path / name / f"{split}.{ending}").write_text(text.format(split, split))
    assert said(words, tmp_path / "tags")[1:] == [f"every label of {s} is O" for s in LABELLED]
    found = [f"every label of {split} is 1.0" for split in LABELLED]
    assert said(scores, tmp_path / "scores") == found
