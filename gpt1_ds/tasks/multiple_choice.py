"""Multiple choice (RACE, Story Cloze): `<s> context question <delim> answer <e>` an answer, softmax over answers."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gpt1_ds.errors import DataError
from gpt1_ds.tasks.base import Encoded, Task, one_hot
from gpt1_ds.tasks.tables import label_index, read_csv, read_lines

RACE_ANSWERS = ("A", "B", "C", "D")
ENDINGS = ("1", "2")
STORY_COLUMNS = ("InputSentence1", "InputSentence2", "InputSentence3", "InputSentence4")
ENDING_COLUMNS = ("RandomFifthSentenceQuiz1", "RandomFifthSentenceQuiz2")


@dataclass(frozen=True, slots=True)
class Question:
    context: str
    question: str
    """Empty for Story Cloze, whose answers continue the context."""
    answers: tuple[str, ...]
    label: int
    """Index of the right answer."""


class MultipleChoice(Task):
    kind = "multiple_choice"

    def texts(self, example: Question) -> tuple[str, ...]:
        return example.context, example.question, *example.answers

    def arrange(self, example: Question, ids: list[list[int]], special: dict[str, int], n_ctx: int) -> Encoded:
        """The context yields first, and alike for every answer; an answer is cut only beyond half of the room."""
        context, question, *answers = ids
        room = n_ctx - 3
        answer_room = min(max(map(len, answers)), room // 2)
        question_room = min(len(question), (room - answer_room) // 2)
        context_room = room - answer_room - question_room
        shared = [special["s"], *context[:context_room], *question[:question_room], special["delim"]]
        sequences = [[*shared, *answer[:answer_room], special["e"]] for answer in answers]
        full_length = len(context) + len(question) + max(map(len, answers)) + 3
        cut = full_length - max(map(len, sequences))
        return Encoded(sequences, one_hot(example.label, len(answers)), cut)


def read_race(folder: Path) -> Iterator[Question]:
    """One JSON file a passage below `folder` (middle/, high/), several questions a passage."""
    for path in sorted(folder.rglob("*.txt")):
        try:
            passage = json.loads("\n".join(line for _, line in read_lines(path)))
            columns = [passage[key] for key in ("questions", "options", "answers")]
            rows, context = list(zip(*columns, strict=True)), passage["article"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: not a RACE passage (article, questions, options, answers): {error}") from error
        for number, (question, options, answer) in enumerate(rows, 1):
            where = f"{path} question {number}"
            if len(options) != len(RACE_ANSWERS) or not all(map(str.strip, options)):
                raise DataError(f"{where}: {options}; expected four answers, none of them empty")
            yield Question(context, question, tuple(options), label_index(answer, RACE_ANSWERS, where))


def read_story_cloze(path: Path) -> Iterator[Question]:
    for where, row in read_csv(path, (*STORY_COLUMNS, *ENDING_COLUMNS, "AnswerRightEnding")):
        story = " ".join(row[column] for column in STORY_COLUMNS)
        label = label_index(row["AnswerRightEnding"], ENDINGS, where)
        yield Question(story, "", tuple(row[column] for column in ENDING_COLUMNS), label)


RACE_FILES = {"train": ("train",), "dev": ("dev",)}
# The stories of the training release have no wrong endings: the paper trains on the labelled validation file.
STORY_FILES = {"train": ("train.csv", "cloze_test_val*.csv"), "dev": ("dev.csv",)}
RACE = MultipleChoice(RACE_FILES, read_race, RACE_ANSWERS, ("accuracy",))
STORY_CLOZE = MultipleChoice(STORY_FILES, read_story_cloze, ENDINGS, ("accuracy",), dev_share=0.2)
