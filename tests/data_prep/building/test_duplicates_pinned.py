"""Which texts are dropped, from keys written by hand: part by part, bucket by bucket."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from datasketch import MinHash

from data_prep.building import duplicates
from data_prep.building.duplicates import (
    NEAR,
    RECORD,
    Duplicates,
    Signatures,
    TextKey,
    bands,
    sorted_run,
)


def digest(high: int, low: int = 0) -> bytes:
    return high.to_bytes(8, "little") + low.to_bytes(8, "little")


def run_of(keys: list[tuple[bytes, bool, int]]) -> bytes:
    return sorted_run([TextKey(*key) for key in keys])


def test_a_run_is_sorted_and_knows_where_its_1024_ranges_begin():
    """The first 10 bits of a key are its range."""
    first, second, last = 3 << 54, 5 << 54, (1 << 64) - 1
    run = run_of([(digest(last), True, 4), (digest(first, 7), False, 0), (digest(second), True, 1)])
    starts = np.frombuffer(run, "<u8", 1025)
    assert starts[:5].tolist() == [0, 0, 0, 0, 1] and starts[5:8].tolist() == [1, 2, 2]
    assert starts[1022:].tolist() == [2, 2, 3]
    assert np.frombuffer(run, RECORD, offset=1025 * 8).tolist() == [
        (first, 7, 0),
        (second, 0, 1 << 63 | 1),
        (last, 0, 1 << 63 | 4),
    ]


def dropped_rows(
    work: Path, runs: list[list[tuple[bytes, bool, int]]], threshold: float = 0.0
) -> list[tuple[list, list]]:
    """Rows that are dropped, of the texts and of the documents of each part."""
    names = [f"part-{number}" for number in range(len(runs))]
    for name, run in zip(names, runs, strict=True):
        (work / f"{name}.keys").write_bytes(run_of(run))
    found = Duplicates(work, names, threshold)
    for bucket in range(found.buckets):
        found.find(bucket)
    return [tuple(rows.tolist() for rows in found.of(number)) for number in range(len(runs))]


def test_the_first_text_of_each_key_stays(tmp_path):
    keys = [digest(1 << 60, low) for low in range(4)]
    runs = [
        [(keys[0], True, 0), (keys[1], True, 1), (keys[0], True, 2), (keys[3], True, 3)],
        [(keys[1], True, 0), (keys[0], True, 5), (keys[2], True, 7)],
    ]
    assert dropped_rows(tmp_path, runs) == [([2], []), ([0, 5], [])]


def test_a_held_out_text_stays_before_all_others(tmp_path):
    key = digest(9, 9)
    assert dropped_rows(
        tmp_path, [[(key, True, 0), (key, True, 1)], [(key, False, 2), (key, True, 3)]]
    ) == [
        ([0, 1], []),
        ([3], []),
    ]


def test_keys_differ_in_either_half(tmp_path):
    runs = [
        [
            (digest(1, 2), True, 0),
            (digest(2, 1), True, 1),
            (digest(1, 1), True, 2),
            (digest(2, 2), True, 3),
        ]
    ]
    assert dropped_rows(tmp_path, runs) == [([], [])]
    (tmp_path / "same").mkdir()
    assert dropped_rows(
        tmp_path / "same", [[(digest(1, 2), True, 0), (digest(1, 2), True, 9)]]
    ) == [([9], [])]


def write_signatures(work: Path, part: int, rows: list[list[int]]) -> None:
    (work / f"part-{part}.signatures").write_bytes(np.array(rows, "<u4").tobytes())


def test_documents_that_are_nearly_others(tmp_path):
    """Signatures of 128 values; 96 (three quarters) are those of the first document."""
    one, other = list(range(128)), [*range(96), *[999] * 32]
    write_signatures(tmp_path, 0, [[7] * 128, one])
    write_signatures(tmp_path, 1, [other, [5] * 128, one])
    key, band = digest(8, 8), digest(9, 9)
    runs = [
        [(band, True, NEAR | 1), (key, True, 0)],
        [(band, True, NEAR | 0), (band, True, NEAR | 1), (band, True, NEAR | 2), (key, True, 0)],
    ]
    # The second document of part 1 shares a band with the first of all, but nothing else.
    assert dropped_rows(tmp_path, runs, 0.75) == [([], []), ([0], [0, 2])]
    for bucket in tmp_path.glob("dropped-*"):
        bucket.unlink()
    assert dropped_rows(tmp_path, runs, 0.76) == [([], []), ([0], [2])]


def test_a_document_is_compared_with_the_first_of_its_own_band(tmp_path):
    one, other = list(range(128)), [*range(1000, 1128)]
    write_signatures(tmp_path, 0, [one, other, one, other])
    first, second = digest(9, 9), digest(9, 10)
    run = [
        (first, True, NEAR | 0),
        (second, True, NEAR | 1),
        (first, True, NEAR | 2),
        (second, True, NEAR | 3),
    ]
    assert dropped_rows(tmp_path, [run], 0.9) == [([], [2, 3])]
    assert NEAR == 1 << 31


@pytest.mark.parametrize(
    ("records", "buckets"), [(353, 1), (352, 2), (177, 2), (176, 4), (88, 8), (1, 512)]
)
def test_more_keys_make_more_buckets_and_the_same_rows(tmp_path, monkeypatch, records, buckets):
    """1,025 starts of 8 bytes and 11 keys of 24 bytes are as large as 352 records."""
    monkeypatch.setattr(duplicates, "BUCKET_RECORDS", records)
    keys = [(digest(number << 60, number), True, number) for number in range(8)]
    again = [(digest(number << 60, number), True, number + 8) for number in range(0, 8, 3)]
    assert dropped_rows(tmp_path, [keys + again])[0][0] == [8, 11, 14]
    names = sorted(path.name for path in tmp_path.glob("dropped-*"))
    assert len(names) == buckets and names[-1] == f"dropped-{buckets - 1:04d}"


def test_there_are_at_most_as_many_buckets_as_ranges(tmp_path, monkeypatch):
    monkeypatch.setattr(duplicates, "BUCKET_RECORDS", 1)
    (tmp_path / "part-0.keys").write_bytes(bytes(24 * 5000))
    assert Duplicates(tmp_path, ["part-0"], 0.0).buckets == 1024


def test_a_bucket_is_found_once(tmp_path):
    (tmp_path / "dropped-0000").write_bytes(np.array([4, 1 << 32 | 6], "<u8").tobytes())
    key = digest(9, 9)
    assert dropped_rows(tmp_path, [[(key, True, 0), (key, True, 1)], [(key, True, 2)]]) == [
        ([4], []),
        ([6], []),
    ]


def test_bands_of_signatures():
    assert bands(0.8) == (9, 13) and bands(0.5) == (25, 5)


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
