"""Token classification for named entities (CoNLL-2003, WNUT-17). The head reads all states.

The label of a word is the label of its first sub-token. Tags may be IOB1 (B- only between two
entities of the same type) or IOB2, also called BIO; both are converted to BIO. Because of the
causal mask, the state of a token does not depend on later words. The paper has no such task; this
is its architecture applied to labelling.

A word may have no sub-token: it was cut off, or the tokenizer knows no character of it (a
zero-width space). Then it adds nothing to the loss, and its prediction is `O`.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gpt1_ds.base.errors import DataError
from gpt1_ds.tasks.base import Sequences, Task
from gpt1_ds.tasks.examples import IGNORE, Encoded, Example, Parse, Rows
from gpt1_ds.tasks.tables import Line, label_index, read_lines, split_words

OUTSIDE = "O"
DOCUMENT_START = "-DOCSTART-"


@dataclass(frozen=True)
class TokenClassification(Task):
    kind = "token_classification"
    label_all_subtokens: bool = False
    """Train on every sub-token of a word, not only on its first."""

    def from_line(self, line: str, where: str) -> Example:
        """An unlabelled sentence; its words are separated by spaces."""
        return Example(tuple(split_words(line)))

    def parse(self, label: str, where: str) -> str:
        """The tag itself; raises DataError for an unknown one."""
        return self.classes[label_index(label, self.classes, where)]

    def sequences(self, ids: list[list[int]], special: dict[str, int], n_ctx: int) -> Sequences:
        pieces = list(itertools.chain.from_iterable(ids))
        kept = pieces[: n_ctx - 2]
        return Sequences([[special["s"], *kept, special["e"]]], len(pieces) - len(kept))

    def arrange(
        self, example: Example, ids: list[list[int]], special: dict[str, int], n_ctx: int
    ) -> Encoded:
        sequences = self.sequences(ids, special, n_ctx)
        length = len(sequences.ids[0])
        target = [IGNORE]
        first_pieces = []
        for index, pieces in enumerate(ids):
            is_kept = bool(pieces) and len(target) < n_ctx - 1
            first_pieces.append(len(target) if is_kept else -1)
            target += self._word_target(example, index, len(pieces))
        target = [*target[: length - 1], IGNORE]
        return Encoded(sequences.ids, target, sequences.cut, first_pieces)

    def _word_target(self, example: Example, index: int, n_pieces: int) -> list[int]:
        """The targets of a word's sub-tokens."""
        if example.label is None:
            return [IGNORE] * n_pieces
        label = self.classes.index(example.label[index])
        if self.label_all_subtokens:
            return [label] * n_pieces
        return [label, *[IGNORE] * (n_pieces - 1)][:n_pieces]

    def predict(self, logits: list[int], encoded: Encoded) -> list[str]:
        """The tag of each word, from the best class of each token.

        A word without a sub-token gets the tag `O`.
        """
        tags = []
        for position in encoded.words:
            tags.append(self.classes[logits[position]] if position >= 0 else OUTSIDE)
        return tags

    def show(self, value: Sequence[str]) -> str:
        return " ".join(value)


def bio(*types: str) -> tuple[str, ...]:
    """The BIO tags of these types of entities."""
    tags = [OUTSIDE]
    for kind in types:
        tags += [f"B-{kind}", f"I-{kind}"]
    return tuple(tags)


def to_bio(tags: Sequence[str]) -> tuple[str, ...]:
    """Convert IOB1 to BIO: an I- that begins an entity becomes B-. BIO does not change."""
    previous = (OUTSIDE, *tags)
    converted = []
    for tag, before in zip(tags, previous, strict=False):
        begins = tag[:2] == "I-" and before[2:] != tag[2:]
        converted.append(f"B-{tag[2:]}" if begins else tag)
    return tuple(converted)


def read_conll(path: Path, parse: Parse) -> Rows:
    """Reads lines of `word ... tag` (tabs or spaces), with an empty line after each sentence.

    `-DOCSTART-` lines are dropped. If the first line has only a word, the file is unlabelled. Only
    spaces and tabs separate fields: a no-break space may be a part of a word, or the word.
    """
    words: list[str] = []
    tags: list[str | None] = []
    labelled = None
    for row, line in [*read_lines(path), Line(0, "")]:
        fields = line.split("\t") if "\t" in line.strip(" \t") else split_words(line)
        # In a file without tags, a no-break space alone is a word.
        is_blank = not (line.strip(" \t") if labelled is False else line.strip())
        if is_blank:
            if words:
                yield Example(tuple(words), _all_or_none(tags))
            words, tags = [], []
        elif fields[0] != DOCUMENT_START:
            if labelled is None:
                labelled = len(fields) > 1
            if not fields[0].strip(" ") or labelled != (len(fields) > 1):
                raise DataError(f"{path} row {row}: '{line.strip()}'; expected a word and its tag")
            words.append(fields[0])
            tags.append(parse(fields[-1] if labelled else None, f"{path} row {row}"))


def _all_or_none(tags: Sequence[str | None]) -> tuple[str, ...] | None:
    known = [tag for tag in tags if tag is not None]
    return to_bio(known) if len(known) == len(tags) else None


CONLL2003 = TokenClassification(
    files={
        "train": ("eng.train", "train.txt"),
        "dev": ("eng.testa", "valid.txt", "dev.txt"),
        "test": ("eng.testb", "test.txt"),
    },
    rows=read_conll,
    classes=bio("LOC", "MISC", "ORG", "PER"),
    metrics=("entity_f1",),
)
WNUT17 = TokenClassification(
    files={
        "train": ("wnut17train.conll",),
        "dev": ("emerging.dev.conll",),
        "test": ("emerging.test*",),
    },
    rows=read_conll,
    classes=bio("corporation", "creative-work", "group", "location", "person", "product"),
    metrics=("entity_f1",),
)
