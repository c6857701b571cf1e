"""Which examples occur in a training text: the overlap of word n-grams.

As in appendix C of Brown et al. 2020: words are in lower case and without punctuation, and a text
occurs if the training text has any 13 of its words in a row. Shorter texts must occur as a whole;
those of fewer than 8 words are not measured, since such sentences occur by chance. Words are those
of the decoded tokens on both sides, so that one normalisation serves both.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

NGRAM_WORDS, FEWEST_WORDS = 13, 8
LENGTHS = range(FEWEST_WORDS, NGRAM_WORDS + 1)
NOT_IN_WORDS = re.compile(r"[^\w\s]|_")
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""Of the hash of n words, a polynomial of the words' hashes modulo 2^64."""
FILTER_BITS = 24
"""A table of 16 MB says of most n-grams of the training text that no example has them."""
MOST_WORDS = 1_000_000
"""Different words whose hashes are kept, some 0.2 GB."""
BETWEEN = "\n"
"""Stands between two texts in place of a word; no word is this."""


def words_of(text: str) -> list[str]:
    return NOT_IN_WORDS.sub("", text.lower()).split()


class WordHashes(dict[str, int]):
    """The 64-bit hash of each word, kept for the next time."""

    def __missing__(self, word: str) -> int:
        digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
        if len(self) >= MOST_WORDS:
            self.clear()
        self[word] = int.from_bytes(digest, "little")
        return self[word]

    def of(self, words: Sequence[str]) -> np.ndarray:
        """Hashes (W,) uint64."""
        return np.fromiter(map(self.__getitem__, words), np.uint64, len(words))


def ngram_hashes(words_W: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """For each of `LENGTHS` the hashes of all n-grams, the first one at the first word."""
    found = words_W
    for n in range(2, NGRAM_WORDS + 1):
        found = found[:-1] * MULTIPLIER + words_W[n - 1 :]
        if n in LENGTHS:
            yield n, found


class Overlap:
    """The texts of all examples, and which of their n-grams a training text was seen to have.

    Memory: the texts, 25 bytes for each n-gram of a different one (a text of W words has W - 12),
    the word hashes and 0.1 GB of filters. It does not depend on the size of the training text.
    """

    def __init__(self, texts: Iterable[str]):
        self._hashes = WordHashes()
        self.number_of: dict[str, int] = {}
        """Each different text, numbered."""
        parts: dict[int, list[np.ndarray]] = {n: [np.empty(0, np.uint64)] for n in LENGTHS}
        owners: dict[int, list[np.ndarray]] = {n: [np.empty(0, np.uint32)] for n in LENGTHS}
        for text in texts:
            if text in self.number_of:
                continue
            number = self.number_of[text] = len(self.number_of)
            words = words_of(text)
            if len(words) < FEWEST_WORDS:
                continue
            n = min(len(words), NGRAM_WORDS)
            hashes = dict(ngram_hashes(self._hashes.of(words)))[n]
            parts[n].append(hashes)
            owners[n].append(np.full(len(hashes), number, np.uint32))
        self._wanted = {
            n: _Ngrams(np.concatenate(parts[n]), np.concatenate(owners[n])) for n in LENGTHS
        }

    def look_through(self, texts: Iterable[str]) -> None:
        """Take note of the examples' n-grams that these training texts have."""
        words: list[str] = []
        for text in texts:
            words += words_of(text)
            words.append(BETWEEN)
        if len(words) < FEWEST_WORDS:
            return
        for n, hashes in ngram_hashes(self._hashes.of(words)):
            self._wanted[n].take_note(hashes)

    def results(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each different text whether it was measured, and whether it occurs."""
        measured = np.zeros(len(self.number_of), bool)
        occurs = np.zeros(len(self.number_of), bool)
        for wanted in self._wanted.values():
            measured[wanted.owners] = True
            occurs[wanted.owners[wanted.was_seen]] = True
        return measured, occurs


class _Ngrams:
    """The hashes of n-grams of one length, sorted, with the texts that have them."""

    def __init__(self, hashes: np.ndarray, owners: np.ndarray):
        order = hashes.argsort()
        self._hashes, self.owners = hashes[order], owners[order]
        self.was_seen = np.zeros(len(hashes), bool)
        self._filter = np.zeros(1 << FILTER_BITS, bool)
        self._filter[self._places(hashes)] = True

    def _places(self, hashes: np.ndarray) -> np.ndarray:
        return hashes >> np.uint64(64 - FILTER_BITS)

    def take_note(self, hashes: np.ndarray) -> None:
        likely = np.unique(hashes[self._filter[self._places(hashes)]])
        begins = self._hashes.searchsorted(likely, side="left")
        ends = self._hashes.searchsorted(likely, side="right")
        for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
            self.was_seen[begin:end] = True
