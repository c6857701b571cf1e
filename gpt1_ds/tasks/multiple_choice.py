"""Multiple choice (RACE, Story Cloze): one sequence for each answer, softmax over the answers.

The sequence is `<s> context question <delim> answer <e>`. The texts of an example are the context,
the question and the answers. Story Cloze has no question: the answers continue the context.
"""

import json
from itertools import chain
from pathlib import Path

from gpt1_ds.base.errors import DataError
from gpt1_ds.tasks.base import Sequences, Task, pair
from gpt1_ds.tasks.examples import Example, Parse, Rows
from gpt1_ds.tasks.tables import Table, read_lines, refuse_broken_characters


class MultipleChoice(Task):
    kind = "multiple_choice"

    @property
    def n_outputs(self) -> int:
        return 1

    @property
    def n_texts(self) -> int:
        return 2 + len(self.classes)

    def sequences(self, ids: list[list[int]], special: dict[str, int], n_ctx: int) -> Sequences:
        """The context is cut first, to the same length for every answer.

        An answer is cut only if it fills more than half of the room. With the truncation `fields`,
        context and question are one field and each answer is one.
        """
        context, question, *answers = ids
        longest_answer = max(map(len, answers))
        full_length = len(context) + len(question) + longest_answer + 3
        if self.truncation == "fields":
            pairs = [pair(context + question, a, special, n_ctx, "fields") for a in answers]
            sequences = [joined.ids for joined in pairs]
            return Sequences(sequences, full_length - max(map(len, sequences)))
        room = n_ctx - 3
        answer_room = min(longest_answer, room // 2)
        question_room = min(len(question), (room - answer_room) // 2)
        context_room = room - answer_room - question_room
        shared = [
            special["s"],
            *context[:context_room],
            *question[:question_room],
            special["delim"],
        ]
        sequences = [[*shared, *answer[:answer_room], special["e"]] for answer in answers]
        return Sequences(sequences, full_length - max(map(len, sequences)))


class WithoutQuestion(MultipleChoice):
    """Examples are published as the context and the answers; the question is empty."""

    def from_line(self, line: str, where: str) -> Example:
        context, *answers = line.split("\t")
        if len(answers) == len(self.classes):
            line = "\t".join([context, "", *answers])
        return super().from_line(line, where)


LEVELS = ("middle", "high")
ANSWERS = tuple("ABCD")


class Race(MultipleChoice):
    def path(self, folder: Path | str, split: str) -> Path | None:
        """The folder of a split. `folder` itself may also be a split (dev) or a level (high)."""
        if any(super(Race, self).path(folder, name) for name in self.files):
            return super().path(folder, split)
        holds_passages = any(any(Path(folder).glob(pattern)) for pattern in ("*.txt", *LEVELS))
        return Path(folder) if holds_passages else None


def read_race(folder: Path, parse: Parse) -> Rows:
    """The questions of all passages below `folder` (middle/, high/), or of one passage file.

    A passage is one JSON file with several questions. If its folder is named middle or high, this
    level is the `part` of the examples, because the paper also has scores for RACE-m and RACE-h.
    """
    for path in sorted(folder.rglob("[!.]*.txt")) if folder.is_dir() else [folder]:
        try:
            text = "\n".join(line.text for line in read_lines(path))
            passage = json.loads(text)
            labels = passage.get("answers") or [None] * len(passage["questions"])
            questions = list(zip(passage["questions"], passage["options"], labels, strict=True))
            context = passage["article"]
            texts = [context, *passage["questions"], *chain.from_iterable(passage["options"])]
            refuse_broken_characters("".join(texts), str(path))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(
                f"{path}: not a RACE passage (article, questions, options, answers): {error}"
            ) from error
        level = path.parent.name if path.parent.name in LEVELS else ""
        for number, (question, options, answer) in enumerate(questions, 1):
            where = f"{path} question {number}"
            if len(options) != len(ANSWERS) or not all(map(str.strip, options)):
                raise DataError(f"{where}: {options}; expected four answers, none of them empty")
            yield Example((context, question, *options), parse(answer, where), level)


STORY_SENTENCES = tuple(f"InputSentence{number}" for number in range(1, 5))
STORY_ENDINGS = ("RandomFifthSentenceQuiz1", "RandomFifthSentenceQuiz2")
STORY_TABLE = Table((*STORY_SENTENCES, *STORY_ENDINGS), "AnswerRightEnding", delimiter=",")


def read_story_cloze(path: Path, parse: Parse) -> Rows:
    """Story Cloze examples: the four sentences are the context, and the question is empty."""
    for example in STORY_TABLE(path, parse):
        *story, first, second = example.texts
        yield Example((" ".join(story), "", first, second), example.label)


RACE = Race(
    files={"train": ("train",), "dev": ("dev",), "test": ("test",)},
    rows=read_race,
    classes=ANSWERS,
    metrics=("accuracy",),
)
STORY_CLOZE = WithoutQuestion(
    # The stories of the training release have no wrong endings. So the paper trains on the labelled
    # validation file.
    files={
        "train": ("train.csv", "cloze_test_val*.csv"),
        "dev": ("dev.csv",),
        "test": ("test.csv", "cloze_test_test*.csv"),
    },
    rows=read_story_cloze,
    classes=("1", "2"),
    metrics=("accuracy",),
    dev_share=0.2,
)
