"""Definite pronouns (Rahman and Ng 2012): which of two referents does a pronoun stand for?

Each referent takes the pronoun's place. The file names the pronoun but not its place, and some
sentences hold it more than once. Its place is the first one after both referents were mentioned:
only there are both possible. A possessive pronoun becomes a possessive ("its food": "the dog's
food").
"""

import re
from pathlib import Path
from typing import NamedTuple

from gpt1_ds.base.errors import DataError
from gpt1_ds.tasks.tables import Line, read_lines

FILES = "*.c.txt"
BLOCK_LINES = 4
"""Lines of a block: sentence, pronoun, two candidates, answer."""
POSSESSIVE = ("his", "its", "their", "hers", "theirs")
AFTER_OBJECT = frozenset(
    "a about after again all an and as at away back because before but by down for from home if in "
    "into is of off on onto or out over so than that the then to too under until up very was when "
    "while who with".split()
)
"""A word after "her" that shows that "her" is an object ("told her that"), not a possessive."""


class Continuation(NamedTuple):
    """A text and its continuation; only the tokens of `after` are scored."""

    before: str
    after: str


class Referents(NamedTuple):
    """Pronouns with two possible referents each."""

    gold: list[int]
    """Index of the correct referent, for each pronoun."""
    groups: list[list[Continuation]]
    """For each pronoun, the sentence with each of the two referents in its place."""
    parts: list[str]
    """The name of the file of each pronoun without its endings, such as `train`."""


def read_dpr(source: Path) -> Referents:
    """The file `source`, or all files `*.c.txt` (train, test) in a folder.

    A file consists of blocks with an empty line after each. A block has four lines: sentence,
    pronoun, two candidates, answer. Raises DataError with the row for another form.
    """
    files = sorted(source.glob(FILES)) if source.is_dir() else [source]
    if not files:
        raise DataError(f"{source}: no {FILES}; give the folder of train.c.txt, or one file")
    found = Referents([], [], [])
    for path in files:
        block: list[str] = []
        for row, line in [*read_lines(path), Line(0, "")]:
            if line.strip():
                block.append(line.strip())
            elif block:
                where = f"{path} row {row - len(block)}" if row else f"{path}, last block"
                gold, group = _parse(block, where)
                found.gold.append(gold)
                found.groups.append(group)
                found.parts.append(path.name.partition(".")[0])
                block = []
    return found


def _parse(block: list[str], where: str) -> tuple[int, list[Continuation]]:
    """The index of the correct candidate, and the sentence with each candidate."""
    fault = DataError(
        f"{where}: expected a sentence, a pronoun of it, two candidates and the right one"
    )
    if len(block) != BLOCK_LINES:
        raise fault
    sentence, pronoun, names, right = block
    candidates = [name.strip() for name in names.split(",")]
    place = place_of_pronoun(sentence, pronoun, candidates)
    if place is None or len(candidates) != 2 or right not in candidates:
        raise fault
    before, after = sentence[: place.start()], sentence[place.end() :]
    if is_possessive(pronoun, after):
        plural = pronoun.lower().startswith("their")
        group = [Continuation(before + possessive(name, plural), after) for name in candidates]
    else:
        group = [Continuation(before + name, after) for name in candidates]
    return candidates.index(right), group


def place_of_pronoun(sentence: str, pronoun: str, candidates: list[str]) -> re.Match[str] | None:
    """The pronoun's first place after both candidates, else its first place at all."""
    introduced = 0
    for name in candidates:
        found = re.search(rf"\b{re.escape(name)}", sentence, re.IGNORECASE)
        introduced = max(introduced, found.end() if found else 0)
    word = re.compile(rf"\b{re.escape(pronoun)}\b")
    return word.search(sentence, introduced) or word.search(sentence)


def is_possessive(pronoun: str, after: str) -> bool:
    """Whether the pronoun before the text `after` is a possessive; "her" may be an object too."""
    if pronoun.lower() != "her":
        return pronoun.lower() in POSSESSIVE
    following = re.match(r"\s+([\w']+)", after)
    return following is not None and following[1].lower() not in AFTER_OBJECT


def possessive(name: str, plural: bool) -> str:
    """The possessive of a name: "James's", and "the students'" in the plural."""
    return f"{name}'" if plural and name.endswith("s") else f"{name}'s"
