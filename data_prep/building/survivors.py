"""Decides which documents and paragraphs stay: of equal texts exactly one, the best.

The documents are judged one after another: first those that are held out, then the others, each in
reading order. So a run does not train on what it validates on. A document is dropped if

- its text was bad, and `--bad-text drop` is given;
- it equals a document that stays, or a long paragraph that stays;
- all its text is long paragraphs that stay elsewhere;
- it nearly equals a document that stays (`--near-duplicates`). It is compared with the first
  document of each band of its signature that stays.

A document that stays loses its long paragraphs that stay elsewhere. Only what stays is compared
with later documents. So a text is dropped only if a copy of it stays.
"""

import itertools
from collections.abc import Iterable, Iterator
from operator import itemgetter

import numpy as np

from data_prep.building.duplicates import NEAR
from data_prep.building.parts import REASONS, Parts

_EMPTY, _BAD, _DUPLICATE, _NEAR_DUPLICATE = range(1, len(REASONS) + 1)


def decide(parts: Parts) -> None:
    """Write the decision of each part. The groups of all buckets must have been found."""
    survivors = _Survivors(parts)
    for part, is_chosen_D in _in_order(parts):
        if is_chosen_D.any():
            survivors.judge(part, is_chosen_D)


def _in_order(parts: Parts) -> Iterator[tuple[int, np.ndarray]]:
    """The parts, each with the documents (D,) bool to judge: first those that are held out."""
    given = {unit.corpus for unit in parts.units if unit.validation}
    for first in (True, False):
        for part, unit in enumerate(parts.unit_of):
            is_heldout_D = parts.tables(part)["documents"]["heldout"]
            if unit.corpus in given:
                is_heldout_D = np.full(len(is_heldout_D), unit.validation)
            yield part, is_heldout_D == first


class _Survivors:
    """What stays of the documents that were judged so far."""

    def __init__(self, parts: Parts):
        self._parts, self._duplicates = parts, parts.duplicates
        self._owner_G = np.zeros(self._duplicates.groups, np.int64)
        """By group: 1 + part << 32 + row of the document that has its text; 0: none has it yet."""
        for part in range(len(parts.names)):
            documents_D = parts.tables(part)["documents"]
            reasons_D = np.zeros(len(documents_D), np.uint8)
            reasons_D[documents_D["tokens"] <= 1] = _EMPTY  # only its <eot>
            reasons_D[documents_D["bad"] & parts.drop_bad] = _BAD
            parts.write_decision(part, reasons_D, [])

    def judge(self, part: int, is_chosen_D: np.ndarray) -> None:
        tables, grouped_G = self._parts.tables(part), self._duplicates.of(part)
        reasons_D, paragraphs = self._parts.decision(part)
        dropped = paragraphs.tolist()
        is_band_G = grouped_G["row"] & np.uint64(NEAR) != 0
        rows_G = (grouped_G["row"] & np.uint64(NEAR - 1)).astype(np.int64)
        documents_G = rows_G.copy()
        documents_G[~is_band_G] = tables["texts"]["document"][rows_G[~is_band_G]]
        wanted_G = (is_chosen_D & (reasons_D == 0))[documents_G]
        # The texts of a document in their order, then its bands.
        order_G = np.lexsort((rows_G, is_band_G, documents_G))
        order_G = order_G[wanted_G[order_G]]
        columns = (documents_G, is_band_G, rows_G, grouped_G["group"])
        records = zip(*(column[order_G].tolist() for column in columns), strict=True)
        for document, own in itertools.groupby(records, key=itemgetter(0)):
            reason, repeated = self._judge(part, document, own)
            reasons_D[document] = reason
            dropped += [] if reason else repeated
        self._parts.write_decision(part, reasons_D, dropped)

    def _judge(
        self, part: int, document: int, records: Iterable[tuple[int, bool, int, int]]
    ) -> tuple[int, list[int]]:
        """Why the document is dropped, 0 if it stays; its paragraphs that stay elsewhere."""
        tables = self._parts.tables(part)
        texts_S, owner_G, me = tables["texts"], self._owner_G, part << 32 | document
        is_copy, repeated, bands, new = False, [], [], {}
        for _, is_band, row, group in records:
            if is_band:
                bands.append(group)
            elif texts_S["whole"][row]:
                is_copy = bool(owner_G[group])
                new[group] = row
            elif owner_G[group] or group in new:
                repeated.append(row)
            else:
                new[group] = row
        tokens = tables["documents"]["tokens"][document] - texts_S["tokens"][repeated].sum()
        if is_copy or tokens <= 1:
            return _DUPLICATE, repeated
        owners = {int(owner_G[group]) - 1 for group in bands if owner_G[group]}
        if any(self._duplicates.are_alike(owner, me) for owner in sorted(owners)):
            return _NEAR_DUPLICATE, repeated
        for group in (*new, *bands):
            owner_G[group] = owner_G[group] or me + 1
        return 0, repeated
