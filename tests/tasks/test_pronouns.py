"""Sentences of the pronoun task: where a referent is put, and in which form."""

from pathlib import Path

import pytest

from gpt1_ds.base.errors import DataError
from gpt1_ds.tasks.pronouns import Continuation, read_dpr

CASES = {
    # sentence, pronoun, candidates -> the sentence with the first candidate, split at its end
    "after a connective": (
        "The bee sat on the flower because it had pollen.\nit\nThe bee,the flower",
        ("The bee sat on the flower because The bee", " had pollen."),
    ),
    "again later": (
        "The sword was stuck in the tree because it grew up around it.\nit\nThe sword,the tree",
        ("The sword was stuck in the tree because The sword", " grew up around it."),
    ),
    "before both referents were mentioned": (
        "The workers were told they were fired by the firm, because they cut costs.\n"
        "they\nThe workers,the firm",
        ("The workers were told they were fired by the firm, because The workers", " cut costs."),
    ),
    "within a candidate": (
        "The boy lent his friend a pencil, so he saw his face.\nhis\nThe boy,his friend",
        ("The boy lent his friend a pencil, so he saw The boy's", " face."),
    ),
    "plural possessive": (
        "The students met two teachers and ate their food.\ntheir\nthe students,two teachers",
        ("The students met two teachers and ate the students'", " food."),
    ),
    "her before a noun": (
        "Jane gave Beth a gift as it was her friend's day.\nher\nJane,Beth",
        ("Jane gave Beth a gift as it was Jane's", " friend's day."),
    ),
    "her as an object": (
        "Mary hurt Jennifer, so John took her to the doctor.\nher\nMary,Jennifer",
        ("Mary hurt Jennifer, so John took Mary", " to the doctor."),
    ),
    "her at the end": (
        "Mary hurt Jennifer, so John helped her.\nher\nMary,Jennifer",
        ("Mary hurt Jennifer, so John helped Mary", "."),
    ),
    "only before the referents": (
        "Because he ran, Jim saw Tom.\nhe\nJim,Tom",
        ("Because Jim", " ran, Jim saw Tom."),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_referent_takes_the_place_and_the_form_of_the_pronoun(tmp_path: Path, name: str):
    block, expected = CASES[name]
    right = block.rpartition(",")[2]
    (tmp_path / "train.c.txt").write_text(f"{block}\n{right}\n\n".replace("\n", "\r\n"))
    found = read_dpr(tmp_path)
    assert found.gold == [1] and found.groups[0][0] == Continuation(*expected)


def test_all_files_of_a_folder_are_read_and_one_file_alone(tmp_path: Path):
    for name, right in (("train", "A"), ("test", "B")):
        (tmp_path / f"{name}.c.txt").write_text(f"A saw B as it fell.\nit\nA,B\n{right}\n\n" * 2)
    assert read_dpr(tmp_path).parts == ["test", "test", "train", "train"]
    assert read_dpr(tmp_path).gold == [1, 1, 0, 0]
    assert read_dpr(tmp_path / "test.c.txt").gold == [1, 1]


@pytest.mark.parametrize("spoilt", ["he\nA,B\nA", "it\nA\nA", "it\nA,B\nC", "it\nA,B"])
def test_a_broken_block_is_named_by_its_row(tmp_path: Path, spoilt: str):
    path = tmp_path / "train.c.txt"
    path.write_text(f"A saw B as it fell.\nit\nA,B\nA\n\nA saw B as it fell.\n{spoilt}\n\n")
    with pytest.raises(DataError, match=r"train.c.txt row 6: expected"):
        read_dpr(tmp_path)


def test_a_folder_without_the_files_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"no \*.c.txt; give"):
        read_dpr(tmp_path)


def test_every_pronoun_of_the_real_file_has_its_place(shared_data: Path):
    found = read_dpr(shared_data / "tasks" / "DPR")
    assert len(found.gold) == 1316
    possessives = [group for group in found.groups if group[0].before.endswith(("'s", "'"))]
    assert len(possessives) == 14  # 10 "his", 2 "its", and "her birthday", "her friend's birthday"
