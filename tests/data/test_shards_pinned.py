"""The format of shards and of their manifest, as numbers: older shards must stay readable."""

import dataclasses
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from gpt1_ds.base.errors import DataError
from gpt1_ds.data.manifest import (
    SAMPLE_TOKENS,
    SPLITS,
    VERSION,
    CorpusEntry,
    Manifest,
    Shard,
    find_damage,
    read_manifest,
    token_dtype,
    write_manifest,
)
from gpt1_ds.data.shard_writer import ShardWriter
from gpt1_ds.data.token_stream import TokenStream, _runs

TOKENIZER = {"files": ["a.model"], "vocab_size": 100, "special_ids": {"pad": 0}}


def test_constants_of_the_format():
    assert (VERSION, SPLITS, SAMPLE_TOKENS) == (1, ("train", "valid"), 65_536)
    assert [token_dtype(size).str for size in (1, 65_536, 65_537)] == ["<u2", "<u2", "<u4"]


def write(root: Path, samples: list[list[int]], vocab_size: int = 100) -> Shard:
    with ShardWriter(root, "train/a/a-000000.tar", "a", vocab_size) as writer:
        for number, tokens in enumerate(samples):
            writer.add(np.array(tokens), [("früh", -number), (f"d{number}", 1)])
        return writer.close()


def test_a_shard(tmp_path):
    """A tar header has 512 bytes, that of an NPY file 128; tokens and JSON fill blocks of 512."""
    shard = write(tmp_path, [[7, 8, 9], [5]])
    assert shard.sample_offsets == [512 + 128, 4 * 512 + 512 + 128]
    assert (shard.sample_tokens, shard.samples, shard.tokens) == ([3, 1], 2, 4)
    assert shard.documents == 3, "the second `früh` began in an earlier sample"
    assert shard.bytes == 10_240 == (tmp_path / shard.file).stat().st_size
    with tarfile.open(tmp_path / shard.file) as tar:
        names = ["a-000000-000000.tokens.npy", "a-000000-000000.json"]
        assert tar.getnames()[:2] == names
        assert json.load(tar.extractfile(names[1])) == {
            "corpus": "a",
            "documents": [["früh", 0], ["d0", 1]],
        }
        assert (
            tar.extractfile(names[1])
            .read()
            .startswith('{"corpus": "a", "documents": [["früh"'.encode())
        )
        assert np.load(io.BytesIO(tar.extractfile(names[0]).read())).dtype.str == "<u2"


def manifest_of(shard: Shard, **changes) -> Manifest:
    shard = dataclasses.replace(shard, **changes)
    entry = CorpusEntry(shard.documents, shard.tokens, [shard])
    return Manifest(TOKENIZER, {"é": 1}, {"train": {"a": entry}})


def checked(root: Path, manifest: Manifest) -> Manifest:
    write_manifest(root, manifest)
    return read_manifest(root)


def test_a_manifest(tmp_path):
    shard = Shard("train/a/a-000000.tar", 4096, "ab", 1, 2, 3, [640], [3])
    manifest = checked(tmp_path, manifest_of(shard))
    assert json.loads((tmp_path / "manifest.json").read_text()) == {
        "version": 1,
        "tokenizer": TOKENIZER,
        "preparation": {"é": 1},
        "splits": {
            "train": {
                "a": {"documents": 2, "tokens": 3, "shards": [dataclasses.asdict(shard)]},
            }
        },
    }
    text = (tmp_path / "manifest.json").read_text(encoding="utf-8")
    assert text.startswith('{"preparation": {"é": 1}, "splits": ') and text.endswith(
        '"version": 1}\n'
    )
    read = manifest.shards()[0]
    assert (read.file, list(read.sample_offsets), list(read.sample_tokens)) == (
        "train/a/a-000000.tar",
        [640],
        [3],
    )


SHARD = Shard("train/a/a-000000.tar", 1000, "ab", 2, 2, 30, [640, 960], [10, 20])


def test_samples_end_with_the_file_at_the_latest(tmp_path):
    assert checked(tmp_path, manifest_of(SHARD)).splits["train"]["a"].tokens == 30
    checked(tmp_path, manifest_of(SHARD, sample_offsets=[0, 960]))
    for changes in (
        {"bytes": 999},
        {"sample_offsets": [640, 961]},
        {"sample_offsets": [-1, 960]},
        {"sample_offsets": [1001, 960], "sample_tokens": [0, 30]},
        {"sample_tokens": [0, 20], "tokens": 20},
        {"sample_tokens": [9, 21]},
    ):
        with pytest.raises(DataError, match="a sample lies outside the (1000|999) bytes"):
            checked(tmp_path, manifest_of(SHARD, **changes))
    nothing = {"samples": 0, "sample_offsets": [], "sample_tokens": [], "tokens": 0}
    checked(tmp_path, manifest_of(SHARD, **nothing))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"samples": 1}, "1 samples, but not as many offsets and counts"),
        ({"sample_offsets": [640]}, "2 samples, but not as many"),
        ({"tokens": 31}, "the samples' tokens do not add up to 31"),
        (
            {"file": "train/a/b-000000.tar"},
            "lies outside the shard directory or is no shard's name",
        ),
        ({"file": "train/a/a-00000.tar"}, "is no shard's name"),
    ],
)
def test_numbers_that_do_not_agree(tmp_path, changes, words):
    with pytest.raises(DataError, match=words):
        checked(tmp_path, manifest_of(SHARD, **changes))


def test_tokenizers_that_are_refused(tmp_path):
    for change in ({"vocab_size": None}, {"special_ids": {}}):
        manifest = dataclasses.replace(manifest_of(SHARD), tokenizer=TOKENIZER | change)
        with pytest.raises(DataError, match="tokenizer without vocab_size or special_ids"):
            checked(tmp_path, manifest)
    for name in ("../a", ".a", "a/b"):
        manifest = dataclasses.replace(manifest_of(SHARD), tokenizer=TOKENIZER | {"files": [name]})
        with pytest.raises(DataError, match="lies outside the shard directory"):
            checked(tmp_path, manifest)


def test_the_manifest_of_the_other_shards():
    other = dataclasses.replace(SHARD, file="train/a/a-000001.tar", documents=5, tokens=7)
    manifest = Manifest(TOKENIZER, {}, {"train": {"a": CorpusEntry(7, 37, [SHARD, other])}})
    assert manifest.without([SHARD.file]).splits["train"]["a"] == CorpusEntry(5, 7, [other])
    assert manifest.without([]) == manifest and manifest.shards() == [SHARD, other]


def test_damage(tmp_path):
    shard = write(tmp_path, [[7, 8, 9]])
    path = tmp_path / shard.file
    assert find_damage(path, shard, True) is None
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"x")
    assert find_damage(path, shard, False) is None
    assert find_damage(path, shard, True) == "sha256 differs from the manifest's"
    path.write_bytes(data[:-1])
    size = len(data)
    assert (
        find_damage(path, shard, False) == f"shard has {size - 1} bytes, the manifest says {size}"
    )
    path.unlink()
    assert "is in the manifest but cannot be read" in find_damage(path, shard, True)


def test_where_tokens_lie(tmp_path):
    """Samples of 3 and 1 tokens, which are read as a ring of 4."""
    shard = write(tmp_path, [[7, 8, 9], [5]])
    stream = TokenStream(tmp_path, manifest_of(shard), "train", "a")
    assert stream.read(np.array([0, 1, 2, 3, 4, -1]), 5).tolist() == [
        [7, 8, 9, 5, 7],
        [8, 9, 5, 7, 8],
        [9, 5, 7, 8, 9],
        [5, 7, 8, 9, 5],
        [7, 8, 9, 5, 7],
        [5, 7, 8, 9, 5],
    ]
    assert list(stream.spans(2, 4)) == [(0, 0, 2, 1), (0, 1, 0, 1), (0, 0, 0, 2)]
    assert list(stream.spans(7, 1)) == [(0, 1, 0, 1)]
    assert stream.shards_at(np.array([0, 3])) == [shard, shard]


def test_reading_looks_at_sizes_and_not_at_hashes(tmp_path):
    shard = write(tmp_path, [[7, 8, 9]])
    stream = TokenStream(tmp_path, manifest_of(shard, sha256="another"), "train", "a")
    assert stream.read(np.array([0]), 3).tolist() == [[7, 8, 9]]


def test_the_largest_token_of_a_vocabulary(tmp_path):
    shard = write(tmp_path, [[7, 99, 100]])
    stream = TokenStream(tmp_path, manifest_of(shard), "train", "a")
    assert stream.read(np.array([0]), 2).tolist() == [[7, 99]]
    with pytest.raises(
        DataError, match="token id 100 at or after it, outside the vocabulary of 100"
    ):
        stream.read(np.array([0, 1]), 2)


def test_runs_of_equal_values():
    assert _runs(np.array([4, 4, 5, 7, 7])) == [(4, 0, 2), (5, 2, 3), (7, 3, 5)]
    assert _runs(np.array([], np.int64)) == []
