"""Opening a shard directory: all damage is found, and names cannot run code."""

from pathlib import Path

import numpy as np
import pytest

from gpt1_ds.base.errors import ConfigError, DataError
from gpt1_ds.data.manifest import read_manifest
from gpt1_ds.data.opening import local_shards, open_streams, sound_manifest
from gpt1_ds.distributed import collectives
from gpt1_ds.settings.sections import DataConfig
from tests.support.shards_built import build


def test_every_damage_is_found_before_training(tmp_path: Path):
    files = build(tmp_path, [[300, 20], [40]])
    data, size = DataConfig(shards=str(tmp_path)), DataConfig(shards=str(tmp_path), verify=False)
    path, whole = files.path(), files.path().read_bytes()
    assert sound_manifest(data, files.manifest).shards() == files.manifest.shards()
    for cut in range(0, len(whole), 256):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=rf"a-000000.tar: shard has {cut} bytes"):
            sound_manifest(size, files.manifest)
    for place in range(0, len(whole), 61):  # headers, tokens, padding
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(DataError, match="a-000000.tar: sha256 differs .*data.quarantine=true"):
            sound_manifest(data, files.manifest)
    path.write_bytes(bytes(len(whole)))
    with pytest.raises(DataError, match="a-000000.tar: sha256 differs"):
        sound_manifest(data, files.manifest)


def test_swapped_shards_are_found(tmp_path: Path):
    files = build(tmp_path, [[300], [300]])
    first, second = files.path(0), files.path(1)
    first.rename(tmp_path / "x")
    second.rename(first)
    (tmp_path / "x").rename(second)
    with pytest.raises(DataError, match=r"a-000000.tar: .*\(2 damaged shards"):
        sound_manifest(DataConfig(shards=str(tmp_path)), files.manifest)


def test_quarantine_leaves_damaged_shards_out_and_tells_the_loss(tmp_path: Path, capsys):
    files = build(tmp_path, {"a": [[300, 20], [40], [77]], "b": [[50]]})
    files.path(1).unlink()
    rest = sound_manifest(DataConfig(shards=str(tmp_path), quarantine=True), files.manifest)
    said = capsys.readouterr().out
    assert "quarantine train/a: 1 of 3 shards left out, 40 of 437 tokens" in said
    assert "quarantine train/a/a-000001.tar: shard is in the manifest but cannot be read" in said
    streams = open_streams(DataConfig(shards=str(tmp_path)), rest, "train")
    kept = np.concatenate([files.tokens[:320], files.tokens[360:]])
    assert (streams["a"].read(np.array([0]), 397)[0] == kept).all()
    for path in tmp_path.glob("train/a/*"):
        path.unlink()
    rest = sound_manifest(DataConfig(shards=str(tmp_path), quarantine=True), files.manifest)
    assert list(open_streams(DataConfig(shards=str(tmp_path)), rest, "train")) == ["b"]


@pytest.mark.parametrize(
    "shards", ["pipe:touch {}", "::pipe:touch {}", "pipe://touch {}", "file://x::pipe:touch {}"]
)
def test_no_name_of_shards_is_executed(tmp_path: Path, monkeypatch, shards: str):
    """What WebDataset's own opener would run or rewrite."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GOPEN_REWRITE", "shards=pipe:touch rewritten")
    for name in (shards.format("canary"), "shards/x"):
        with pytest.raises((ConfigError, DataError)):
            read_manifest(local_shards(DataConfig(shards=name)))
    assert not list(tmp_path.iterdir())


def check(folder: str) -> None:
    """On each rank: its own folder where `folder` names one for it."""
    root = folder.format(collectives.rank())
    sound_manifest(DataConfig(shards=root), read_manifest(root))


def test_ranks_with_different_shards_are_refused(ranks, tmp_path: Path):
    for rank in range(2):
        build(tmp_path / str(rank), [[100, rank + 1]])
    with pytest.raises(DataError, match="ranks see different manifests"):
        ranks(2).run("tests.data.test_opening:check", f"{tmp_path}/{{}}")


def test_ranks_share_the_check_and_all_refuse(ranks, tmp_path: Path):
    build(tmp_path, [[100], [100], [100]]).path(1).write_bytes(b"")
    with pytest.raises(DataError, match="a-000001.tar: shard has 0 bytes"):
        ranks(2).run("tests.data.test_opening:check", str(tmp_path))


def test_an_unknown_corpus_in_the_weights_is_named(tmp_path: Path):
    files = build(tmp_path, {"a": [[3000]], "b": [[400]]})
    data = DataConfig(shards=str(tmp_path), weights={"aa": 1.0})
    with pytest.raises(ConfigError, match="did you mean 'a'"):
        open_streams(data, files.manifest, "train")


def test_a_split_without_text_says_which_option_mends_it(tmp_path: Path):
    files = build(tmp_path, {"a": [[3000]], "b": [[1]]})
    for weights, split, fix in (
        ({}, "valid", "no validation text; .*--validation NAME=PATH"),
        ({"a": 0.0}, "train", "^data.weights: .*weight above 0; give one to a$"),
        ({"b": 1.0}, "train", "^data.weights: .*weight above 0; give one to a$"),
    ):
        data = DataConfig(shards=str(tmp_path), weights=weights)
        with pytest.raises(DataError, match=fix):
            open_streams(data, files.manifest, split)
    empty = files.manifest.without([shard.file for shard in files.manifest.shards()])
    with pytest.raises(DataError, match="no training text; .*hold less out"):
        open_streams(DataConfig(shards=str(tmp_path)), empty, "train")
