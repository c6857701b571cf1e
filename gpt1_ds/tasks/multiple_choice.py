"""Multiple choice (RACE, Story Cloze): `<s> context question <delim> answer <e>` an answer, softmax over answers.

Texts of an example: context, question (empty for Story Cloze, whose answers continue the context), answers.
"""

import json
from pathlib import Path

from gpt1_ds.base.errors import DataError
from gpt1_ds.tasks.base import Parse, Rows, Task
from gpt1_ds.tasks.tables import Table, read_lines


class MultipleChoice(Task):
    kind = "multiple_choice"
    n_outputs = 1

    @property
    def n_texts(self) -> int:
        return 2 + len(self.classes)

    def sequences(
        self, ids: list[list[int]], special: dict[str, int], n_ctx: int
    ) -> tuple[list[list[int]], int]:
        """The context yields first, and alike for every answer; an answer is cut only beyond half of the room."""
        context, question, *answers = ids
        room = n_ctx - 3
        answer_room = min(max(map(len, answers)), room // 2)
        question_room = min(len(question), (room - answer_room) // 2)
        context_room = room - answer_room - question_room
        shared = [
            special["s"],
            *context[:context_room],
            *question[:question_room],
            special["delim"],
        ]
        sequences = [[*shared, *answer[:answer_room], special["e"]] for answer in answers]
        full_length = len(context) + len(question) + max(map(len, answers)) + 3
        return sequences, full_length - max(map(len, sequences))


LEVELS = ("middle", "high")


class Race(MultipleChoice):
    def path(self, folder: Path | str, split: str) -> Path | None:
        """Also a split's folder itself, such as dev, or a level of it, dev/high."""
        found = (Path(folder) for pattern in ("*.txt", *LEVELS) if any(Path(folder).glob(pattern)))
        return super().path(folder, split) or next(found, None)


def read_race(folder: Path, parse: Parse) -> Rows:
    """One JSON file a passage below `folder` (middle/, high/), several questions a passage; or one such file.

    The level, where a folder names it, is the example's part: the paper scores RACE-m and RACE-h too.
    """
    for path in sorted(folder.rglob("*.txt")) if folder.is_dir() else [folder]:
        try:
            passage = json.loads("\n".join(line for _, line in read_lines(path)))
            labels = passage.get("answers") or [None] * len(passage["questions"])
            rows, context = (
                list(zip(passage["questions"], passage["options"], labels, strict=True)),
                passage["article"],
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path}: not a RACE passage (article, questions, options, answers): {error}"
            ) from error
        level = path.parent.name if path.parent.name in LEVELS else ""
        for number, (question, options, answer) in enumerate(rows, 1):
            where = f"{path} question {number}"
            if len(options) != 4 or not all(map(str.strip, options)):
                raise DataError(f"{where}: {options}; expected four answers, none of them empty")
            yield (context, question, *options), parse(answer, where), level


STORY_TABLE = Table(
    (
        *(f"InputSentence{n}" for n in range(1, 5)),
        "RandomFifthSentenceQuiz1",
        "RandomFifthSentenceQuiz2",
    ),
    "AnswerRightEnding",
    delimiter=",",
)


def read_story_cloze(path: Path, parse: Parse) -> Rows:
    for (*story, first, second), label in STORY_TABLE(path, parse):
        yield (" ".join(story), "", first, second), label


RACE_FILES = {"train": ("train",), "dev": ("dev",), "test": ("test",)}
# The stories of the training release have no wrong endings: the paper trains on the labelled validation file.
STORY_FILES = {
    "train": ("train.csv", "cloze_test_val*.csv"),
    "dev": ("dev.csv",),
    "test": ("test.csv", "cloze_test_test*.csv"),
}
RACE = Race(RACE_FILES, read_race, tuple("ABCD"), ("accuracy",))
STORY_CLOZE = MultipleChoice(
    STORY_FILES, read_story_cloze, ("1", "2"), ("accuracy",), dev_share=0.2
)
