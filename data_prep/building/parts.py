"""The encoded parts, read back: which documents stay, and in which split.

Everything here is a function of the documents in their planned order, and of the options, never of
the ranks. Only a few parts are in memory at a time.
"""

import functools
import io
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_prep.building.duplicates import Duplicates
from data_prep.building.encoding import Unit
from gpt1_ds.base.files import write_atomically
from gpt1_ds.data.order import mix


@dataclass(frozen=True)
class SplitRule:
    """Which documents of a corpus are validation: `given`, `published`, or by a small `hash`."""

    name: str
    below: int = 0
    """For `hash`: the keys that are validation are smaller."""
    seed: int = 0
    """Of the choice of training documents (`word_budget.py`)."""
    train_below: int | None = None
    """The chosen documents' draws are smaller; None: all others than validation are chosen."""

    def is_valid(self, validation: bool, documents_D: np.ndarray) -> np.ndarray:
        """(D,) bool for documents of a unit; `validation`: the unit was given as validation."""
        if self.name == "given":
            return np.full(len(documents_D), validation)
        if self.name == "published":
            return documents_D["heldout"]
        return documents_D["key"] < np.uint64(self.below)

    def is_train(self, validation: bool, documents_D: np.ndarray) -> np.ndarray:
        """(D,) bool: the documents that are trained on."""
        chosen_D = ~self.is_valid(validation, documents_D)
        if self.train_below is not None:
            chosen_D &= draws(documents_D, self.seed) < np.uint64(self.train_below)
        return chosen_D


def draws(documents_D: np.ndarray, seed: int) -> np.ndarray:
    """(D,) uint64: the place of each document in a random order, which depends on its text."""
    return mix(seed, 5, documents_D["key"])


REASONS = ("empty", "bad_text", "duplicate", "near_duplicate")
"""Why documents are dropped. Number 1 stands for the first of them, 0 for none."""


class DeduplicatedPart(NamedTuple):
    """The documents of one part that stay."""

    documents_K: np.ndarray
    """Rows of `DOCUMENT`. Their counts are without the dropped paragraphs."""
    rows_K: np.ndarray
    """Where they stand in the part's table."""
    paragraphs_P: np.ndarray
    """Rows of `TEXT`: the paragraphs to drop from these documents."""
    dropped: Counter[str]
    """Dropped documents and paragraphs, by reason."""


@dataclass
class KeptDocuments:
    """The documents of one part that stay, in one split.

    They are one stream of tokens, without the dropped paragraphs. The stream is made of stretches
    of the part's tokens.
    """

    documents_K: np.ndarray
    rows_K: np.ndarray
    """Where they stand in the part's table."""
    from_S: np.ndarray
    """First token of each stretch in the part."""
    to_S: np.ndarray
    """One past its last token."""

    def __post_init__(self) -> None:
        self.ends_K = np.cumsum(self.documents_K["tokens"])
        self.begins_K = self.ends_K - self.documents_K["tokens"]
        self.ends_S = np.cumsum(self.to_S - self.from_S)


class Parts:
    """The encoded parts of all units, in reading order."""

    def __init__(
        self, units: list[Unit], work: Path, near: float, drop_bad: bool, line_breaks: bool = False
    ):
        """`line_breaks`: each line of a document but the first begins with a token for it."""
        self.units, self.work, self.drop_bad = units, work, drop_bad
        self.line_breaks = line_breaks
        self.records = [json.loads(unit.marker(work).read_text(encoding="utf-8")) for unit in units]
        self.names: list[str] = []
        self.unit_of: list[Unit] = []
        """By part."""
        for unit, record in zip(units, self.records, strict=True):
            self.names += record["parts"]
            self.unit_of += [unit] * len(record["parts"])
        self.duplicates = Duplicates(work, self.names, near)
        self.tables = functools.lru_cache(maxsize=4)(self._load_tables)
        self.kept = functools.lru_cache(maxsize=4)(self._kept)
        self.ids = functools.lru_cache(maxsize=2)(self._ids)

    def of(self, corpus: str, first: int = 0) -> list[int]:
        """The parts of a corpus, from number `first` on."""
        numbers = range(first, len(self.names))
        return [part for part in numbers if self.unit_of[part].corpus == corpus]

    def _load_tables(self, part: int) -> dict[str, np.ndarray]:
        return dict(np.load(self.work / f"{self.names[part]}.npz"))

    def _ids(self, part: int) -> list[str]:
        return self.tables(part)["ids"].tobytes().decode().split("\0")

    def write_decision(self, part: int, reasons_D: np.ndarray, paragraphs: list[int]) -> None:
        """Write down why documents are dropped, and the rows of dropped paragraphs of others."""
        data = io.BytesIO()
        np.savez(data, reasons=reasons_D, paragraphs=np.array(paragraphs, np.int64))
        write_atomically(self._decision(part), data.getvalue())

    def decision(self, part: int) -> tuple[np.ndarray, np.ndarray]:
        """What `write_decision` wrote: (D,) uint8, index + 1 in `REASONS`; and (P,) rows."""
        with np.load(self._decision(part)) as tables:
            return tables["reasons"], tables["paragraphs"]

    def _decision(self, part: int) -> Path:
        return self.work / f"{self.names[part]}.dropped.npz"

    def deduplicated(self, part: int) -> DeduplicatedPart:
        tables = self.tables(part)
        reasons_D, paragraphs = self.decision(part)
        documents_D, paragraphs_P = tables["documents"].copy(), tables["texts"][paragraphs]
        if self.line_breaks:
            _drop_leading_breaks(documents_D, paragraphs_P)
        for name in ("tokens", "bytes", "words", "fallback"):
            np.subtract.at(documents_D[name], paragraphs_P["document"], paragraphs_P[name])
        rows_K = np.flatnonzero(reasons_D == 0)
        counts = np.bincount(reasons_D, minlength=len(REASONS) + 1)[1:].tolist()
        dropped = Counter(dict(zip(REASONS, counts, strict=True)))
        dropped["duplicate_paragraphs"] = len(paragraphs_P)
        return DeduplicatedPart(documents_D[rows_K], rows_K, paragraphs_P, dropped)

    def _kept(self, part: int, split: str, rule: SplitRule) -> KeptDocuments:
        documents_K, rows_K, paragraphs_P, _ = self.deduplicated(part)
        chosen = rule.is_valid if split == "valid" else rule.is_train
        chosen_K = chosen(self.unit_of[part].validation, documents_K)
        documents_K, rows_K = documents_K[chosen_K], rows_K[chosen_K]
        paragraphs_P = paragraphs_P[np.isin(paragraphs_P["document"], rows_K)]
        begins_P = paragraphs_P["begin"]
        ends_P = begins_P + paragraphs_P["tokens"]
        ends_K = documents_K["begin"] + self.tables(part)["documents"]["tokens"][rows_K]
        # Each document and the end of each dropped paragraph begins a stretch.
        from_S = np.sort(np.concatenate([documents_K["begin"], ends_P]))
        to_S = np.sort(np.concatenate([ends_K, begins_P]))
        apart_S = from_S[1:] != to_S[:-1]  # neighbours are one stretch
        is_first_S = np.insert(apart_S, 0, True)[: len(from_S)]
        is_last_S = np.append(apart_S, True)[: len(to_S)]
        return KeptDocuments(documents_K, rows_K, from_S[is_first_S], to_S[is_last_S])

    def tokens(
        self, part: int, kept: KeptDocuments, first: int, last: int, dtype: np.dtype
    ) -> list[np.ndarray]:
        """Tokens first .. last - 1 of the stream `kept`, stretch by stretch."""
        found = []
        stretch = int(np.searchsorted(kept.ends_S, first, "right"))
        with open(self.work / f"{self.names[part]}.tokens", "rb") as file:
            for s in range(stretch, len(kept.ends_S)):
                # From the stream's to the part's count of tokens.
                offset = int(kept.to_S[s] - kept.ends_S[s])
                if kept.from_S[s] - offset >= last:
                    break
                begin = max(first + offset, int(kept.from_S[s]))
                end = min(last + offset, int(kept.to_S[s]))
                file.seek(begin * dtype.itemsize)
                found.append(np.fromfile(file, dtype, end - begin))
        return found


def _drop_leading_breaks(documents_D: np.ndarray, paragraphs_P: np.ndarray) -> None:
    """If a document loses its beginning, it loses the line break before what is left too."""
    last_of: dict[int, int] = {}  # document -> the last paragraph of its dropped beginning
    end_of: dict[int, int] = {}
    for p in np.argsort(paragraphs_P["begin"], kind="stable").tolist():
        document, begin, tokens = (
            int(paragraphs_P[name][p]) for name in ("document", "begin", "tokens")
        )
        if begin == end_of.get(document, int(documents_D["begin"][document])):
            last_of[document], end_of[document] = p, begin + tokens
    for document, p in last_of.items():
        begin, tokens = (int(documents_D[name][document]) for name in ("begin", "tokens"))
        if begin < end_of[document] < begin + tokens - 1:  # something is left before <eot>
            paragraphs_P["tokens"][p] += 1
