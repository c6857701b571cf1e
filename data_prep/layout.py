"""From encoded units to shards: which documents stay, in which split, in which sample of which shard.

Everything here is a function of the units' documents in their planned order, and of the options: never of the ranks.
"""

import dataclasses
import functools
import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.encoding import Unit, UnitIndex, read_index
from gpt1_ds.errors import DataError
from gpt1_ds.files import write_atomically
from gpt1_ds.shards import SAMPLE_TOKENS, SPLITS, Shard, ShardWriter, token_dtype


@dataclass(frozen=True)
class Sample:
    """Whole documents `first` .. `last - 1` of a shard's list, or `tokens` of one document from `begin` on."""

    first: int
    last: int
    begin: int
    tokens: int


@dataclass(frozen=True)
class ShardPlan:
    """What goes into one tar. Document d is row `row_D[d]` of unit `unit_D[d]`."""

    file: str
    corpus: str
    unit_D: np.ndarray
    row_D: np.ndarray
    samples: list[Sample]

    @property
    def split(self) -> str:
        return self.file.partition("/")[0]

    @property
    def tokens(self) -> int:
        return sum(sample.tokens for sample in self.samples)

    @property
    def key(self) -> str:
        """Equal only for equal contents, given the same units."""
        samples = np.array([dataclasses.astuple(sample) for sample in self.samples], np.int64)
        parts = (self.file.encode(), self.unit_D.tobytes(), self.row_D.tobytes(), samples.tobytes())
        return hashlib.sha256(b"\0".join(parts)).hexdigest()


@dataclass
class Layout:
    shards: list[ShardPlan]
    corpora: dict[str, dict[str, Any]]
    """For the manifest, by corpus: split rule, sources with hashes, counts of what was read, dropped and mended."""


def plan_shards(units: list[Unit], work: Path, validation_fraction: float, shard_tokens: int) -> Layout:
    """Drop duplicates, divide documents into splits, samples and shards.

    DataError where a corpus has no document left.
    """
    indexes = [read_index(unit, work) for unit in units]
    kept_by_unit = _without_duplicates(units, indexes)
    layout = Layout([], {})
    for corpus in dict.fromkeys(unit.sources[0].corpus for unit in units):
        members = [unit.index for unit in units if unit.sources[0].corpus == corpus]
        kept_D = np.concatenate([kept_by_unit[i] for i in members])
        if not kept_D.any():
            raise DataError(f"--corpus {corpus}: no document is left (empty ones and duplicates are dropped)")
        table = _Documents.of([units[i] for i in members], [indexes[i] for i in members]).where(kept_D)
        rule, valid_D = _validation(table, validation_fraction)
        texts = {}
        for split, mask_D in zip(SPLITS, (~valid_D, valid_D), strict=True):
            documents = table.where(mask_D)
            layout.shards += _shards(documents, corpus, split, shard_tokens)
            texts[split] = {"text_bytes": int(documents.bytes_D.sum()), "unknown": int(documents.fallback_D.sum())}
        counts = sum((indexes[i].counts for i in members), Counter())
        layout.corpora[corpus] = {
            "split": rule,
            "documents_read": counts["read"],
            "dropped": {"empty": counts["empty"], "duplicate": int((~kept_D).sum())},
            "mended": {"invalid_utf8": counts["invalid_utf8"], "nul": counts["nul"]},
            "text": texts,
            "sources": [
                {"file": source.name, "bytes": source.bytes, "sha256": sha256, "validation": source.validation}
                for i in members
                for source, sha256 in zip(units[i].sources, indexes[i].sha256, strict=True)
            ],
        }
    return layout


def _without_duplicates(units: list[Unit], indexes: list[UnitIndex]) -> list[np.ndarray]:
    """For each unit, which of its documents are the first of their text, across corpora.

    A held-out copy comes before all others: what is validated on must not be trained on.
    """
    hash_D2 = np.concatenate([index.hash_D2 for index in indexes])
    later_D = np.concatenate(
        [~(index.heldout_D | unit.sources[0].validation) for unit, index in zip(units, indexes, strict=True)]
    )
    order_D = np.lexsort((later_D, hash_D2[:, 1], hash_D2[:, 0]))  # stable: ties stay in reading order
    sorted_D2 = hash_D2[order_D]
    first_D = np.ones(len(order_D), bool)
    first_D[1:] = (sorted_D2[1:] != sorted_D2[:-1]).any(axis=1)
    kept_D = np.empty(len(order_D), bool)
    kept_D[order_D] = first_D
    return np.split(kept_D, np.cumsum([len(index.ids) for index in indexes])[:-1])


@dataclass
class _Documents:
    """Columns over the documents of one corpus, in reading order."""

    unit_D: np.ndarray
    row_D: np.ndarray
    tokens_D: np.ndarray
    bytes_D: np.ndarray
    fallback_D: np.ndarray
    hash_D: np.ndarray
    heldout_D: np.ndarray
    given_D: np.ndarray
    """From a `--validation` path."""

    @classmethod
    def of(cls, units: list[Unit], indexes: list[UnitIndex]) -> "_Documents":
        sizes = [len(index.ids) for index in indexes]
        return cls(
            unit_D=np.repeat(np.array([unit.index for unit in units], np.int64), sizes),
            row_D=np.concatenate([np.arange(size) for size in sizes]),
            tokens_D=np.concatenate([index.tokens_D for index in indexes]),
            bytes_D=np.concatenate([index.bytes_D for index in indexes]),
            fallback_D=np.concatenate([index.fallback_D for index in indexes]),
            hash_D=np.concatenate([index.hash_D2[:, 0] for index in indexes]),
            heldout_D=np.concatenate([index.heldout_D for index in indexes]),
            given_D=np.repeat(np.array([unit.sources[0].validation for unit in units], bool), sizes),
        )

    def where(self, mask_D: np.ndarray) -> "_Documents":
        return _Documents(*(getattr(self, column.name)[mask_D] for column in dataclasses.fields(self)))


def _validation(documents: _Documents, fraction: float) -> tuple[str, np.ndarray]:
    """The rule's name, and which documents are validation."""
    if documents.given_D.any():
        return "given", documents.given_D
    if documents.heldout_D.any() and not documents.heldout_D.all():
        return "published", documents.heldout_D
    valid_D = documents.hash_D < np.uint64(int(fraction * 2**64))
    if fraction > 0 and not valid_D.any() and len(valid_D) > 1:
        valid_D[np.argmin(documents.hash_D)] = True  # few documents, such as books: yet a run wants a validation loss
    return "hash", valid_D


def _shards(documents: _Documents, corpus: str, split: str, shard_tokens: int) -> list[ShardPlan]:
    samples = _samples(documents.tokens_D)
    groups: list[list[Sample]] = []
    room = 0
    for sample in samples:
        if sample.tokens > room:
            groups.append([])
            room = max(shard_tokens, sample.tokens)
        groups[-1].append(sample)
        room -= sample.tokens
    plans = []
    for number, group in enumerate(groups):
        first, last = group[0].first, group[-1].last
        plans.append(
            ShardPlan(
                file=f"{split}/{corpus}/{corpus}-{number:06d}.tar",
                corpus=corpus,
                unit_D=documents.unit_D[first:last],
                row_D=documents.row_D[first:last],
                samples=[dataclasses.replace(s, first=s.first - first, last=s.last - first) for s in group],
            )
        )
    return plans


def _samples(tokens_D: np.ndarray) -> list[Sample]:
    """Whole documents up to `SAMPLE_TOKENS` a sample; a longer document alone, in parts."""
    ends_D = np.cumsum(tokens_D)
    samples, first = [], 0
    while first < len(tokens_D):
        before = int(ends_D[first - 1]) if first else 0
        last = int(np.searchsorted(ends_D, before + SAMPLE_TOKENS, side="right"))
        if last > first:
            samples.append(Sample(first, last, 0, int(ends_D[last - 1]) - before))
            first = last
        else:
            size = int(tokens_D[first])
            for begin in range(0, size, SAMPLE_TOKENS):
                samples.append(Sample(first, first + 1, begin, min(SAMPLE_TOKENS, size - begin)))
            first += 1
    return samples


class ShardBuilder:
    """Writes planned shards from the units' files; a shard that an earlier run finished is not written again."""

    def __init__(self, units: list[Unit], work: Path, out: Path, vocab_size: int):
        self._units, self._work, self._out, self._vocab_size = units, work, out, vocab_size
        # Documents come in the units' order, so few are needed at a time.
        self._unit = functools.lru_cache(maxsize=4)(self._load_unit)

    def build(self, plan: ShardPlan) -> Shard:
        receipt = self._work / f"{plan.file.replace('/', '-')}.json"
        path = self._out / plan.file
        if receipt.exists() and path.exists():
            done = json.loads(receipt.read_text())
            if done["key"] == plan.key and path.stat().st_size == done["shard"]["bytes"]:
                return Shard(**done["shard"])
        with ShardWriter(self._out, plan.file, plan.corpus, self._vocab_size) as writer:
            for sample in plan.samples:
                writer.add(*self._content(plan, sample))
            shard = writer.close()
        write_atomically(receipt, json.dumps({"key": plan.key, "shard": dataclasses.asdict(shard)}))
        return shard

    def _content(self, plan: ShardPlan, sample: Sample) -> tuple[np.ndarray, list[tuple[str, int]]]:
        parts, documents, position = [], [], -sample.begin
        for d in range(sample.first, sample.last):
            tokens, starts_D, ends_D, ids = self._unit(int(plan.unit_D[d]))
            row = int(plan.row_D[d])
            part = tokens[starts_D[row] + sample.begin : ends_D[row]][: sample.tokens]
            parts.append(part)
            documents.append((ids[row], position))
            position += len(part)
        return np.concatenate(parts), documents

    def _load_unit(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
        unit = self._units[index]
        documents = read_index(unit, self._work)
        tokens = np.memmap(unit.tokens_path(self._work), token_dtype(self._vocab_size), mode="r").view(np.ndarray)
        ends_D = np.cumsum(documents.tokens_D)
        return tokens, ends_D - documents.tokens_D, ends_D, documents.ids
