"""Tests of data_prep/sample.py and stories/.

The same bytes for a seed, complete or written anew, consistent stories, and labelled sets in the
publishers' layouts.
"""

import csv
import hashlib
import json
import re
from collections import Counter, defaultdict
from itertools import chain
from pathlib import Path

import pytest

from data_prep.stories.labelled import CLOZE
from data_prep.stories.words import RELATIONS
from gpt1_ds.tasks import TASKS
from tests.conftest import run, succeed
from tests.support.task_folders import FOLDERS


def write(folder: Path, megabytes: float = 0.1, seed: int = 42) -> str:
    options = ("--out", folder, "--megabytes", megabytes, "--seed", seed)
    return succeed("python", "-m", "data_prep.sample", *options).stdout


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "sample"
    write(folder)
    return folder


def test_a_seed_fixes_every_byte_on_every_python(small):
    # A change of the text needs another hash here and a higher VERSION, so that samples of the
    # old text are not reused.
    assert json.loads((small / "sample.json").read_text())["version"] == 2
    every = hashlib.sha256(json.dumps(digest(small)).encode()).hexdigest()
    assert every == "005b74730a037897d72f1ea2986bccfa629c7faec42949d414ef55c91d074b5f"


def test_another_seed_tells_other_stories(small, tmp_path):
    write(tmp_path, seed=7)
    ours, others = digest(small), digest(tmp_path)
    assert ours.keys() == others.keys()
    assert not {file for file in ours if ours[file] == others[file]}


def test_complete_output_is_reused_and_anything_less_is_written_anew(small, tmp_path):
    whole = digest(small)
    write(tmp_path, megabytes=0.2)
    assert len(digest(tmp_path)) > len(whole)
    assert ", reused" not in write(tmp_path)
    assert digest(tmp_path) == whole  # the books of the larger sample are gone

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert ", reused" in write(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before

    (tmp_path / "sample.json").unlink()  # as a run leaves it that was stopped
    (tmp_path / "tasks/RTE/dev.tsv").unlink()
    assert ", reused" not in write(tmp_path)
    assert digest(tmp_path) == whole


def test_the_size_is_the_one_asked_for(sample):
    size = sum(path.stat().st_size for path in (sample / "books/train").glob("*.txt"))
    assert 0.45e6 < size < 0.6e6
    train = {path.read_bytes() for path in (sample / "books/train").iterdir()}
    valid = {path.read_bytes() for path in (sample / "books/valid").iterdir()}
    assert valid and not train & valid


@pytest.mark.parametrize("megabytes", ["0", "-1", "1000", "nan"])
def test_a_senseless_size_is_refused_in_one_line(tmp_path, megabytes):
    done = run(
        "python", "-m", "data_prep.sample", "--out", tmp_path / "out", f"--megabytes={megabytes}"
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: --megabytes") and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").write_text("mine")
    done = run("python", "-m", "data_prep.sample", "--out", tmp_path / "file" / "out")
    assert done.returncode == 2
    assert "--out" in done.stderr and len(done.stderr.splitlines()) == 1
    assert (tmp_path / "file").read_text() == "mine"


def facts_told(text: str) -> dict[tuple[str, str], list[str]]:
    """(person, relation) -> the values of every statement of a text, in order."""
    told = defaultdict(list)
    for relation, (statements, _) in RELATIONS.items():
        for template in set(statements) - {"{p} was {v}."}:  # which also fits other sentences
            pattern = re.escape(template).replace(r"\{p\}", r"([A-Z][a-z]+)")
            pattern = pattern.replace(r"\{v\}", r"([\w ]+?)")
            order = ("p", "v") if template.index("{p}") < template.index("{v}") else ("v", "p")
            for match in re.finditer(rf'(?:^|(?<=[."] )|(?<="))({pattern})', text, re.M):
                found = dict(zip(order, match.groups()[1:], strict=True))
                told[found["p"], relation].append(found["v"])
    return told


def test_a_book_never_contradicts_itself(small):
    for path in (small / "books/train").glob("*.txt"):
        text = path.read_text()
        denials = len(re.findall(r'Is it true\?" asked \w+\. "No,', text))
        # What is only claimed may be false.
        told = facts_told(re.sub(r'"[^"]*Is it true\?"', "", text))
        assert denials > 20 and sum(map(len, told.values())) > 100
        for (person, relation), values in told.items():
            moves = 0
            if relation == "home":
                moves = len(re.findall(rf"{person} left [\w ]+ and moved to", text))
            if person not in ("He", "She") and relation != "thing":  # things change hands
                different = {value.lower() for value in values}
                assert len(different) <= 1 + moves, (path, person, relation, values)


@pytest.mark.parametrize("name", FOLDERS)
def test_every_set_is_read_by_its_task_and_holds_nothing_twice(small, name):
    task = TASKS[name]
    train, dev = (task.read(small / "tasks" / FOLDERS[name], split) for split in ("train", "dev"))
    assert len(train) >= 1000 and len(dev) >= 150
    if name not in ("race", "wnut17"):  # where a passage, or a sentence without names, may recur
        texts = [example.texts for example in [*train, *dev]]
        assert len(set(texts)) == len(texts)
        assert max(len(text.split()) for text in chain.from_iterable(texts)) < 45
    assert not {repr(example) for example in train} & {repr(example) for example in dev}
    if name != "wnut17":
        counts = Counter(str(example.label) for example in dev)
        most = {"stsb": 0.25, "snli": 0.42, "race": 0.36}.get(name, 0.58)
        assert max(counts.values()) / len(dev) < most


@pytest.mark.parametrize("name", ["rte", "snli", "qnli", "mrpc", "qqp"])
def test_the_second_text_alone_does_not_tell_the_label(small, name):
    """Naive Bayes on the words of the second text is no better than chance.

    Otherwise a model could do without the first text.
    """
    task = TASKS[name]
    train, dev = (task.read(small / "tasks" / FOLDERS[name], split) for split in ("train", "dev"))

    def words(example) -> set[str]:
        return set(re.findall(r"\w+", example.texts[-1]))

    counts, totals = defaultdict(Counter), Counter(example.label for example in train)
    for example in train:
        counts[example.label].update(words(example))

    def score(example, label: int) -> float:
        product = 1.0
        for word in words(example):
            product *= (counts[label][word] + 1) / (totals[label] + 2)
        return product

    right = sum(
        max(totals, key=lambda label: score(example, label)) == example.label for example in dev
    )
    assert right / len(dev) < 1 / len(totals) + 0.1


def test_numbers_and_order_do_not_tell_the_label(small):
    rows = [
        line.split("\t") for line in (small / "tasks/RTE/train.tsv").read_text().splitlines()[1:]
    ]
    for parity in (0, 1):
        labels = [row[3] == "entailment" for row in rows if int(row[0]) % 2 == parity]
        assert 0.45 < sum(labels) / len(labels) < 0.55


@pytest.mark.parametrize(
    "folder", ["CoLA", "SST-2", "RTE", "QNLI", "SNLI", "STS-B", "MRPC", "QQP", "WNUT17", "DPR"]
)
def test_layouts_are_the_publishers_own(small, shared_data, folder):
    """The same names, the same header, the same columns and no other label words."""
    for path in (small / "tasks" / folder).iterdir():
        real = shared_data / "tasks" / folder / path.name
        if not real.exists():
            # Published, but not in our copy.
            assert path.name in ("msr_paraphrase_test.txt", "test.c.txt")
            continue
        ours, theirs = path.read_text().split("\n"), real.read_text().split("\n")
        if folder in ("SST-2", "RTE", "QNLI", "SNLI", "MRPC", "QQP"):
            assert ours[0] == theirs[0]
            ours, theirs = ours[1:], theirs[1:]
        label = {"CoLA": 1, "SST-2": 1, "RTE": 3, "QNLI": 3, "SNLI": 2, "MRPC": 0, "QQP": 5}.get(
            folder
        )
        if label is not None:
            labels = {row.split("\t")[label] for row in ours if row}
            assert labels == {row.split("\t")[label] for row in theirs if row}
        if folder == "STS-B":
            assert {row.count("\t") for row in ours if row} == {6}
            assert all(re.fullmatch(r"[0-5]\.\d{3}", row.split("\t")[4]) for row in ours if row)
        if folder == "WNUT17":
            tags = {row.split("\t")[1] for row in ours if row}
            assert tags <= {row.split("\t")[1] for row in theirs if row.count("\t") == 1}
            kinds = ("person", "location", "product")
            assert {f"B-{kind}" for kind in kinds} | {f"I-{kind}" for kind in kinds} < tags
        if folder == "DPR":
            for block in path.read_text().strip().split("\n\n"):
                sentence, pronoun, candidates, answer = block.split("\n")
                assert pronoun in sentence.split() and answer in candidates.split(",")


def test_race_and_story_cloze_are_the_publishers_own(small, shared_data):
    real = json.loads(next((shared_data / "tasks/RACE/train/middle").iterdir()).read_text())
    for path in (small / "tasks/RACE").rglob("*.txt"):
        page = json.loads(path.read_text())
        assert page.keys() == real.keys() and page["id"] == f"middle{path.name}"
        for options, answer in zip(page["options"], page["answers"], strict=True):
            assert len(set(options)) == 4
            assert options["ABCD".index(answer)].lower() in page["article"].lower()
    for path in (small / "tasks/StoryCloze").iterdir():
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
        assert tuple(rows[0]) == CLOZE and {row["AnswerRightEnding"] for row in rows} == {"1", "2"}
