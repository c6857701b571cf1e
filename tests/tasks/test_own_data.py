"""Tables described in YAML alone; publishers' files with their known faults; tag schemes."""

import re
from pathlib import Path

import pytest

from gpt1_ds.base.errors import ConfigError, DataError
from gpt1_ds.settings.sections import TaskConfig
from gpt1_ds.tasks import TASKS, Example, build_task
from gpt1_ds.tasks.token_classification import to_bio

OWN = {
    "classification csv": (
        {"kind": "classification", "columns": ["text", "queue"], "labels": ["billing", "bug"]},
        'queue,text\nbug,"It says ""no"", twice"\n',
        Example(('It says "no", twice',), 1),
    ),
    "entailment jsonl": (
        {"kind": "entailment", "columns": ["a", "b", "y"], "labels": ["0", "1"]},
        '{"a": "x", "b": "z", "y": 1, "more": [1, 2]}\n',
        Example(("x", "z"), 1),
    ),
    "similarity tsv": (
        {"kind": "similarity", "columns": ["a", "b", "y"], "labels": ["no", "yes"]},
        'a\tb\ty\n"x\tz\tyes\n',
        Example(('"x', "z"), 1),
    ),
    "similarity_score tsv": (
        {"kind": "similarity_score", "columns": ["a", "b", "y"], "labels": ["0", "1", "2"]},
        "a\tb\ty\nx\tz\t1.5\n",
        Example(("x", "z"), 1.5),
    ),
    "multiple_choice csv": (
        {
            "kind": "multiple_choice",
            "columns": ["story", "one", "two", "right"],
            "labels": ["1", "2"],
        },
        "story,one,two,right\nOnce.,Yes.,No.,2\n",
        Example(("Once.", "", "Yes.", "No."), 1),
    ),
    "multiple_choice jsonl": (
        {
            "kind": "multiple_choice",
            "columns": ["c", "q", "one", "two", "right"],
            "labels": ["a", "b"],
        },
        '{"c": "Once.", "q": "Why?", "one": "Yes.", "two": "No.", "right": "a"}\n',
        Example(("Once.", "Why?", "Yes.", "No."), 0),
    ),
    "token_classification jsonl": (
        {"kind": "token_classification", "columns": ["words", "tags"], "labels": ["LOC"]},
        '{"words": ["in", "New", "York"], "tags": ["O", "I-LOC", "I-LOC"]}\n',
        Example(("in", "New", "York"), ("O", "B-LOC", "I-LOC")),
    ),
    "token_classification conll": (
        {"kind": "token_classification", "columns": ["words", "tags"], "labels": ["LOC"]},
        "in X O\nRome X I-LOC\n",
        Example(("in", "Rome"), ("O", "B-LOC")),
    ),
}


def own(**keys: object) -> TaskConfig:
    return TaskConfig(name="mine", **keys)


@pytest.mark.parametrize("case", OWN)
def test_a_table_described_in_yaml(tmp_path: Path, case: str):
    keys, text, example = OWN[case]
    (tmp_path / f"dev.{case.split()[1]}").write_text("\ufeff" + text.replace("\n", "\r\n"))
    assert build_task(own(**keys)).read(tmp_path, "dev") == [example]


@pytest.mark.parametrize(
    "name,keys,words",
    [
        (
            "classification",
            {"kind": "classification", "columns": ["text"], "labels": ["a", "b"]},
            "takes 1 columns",
        ),
        (
            "classification",
            {"kind": "classification", "columns": ["text", "y"], "labels": ["a", "a"]},
            "each once",
        ),
        (
            "scores",
            {"kind": "similarity_score", "columns": list("aby"), "labels": ["1", "2"]},
            "list 0, 1, ..",
        ),
        (
            "answers",
            {"kind": "multiple_choice", "columns": list("aby"), "labels": ["1", "2"]},
            "takes 3 or 4 columns",
        ),
        (
            "files",
            {
                "kind": "classification",
                "columns": list("ay"),
                "labels": ["1", "2"],
                "files": {"val": "x"},
            },
            "'val'",
        ),
    ],
)
def test_a_description_that_does_not_fit_its_kind_is_a_usage_error(
    name: str, keys: dict, words: str
):
    with pytest.raises(ConfigError, match=re.escape(words)):
        build_task(own(**keys))


@pytest.mark.parametrize(
    "case,bad,words",
    [
        (
            "classification csv",
            'queue,text\nbug,"It runs away\nbug,x\n',
            ("row 2", "close its quotes"),
        ),
        ("classification csv", "queue;text\nbug;x\n", ("row 1", "no column 'text'", "commas")),
        (
            "classification csv",
            "queue,text\nBug,x\n",
            ("row 2", "unknown label 'Bug'", "billing, bug"),
        ),
        ("similarity_score tsv", "a\tb\ty\nx\tz\t2.5\n", ("row 2", "from 0 to 2")),
        (
            "token_classification jsonl",
            '{"words": ["in"], "tags": ["O", "O"]}\n',
            ("row 1", "1 words but 2 tags"),
        ),
        (
            "token_classification conll",
            "in X O\nRome X B-PER\n",
            ("row 2", "unknown label 'B-PER'"),
        ),
    ],
)
def test_a_fault_in_ones_own_file_is_one_line_with_file_and_row(
    tmp_path: Path, case: str, bad: str, words: tuple
):
    path = tmp_path / f"train.{case.split()[1]}"
    path.write_text(bad)
    with pytest.raises(DataError) as error:
        build_task(own(**OWN[case][0])).read(path, "train")
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in (path.name, *words)), message


def test_without_a_dev_file_a_tenth_is_held_out(tmp_path: Path):
    rows = "".join(f"number {i}\tab\t{i % 2}\n" for i in range(500))
    (tmp_path / "train.tsv").write_text("a\tb\ty\n" + rows)
    task = build_task(own(kind="entailment", columns=["a", "b", "y"], labels=["0", "1"]))
    train, dev = (task.read(tmp_path, split) for split in ("train", "dev"))
    assert len(train) + len(dev) == 500 and 25 < len(dev) < 80 and not set(train) & set(dev)


UNLABELLED = {
    "cola": ("test.tsv", "index\tsentence\n0\tIt works.\n", ("It works.",)),
    "stsb": ("test.tsv", "index\tgenre\tsentence1\tsentence2\n0\tx\ta\tb\n", ("a", "b")),
    "mrpc": ("test.tsv", "index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t1\t2\ta\tb\n", ("a", "b")),
    "qqp": ("test.tsv", "id\tquestion1\tquestion2\n0\ta\t\n", ("a", "")),
    "scitail": ("scitail_1.0_test.txt", '{"sentence1": "a", "sentence2": "b"}\n', ("a", "b")),
    "conll2003": ("eng.testb", "in\nRome\n", ("in", "Rome")),
}


@pytest.mark.parametrize(
    "name,line",
    [
        ("sst2", "a film "),
        ("rte", "a\t b"),
        ("race", "c\tq\t1\t2\t3\t4"),
        ("storycloze", "c\t\t1\t2"),
        ("wnut17", "in  Rome"),
    ],
)
def test_a_raw_line_is_an_unlabelled_example(name: str, line: str):
    task = TASKS[name]
    texts = (
        tuple(line.split())
        if name == "wnut17"
        else tuple(text.strip() for text in line.split("\t"))
    )
    assert task.from_line(line, "stdin line 7") == Example(texts)
    if name != "wnut17":
        with pytest.raises(
            DataError,
            match=rf"stdin line 7: {len(texts) + 1} fields between tabs; .* {len(texts)}$",
        ):
            task.from_line(line + "\tmore", "stdin line 7")


@pytest.mark.parametrize("name", UNLABELLED)
def test_a_test_file_has_no_labels_and_is_read_without(tmp_path: Path, name: str):
    file, text, texts = UNLABELLED[name]
    (tmp_path / file).write_text(text)
    assert TASKS[name].read(tmp_path, "test") == [Example(texts)]
    for split in ("train", "dev"):
        with pytest.raises(DataError, match=rf"{file} row \d.*no label, as in a test file"):
            TASKS[name].read(tmp_path / file, split)


def test_the_rows_that_qqp_broke_are_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    rows = "1\t2\t3\ta\tb\t0\n4\t5\t6\tWhat\nis it?\tc\t1\n7\t8\t9\t\td\t0\n10\t11\t12\te\tf\t1\n"
    (tmp_path / "train.tsv").write_text(
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n" + rows
    )
    assert TASKS["qqp"].read(tmp_path, "train") == [Example(("a", "b"), 0), Example(("e", "f"), 1)]
    assert "train.tsv row 3 lacks a field; 3 such rows are left out" in capsys.readouterr().out


def test_publishers_folders_name_their_splits(tmp_path: Path):
    for name in (
        "multinli_1.0_train.jsonl",
        "multinli_1.0_dev_matched.jsonl",
        "multinli_1.0_dev_mismatched.txt",
    ):
        (tmp_path / name).touch()
    found = {
        split: path.name
        for split in TASKS["mnli"].files
        if (path := TASKS["mnli"].path(tmp_path, split))
    }
    assert found == {
        "train": "multinli_1.0_train.jsonl",
        "dev": "multinli_1.0_dev_matched.jsonl",
        "dev_mismatched": "multinli_1.0_dev_mismatched.txt",
    }


@pytest.mark.parametrize(
    "tags,expected",
    [
        ("I-A I-A O I-A B-A I-B", "B-A I-A O B-A B-A B-B"),
        ("B-A I-A O B-A B-A I-A", "B-A I-A O B-A B-A I-A"),
        ("O O", "O O"),
    ],
)
def test_iob1_becomes_bio_and_bio_stays(tags: str, expected: str):
    assert to_bio(tags.split()) == tuple(expected.split())


@pytest.mark.parametrize(
    "task,file,text",
    [
        ("sst2", "train.tsv", "sentence\tlabel\n{}\t1\n"),
        ("rte", "train.tsv", "index\tsentence1\tsentence2\tlabel\n0\t{}\tshort\tentailment\n"),
    ],
)
def test_a_passage_of_100_000_words_is_cut_and_counted(
    tmp_path: Path, tiny_shards: Path, task: str, file: str, text: str
):
    from gpt1_ds.data.tokenizer import load_tokenizer

    (tmp_path / file).write_text(text.format("word " * 100_000))
    tokenizer = load_tokenizer(tiny_shards / "tokenizer")
    [encoded] = TASKS[task].encode(TASKS[task].read(tmp_path, "train"), tokenizer, 64)
    assert encoded.length == 64 and encoded.cut >= 100_000 - 64
    assert encoded.sequences[0][-1] == tokenizer.special_ids["e"]
    short = tokenizer.encode("short")
    assert task == "sst2" or encoded.sequences[0][-len(short) - 1 : -1] == short
