"""Tasks: which rows of a training file become the dev set, and the room of each sequence."""

import dataclasses
import math
from pathlib import Path

import pytest

from gpt1_ds.base.errors import ConfigError, DataError
from gpt1_ds.settings.sections import TaskConfig
from gpt1_ds.tasks import IGNORE, TASKS, Encoded, Example, build_task
from gpt1_ds.tasks.base import fit, pair

SPECIAL = {"pad": 0, "s": 1, "e": 2, "delim": 3, "eot": 4}


@pytest.mark.parametrize(
    ("share", "held_out"),
    [
        (0.2, [False, False, True]),
        (0.25, [False, True, True]),
        (0.79, [False, True, True]),
        (0.792, [True, True, True]),
    ],
)
def test_the_hash_that_makes_a_dev_set(share: float, held_out: list[bool]):
    """The first 64 bits of SHA-256, as a part of 2^64: 0.791 for a, 0.243 for b, 0.182 for c."""
    assert [is_held_out(share, text) for text in "abc"] == held_out


def test_the_texts_of_an_example_are_hashed_as_one():
    """With a line end between them: 0.129."""
    assert not is_held_out(0.1290, "one", "two") and is_held_out(0.1291, "one", "two")


def is_held_out(share: float, *texts: str) -> bool:
    """Whether a row is in dev, beside one that always is (s: 0.017) and one that never is (t)."""
    task = dataclasses.replace(TASKS["mrpc"], dev_share=share)
    rows = [Example(("s",)), Example(texts), Example(("t",))]
    return Example(texts) in task.divided(rows, Path("rows.tsv"))["dev"]


def test_dev_is_what_train_leaves_out(tmp_path: Path):
    rows = "".join(f"{label}\t7\t8\ttext {n}\tother {n}\n" for n, label in enumerate("0110" * 10))
    (tmp_path / "msr_paraphrase_train.txt").write_text(
        f"Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n{rows}"
    )
    dev = TASKS["mrpc"].read(tmp_path, "dev")
    train = TASKS["mrpc"].read(tmp_path, "train")
    assert [example.texts[0] for example in dev] == DEV_TEXTS
    assert len(train) == 40 - len(dev) and not set(train) & set(dev)
    # The publisher's own dev file comes first.
    (tmp_path / "dev.tsv").write_text(f"Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n{rows}")
    assert (
        len(TASKS["mrpc"].read(tmp_path, "dev")) == len(TASKS["mrpc"].read(tmp_path, "train")) == 40
    )


# SHA-256 of "text 12\nother 12" and of these others begins with less than a tenth of 2^64.
DEV_TEXTS = ["text 12", "text 30", "text 35"]
SHARES = {"mrpc": 0.1, "storycloze": 0.2}


def test_only_two_tasks_cut_a_dev_set():
    assert {name: task.dev_share for name, task in TASKS.items() if task.dev_share} == SHARES
    own = TaskConfig(
        name="mine", kind="classification", columns=["text", "label"], labels=["x", "y"]
    )
    assert build_task(own).dev_share == 0.1


def test_a_pair_has_room_for_three_control_tokens():
    def lengths(first: int, second: int, n_ctx: int) -> tuple[int, int, int]:
        """Tokens kept of both, and the number cut."""
        ids, cut = pair([7] * first, [8] * second, SPECIAL, n_ctx)
        assert [ids[0], ids[-1], ids.count(3)] == [1, 2, 1]
        return ids.count(7), ids.count(8), cut

    assert lengths(4, 3, 10) == (4, 3, 0)
    assert lengths(4, 4, 10) == (3, 4, 1)
    assert lengths(10, 2, 10) == (5, 2, 5)
    assert lengths(2, 10, 10) == (2, 5, 5)
    assert lengths(10, 10, 10) == (3, 4, 13)


def test_the_room_is_shared_by_the_longest():
    assert fit([4, 3], 7) == [4, 3]
    assert fit([10, 2, 9], 12) == [5, 2, 5]
    assert fit([0, 9], 4) == [0, 4]
    assert fit([5, 5, 5], 8) == [2, 3, 3]


def test_one_text_has_room_for_two_control_tokens():
    encoded = TASKS["sst2"].arrange(Example(("x",), 1), [[7] * 9], SPECIAL, 10)
    assert encoded.sequences == [[1, *[7] * 8, 2]] and encoded.cut == 1
    assert TASKS["sst2"].arrange(Example(("x",), 1), [[7] * 8], SPECIAL, 10).cut == 0


def test_an_answer_yields_beyond_half_of_the_room_and_a_question_beyond_half_of_the_rest():
    """13 tokens less 3 control tokens: 5 of the answer, 2 of the question, 3 of the context."""
    ids = [[5] * 20, [6] * 20, [7] * 20, [8] * 2, [8], [8]]
    encoded = TASKS["race"].arrange(Example(("",) * 6, 2), ids, SPECIAL, 13)
    assert encoded.sequences[0] == [1, 5, 5, 5, 6, 6, 3, 7, 7, 7, 7, 7, 2]
    assert encoded.sequences[1] == [1, 5, 5, 5, 6, 6, 3, 8, 8, 2]
    assert encoded.cut == 63 - 13 and encoded.target == [0.0, 0.0, 1.0, 0.0]
    # 100 tokens: all of the answer and of the question, and the whole context.
    whole = TASKS["race"].arrange(Example(("",) * 6), ids, SPECIAL, 100)
    assert whole.sequences[0] == [1, *[5] * 20, *[6] * 20, 3, *[7] * 20, 2]
    assert (whole.cut, whole.target) == (0, [0.0] * 4)


def test_texts_of_each_kind():
    numbers = {name: TASKS[name].n_texts for name in ("sst2", "rte", "mrpc", "race", "storycloze")}
    assert numbers == {"sst2": 1, "rte": 2, "mrpc": 2, "race": 6, "storycloze": 4}
    assert TASKS["rte"].from_line("a \t b", "x") == Example(("a", "b"))
    with pytest.raises(DataError, match="here: 3 fields between tabs; entailment takes 2"):
        TASKS["rte"].from_line("a\tb\tc", "here")
    with pytest.raises(DataError, match="here: 1 fields between tabs; entailment takes 2"):
        TASKS["rte"].from_line("a", "here")


def test_outputs_of_each_kind():
    assert [TASKS[name].n_outputs for name in ("sst2", "mnli", "stsb", "race")] == [2, 3, 6, 1]


def test_the_likeliest_class_is_predicted():
    encoded = Encoded([[1, 2]], [1.0, 0.0, 0.0])
    assert [
        TASKS["mnli"].predict(logits, encoded) for logits in ([3, 1, 2], [1, 3, 2], [-3, -2, -1])
    ] == [0, 1, 2]
    assert TASKS["sst2"].target(1) == [0.0, 1.0] and TASKS["sst2"].target(None) == [0.0, 0.0]


def test_length_is_that_of_the_longest_sequence():
    encoded = Encoded([[1, 2], [1, 7, 7, 2], [1, 7, 2]], [1.0, 0.0, 0.0])
    assert (encoded.length, encoded.cut, encoded.words) == (4, 0, [])
    assert IGNORE == -100


def test_scores_of_similarity():
    task = TASKS["stsb"]
    assert task.target(2.4) == pytest.approx([0, 0, 0.6, 0.4, 0, 0])
    assert task.target(None) == [0.0] * 6
    # Weights 1 and 3 of the classes 1 and 5: (1 * 1 + 5 * 3) / 4.
    logits = [-1e9, 0.0, -1e9, -1e9, -1e9, math.log(3)]
    assert task.predict(logits, Encoded([], [])) == pytest.approx(4.0)
    # The exponential of 1,000 is no number: the highest is subtracted first.
    assert task.predict([0.0, 0.0, 1000.0, 0.0, 1000.0, 0.0], Encoded([], [])) == pytest.approx(3.0)
    assert task.show(2.4) == "2.400"
    assert task.parse("5", "x") == 5.0 and task.parse("0", "x") == 0.0
    for label in ("5.01", "-0.01", "many"):
        with pytest.raises(DataError, match=f"x: score '{label}'; expected a number from 0 to 5"):
            task.parse(label, "x")


def test_scores_by_squared_error():
    task = build_task(TaskConfig(name="stsb", squared_error=True))
    assert task.n_outputs == 1 and task.target(2.4) == [2.4] and math.isnan(task.target(None)[0])
    assert [task.predict([value], Encoded([], [])) for value in (-0.5, 2.4, 5.5)] == [0.0, 2.4, 5.0]


OWN = {"name": "mine", "kind": "classification", "columns": ["text", "label"], "labels": ["x", "y"]}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"labels": ["x"]}, r"task.labels is \['x'\]; list the labels, each once"),
        ({"labels": ["x", "x", "y"]}, "list the labels, each once"),
        ({"kind": "token_classification", "labels": []}, "list the labels, each once"),
        (
            {"kind": "similarity_score", "labels": ["1", "2"]},
            "for scores list 0, 1, .. up to the highest",
        ),
        ({"columns": ["label"]}, "classification takes 1 columns of text"),
        ({"columns": ["a", "b", "label"]}, "classification takes 1 columns of text"),
        ({"kind": "entailment"}, "entailment takes 2 columns of text"),
        ({"kind": "multiple_choice"}, "multiple_choice takes 3 or 4 columns of text"),
        ({"files": {"validation": "x"}}, "task.files names 'validation'"),
    ],
)
def test_bad_tasks_of_ones_own(change: dict, complaint: str):
    with pytest.raises(ConfigError, match=complaint):
        build_task(TaskConfig(**(OWN | change)))


def test_good_tasks_of_ones_own():
    words = build_task(TaskConfig(**(OWN | {"kind": "token_classification", "labels": ["x"]})))
    assert words.classes == ("O", "B-x", "I-x") and words.metrics == ("entity_f1",)
    columns = ["context", "one", "two", "label"]
    choice = build_task(TaskConfig(**(OWN | {"kind": "multiple_choice", "columns": columns})))
    assert choice.n_texts == 4
    for kind in ("similarity", "entailment"):
        two = build_task(TaskConfig(**(OWN | {"kind": kind, "columns": columns[1:]})))
        assert two.n_texts == 2
    asked = ["context", "question", "one", "two", "label"]
    choice = build_task(TaskConfig(**(OWN | {"kind": "multiple_choice", "columns": asked})))
    assert choice.n_texts == 4
    score = build_task(
        TaskConfig(
            **(OWN | {"kind": "similarity_score", "columns": columns[1:], "labels": ["0", "1"]})
        )
    )
    assert score.classes == ("0", "1")


def written(folder: Path, name: str, text: str, **change) -> list[Example]:
    (folder / name).write_text(text)
    return build_task(TaskConfig(**(OWN | change))).read(folder / name, "train")


def test_files_of_tasks_of_ones_own(tmp_path: Path):
    assert written(tmp_path, "train.tsv", "text\tlabel\na, b\ty\n") == [Example(("a, b",), 1)]
    assert written(tmp_path, "train.csv", 'text,label\n"a, b",x\n') == [Example(("a, b",), 0)]
    choice = {"kind": "multiple_choice", "columns": ["c", "one", "two", "label"]}
    rows = "c\tone\ttwo\tlabel\na\tb\tc\ty\n"
    assert written(tmp_path, "choice.tsv", rows, **choice) == [Example(("a", "", "b", "c"), 1)]
    asked = {"kind": "multiple_choice", "columns": ["c", "q", "one", "two", "label"]}
    rows = "c\tq\tone\ttwo\tlabel\na\td\tb\tc\ty\n"
    assert written(tmp_path, "asked.tsv", rows, **asked) == [Example(("a", "d", "b", "c"), 1)]


def test_words_of_tasks_of_ones_own(tmp_path: Path):
    tags = {"kind": "token_classification", "labels": ["x"]}
    rows = "text\tlabel\nin New York\tO I-x I-x\n"
    assert written(tmp_path, "w.tsv", rows, **tags) == [
        Example(("in", "New", "York"), ("O", "B-x", "I-x"))
    ]
    conll = "in\tO\nRome\tB-x\n\n"
    assert written(tmp_path, "w.conll", conll, **tags) == [Example(("in", "Rome"), ("O", "B-x"))]
    with pytest.raises(DataError, match="row 2: 3 words but 2 tags; give one tag a word"):
        written(tmp_path, "w.tsv", "text\tlabel\nin New York\tO O\n", **tags)
    (tmp_path / "w.tsv").write_text("text\nin York\n")
    assert build_task(TaskConfig(**(OWN | tags))).read(tmp_path / "w.tsv", "test") == [
        Example(("in", "York"), None)
    ]
