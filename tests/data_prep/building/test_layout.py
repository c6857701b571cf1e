"""From parts written by hand to shards: the split, the sample and the shard of each document."""

import json
from pathlib import Path

import numpy as np
import pytest

from data_prep.building.duplicates import TextKey, sorted_run
from data_prep.building.encoding import DOCUMENT, TEXT, Unit
from data_prep.building.layout import ShardBuilder, _samples, plan_shards
from data_prep.building.parts import Parts, SplitRule
from data_prep.building.survivors import decide
from data_prep.reading.corpus import Source
from data_prep.verify_shards import iter_samples
from gpt1_ds.base.errors import DataError
from gpt1_ds.data.manifest import SAMPLE_TOKENS

HALF = 1 << 63


def samples(tables: list[list[int]], **begin: int) -> list[tuple]:
    """(runs, tokens of the first document in earlier samples, tokens) of each sample."""
    found = _samples(
        ((part, np.array(sizes, np.int64)) for part, sizes in enumerate(tables)), **begin
    )
    return [(sample.runs, sample.begin, sample.tokens) for sample in found]


def test_a_sample_holds_whole_documents_up_to_65536_tokens():
    assert SAMPLE_TOKENS == 65_536
    assert samples([[30_000, 35_536]]) == [([(0, 0, 2)], 0, 65_536)]
    assert samples([[30_000, 35_537]]) == [([(0, 0, 1)], 0, 30_000), ([(0, 1, 2)], 0, 35_537)]
    assert samples([[10], [20, 30]]) == [([(0, 0, 1), (1, 0, 2)], 0, 60)]
    assert samples([[60_000], [5000, 30_000], [1]]) == [
        ([(0, 0, 1), (1, 0, 1)], 0, 65_000),
        ([(1, 1, 2), (2, 0, 1)], 0, 30_001),
    ]
    assert samples([]) == samples([[], []]) == []


def test_a_longer_document_is_alone_in_parts():
    assert samples([[5, 65_537, 7]]) == [
        ([(0, 0, 1)], 0, 5),
        ([(0, 1, 2)], 0, 65_536),
        ([(0, 1, 2)], 65_536, 1),
        ([(0, 2, 3)], 0, 7),
    ]
    assert samples([[65_536]]) == [([(0, 0, 1)], 0, 65_536)]


def test_samples_from_a_place_on():
    assert samples([[5, 140_000, 7], [9]], row=1, begin=65_536) == [
        ([(0, 1, 2)], 65_536, 65_536),
        ([(0, 1, 2)], 131_072, 8928),
        ([(0, 2, 3), (1, 0, 1)], 0, 16),
    ]
    assert samples([[5, 6, 7], [9]], row=2) == [([(0, 2, 3), (1, 0, 1)], 0, 16)]


def test_rules():
    documents = np.zeros(3, DOCUMENT)
    documents["key"], documents["heldout"] = [4, 5, 6], [True, False, True]
    assert SplitRule("given").is_valid(True, documents).tolist() == [True] * 3
    assert SplitRule("given").is_valid(False, documents).tolist() == [False] * 3
    assert SplitRule("published").is_valid(False, documents).tolist() == [True, False, True]
    assert SplitRule("hash", 5).is_valid(False, documents).tolist() == [True, False, False]
    documents["key"] = [0, 1, 2]
    assert SplitRule("hash").is_valid(True, documents).tolist() == [False] * 3


Document = tuple[int, int, bool, bool]
"""Tokens with the <eot>, key, held out, bad."""
Text = tuple[int, bool, int, int, int]
"""Document, whole, begin, tokens, and its key."""


def parts_of(
    work: Path, units: list[tuple[str, bool, list[tuple[list[Document], list[Text]]]]], **options
) -> Parts:
    """Units of one source each: (corpus, validation, its parts). Token n of a part is n."""
    made = []
    for index, (corpus, validation, parts) in enumerate(units):
        source = Source(corpus, Path(f"/{index}"), f"{index}.txt", validation, 100 + index, 0)
        unit = Unit(index, (source,))
        names = [f"unit-{index:06d}-{number:04d}" for number in range(len(parts))]
        for name, (documents, texts) in zip(names, parts, strict=True):
            write_part(work, name, documents, texts)
        counts = {
            "read": sum(len(documents) for documents, _ in parts) + 1,
            "empty": 1,
            "nul": index,
        }
        unit.marker(work).write_text(
            json.dumps({"counts": counts, "sha256": [f"sha-{index}"], "parts": names})
        )
        made.append(unit)
    built = Parts(made, work, 0.0, options.get("drop_bad", False))
    for bucket in range(built.duplicates.buckets):
        built.duplicates.find(bucket)
    decide(built)
    return built


def write_part(work: Path, name: str, documents: list[Document], texts: list[Text]) -> None:
    rows, begin = [], 0
    for tokens, key, heldout, bad in documents:
        rows.append((begin, tokens, 10 * tokens, 2 * tokens, tokens // 2, key, heldout, bad))
        begin += tokens
    np.arange(begin, dtype="<u2").tofile(work / f"{name}.tokens")
    table = [
        (document, whole, at, tokens, 10 * tokens, 2 * tokens, tokens // 2)
        for document, whole, at, tokens, _ in texts
    ]
    digests = [text[4].to_bytes(16, "little") for text in texts]
    keys = [TextKey(digest, row) for row, digest in enumerate(digests)]
    (work / f"{name}.keys").write_bytes(sorted_run(keys))
    ids = np.frombuffer("\0".join(f"{name}/{row}" for row in range(len(rows))).encode(), np.uint8)
    np.savez(
        work / f"{name}.npz",
        documents=np.array(rows, DOCUMENT),
        texts=np.array(table, TEXT),
        ids=ids,
    )


PLAIN = [(5, HALF, False, False), (7, HALF + 1, False, False), (3, HALF - 1, False, False)]


def test_documents_below_the_fraction_are_validation(tmp_path):
    """Of keys around one half: those below it."""
    layout = plan_shards(parts_of(tmp_path, [("a", False, [(PLAIN, [])])]), 0.5, 100)
    assert layout.rules == {"a": SplitRule("hash", HALF)}
    assert [(shard.file, shard.tokens, shard.row) for shard in layout.shards] == [
        ("train/a/a-000000.tar", 12, 0),
        ("valid/a/a-000000.tar", 3, 0),
    ]
    assert [shard.split for shard in layout.shards] == ["train", "valid"]
    assert layout.corpora["a"]["text"] == {
        "train": {"text_bytes": 120, "words": 24, "unknown": 5},
        "valid": {"text_bytes": 30, "words": 6, "unknown": 1},
    }


def test_one_of_few_documents_is_validation(tmp_path):
    """No key is below a thousandth: the smallest is taken, but not of one document alone."""
    parts = parts_of(tmp_path, [("a", False, [(PLAIN, [])]), ("b", False, [(PLAIN[:1], [])])])
    assert plan_shards(parts, 0.001, 100).rules == {
        "a": SplitRule("hash", HALF),
        "b": SplitRule("hash", int(0.001 * 2**64)),
    }
    nothing = SplitRule("hash", 0)
    assert plan_shards(parts, 0.0, 100).rules == {"a": nothing, "b": nothing}


def test_held_out_documents_and_given_files_come_before_the_hash(tmp_path):
    heldout = [(5, 1, True, False), (7, 2, False, False)]
    units = [
        ("all", False, [([heldout[0]], [])]),
        ("some", False, [(heldout, [])]),
        ("given", False, [([heldout[1]], [])]),
        ("given", True, [([heldout[0]], [])]),
    ]
    layout = plan_shards(parts_of(tmp_path, units), 0.0, 100)
    assert {name: rule.name for name, rule in layout.rules.items()} == {
        "all": "hash",
        "some": "published",
        "given": "given",
    }
    tokens = {shard.file: shard.tokens for shard in layout.shards}
    assert tokens == {
        "train/all/all-000000.tar": 5,
        "train/some/some-000000.tar": 7,
        "valid/some/some-000000.tar": 5,
        "train/given/given-000000.tar": 7,
        "valid/given/given-000000.tar": 5,
    }
    assert layout.corpora["given"]["documents_read"] == 4
    assert layout.corpora["given"]["mended"]["nul"] == 5
    assert layout.corpora["given"]["dropped"]["empty"] == 2
    assert layout.corpora["given"]["sources"] == [
        {"file": "2.txt", "bytes": 102, "sha256": "sha-2", "validation": False},
        {"file": "3.txt", "bytes": 103, "sha256": "sha-3", "validation": True},
    ]


DOCUMENTS = [
    (10, 1, False, False),
    (8, 2, False, True),
    (6, 3, False, False),
    (9, 4, False, False),
    (4, 5, False, False),
]
TEXTS = [
    (0, False, 2, 3, 77),
    (0, True, 0, 0, 100),
    (1, True, 0, 0, 101),
    # Both paragraphs of document 2 are copies: only its <eot> is left.
    (2, False, 18, 2, 77),
    (2, False, 20, 3, 77),
    (2, True, 0, 0, 102),
    (3, False, 24, 3, 77),
    (3, False, 29, 2, 77),
    (3, True, 0, 0, 103),
    (4, True, 0, 0, 100),
]


@pytest.mark.parametrize(("drop_bad", "rows"), [(False, [0, 1, 3]), (True, [0, 3])])
def test_what_is_dropped(tmp_path, drop_bad, rows):
    parts = parts_of(tmp_path, [("a", False, [(DOCUMENTS, TEXTS)])], drop_bad=drop_bad)
    documents_D, rows_K, texts_S, reasons = parts.deduplicated(0)
    assert rows_K.tolist() == rows
    assert documents_D["tokens"][[0, -1]].tolist() == [10, 9 - 3 - 2]
    assert documents_D["bytes"][[0, -1]].tolist() == [100, 90 - 30 - 20]
    assert documents_D["fallback"][[0, -1]].tolist() == [5, 4 - 1 - 1]
    assert texts_S["begin"].tolist() == [24, 29]
    expected = {
        "empty": 0,
        "bad_text": int(drop_bad),
        "duplicate": 2,
        "near_duplicate": 0,
        "duplicate_paragraphs": 2,
    }
    assert reasons == expected


def test_the_stream_leaves_out_the_dropped_paragraphs(tmp_path):
    """Tokens 0 to 17 of documents 0 and 1, then 27, 28, 31 and 32 of document 3."""
    parts = parts_of(tmp_path, [("a", False, [(DOCUMENTS, TEXTS)])])
    kept = parts.kept(0, "train", SplitRule("hash"))
    stretches = list(zip(kept.from_S.tolist(), kept.to_S.tolist(), strict=True))
    assert [pair for pair in stretches if pair[0] < pair[1]] == [(0, 18), (27, 29), (31, 33)]
    assert kept.begins_K.tolist() == [0, 10, 18] and kept.ends_K.tolist() == [10, 18, 22]
    stream = [*range(18), 27, 28, 31, 32]
    for first, last in ((0, 22), (0, 1), (17, 19), (18, 20), (19, 21), (20, 22), (21, 22), (5, 5)):
        found = parts.tokens(0, kept, first, last, np.dtype("<u2"))
        assert np.concatenate([[], *found]).tolist() == stream[first:last]
    nothing = parts.kept(0, "valid", SplitRule("hash"))
    assert len(nothing.documents_K) == len(nothing.ends_S) == 0


def test_a_shard_is_full_and_no_fuller(tmp_path):
    documents = [(40_000, 9, False, False)] * 5
    parts = parts_of(tmp_path, [("a", False, [(documents[:3], []), (documents[3:], [])])])
    for shard_tokens, sizes in (
        (80_000, [2, 2, 1]),
        (79_999, [1] * 5),
        (200_000, [5]),
        (1, [1] * 5),
    ):
        shards = plan_shards(parts, 0.0, shard_tokens).shards
        assert [shard.samples for shard in shards] == sizes
        assert [shard.tokens for shard in shards] == [40_000 * size for size in sizes]
    shards = plan_shards(parts, 0.0, 80_000).shards
    assert [(shard.part, shard.row, shard.begin) for shard in shards] == [
        (0, 0, 0),
        (0, 2, 0),
        (1, 1, 0),
    ]
    assert [shard.file for shard in shards] == [
        f"train/a/a-{number:06d}.tar" for number in range(3)
    ]


def test_nothing_left_of_a_corpus(tmp_path):
    parts = parts_of(tmp_path, [("a", False, [([(1, 1, False, False)], [])]), ("b", False, [])])
    with pytest.raises(DataError, match="--corpus a: no document is left of 1 empty; leave it out"):
        plan_shards(parts, 0.0, 100)


def test_shards_hold_the_stream_with_the_places_of_its_documents(tmp_path):
    long = [(3, 9, False, False), (65_540, 9, False, False), (2, 9, False, False)]
    units = [("a", False, [(DOCUMENTS, TEXTS), (long, [])]), ("b", False, [(long[:1], [])])]
    parts = parts_of(tmp_path, units)
    layout = plan_shards(parts, 0.0, 65_536)
    assert [
        (shard.corpus, shard.part, shard.row, shard.begin, shard.samples) for shard in layout.shards
    ] == [
        ("a", 0, 0, 0, 1),
        ("a", 1, 1, 0, 1),
        ("a", 1, 1, 65_536, 2),
        ("b", 2, 0, 0, 1),
    ]
    builder = ShardBuilder(parts, layout, tmp_path / "out", 65_536)
    found = []
    for plan in layout.shards:
        assert builder.finished(plan) is None
        builder.build(plan)
        shard = builder.finished(plan)
        assert shard is not None and (shard.tokens, shard.samples) == (plan.tokens, plan.samples)
        found += [
            (tokens.tolist(), record["documents"])
            for tokens, record, _ in iter_samples(tmp_path / "out" / plan.file)
        ]
    one, two = "unit-000000-0000", "unit-000000-0001"
    places = [[f"{one}/0", 0], [f"{one}/1", 10], [f"{one}/3", 18], [f"{two}/0", 22]]
    # Tokens are two bytes: token 65,536 of the part is written as 0.
    assert found == [
        ([*range(18), 27, 28, 31, 32, 0, 1, 2], places),
        ([number % 65_536 for number in range(3, 65_539)], [[f"{two}/1", 0]]),
        ([3, 4, 5, 6], [[f"{two}/1", -65_536]]),
        ([7, 8], [[f"{two}/2", 0]]),
        ([0, 1, 2], [["unit-000001-0000/0", 0]]),
    ]


def test_a_finished_shard_is_not_written_again(tmp_path):
    parts = parts_of(tmp_path, [("a", False, [(PLAIN, [])])])
    layout = plan_shards(parts, 0.0, 100)
    builder, (plan,) = ShardBuilder(parts, layout, tmp_path / "out", 100), layout.shards
    builder.build(plan)
    path = tmp_path / "out" / plan.file
    data = path.read_bytes()
    path.write_bytes(bytes(len(data)))
    builder.build(plan)
    assert path.read_bytes() == bytes(len(data)), "its size is right"
    path.write_bytes(data[:-1])
    assert builder.finished(plan) is None
    builder.build(plan)
    assert path.read_bytes() == data
    path.unlink()
    assert builder.finished(plan) is None
