"""At most so many words of training text: which documents they are (`build_shards --max-words`).

The documents are taken in a random order, which depends on a seed and on their text alone, until
the next one would exceed the number. So the choice is the same for any number of ranks, any order
of the files and any tokenizer. Validation is split off before, and keeps all its documents.

Memory holds the words by the first bits of the draws, and the documents of one such group (G).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from data_prep.building.parts import Parts, SplitRule, draws
from gpt1_ds.base.errors import ConfigError

MAX_WORDS = "max_words"
"""Setting of the preparation, and the reason why documents are left out."""
GROUP_BITS = 16


@dataclass(frozen=True)
class WordBudget:
    """At most `words` words of training text, over all corpora."""

    words: int
    seed: int

    def chosen(self, parts: Parts, rules: dict[str, SplitRule]) -> dict[str, SplitRule]:
        """The rules with the choice in them. ConfigError if the first document is too long."""
        words_G = np.zeros(1 << GROUP_BITS, np.int64)
        for draws_D, words_D in self._training(parts, rules):
            np.add.at(words_G, _groups(draws_D), words_D)
        ends_G = np.cumsum(words_G)
        group = int(np.searchsorted(ends_G, self.words, side="right"))  # the first one beyond
        if group == len(ends_G):
            return rules
        before = int(ends_G[group] - words_G[group])
        below = self._first_beyond(self._training(parts, rules), group, before)
        return {
            corpus: replace(rule, seed=self.seed, train_below=below)
            for corpus, rule in rules.items()
        }

    def _training(
        self, parts: Parts, rules: dict[str, SplitRule]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Draws and words, (D,) each, of the training documents of each part."""
        for corpus, rule in rules.items():
            for part in parts.of(corpus):
                documents_D = parts.kept(part, "train", rule).documents_K
                yield draws(documents_D, self.seed), documents_D["words"]

    def _first_beyond(
        self, training: Iterator[tuple[np.ndarray, np.ndarray]], group: int, before: int
    ) -> int:
        """The draw of the first document that does not fit; `before`: words before its group."""
        found = [np.empty((0, 2), np.uint64)]
        for draws_D, words_D in training:
            is_here_D = _groups(draws_D) == group
            found.append(np.stack([draws_D, words_D.astype(np.uint64)], axis=1)[is_here_D])
        table_D2 = np.concatenate(found)
        draws_D, words_D = table_D2[np.argsort(table_D2[:, 0])].T
        ends_D = before + np.cumsum(words_D.astype(np.int64))
        place = int(np.searchsorted(ends_D, self.words, side="right"))
        if ends_D[place] == words_D[place]:
            raise ConfigError(
                f"--max-words {self.words}: the first document of --seed {self.seed} has "
                f"{words_D[place]} already; give more, or another seed"
            )
        return int(draws_D[place])


def unchosen(parts: Parts, corpus: str, rule: SplitRule) -> int:
    """Number of documents that are neither training nor validation."""
    count = 0
    for part in parts.of(corpus):
        documents_K, is_given = parts.deduplicated(part).documents_K, parts.unit_of[part].validation
        is_used_K = rule.is_valid(is_given, documents_K) | rule.is_train(is_given, documents_K)
        count += int((~is_used_K).sum())
    return count


def _groups(draws_D: np.ndarray) -> np.ndarray:
    """(D,) the first bits of each draw."""
    return (draws_D >> np.uint64(64 - GROUP_BITS)).astype(np.int64)
