"""Which texts are equal, from keys written by hand: part by part, bucket by bucket."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from datasketch import MinHash

from data_prep.building import duplicates
from data_prep.building.duplicates import (
    GROUPED,
    NEAR,
    RECORD,
    Duplicates,
    Signatures,
    TextKey,
    bands,
    sorted_run,
)
from gpt1_ds.base.errors import ConfigError


def digest(high: int, low: int = 0) -> bytes:
    return high.to_bytes(8, "little") + low.to_bytes(8, "little")


def run_of(keys: list[tuple[bytes, int]]) -> bytes:
    return sorted_run([TextKey(*key) for key in keys])


def test_a_run_is_sorted_and_knows_where_its_1024_ranges_begin():
    """The first 10 bits of a key are its range."""
    first, second, last = 3 << 54, 5 << 54, (1 << 64) - 1
    run = run_of([(digest(last), 4), (digest(first, 7), 0), (digest(second), NEAR | 1)])
    starts = np.frombuffer(run, "<u8", 1025)
    assert starts[:5].tolist() == [0, 0, 0, 0, 1] and starts[5:8].tolist() == [1, 2, 2]
    assert starts[1022:].tolist() == [2, 2, 3]
    assert np.frombuffer(run, RECORD, offset=1025 * 8).tolist() == [
        (first, 7, 0),
        (second, 0, 1 << 31 | 1),
        (last, 0, 4),
    ]


def found_in(work: Path, runs: list[list[tuple[bytes, int]]], threshold: float = 0.0) -> Duplicates:
    """The groups of these keys, part by part."""
    names = [f"part-{number}" for number in range(len(runs))]
    for name, run in zip(names, runs, strict=True):
        (work / f"{name}.keys").write_bytes(run_of(run))
    found = Duplicates(work, names, threshold)
    for bucket in range(found.buckets):
        found.find(bucket)
    return found


def groups(work: Path, runs: list[list[tuple[bytes, int]]]) -> list[list[tuple[int, int]]]:
    """(row, group) of the texts of each part that are not alone with their key."""
    found = found_in(work, runs)
    return [found.of(number).tolist() for number in range(len(runs))]


def test_texts_of_one_key_are_a_group(tmp_path):
    keys = [digest(1 << 60, low) for low in range(4)]
    runs = [
        [(keys[0], 0), (keys[1], 1), (keys[0], 2), (keys[3], 3)],
        [(keys[1], NEAR | 0), (keys[0], 5), (keys[2], 7)],
        [],
    ]
    assert groups(tmp_path, runs) == [[(0, 0), (1, 1), (2, 0)], [(5, 0), (NEAR, 1)], []]
    assert found_in(tmp_path, runs).groups == 2


def test_keys_differ_in_either_half(tmp_path):
    runs = [[(digest(1, 2), 0), (digest(2, 1), 1), (digest(1, 1), 2), (digest(2, 2), 3)]]
    assert groups(tmp_path, runs) == [[]]
    (tmp_path / "same").mkdir()
    assert groups(tmp_path / "same", [[(digest(1, 2), 0), (digest(1, 2), 9)]]) == [[(0, 0), (9, 0)]]


def test_documents_are_alike_from_the_threshold_on(tmp_path):
    """Signatures of 128 values; 96 (three quarters) are those of the first document."""
    one, other = list(range(128)), [*range(96), *[999] * 32]
    for part, rows in enumerate([[[7] * 128, one], [other, [5] * 128, one]]):
        (tmp_path / f"part-{part}.signatures").write_bytes(np.array(rows, "<u4").tobytes())
    first, second = 1, 1 << 32
    for threshold, alike in ((0.75, [True, False, True]), (0.76, [False, False, True])):
        found = found_in(tmp_path, [[], []], threshold)
        assert [found.are_alike(first, second + row) for row in range(3)] == alike
    assert NEAR == 1 << 31


@pytest.mark.parametrize(
    ("records", "buckets"), [(353, 1), (352, 2), (177, 2), (176, 4), (88, 8), (1, 512)]
)
def test_more_keys_make_more_buckets_and_the_same_rows(tmp_path, monkeypatch, records, buckets):
    """1,025 starts of 8 bytes and 11 keys of 24 bytes are as large as 352 records."""
    monkeypatch.setattr(duplicates, "BUCKET_RECORDS", records)
    keys = [(digest(number << 60, number), number) for number in range(8)]
    again = [(digest(number << 60, number), number + 8) for number in range(0, 8, 3)]
    ((*grouped,),) = groups(tmp_path, [keys + again])
    assert sorted(row for row, _ in grouped) == [0, 3, 6, 8, 11, 14]
    by_row = dict(grouped)
    assert [by_row[row] == by_row[row + 8] for row in (0, 3, 6)] == [True] * 3
    assert len(set(by_row.values())) == 3
    names = sorted(path.name for path in tmp_path.glob("groups-*"))
    assert len(names) == buckets and names[-1] == f"groups-{buckets - 1:04d}"


def test_there_are_at_most_as_many_buckets_as_ranges(tmp_path, monkeypatch):
    monkeypatch.setattr(duplicates, "BUCKET_RECORDS", 1)
    (tmp_path / "part-0.keys").write_bytes(bytes(24 * 5000))
    assert Duplicates(tmp_path, ["part-0"], 0.0).buckets == 1024


def test_a_bucket_is_found_once(tmp_path):
    found = np.array([(4, 0), (1 << 32 | 6, 0)], GROUPED)
    (tmp_path / "groups-0000").write_bytes(found.tobytes())
    assert groups(tmp_path, [[(digest(9, 9), 0), (digest(9, 9), 1)], []]) == [[(4, 0)], [(6, 0)]]


def test_bands_of_signatures():
    assert bands(0.8) == (9, 13) and bands(0.5) == (25, 5) and bands(0.98) == (2, 64)
    for similarity in (0.981, 0.985, 0.99, 1):
        with pytest.raises(ConfigError, match=f"--near-duplicates {similarity}: .*0.98 or less"):
            bands(similarity)


def test_signatures_are_of_runs_of_five_words():
    signatures = Signatures(0.8)
    signatures.update("One two three four five six.")
    signatures.update("seven")
    keys = signatures.end()
    signatures.update("ONE two  three\nfour five six.")
    signatures.update("Seven")
    assert signatures.end() == keys, "case and white space do not count"
    signatures.update("one two three four five seven.")
    signatures.update("seven")
    assert signatures.end() != keys
    rows = np.frombuffer(signatures.table(), "<u4").reshape(3, 128)
    assert (rows[0] == rows[1]).all() and 0.1 < np.mean(rows[0] == rows[2]) < 0.9
    expected = MinHash(128, seed=1)
    expected.update_batch([b"one two three four five", b"two three four five six.", b"seven"])
    assert rows[0].tolist() == expected.hashvalues.tolist()
    # 9 bands of 13 values, each with its number in front.
    assert len(keys) == 9
    for band, key in enumerate(keys):
        part = bytes([band]) + rows[0, band * 13 : (band + 1) * 13].tobytes()
        assert key == hashlib.blake2b(part, digest_size=16).digest()
