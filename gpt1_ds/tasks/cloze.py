"""Cloze: does the model continue a passage with its last word?

As in lm-evaluation-harness: a passage is answered if each token of its word is the likeliest one at
its place, and the perplexity is exp of the mean over passages of the word's nats. LAMBADA (Paperno
et al. 2016) is read in OpenAI's form, without changes to the text. A passage too long for the
context loses its beginning.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpt1_ds.base.errors import ConfigError, DataError
from gpt1_ds.data.tokenizer import Tokenizer
from gpt1_ds.model.likelihood import Likelihoods, Query
from gpt1_ds.tasks.batches import subset
from gpt1_ds.tasks.minimal_pairs import SAMPLE_SEED
from gpt1_ds.tasks.tables import Table

LAMBADA_COLUMNS = ("context", "continuation")
LARGEST_EXPONENT = 700.0
"""The largest float64 is about e^709."""


class Passage(NamedTuple):
    """A text as published, and its last word."""

    context: str
    word: str
    number: int
    """In the file, from 1 on."""


@dataclass(frozen=True)
class Cloze:
    """Encoded passages."""

    name: str
    passages: Sequence[Passage]
    queries: Sequence[Query]
    notes: Sequence[str] = ()
    """What is left out or cut, for the user."""
    greedy = True

    @property
    def majority(self) -> float:
        """The accuracy of the commonest word."""
        counts = Counter(passage.word for passage in self.passages)
        return max(counts.values()) / len(self.passages)

    def metrics(self, found: Likelihoods) -> dict[str, float]:
        """Accuracy and perplexity of the last word, the first with its standard error."""
        n = len(self.passages)
        mean = float(found.greedy_N.mean())
        nats = -float(found.nats_N.mean())
        return {
            "accuracy": mean,
            "standard_error": math.sqrt(mean * (1 - mean) / (n - 1)) if n > 1 else math.nan,
            "perplexity": math.exp(min(nats, LARGEST_EXPONENT)),
            **self.counts(found),
        }

    def counts(self, found: Likelihoods) -> dict[str, int]:
        return {"passages": len(self.passages)}

    def report(self, found: Likelihoods) -> list[str]:
        values = self.metrics(found)
        accuracy, error = 100 * values["accuracy"], 100 * values["standard_error"]
        n, majority = len(self.passages), 100 * self.majority
        per_word = found.nats_N.std(ddof=1) / math.sqrt(n) if n > 1 else math.nan
        perplexity = values["perplexity"]
        return [
            f"last word, greedy  {accuracy:8.2f} ± {error:.2f} x 100, {n:,} passages "
            f"(the commonest word: {majority:.2f})",
            f"its perplexity     {perplexity:8.2f} ± {perplexity * per_word:.2f}",
        ]

    def table(self, found: Likelihoods) -> str:
        """A row for each passage, with columns between tabs."""
        lines = ["passage\tword\tlog_probability\tgreedy"]
        answers = zip(self.passages, found.nats_N, found.greedy_N, strict=True)
        for passage, nats, greedy in answers:
            word = " ".join(passage.word.split())
            lines.append(f"{passage.number}\t{word}\t{nats:.6f}\t{int(greedy)}")
        return "\n".join(lines) + "\n"


def cloze(
    name: str, passages: Sequence[Passage], tokenizer: Tokenizer, n_ctx: int, wanted: int | None
) -> Cloze:
    """`wanted` of the passages (None: all), encoded. Each follows an `<eot>`."""
    passages = [passages[place] for place in subset(len(passages), wanted, SAMPLE_SEED)]
    contexts = tokenizer.encode_batch([passage.context for passage in passages])
    words = tokenizer.encode_batch([passage.word for passage in passages])
    eot = tokenizer.special_ids["eot"]
    kept, queries = [], []
    cut = 0
    for passage, context, word in zip(passages, contexts, words, strict=True):
        if not 0 < len(word) <= n_ctx:
            continue
        ids_T = np.array([eot, *context, *word])
        cut += len(ids_T) > n_ctx + 1
        kept.append(passage)
        queries.append(Query(ids_T[-(n_ctx + 1) :], len(word)))
    if not kept:
        raise DataError(f"{name}: no passage whose last word fits a context of {n_ctx} tokens")
    notes = []
    left_out = len(passages) - len(kept)
    if left_out:
        notes.append(
            f"{left_out:,} of {len(passages):,} passages are left out: their word has no token, or "
            f"more than the context of {n_ctx}"
        )
    if cut:
        notes.append(
            f"{cut:,} of {len(passages):,} passages are longer than the model's context of {n_ctx} "
            "tokens and lost their beginning"
        )
    return Cloze(name, kept, queries, notes)


def read_cloze(path: Path, columns: Sequence[str]) -> list[Passage]:
    """The passages of a file with a column of contexts and one of continuations.

    DataError with the row for a missing column or an empty field.
    """
    if len(columns) != 2:
        raise ConfigError(
            f"--columns {' '.join(columns)}: a cloze file has two columns, the context and what "
            "follows it"
        )
    delimiter = "," if path.suffix.lower() == ".csv" else "\t"
    rows = Table(tuple(columns), "", delimiter=delimiter)(path, lambda label, where: None)
    return [Passage(row.texts[0], row.texts[1], number) for number, row in enumerate(rows, 1)]


def lambada_file(path: Path) -> Path:
    """The file itself, or the lambada*.jsonl of a folder."""
    if not path.is_dir():
        return path
    found = sorted(path.glob("lambada*.jsonl"))
    if not found:
        raise DataError(f"{path}: no lambada*.jsonl here; give OpenAI's file or its folder")
    return found[0]
