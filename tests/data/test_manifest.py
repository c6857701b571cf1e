"""Shard directories: manifest, writer, stream of tokens, and all kinds of damage."""

import gzip
import hashlib
import io
import json
import pickle
import resource
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset

from data_prep.verify_shards import verify
from gpt1_ds.base.errors import DataError
from gpt1_ds.base.protocols import Json
from gpt1_ds.data.manifest import (
    MANIFEST,
    SAMPLE_TOKENS,
    find_damage,
    read_manifest,
    write_manifest,
)
from gpt1_ds.data.shard_writer import ShardWriter
from gpt1_ds.data.token_stream import TokenStream
from tests.support.shards_built import MODEL, VOCAB_SIZE, Built, build


@pytest.fixture
def built(tmp_path: Path) -> Built:
    return build(tmp_path, [[100, 1, 37], [250], [2, 2, 2, 90]])


def test_manifest_round_trip(built: Built) -> None:
    read = read_manifest(built.root)
    write_manifest(built.root / "train", read)
    assert (built.root / "train" / MANIFEST).read_bytes() == (built.root / MANIFEST).read_bytes()
    assert read.shards()[0].sample_tokens.tolist() == built.manifest.shards()[0].sample_tokens
    raw = json.loads((built.root / MANIFEST).read_text())
    assert sorted(raw) == ["preparation", "splits", "tokenizer", "version"]


def test_missing_manifest_names_the_builders(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(
            DataError, match=f"{root}.*data_prep.build_shards.*slurm/prepare_data.sh"
        ):
            read_manifest(root)


def change_shard(number: int, **values: object) -> Callable[[Json], None]:
    """A change of the manifest's JSON: other values of one shard of corpus `a`."""
    return lambda raw: raw["splits"]["train"]["a"]["shards"][number].update(values)


def change_first(number: int, name: str, value: int) -> Callable[[Json], None]:
    """The same of the first number of a shard's list."""
    return lambda raw: raw["splits"]["train"]["a"]["shards"][number][name].__setitem__(0, value)


MALFORMED: list[tuple[Callable[[Json], object], str]] = [
    (lambda raw: raw.update(version=99), "version 99"),
    (lambda raw: raw.pop("tokenizer"), "tokenizer"),
    (lambda raw: raw["tokenizer"].update(vocab_size="many"), "vocab_size"),
    (lambda raw: raw["splits"].update(test={}), "test"),
    (change_shard(0, file="../a.tar"), "outside"),
    (change_shard(0, file="/etc/passwd"), "outside"),
    (change_shard(0, owner="me"), "owner"),
    (change_shard(1, samples=2), "2 samples"),
    (change_first(1, "sample_tokens", 9), "add up"),
    (lambda raw: raw["splits"]["train"]["a"].update(tokens=5), "add up to 5"),
    (change_shard(0, file="pipe:touch canary"), "no shard's name"),
    (lambda raw: raw["tokenizer"].update(files=["../../x"]), "outside"),
    (change_first(0, "sample_offsets", 10**6), "lies outside"),
    (change_first(0, "sample_offsets", -2), "lies outside"),
    (change_shard(0, sample_tokens=[138 - 2**62, 2**62, 0]), "outside"),
    (change_shard(0, sample_tokens=["a"] * 3), "malformed"),
    (lambda raw: raw["splits"]["train"].update(a=[]), "malformed"),
]


@pytest.mark.parametrize("change, complaint", MALFORMED)
def test_malformed_manifest_is_refused(built: Built, change, complaint: str) -> None:
    path = built.root / MANIFEST
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))
    with pytest.raises(DataError, match=f"{MANIFEST}: .*{complaint}"):
        read_manifest(built.root)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00"])
def test_manifest_that_is_no_json_object_is_refused(built: Built, text: str) -> None:
    (built.root / MANIFEST).write_text(text)
    with pytest.raises(DataError, match="malformed manifest"):
        read_manifest(built.root)


def test_any_webdataset_client_reads_the_shards(built: Built) -> None:
    urls = [str(built.root / shard.file) for shard in built.manifest.splits["train"]["a"].shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert np.array_equal(
        np.concatenate([sample["tokens.npy"] for sample in samples]), built.tokens
    )
    assert samples[0]["__key__"] == "a-000000-000000"
    assert samples[0]["json"] == {"corpus": "a", "documents": [["première", 0], ["0/x.txt", 50]]}
    assert len({sample["__key__"] for sample in samples}) == len(samples) == 8


def test_shard_bytes_depend_on_the_samples_alone(built: Built, tmp_path: Path) -> None:
    again = build(tmp_path / "again", [[100, 1, 37], [250], [2, 2, 2, 90]])
    assert again.manifest == built.manifest
    with tarfile.open(built.root / "train/a/a-000000.tar") as tar:
        assert {(m.mtime, m.uid, m.gid, m.mode, m.uname) for m in tar} == {(0, 0, 0, 0o644, "")}


def test_offsets_point_at_the_first_token(built: Built) -> None:
    for shard in built.manifest.splits["train"]["a"].shards:
        data = (built.root / shard.file).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard.bytes, shard.sha256)
        for offset, count in zip(shard.sample_offsets, shard.sample_tokens, strict=True):
            assert offset % 64 == 0
            tokens_T = np.frombuffer(data, "<u2", count, offset)
            assert tokens_T.tobytes() in built.tokens.astype("<u2").tobytes()


def test_failed_writer_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyError),
        ShardWriter(tmp_path, "train/a/a-000000.tar", "a", VOCAB_SIZE) as writer,
    ):
        writer.add(np.arange(5), [("d", 0)])
        raise KeyError
    assert list((tmp_path / "train" / "a").iterdir()) == []


@pytest.mark.parametrize("vocab_size, dtype", [(65_536, np.uint16), (65_537, np.uint32)])
def test_dtype_follows_the_vocabulary(tmp_path: Path, vocab_size: int, dtype: type) -> None:
    built = build(tmp_path, [[1000], [77]], vocab_size)
    assert built.manifest.dtype == dtype
    stream = TokenStream(built.root, built.manifest, "train", "a")
    assert np.array_equal(stream.read(np.array([0]), stream.tokens)[0], built.tokens)
    assert verify(built.root) == []


@pytest.mark.parametrize("length", [1, 2, 33, 486, 2000])
@pytest.mark.parametrize("max_open", [1, 64])
def test_stream_is_the_ring_of_all_samples(built: Built, length: int, max_open: int) -> None:
    stream = TokenStream(built.root, built.manifest, "train", "a", max_open=max_open)
    starts_B = np.arange(stream.tokens)
    assert stream.tokens == len(built.tokens)
    windows_BL = stream.read(starts_B, length)
    assert windows_BL.dtype == np.int64
    positions_BL = (starts_B[:, None] + np.arange(length)) % stream.tokens
    assert np.array_equal(windows_BL, built.tokens[positions_BL])


def test_stream_takes_positions_modulo_its_length(built: Built) -> None:
    stream = TokenStream(built.root, built.manifest, "train", "a")
    starts_B = np.array([3, 3 + stream.tokens, 3 + 10**6 * stream.tokens])
    assert len(np.unique(stream.read(starts_B, 50), axis=0)) == 1
    assert stream.read(np.array([], np.int64), 5).shape == (0, 5)


def test_stream_refuses_what_the_manifest_does_not_describe(built: Built) -> None:
    for split, corpus in (("valid", "a"), ("train", "b")):
        with pytest.raises(DataError, match=f"no tokens of corpus '{corpus}' in split '{split}'"):
            TokenStream(built.root, built.manifest, split, corpus)
    shard = built.root / "train/a/a-000001.tar"
    data = shard.read_bytes()
    stream = TokenStream(built.root, built.manifest, "train", "a")
    shard.write_bytes(data[:-512])
    with pytest.raises(DataError, match=f"a-000001.tar: shard has {len(data) - 512} bytes"):
        stream.read(np.array([138]), 5)
    shard.unlink()
    with pytest.raises(DataError, match="a-000001.tar: .*No such file"):
        stream.read(np.array([138]), 5)


@pytest.mark.parametrize("vocab_size", [VOCAB_SIZE, 100_000])
def test_an_id_outside_the_vocabulary_never_reaches_the_model(
    tmp_path: Path, vocab_size: int
) -> None:
    built = build(tmp_path, [[100], [50]], vocab_size)
    data, first = bytearray(built.path(1).read_bytes()), built.shard(1).sample_offsets[0]
    size = built.manifest.dtype.itemsize
    data[first + 20 * size : first + 21 * size] = vocab_size.to_bytes(size, "little")
    built.confirm(bytes(data), 1)
    stream = TokenStream(built.root, built.manifest, "train", "a")
    stream.read(np.array([0, 90]), 30)
    with pytest.raises(DataError, match=f"a-00000[01].tar: token id {vocab_size} .*verify_shards"):
        stream.read(np.array([0, 91]), 30)


def test_verify_accepts_a_whole_directory(built: Built) -> None:
    seen: list[int] = []
    assert verify(built.root, seen.append) == []
    assert seen == [shard.bytes for shard in built.manifest.splits["train"]["a"].shards]


def test_verify_finds_every_truncation_and_flipped_byte(tmp_path: Path) -> None:
    built = build(tmp_path, [[300, 20]])
    shard = tmp_path / "train/a/a-000000.tar"
    data = shard.read_bytes()
    for cut in range(0, len(data), 256):
        shard.write_bytes(data[:cut])
        assert len(verify(tmp_path)) == 1, cut
        assert find_damage(shard, built.shard(), hashed=False), cut
    for place in range(0, len(data), 97):
        shard.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        assert len(verify(tmp_path)) == 1, place
        assert find_damage(shard, built.shard(), hashed=True), place


def test_verify_finds_swapped_shards_and_a_foreign_tokenizer(built: Built) -> None:
    first, second = built.root / "train/a/a-000000.tar", built.root / "train/a/a-000001.tar"
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    (built.root / "tokenizer" / "tokenizer.model").write_bytes(MODEL + b".")
    places = [problem.split(":")[0] for problem in verify(built.root)]
    names = [place.removeprefix(f"{built.root}/") for place in places]
    assert names == ["tokenizer", "train/a/a-000000.tar", "train/a/a-000001.tar"]
    (built.root / "tokenizer" / "tokenizer.model").unlink()
    assert any("tokenizer.model: missing" in problem for problem in verify(built.root))


def npy(array: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


GOOD = np.arange(10, dtype="<u2")
RECORD = {"corpus": "a", "documents": [["d", 0]]}


@pytest.mark.parametrize(
    "tokens, record, complaint",
    [
        (npy(np.array([1, VOCAB_SIZE], "<u2")), RECORD, "token id 8000"),
        (npy(GOOD.astype("<u4")), RECORD, "uint32"),
        (npy(GOOD.reshape(2, 5)), RECORD, "shape"),
        (npy(GOOD[:0]), RECORD, "shape"),
        (npy(np.zeros(SAMPLE_TOKENS + 1, "<u2")), RECORD, "shape"),
        (npy(np.array([print], object), allow_pickle=True), RECORD, "does not fit"),
        (npy(GOOD), RECORD | {"corpus": "b"}, "documents do not fit"),
        (npy(GOOD), RECORD | {"documents": [["d", 10]]}, "documents do not fit"),
        (npy(GOOD), RECORD | {"documents": []}, "documents do not fit"),
        (npy(GOOD), RECORD | {"documents": [["d", 4], ["e", 0]]}, "documents do not fit"),
        (npy(GOOD), {"corpus": "a"}, "cannot be read"),
        (npy(GOOD), RECORD, "differ from the manifest"),
        (b"", RECORD, "cannot be read"),
    ],
)
def test_verify_reads_the_samples_themselves(
    tmp_path: Path, tokens: bytes, record: dict, complaint: str
) -> None:
    """A shard with bad content, although its hash agrees with the manifest."""
    built = build(tmp_path, [[20]])
    built.confirm(tar_of([("k.tokens.npy", tokens), ("k.json", json.dumps(record).encode())]))
    (problem,) = verify(tmp_path)
    assert str(built.path()) in problem and complaint in problem


def tar_of(members: list[tuple[str, bytes] | tarfile.TarInfo]) -> bytes:
    """A tar of (name, data), and of bare headers, whatever they claim."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                file.write(member.tobuf(tarfile.GNU_FORMAT))
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return file.getvalue()


def header(
    name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, link: str = ""
) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, link
    return info


class Canary:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


PAIR = [("k.tokens.npy", npy(np.arange(20, dtype="<u2"))), ("k.json", json.dumps(RECORD).encode())]
HUGE = (
    b"\x93NUMPY\x01\x00v\x00"
    + f"{{'descr': '<u2', 'fortran_order': False, 'shape': ({10**12},)}}".ljust(118).encode()
)
HOSTILE = {
    "pth": lambda evil: [("k.pth", evil), ("k.json", b"{}")],
    "pyd": lambda evil: [*PAIR, ("k.pyd", evil)],
    "pickle for tokens": lambda evil: [("k.tokens.npy", evil), PAIR[1]],
    "pipe": lambda evil: [
        ("pipe:touch canary.tokens.npy", PAIR[0][1]),
        ("pipe:touch canary.json", PAIR[1][1]),
    ],
    "parent": lambda evil: [("../k.tokens.npy", PAIR[0][1]), ("../k.json", PAIR[1][1])],
    "absolute": lambda evil: [("/k.tokens.npy", PAIR[0][1]), ("/k.json", PAIR[1][1])],
    "dotted": lambda evil: [("k.x.tokens.npy", PAIR[0][1]), ("k.x.json", PAIR[1][1])],
    "same key twice": lambda evil: [*PAIR, *PAIR],
    "symbolic link": lambda evil: [
        header("k.tokens.npy", tarfile.SYMTYPE, link="/etc/passwd"),
        PAIR[1],
    ],
    "hard link": lambda evil: [
        header("k.tokens.npy", tarfile.LNKTYPE, link="/etc/passwd"),
        PAIR[1],
    ],
    "device": lambda evil: [header("k.tokens.npy", tarfile.CHRTYPE), PAIR[1]],
    "sparse": lambda evil: [header("k.tokens.npy", tarfile.GNUTYPE_SPARSE, 1 << 40), PAIR[1]],
    "a terabyte": lambda evil: [header("k.tokens.npy", size=1 << 40), PAIR[1]],
    "a terabyte's name": lambda evil: [header("k", tarfile.GNUTYPE_LONGNAME, 1 << 40), *PAIR],
    "a terabyte of records": lambda evil: [PAIR[0], header("k.json", size=1 << 40)],
    "array of a terabyte": lambda evil: [("k.tokens.npy", HUGE), PAIR[1]],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_members_are_refused_unread(tmp_path: Path, name: str) -> None:
    """A shard made in malice, its hash confirmed by its own manifest."""
    canary = tmp_path / "canary"
    built = build(tmp_path, [[20]])
    built.confirm(tar_of(HOSTILE[name](pickle.dumps(Canary(canary)))))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (problem,) = verify(tmp_path)
    assert str(built.path()) in problem and "cannot be read as a shard" in problem
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB
    assert not canary.exists()


def test_a_packed_bomb_is_not_unpacked(tmp_path: Path) -> None:
    built = build(tmp_path, [[20]])
    built.confirm(gzip.compress(bytes(200_000_000), 1))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (problem,) = verify(tmp_path)
    assert "cannot be read as a shard" in problem
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
