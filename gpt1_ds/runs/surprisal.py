"""The surprisal of each word of a text: the nats of its tokens, added up.

Words are separated by white space, as for the perplexity of a word. Their surprisals, and those of
the predicted line breaks and ends of documents, add up to the nats of the perplexity.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from gpt1_ds.base.errors import DataError
from gpt1_ds.data.tokenizer import Tokenizer
from gpt1_ds.runs.texts import Source, Text

HEADER = "document\tword\tplace\tsurprisal"
LINE_BREAK, END = "<newline>", "<eot>"
"""What the column `word` has for a predicted token that is in no word; its place is empty."""


class Part(NamedTuple):
    """A word, a line break or an end, and the number of its tokens."""

    word: str
    place: int | None
    """From 1 on; None if it is no word."""
    tokens: int


def surprisal_table(text: Text, nll_T: np.ndarray, tokenizer: Tokenizer) -> str:
    """The text of the file: document, word, place in the document, nats.

    `nll_T` are those of all scored tokens, document after document.
    """
    lines = [HEADER]
    first = 0
    for source, ids_T in zip(text.sources, text.documents, strict=True):
        for word, place, tokens in parts_of(source, ids_T[1:].tolist(), tokenizer):
            nats = nll_T[first : first + tokens].sum(dtype=np.float64)
            lines.append(f"{source.name}\t{word}\t{place or ''}\t{nats:.6f}")
            first += tokens
    return "\n".join(lines) + "\n"


def parts_of(source: Source, ids: list[int], tokenizer: Tokenizer) -> Iterator[Part]:
    """The words of a document, and the tokens between them, in order.

    A word's tokens are those that it has alone: tokens do not depend on the neighbours of a word.
    DataError if they do, which a control character in the text can cause.
    """
    eot = tokenizer.special_ids["eot"]
    words = source.text.split()
    first = 0
    for place, (word, own) in enumerate(zip(words, tokenizer.encode_batch(words), strict=True), 1):
        # White space with a line break is one token, where the vocabulary has it.
        gap = int(ids[first : first + 1] == [tokenizer.newline_id])
        if ids[first + gap : first + gap + len(own)] != own:
            raise DataError(
                f"--surprisal: {source.name}, word {place} '{word}': alone it has other tokens "
                "than in the text; replace the control characters in it and around it"
            )
        yield from [Part(LINE_BREAK, None, 1)] * gap
        yield Part(word, place, len(own))
        first += gap + len(own)
    for token in ids[first:]:
        yield Part(END if token == eot else LINE_BREAK, None, 1)
