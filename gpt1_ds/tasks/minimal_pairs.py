"""Minimal pairs: of two sentences, is the acceptable one the likelier one?

As in Warstadt et al. 2020 (BLiMP), section 4, and in lm-evaluation-harness: a sentence's score is
the sum of the log-probabilities of its tokens, the first one after `<eot>`; its end is not
predicted. A pair counts 1 if the acceptable sentence has the higher score, and 1/2 for equal ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpt1_ds.base.errors import ConfigError
from gpt1_ds.data.tokenizer import Tokenizer
from gpt1_ds.model.likelihood import Likelihoods, Query
from gpt1_ds.tasks.batches import subset
from gpt1_ds.tasks.tables import Table

ALL = "all"
SAMPLE_SEED = 0
"""Of a sample of the pairs. All runs get the same one, so that their scores compare."""


class Pair(NamedTuple):
    """Two sentences as published."""

    good: str
    bad: str
    group: str
    """The name of its paradigm."""


class Accuracy(NamedTuple):
    mean: float
    error: float
    """Standard error; NaN for a single pair."""
    pairs: int


Levels = Mapping[str, Mapping[str, Sequence[str]]]
"""For each level of the table (paradigm, phenomenon, ..) the groups of each of its rows."""
Published = Mapping[str, Mapping[str, float]]
"""For each other model its accuracy on each group."""


@dataclass(frozen=True)
class MinimalPairs:
    """Encoded pairs, and how their scores are shown."""

    name: str
    pairs: Sequence[Pair]
    queries: Sequence[Query]
    """Those of the acceptable and of the other sentence of each pair, in turn."""
    levels: Levels
    published: Published = field(default_factory=dict)
    notes: Sequence[str] = ()
    """What is left out, for the user."""
    greedy = False
    majority = 0.5
    """The accuracy of a guess."""

    def metrics(self, found: Likelihoods) -> dict[str, float]:
        """Accuracy with its standard error, the pairs, the ties, and the rows of the first level.

        The accuracy is the mean over the groups.
        """
        credit_of = self._credit_of_group(found)
        overall = accuracy(list(credit_of.values()))
        values: dict[str, float] = {
            "accuracy": overall.mean,
            "standard_error": overall.error,
            **self.counts(found),
        }
        level, rows = next(iter(self.levels.items()), ("", {}))
        for row, groups in rows.items():
            values[f"{level}/{row}"] = accuracy([credit_of[group] for group in groups]).mean
        return values

    def counts(self, found: Likelihoods) -> dict[str, int]:
        return {"pairs": len(self.pairs), "ties": int((_credits(found) == 0.5).sum())}

    def report(self, found: Likelihoods) -> list[str]:
        """The lines of a table: every level, beside the published scores of the same groups."""
        credit_of = self._credit_of_group(found)
        rows = [self._row("overall", list(credit_of), credit_of)]
        for level, of_level in self.levels.items():
            rows.append([f"by {level}:", "", ""])
            for label, groups in of_level.items():
                rows.append(self._row(f"  {label}", groups, credit_of))
        header = ["", "accuracy x 100", "pairs", *self.published]
        return in_columns([header, *rows])

    def _row(
        self, label: str, groups: Sequence[str], credit_of: Mapping[str, np.ndarray]
    ) -> list[str]:
        mean, error, pairs = accuracy([credit_of[group] for group in groups])
        cells = [label, f"{100 * mean:.1f} ± {100 * error:.1f}", f"{pairs:,}"]
        for of_model in self.published.values():
            known = [of_model[group] for group in groups if group in of_model]
            complete = len(known) == len(groups)
            cells.append(f"{100 * sum(known) / len(known):.1f}" if complete else "")
        return cells

    def table(self, found: Likelihoods) -> str:
        """A row for each pair, with columns between tabs."""
        lines = ["group\tgood\tbad\tlog_probability_good\tlog_probability_bad\tcredit"]
        nats_P2 = found.nats_N.reshape(-1, 2).tolist()
        credit_P = _credits(found).tolist()
        for pair, nats, credit in zip(self.pairs, nats_P2, credit_P, strict=True):
            texts = [" ".join(text.split()) for text in (pair.group, pair.good, pair.bad)]
            numbers = [f"{nats[0]:.6f}", f"{nats[1]:.6f}", f"{credit:g}"]
            lines.append("\t".join(texts + numbers))
        return "\n".join(lines) + "\n"

    def _credit_of_group(self, found: Likelihoods) -> dict[str, np.ndarray]:
        return by_group([pair.group for pair in self.pairs], _credits(found))


def _credits(found: Likelihoods) -> np.ndarray:
    good_P, bad_P = found.nats_N.reshape(-1, 2).T
    return credits_of(good_P, bad_P)


def credits_of(good_P: np.ndarray, bad_P: np.ndarray) -> np.ndarray:
    """1 where the acceptable sentence is likelier, 1/2 where both are alike, else 0, (P,)."""
    return (good_P > bad_P) + 0.5 * (good_P == bad_P)


def by_group(groups_P: Sequence[str], values_P: np.ndarray) -> dict[str, np.ndarray]:
    """The values of each group, in the order of their first occurrence."""
    places: dict[str, list[int]] = {}
    for place, group in enumerate(groups_P):
        places.setdefault(group, []).append(place)
    return {group: values_P[of_group] for group, of_group in places.items()}


def accuracy(credits_by_group: Sequence[np.ndarray]) -> Accuracy:
    """The mean over the groups of the mean of each.

    The pairs of a group count as independent draws, the groups as fixed: the error is
    sqrt(sum of s^2 / n) / groups.
    """
    means = [credit_P.mean() for credit_P in credits_by_group]
    squared = 0.0
    for credit_P in credits_by_group:
        squared += credit_P.var(ddof=1) / len(credit_P) if len(credit_P) > 1 else np.nan
    pairs = sum(map(len, credits_by_group))
    return Accuracy(float(np.mean(means)), float(np.sqrt(squared) / len(means)), pairs)


def sample(pairs: Sequence[Pair], wanted: int | None) -> list[Pair]:
    """`wanted` pairs of each group, drawn with a fixed seed, in file order; None: all."""
    places = by_group([pair.group for pair in pairs], np.arange(len(pairs)))
    chosen: list[int] = []
    for of_group in places.values():
        chosen += of_group[subset(len(of_group), wanted, SAMPLE_SEED)].tolist()
    return [pairs[place] for place in sorted(chosen)]


class Fitting(NamedTuple):
    """The pairs whose sentences the model can read, and what is said of the others."""

    pairs: list[Pair]
    queries: list[Query]
    notes: list[str]


def fitting(pairs: Sequence[Pair], tokenizer: Tokenizer, n_ctx: int) -> Fitting:
    """Encodes the pairs; those with a sentence beyond the context, or without tokens, are left out.

    Each sentence follows an `<eot>`.
    """
    texts = list(chain.from_iterable((pair.good, pair.bad) for pair in pairs))
    eot = tokenizer.special_ids["eot"]
    ids = tokenizer.encode_batch(texts)
    kept: list[Pair] = []
    queries: list[Query] = []
    longest, too_long, empty = 0, 0, 0
    for place, pair in enumerate(pairs):
        of_pair = ids[2 * place : 2 * place + 2]
        longest = max(longest, *map(len, of_pair))
        if max(map(len, of_pair)) > n_ctx:
            too_long += 1
        elif not all(of_pair):
            empty += 1
        else:
            kept.append(pair)
            queries += [Query(np.array([eot, *tokens]), len(tokens)) for tokens in of_pair]
    notes = []
    if too_long:
        notes.append(
            f"{too_long:,} of {len(pairs):,} pairs are left out: they are longer than the model's "
            f"context of {n_ctx} tokens (the longest sentence has {longest})"
        )
    if empty:
        notes.append(f"{empty:,} of {len(pairs):,} pairs are left out: a sentence has no tokens")
    return Fitting(kept, queries, notes)


def read_pairs(path: Path, columns: Sequence[str]) -> list[Pair]:
    """The pairs of a user's own file: columns of the acceptable and of the other sentence.

    A third column names the group. DataError with the row for a missing column or an empty field.
    """
    if len(columns) not in (2, 3):
        raise ConfigError(
            f"--columns {' '.join(columns)}: pairs have two columns, the acceptable sentence and "
            "the other one, and a third one if they are in groups"
        )
    delimiter = "," if path.suffix.lower() == ".csv" else "\t"
    rows = Table(tuple(columns), "", delimiter=delimiter)(path, lambda label, where: None)
    pairs = []
    for row in rows:
        good, bad, *group = row.texts
        pairs.append(Pair(good, bad, group[0] if group else ALL))
    return pairs


def in_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows as lines: the first column is left-aligned, the others right-aligned."""
    n_columns = max(map(len, rows))
    full = [[*row, *[""] * (n_columns - len(row))] for row in rows]
    widths = [max(map(len, column)) for column in zip(*full, strict=True)]
    lines = []
    for row in full:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        cells[0] = row[0].ljust(widths[0])
        lines.append("  ".join(cells).rstrip())
    return lines
