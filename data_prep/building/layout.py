"""From the documents that stay to shards: which of them lie in which sample of which shard.

Everything here is a function of the documents in their planned order, and of the options, never of
the ranks. A shard is planned as the place where it begins, and its samples are counted from there.
"""

import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_prep.building.parts import Parts, SplitRule
from data_prep.building.word_budget import MAX_WORDS, WordBudget, unchosen
from data_prep.reading.folders import MOST_NAMES
from gpt1_ds.base.errors import DataError
from gpt1_ds.base.files import write_atomically
from gpt1_ds.data.manifest import SAMPLE_TOKENS, SPLITS, Shard, token_dtype
from gpt1_ds.data.shard_writer import ShardWriter


@dataclass(frozen=True)
class ShardPlan:
    """One tar: which samples it holds.

    It has `samples` samples, from token `begin` of document `row` of part `part` on. Rows are
    those of the part's `KeptDocuments`.
    """

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


COUNTED = {"text_bytes": "bytes", "words": "words", "unknown": "fallback"}
"""What the manifest tells of the text of a split, and the columns of `DOCUMENT` that it sums."""


@dataclass
class Layout:
    shards: list[ShardPlan]
    rules: dict[str, SplitRule]
    corpora: dict[str, dict[str, object]]
    """The manifest's record of each."""


def plan_shards(
    parts: Parts, fraction: float, shard_tokens: int, budget: WordBudget | None = None
) -> Layout:
    """Rules, counts and shards of every corpus. DataError for a corpus that is left with nothing.

    `fraction` is the share of documents that a split by hash gives to validation.
    """
    layout = Layout([], {}, {})
    dropped_of = {}
    for corpus in dict.fromkeys(unit.corpus for unit in parts.units):
        layout.rules[corpus], dropped_of[corpus] = _rule(parts, corpus, fraction)
    if budget:
        layout.rules = budget.chosen(parts, layout.rules)
    for corpus, rule in layout.rules.items():
        dropped, texts = dropped_of[corpus], {}
        for split in SPLITS:
            layout.shards += _plan(parts, corpus, split, rule, shard_tokens)
            texts[split] = _counts(parts, corpus, split, rule)
        if budget:
            dropped[MAX_WORDS] = unchosen(parts, corpus, rule)
        counts, sources = _read_of(parts, corpus)
        left_out = _left_out(parts, corpus)
        faults = ("invalid_utf8", "latin1", "nul", "utf16")
        layout.corpora[corpus] = {
            "split": rule.name,
            "documents_read": counts["read"],
            "mended": {name: counts[name] for name in faults},
            "text": texts,
            "dropped": {**dropped, "empty": dropped["empty"] + counts["empty"]},
            "sources": sources,
            **left_out,
        }
    return layout


def _counts(parts: Parts, corpus: str, split: str, rule: SplitRule) -> dict[str, int]:
    """The text of a split, in the units of `COUNTED`."""
    counts = dict.fromkeys(COUNTED, 0)
    for part in parts.of(corpus):
        documents_K = parts.kept(part, split, rule).documents_K
        for name, column in COUNTED.items():
            counts[name] += int(documents_K[column].sum())
    return counts


def _read_of(parts: Parts, corpus: str) -> tuple[Counter[str], list[dict[str, object]]]:
    """What was counted when the corpus was read, and a record of each source file."""
    counts: Counter[str] = Counter()
    sources = {}  # by name, since a large one may have been read in ranges
    for unit, record in zip(parts.units, parts.records, strict=True):
        if unit.corpus != corpus:
            continue
        counts += Counter(record["counts"])
        for source, sha256 in zip(unit.sources, record["sha256"], strict=True):
            sources[source.validation, source.name] = {
                "file": source.name,
                "bytes": source.bytes,
                "sha256": sha256,
                "validation": source.validation,
            }
    return counts, list(sources.values())


def _left_out(parts: Parts, corpus: str) -> dict[str, object]:
    """Records of what no document has, each only if there is some.

    `cut`: characters by the step of cleaning. `passed_over`: files and members of archives by
    reason. `passed_over_first`: the names of some of them.
    """
    cut: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    names: list[str] = []
    for unit, record in zip(parts.units, parts.records, strict=True):
        if unit.corpus == corpus:
            cut += Counter(record.get("cut", {}))
            passed_over = record.get("passed_over", [])
            reasons.update(reason for reason, _ in passed_over)
            names += [name for _, name in passed_over][: MOST_NAMES - len(names)]
    found = {
        "cut": dict(cut),
        "passed_over": dict(sorted(reasons.items())),
        "passed_over_first": names,
    }
    return {name: value for name, value in found.items() if value}


def _rule(parts: Parts, corpus: str, fraction: float) -> tuple[SplitRule, Counter[str]]:
    """How the corpus is split; how many documents and paragraphs are dropped, by reason."""
    dropped: Counter[str] = Counter()
    kept = heldout = 0
    least = 1 << 64
    for part in parts.of(corpus):
        found = parts.deduplicated(part)
        dropped.update(found.dropped)
        kept += len(found.documents_K)
        heldout += int(found.documents_K["heldout"].sum())
        least = min(least, int(found.documents_K["key"].min(initial=(1 << 64) - 1)))
    if not kept:
        reasons = ", ".join(f"{count:,} {name}" for name, count in dropped.items() if count)
        raise DataError(
            f"--corpus {corpus}: no document is left{reasons and f' of {reasons}'}; leave it out"
        )
    if any(unit.corpus == corpus and unit.validation for unit in parts.units):
        return SplitRule("given"), dropped
    if 0 < heldout < kept:
        return SplitRule("published"), dropped
    below = int(fraction * 2**64)
    if fraction > 0 and kept > 1:
        # At least one document, if there are few, such as books: a run needs a validation loss.
        below = max(below, least + 1)
    return SplitRule("hash", below), dropped


class Run(NamedTuple):
    """Documents first .. last - 1 of a part's `KeptDocuments`."""

    part: int
    first: int
    last: int


@dataclass(frozen=True)
class PlannedSample:
    """The documents of `runs`; `begin` tokens of the first one lie in earlier samples."""

    runs: list[Run]
    begin: int
    tokens: int


def _samples(
    tables: Iterable[tuple[int, np.ndarray]], row: int = 0, begin: int = 0
) -> Iterator[PlannedSample]:
    """Whole documents, up to `SAMPLE_TOKENS` a sample; a longer document alone, in several samples.

    `tables` are (part, tokens of its documents). `row` and `begin` say where to start in the first.
    """
    runs: list[Run] = []
    filled = 0
    for part, tokens_K in tables:
        ends_K = np.cumsum(tokens_K)
        while row < len(tokens_K):
            size = int(tokens_K[row])
            before = int(ends_K[row]) - size
            last = row
            if not begin:
                room = before + SAMPLE_TOKENS - filled
                last = int(np.searchsorted(ends_K, room, side="right"))
            if last > row:
                runs.append(Run(part, row, last))
                filled += int(ends_K[last - 1]) - before
                row = last
            elif filled:
                yield PlannedSample(runs, 0, filled)
                runs, filled = [], 0
            else:
                run = Run(part, row, row + 1)
                for place in range(begin, size, SAMPLE_TOKENS):
                    yield PlannedSample([run], place, min(SAMPLE_TOKENS, size - place))
                begin, row = 0, row + 1
        row = 0
    if filled:
        yield PlannedSample(runs, 0, filled)


def _plan(
    parts: Parts, corpus: str, split: str, rule: SplitRule, shard_tokens: int
) -> Iterator[ShardPlan]:
    sizes = _document_sizes(parts, parts.of(corpus), split, rule)
    plan, number = None, itertools.count()
    for sample in _samples(sizes):
        if plan and plan.tokens + sample.tokens <= shard_tokens:
            samples, tokens = plan.samples + 1, plan.tokens + sample.tokens
            plan = dataclasses.replace(plan, samples=samples, tokens=tokens)
            continue
        if plan:
            yield plan
        part, row, _ = sample.runs[0]
        file = f"{split}/{corpus}/{corpus}-{next(number):06d}.tar"
        plan = ShardPlan(file, corpus, part, row, sample.begin, 1, sample.tokens)
    if plan:
        yield plan


def _document_sizes(
    parts: Parts, numbers: list[int], split: str, rule: SplitRule
) -> Iterator[tuple[int, np.ndarray]]:
    """(part, tokens of its documents (K,)) of some parts."""
    for part in numbers:
        yield part, parts.kept(part, split, rule).documents_K["tokens"]


class ShardBuilder:
    """Writes planned shards from the parts, but for those that an earlier run finished."""

    def __init__(self, parts: Parts, layout: Layout, out: Path, vocab_size: int):
        self._parts, self._rules, self._out = parts, layout.rules, out
        self._vocab_size = vocab_size

    def finished(self, plan: ShardPlan) -> Shard | None:
        """The shard's entry in the manifest, None if it is not written yet."""
        record, path = self._record(plan), self._out / plan.file
        if record.exists() and path.exists():
            shard = Shard(**json.loads(record.read_text(encoding="utf-8")))
            return shard if path.stat().st_size == shard.bytes else None
        return None

    def build(self, plan: ShardPlan) -> None:
        if self.finished(plan):
            return
        numbers = self._parts.of(plan.corpus, plan.part)
        sizes = _document_sizes(self._parts, numbers, plan.split, self._rules[plan.corpus])
        samples = _samples(sizes, plan.row, plan.begin)
        with ShardWriter(self._out, plan.file, plan.corpus, self._vocab_size) as writer:
            for sample in itertools.islice(samples, plan.samples):
                self._add(writer, plan, sample)
            shard = writer.close()
        write_atomically(self._record(plan), json.dumps(dataclasses.asdict(shard)))

    def _add(self, writer: ShardWriter, plan: ShardPlan, sample: PlannedSample) -> None:
        rule, dtype = self._rules[plan.corpus], token_dtype(self._vocab_size)
        tokens: list[np.ndarray] = []
        documents: list[tuple[str, int]] = []
        position = 0  # in the sample
        for part, first, last in sample.runs:
            kept, ids = self._parts.kept(part, plan.split, rule), self._parts.ids(part)
            begin = int(kept.begins_K[first]) + sample.begin
            end = min(int(kept.ends_K[last - 1]), begin + sample.tokens)
            tokens += self._parts.tokens(part, kept, begin, end, dtype)
            names = [ids[row] for row in kept.rows_K[first:last]]
            starts_K = kept.begins_K[first:last] - begin + position
            documents += zip(names, starts_K.tolist(), strict=True)
            position += end - begin
        writer.add(np.concatenate(tokens), documents)

    def _record(self, plan: ShardPlan) -> Path:
        return self._parts.work / f"{plan.file.replace('/', '-')}.json"
