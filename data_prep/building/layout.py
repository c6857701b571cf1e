"""From encoded parts to shards: which documents stay, in which split, in which sample of which shard.

Everything here is a function of the documents in their planned order, and of the options: never of the ranks. One part
is in memory at a time; a shard is planned as the place where it begins, and its samples are counted off from there.
"""

import dataclasses
import functools
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.building.duplicates import Duplicates
from data_prep.building.encoding import Unit
from gpt1_ds.base.errors import DataError
from gpt1_ds.base.files import write_atomically
from gpt1_ds.data.manifest import SAMPLE_TOKENS, SPLITS, Shard, token_dtype
from gpt1_ds.data.shard_writer import ShardWriter


@dataclass(frozen=True)
class Rule:
    """Which documents of a corpus are validation: `given`, `published`, or those with a small `hash`."""

    name: str
    below: int = 0
    """For `hash`: the keys that are validation are smaller."""

    def applied(self, validation: bool, documents_D: np.ndarray) -> np.ndarray:
        if self.name == "given":
            return np.full(len(documents_D), validation)
        return (
            documents_D["heldout"]
            if self.name == "published"
            else documents_D["key"] < np.uint64(self.below)
        )


@dataclass(frozen=True)
class ShardPlan:
    """One tar: so many samples, from token `begin` of document `row` of part `part` on, rows counted in its `Kept`."""

    file: str
    corpus: str
    part: int
    row: int
    begin: int
    samples: int
    tokens: int

    @property
    def split(self) -> str:
        return self.file.partition("/")[0]


@dataclass
class Layout:
    shards: list[ShardPlan]
    rules: dict[str, Rule]
    corpora: dict[str, dict[str, Any]]
    """What the manifest tells of each."""


@dataclass
class Kept:
    """The documents of one part that stay, in one split: one stream of tokens, without the dropped paragraphs."""

    documents_K: np.ndarray
    rows_K: np.ndarray
    """Where they stand in the part's table."""
    from_S: np.ndarray
    """The stream's stretches in the part's tokens: first, and one past the last, of each."""
    to_S: np.ndarray

    def __post_init__(self):
        self.ends_K = np.cumsum(self.documents_K["tokens"])
        self.begins_K = self.ends_K - self.documents_K["tokens"]
        self.ends_S = np.cumsum(self.to_S - self.from_S)


class Parts:
    """The encoded parts of all units, in reading order."""

    def __init__(self, units: list[Unit], work: Path, near: float, drop_bad: bool):
        self.units, self.work, self._drop_bad = units, work, drop_bad
        self.records = [json.loads(unit.marker(work).read_text()) for unit in units]
        self.names = [name for record in self.records for name in record["parts"]]
        self.unit_of = [
            u for u, record in zip(units, self.records, strict=True) for _ in record["parts"]
        ]
        self.duplicates = Duplicates(work, self.names, near)
        self._files = functools.lru_cache(maxsize=4)(
            lambda part: dict(np.load(work / f"{self.names[part]}.npz"))
        )
        self.kept = functools.lru_cache(maxsize=4)(self._kept)
        self.ids = functools.lru_cache(maxsize=2)(self._ids)

    def of(self, corpus: str, first: int = 0) -> Iterable[int]:
        return [
            part for part in range(first, len(self.names)) if self.unit_of[part].corpus == corpus
        ]

    def _ids(self, part: int) -> list[str]:
        return self._files(part)["ids"].tobytes().decode().split("\0")

    def settled(self, part: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, int]]:
        """The documents that stay, less their dropped paragraphs; their rows; those paragraphs; drops by reason."""
        documents_D, texts_S = self._files(part)["documents"].copy(), self._files(part)["texts"]
        texts, near = self.duplicates.of(part)
        texts_S = texts_S[texts]
        wholes_S, texts_S = texts_S[texts_S["whole"]], texts_S[~texts_S["whole"]]
        for name in ("tokens", "bytes", "fallback"):
            np.subtract.at(documents_D[name], texts_S["document"], texts_S[name])
        bad_D = documents_D["bad"] & self._drop_bad
        copied_D = documents_D["tokens"] <= 1  # only its <eot> is left
        copied_D[wholes_S["document"]] = True
        near_D = np.isin(np.arange(len(documents_D)), near)
        rows_K = np.flatnonzero(~(bad_D | copied_D | near_D))
        texts_S = texts_S[np.isin(texts_S["document"], rows_K)]
        reasons = {
            "bad_text": bad_D,
            "duplicate": copied_D & ~bad_D,
            "near_duplicate": near_D & ~copied_D & ~bad_D,
        }
        dropped = {reason: int(dropped_D.sum()) for reason, dropped_D in reasons.items()}
        return (
            documents_D[rows_K],
            rows_K,
            texts_S,
            dropped | {"duplicate_paragraphs": len(texts_S)},
        )

    def _kept(self, part: int, split: str, rule: Rule) -> Kept:
        documents_K, rows_K, texts_S, _ = self.settled(part)
        chosen_K = rule.applied(self.unit_of[part].validation, documents_K) == (split == "valid")
        documents_K, rows_K = documents_K[chosen_K], rows_K[chosen_K]
        texts_S = texts_S[np.isin(texts_S["document"], rows_K)]
        ends_K = documents_K["begin"] + self._files(part)["documents"]["tokens"][rows_K]
        from_S = np.sort(
            np.concatenate([documents_K["begin"], texts_S["begin"] + texts_S["tokens"]])
        )
        to_S = np.sort(np.concatenate([ends_K, texts_S["begin"]]))
        apart_S = from_S[1:] != to_S[:-1]  # neighbours are one stretch
        first_S = np.insert(apart_S, 0, True)[: len(from_S)]
        return Kept(
            documents_K, rows_K, from_S[first_S], to_S[np.append(apart_S, True)[: len(to_S)]]
        )

    def tokens(
        self, part: int, kept: Kept, first: int, last: int, dtype: np.dtype
    ) -> list[np.ndarray]:
        """Tokens first .. last - 1 of the stream `kept`, stretch by stretch."""
        found = []
        with open(self.work / f"{self.names[part]}.tokens", "rb") as file:
            for s in range(int(np.searchsorted(kept.ends_S, first, "right")), len(kept.ends_S)):
                offset = int(
                    kept.to_S[s] - kept.ends_S[s]
                )  # from the stream's to the part's count of tokens
                if kept.from_S[s] - offset >= last:
                    break
                begin, end = (
                    max(first + offset, int(kept.from_S[s])),
                    min(last + offset, int(kept.to_S[s])),
                )
                file.seek(begin * dtype.itemsize)
                found.append(np.fromfile(file, dtype, end - begin))
        return found


def plan_shards(parts: Parts, fraction: float, shard_tokens: int) -> Layout:
    """Rules, counts and shards of every corpus. DataError for a corpus that is left with nothing."""
    layout = Layout([], {}, {})
    for corpus in dict.fromkeys(unit.corpus for unit in parts.units):
        rule, dropped = _rule(parts, corpus, fraction)
        layout.rules[corpus] = rule
        texts = {}
        for split in SPLITS:
            layout.shards += _plan(parts, corpus, split, rule, shard_tokens)
            kept = [parts.kept(part, split, rule).documents_K for part in parts.of(corpus)]
            names = {"text_bytes": "bytes", "unknown": "fallback"}
            texts[split] = {
                name: int(sum(k[column].sum() for k in kept)) for name, column in names.items()
            }
        members = [i for i, unit in enumerate(parts.units) if unit.corpus == corpus]
        counts = sum((Counter(parts.records[i]["counts"]) for i in members), Counter())
        sources = {}  # by name, since a large one may have been read in ranges
        for i in members:
            for s, sha256 in zip(parts.units[i].sources, parts.records[i]["sha256"], strict=True):
                told = {
                    "file": s.name,
                    "bytes": s.bytes,
                    "sha256": sha256,
                    "validation": s.validation,
                }
                sources[s.validation, s.name] = told
        mended = {name: counts[name] for name in ("invalid_utf8", "latin1", "nul", "utf16")}
        layout.corpora[corpus] = {
            "split": rule.name,
            "documents_read": counts["read"],
            "mended": mended,
            "text": texts,
            "dropped": {"empty": counts["empty"], **dropped},
            "sources": list(sources.values()),
        }
    return layout


def _rule(parts: Parts, corpus: str, fraction: float) -> tuple[Rule, Counter[str]]:
    """How the corpus is split, and how many of its documents and paragraphs are dropped, by reason."""
    dropped: Counter[str] = Counter()
    kept = heldout = 0
    least, below = 1 << 64, int(fraction * 2**64)
    for part in parts.of(corpus):
        documents_K, _, _, reasons = parts.settled(part)
        dropped.update(reasons)
        kept += len(documents_K)
        heldout += int(documents_K["heldout"].sum())
        least = min(least, int(documents_K["key"].min(initial=(1 << 64) - 1)))
    if not kept:
        reasons = ", ".join(f"{count:,} {name}" for name, count in dropped.items() if count)
        raise DataError(
            f"--corpus {corpus}: no document is left{reasons and f' of {reasons}'}; leave it out"
        )
    if any(unit.corpus == corpus and unit.validation for unit in parts.units):
        return Rule("given"), dropped
    if 0 < heldout < kept:
        return Rule("published"), dropped
    if fraction > 0 and kept > 1:
        below = max(
            below, least + 1
        )  # few documents, such as books: yet a run wants a validation loss
    return Rule("hash", below), dropped


@dataclass(frozen=True)
class Sample:
    """Documents first .. last - 1 of some parts' `Kept`; `begin` tokens of the first lie in earlier samples."""

    runs: list[tuple[int, int, int]]
    """(part, first, last)"""
    begin: int
    tokens: int


def _samples(
    tables: Iterable[tuple[int, np.ndarray]], row: int = 0, begin: int = 0
) -> Iterator[Sample]:
    """Whole documents up to `SAMPLE_TOKENS` a sample; a longer document alone, in parts.

    `tables` are (part, tokens of its documents); `row` and `begin` say where to start in the first.
    """
    runs, filled = [], 0
    for part, tokens_K in tables:
        ends_K = np.cumsum(tokens_K)
        while row < len(tokens_K):
            size = int(tokens_K[row])
            before = int(ends_K[row]) - size
            last = (
                row
                if begin
                else int(np.searchsorted(ends_K, before + SAMPLE_TOKENS - filled, side="right"))
            )
            if last > row:
                runs.append((part, row, last))
                filled += int(ends_K[last - 1]) - before
                row = last
            elif filled:
                yield Sample(runs, 0, filled)
                runs, filled = [], 0
            else:
                for place in range(begin, size, SAMPLE_TOKENS):
                    yield Sample([(part, row, row + 1)], place, min(SAMPLE_TOKENS, size - place))
                begin, row = 0, row + 1
        row = 0
    if filled:
        yield Sample(runs, 0, filled)


def _plan(
    parts: Parts, corpus: str, split: str, rule: Rule, shard_tokens: int
) -> Iterator[ShardPlan]:
    tables = (
        (part, parts.kept(part, split, rule).documents_K["tokens"]) for part in parts.of(corpus)
    )
    plan, number = None, itertools.count()
    for sample in _samples(tables):
        if plan and plan.tokens + sample.tokens <= shard_tokens:
            plan = dataclasses.replace(
                plan, samples=plan.samples + 1, tokens=plan.tokens + sample.tokens
            )
            continue
        if plan:
            yield plan
        part, row, _ = sample.runs[0]
        file = f"{split}/{corpus}/{corpus}-{next(number):06d}.tar"
        plan = ShardPlan(file, corpus, part, row, sample.begin, 1, sample.tokens)
    if plan:
        yield plan


class ShardBuilder:
    """Writes planned shards from the parts; a shard that an earlier run finished is not written again."""

    def __init__(self, parts: Parts, layout: Layout, out: Path, vocab_size: int):
        self._parts, self._rules, self._out, self._vocab_size = parts, layout.rules, out, vocab_size

    def finished(self, plan: ShardPlan) -> Shard | None:
        receipt, path = self._receipt(plan), self._out / plan.file
        if receipt.exists() and path.exists():
            shard = Shard(**json.loads(receipt.read_text()))
            return shard if path.stat().st_size == shard.bytes else None
        return None

    def build(self, plan: ShardPlan) -> None:
        if self.finished(plan):
            return
        parts, rule, dtype = self._parts, self._rules[plan.corpus], token_dtype(self._vocab_size)

        def kept(part: int) -> Kept:
            return parts.kept(part, plan.split, rule)

        tables = (
            (part, kept(part).documents_K["tokens"]) for part in parts.of(plan.corpus, plan.part)
        )
        with ShardWriter(self._out, plan.file, plan.corpus, self._vocab_size) as writer:
            for sample in itertools.islice(_samples(tables, plan.row, plan.begin), plan.samples):
                tokens, documents, position = [], [], 0
                for part, first, last in sample.runs:
                    here, ids = kept(part), parts.ids(part)
                    begin = int(here.begins_K[first]) + sample.begin
                    end = min(int(here.ends_K[last - 1]), begin + sample.tokens)
                    tokens += parts.tokens(part, here, begin, end, dtype)
                    starts = here.begins_K[first:last] - begin + position
                    documents += zip(
                        (ids[row] for row in here.rows_K[first:last]), starts.tolist(), strict=True
                    )
                    position += end - begin
                writer.add(np.concatenate(tokens), documents)
            shard = writer.close()
        write_atomically(self._receipt(plan), json.dumps(dataclasses.asdict(shard)))

    def _receipt(self, plan: ShardPlan) -> Path:
        return self._parts.work / f"{plan.file.replace('/', '-')}.json"
